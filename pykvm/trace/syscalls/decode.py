"""One syscall in words: its name and arguments when it is made, what it brought back when it returns.

::

    call = describe(257, args, read=read)              openat(AT_FDCWD, "/etc/passwd", O_RDONLY)
    call.returned(3, read=read)                        openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3

The text is that of strace 6. Everything that comes from the program is a claim: nothing here raises,
whatever the number, the arguments and the memory are, and no line grows without bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from pykvm.trace.syscalls.call import Call
from pykvm.trace.syscalls.errnos import errno_name, is_error
from pykvm.trace.syscalls.kinds import Plan, plans, rows
from pykvm.trace.syscalls.results import plain_result, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["STRING_BYTES", "SyscallText", "describe", "result_text", "syscall_name", "syscall_number"]

STRING_BYTES = 32
_MASKS = {"x86-64": (1 << 64) - 1, "i386": (1 << 32) - 1}
_COLUMN = 39  # strace's: the results of most calls stand below each other
_INTERRUPTED = frozenset({-4, -512, -513, -514, -516})  # EINTR and the kernel's ERESTART…


class SyscallText(NamedTuple):
    """A syscall in words, and as the numbers that it was made of.

    `result` is "" until the call has returned, and "?" if it never will; `value` is the signed result, None
    until then. `texts` has None where an argument is not there. `str()` gives strace's line.
    """

    name: str
    number: int
    args: tuple[int, ...]
    abi: str
    string_bytes: int
    plan: Plan | None
    texts: tuple[str | None, ...]
    result: str = ""
    value: int | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """The printed arguments in order; those that this call does not have are left out."""
        return tuple([text for text in self.texts if text is not None])

    @property
    def error(self) -> str:
        """The error's name, "ENOENT"; "" if there is none."""
        return errno_name(-self.value) if self.value is not None and is_error(self.value) else ""

    @property
    def call(self) -> str:
        """The call without its result: close(3)."""
        return f"{self.name}({', '.join(self.arguments)})"

    def __str__(self) -> str:
        return f"{self.call:<{_COLUMN}} = {self.result}" if self.result else self.call

    def returned(self, result: int, *, read: Callable[[int, int], bytes]) -> Self:
        """The same call with its result and what the kernel has filled in.

        `result` is what the kernel left in RAX (EAX), signed or not; `read` as in describe(), at the
        time of the return. Never raises.
        """
        value = _signed(result, self.abi)
        plan, texts = self.plan, self.texts
        if plan is None or not (plan.after or plan.result):
            text = plain_result("", value)
        else:
            is_64bit = self.abi == "x86-64"
            call = Call(self.args, read, is_64bit=is_64bit, result=value, string_bytes=self.string_bytes)
            if plan.after:
                texts = _texts_after(call, plan, texts)
            text = result_of(plan.result, call)
        return type(self)(*self[:6], texts, text, value)


def describe(
    number: int,
    args: Sequence[int],
    *,
    read: Callable[[int, int], bytes],
    abi: str = "x86-64",
    string_bytes: int = STRING_BYTES,
) -> SyscallText:
    """The syscall `number` with up to six `args` as it is made, before the kernel has seen it.

    `read(gva, size_bytes)` gives the program's memory; it may give fewer bytes or raise where there is
    none. `abi` is "x86-64" (SYSCALL) or "i386" (INT 0x80, SYSENTER); KeyError for another. Of strings and
    buffers `string_bytes` bytes are printed. Apart from that nothing raises: an unknown number is
    "syscall_0x3e7" with six hexadecimal arguments.
    """
    mask = _MASKS[abi]
    words = tuple([arg & mask for arg in args[:6]])
    if len(words) < 6:
        words += (0,) * (6 - len(words))
    plan = plans(abi)[number]
    if plan is None:
        numbers = tuple([f"{word:#x}" if word else "0" for word in words])
        return SyscallText(syscall_name(number, abi), number, words, abi, string_bytes, None, numbers)
    if plan.variants:
        plan = plan.variants.get(words[plan.variant_position] & plan.variant_mask, plan)
    call = Call(words, read, is_64bit=abi == "x86-64", string_bytes=string_bytes)
    texts = tuple([text(call, words[position]) for position, text in plan.before])
    result = "?" if plan.result == "never" else ""
    return SyscallText(plan.name, number, words, abi, string_bytes, plan, texts, result)


def _texts_after(call: Call, plan: Plan, before: tuple[str | None, ...]) -> tuple[str | None, ...]:
    result = call.result or 0
    failed = is_error(result)
    if failed and result not in _INTERRUPTED:
        return before
    texts = list(before)
    for i, argument in plan.after:
        if (argument.when == "!") == failed:
            text = argument.text(call, call.args[argument.position])
            texts[i] = _changed(before[i], text, argument.kind) if argument.when == "~" else text
    return tuple(texts)


def _changed(before: str | None, after: str | None, kind: str) -> str | None:
    """What the kernel has changed: [128 => 16] for a length, {…} => {…} for the rest."""
    if before == after or before is None or after is None:
        return after
    if kind == "lenp" and before[0] == after[0] == "[":
        return f"{before[:-1]} => {after[1:]}"
    return f"{before} => {after}"


def _signed(result: int, abi: str) -> int:
    """RAX, or EAX, as the signed number that it is."""
    mask = _MASKS[abi]
    result &= mask
    return result - mask - 1 if result > mask >> 1 else result


def result_text(number: int, result: int, *, abi: str = "x86-64") -> str:
    """A result alone: "3", "0x7f0000000000" for mmap, "-1 ENOENT (No such file or directory)"."""
    row = rows(abi).get(number)
    kind = row.result if row else ""
    return plain_result(kind, _signed(result, abi), is_64bit=abi == "x86-64")


def syscall_name(number: int, abi: str = "x86-64") -> str:
    """The kernel's name: "read" for 0, "syscall_0x3e7" for a number that is none."""
    row = rows(abi).get(number)
    return row.name if row else f"syscall_{number:#x}"


def syscall_number(name: str, abi: str = "x86-64") -> int | None:
    """The number of a syscall by name, None for no such name."""
    return next((row.number for row in rows(abi).values() if row.name == name), None)
