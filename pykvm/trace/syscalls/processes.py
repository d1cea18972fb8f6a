"""Structs about processes: how a child is made and ends, signals, capabilities, scheduling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.numbers import number_in, signed_in
from pykvm.trace.syscalls.pointers import behind, record, struct
from pykvm.trace.syscalls.scalars import hexadecimal, signal_name, signal_set
from pykvm.trace.syscalls.strings import address, buffer
from pykvm.trace.syscalls.structs import layouts
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

__all__ = ["PROCESSES", "PROCESS_LISTS"]

_SA_RESTORER = 0x0400_0000
_SIGCHLD, _FAULTS = 17, (4, 7, 8, 11)  # SIGILL SIGBUS SIGFPE SIGSEGV
_CLD_EXITED, _SI_QUEUE, _SI_TIMER, _SI_KERNEL = 1, -1, -2, 0x80
_CLONE_FILLED = (("pidfd", 0x1000), ("parent_tid", 0x10_0000))  # CLONE_PIDFD, CLONE_PARENT_SETTID
_CLAMP_BYTES = 56  # a struct sched_attr with the two limits of utilisation


def _wait_status(call: Call, gva: int) -> str:
    """How a child ended (<sys/wait.h>); without a child there is nothing to say."""
    data = call.exactly(gva, 4) if gva and call.result else None
    return address(gva) if data is None else f"[{{{_status(number_in(data))}}}]"


def _status(status: int) -> str:
    number, code = status & 0x7F, status >> 8 & 0xFF
    if status == 0xFFFF:
        return "WIFCONTINUED(s)"
    if number == 0x7F:
        return f"WIFSTOPPED(s) && WSTOPSIG(s) == {signal_name(code)}"
    if number:
        core = " && WCOREDUMP(s)" if status & 0x80 else ""
        return f"WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(number)}{core}"
    return f"WIFEXITED(s) && WEXITSTATUS(s) == {code}"


def _action(_call: Call, fields: Fields) -> str:
    """The kernel's struct sigaction, which differs from the C library's."""
    flags = fields["sa_flags"]
    restorer = f", sa_restorer={address(fields['sa_restorer'])}" if flags & _SA_RESTORER else ""
    handler = {0: "SIG_DFL", 1: "SIG_IGN"}.get(fields["sa_handler"]) or f"{fields['sa_handler']:#x}"
    return (
        f"{{sa_handler={handler}, sa_mask={signal_set(fields['sa_mask'])}"
        f", sa_flags={flag_sets()['sa_flags'].text(flags)}{restorer}}}"
    )


def _siginfo(call: Call, fields: Fields) -> str:
    """What came with a signal; which fields there are depends on the signal and si_code."""
    number, code = fields.signed("si_signo"), fields.signed("si_code")
    if not number:
        return "{}"
    data, word = fields.behind("_fields"), call.word_bytes
    first, second = signed_in(data[:4]), number_in(data[4:8])
    sent = f"si_int={signed_in(data[8:12])}, si_ptr={address(number_in(data[8 : 8 + word]))}"
    kind = value_sets()["si_code"].text(code)
    if number == _SIGCHLD and code > 0:
        return f"{{si_signo=SIGCHLD, {_child(call, code, data)}}}"
    if number in _FAULTS and 0 < code < _SI_KERNEL:
        kind = value_sets()["segv_code"].text(code) if number == _FAULTS[-1] else str(code)
        rest = f"si_addr={address(number_in(data[:word]))}"
    elif code == _SI_TIMER:
        rest = f"si_timerid={hexadecimal(None, first)}, si_overrun={second}, {sent}"
    else:
        rest = f"si_pid={first}, si_uid={second}" + (f", {sent}" if code == _SI_QUEUE else "")
    return f"{{si_signo={signal_name(number)}, si_code={kind}, {rest}}}"


def _child(call: Call, code: int, data: bytes) -> str:
    """The fields of SIGCHLD; the two times are longs, aligned as such."""
    word = call.word_bytes
    at = -(-12 // word) * word
    status = signed_in(data[8:12])
    return (
        f"si_code={value_sets()['cld_code'].text(code)}, si_pid={signed_in(data[:4])}"
        f", si_uid={number_in(data[4:8])}"
        f", si_status={status if code == _CLD_EXITED else signal_name(status)}"
        f", si_utime={signed_in(data[at : at + word])}, si_stime={signed_in(data[at + word : at + 2 * word])}"
    )


def _capabilities(data: bytes) -> str:
    """The three sets of capget and capset, each in two halves (capabilities(7), version 3)."""
    names = ("effective", "permitted", "inheritable")
    halves = [
        (number_in(data[4 * i : 4 * i + 4]), number_in(data[12 + 4 * i : 16 + 4 * i])) for i in range(3)
    ]
    texts = [
        f"{name}={_capability_bits(high << 32 | low)}"
        for name, (low, high) in zip(names, halves, strict=True)
    ]
    return f"{{{', '.join(texts)}}}"


def _capability_bits(bits: int) -> str:
    names = value_sets()["capability"].names
    known = [f"1<<{name}" for number, name in names.items() if bits >> number & 1]
    rest = bits & ~sum(1 << number for number in names)
    return "|".join([*known, f"{rest:#x}"] if rest else known) or "0"


def _clone_args(call: Call, gva: int, size_bytes: int) -> str:
    """clone3's arguments and, after it, the numbers that the kernel has put where they point to."""
    layout = layouts(is_64bit=call.is_64bit)["clone_args"]
    data = call.exactly(gva, layout.size_bytes) if gva and size_bytes >= layout.size_bytes else None
    if data is None:
        return address(gva)
    fields = layout.fields(data)
    text = _clone_text(call, fields)
    made = _made_by_clone(call, fields) if call.result is not None else ""
    return f"{text} => {{{made}}}" if made else text


def _clone_text(call: Call, fields: Fields) -> str:
    """Pointers that are NULL are left out, as they are for most calls."""
    pointers = [f"{name}={fields[name]:#x}" for name in ("pidfd", "child_tid", "parent_tid") if fields[name]]
    parts = [
        f"flags={flag_sets()['clone_flags'].text(fields['flags'])}",
        *pointers,
        f"exit_signal={signal_name(fields['exit_signal'])}",
        f"stack={address(fields['stack'])}",
        f"stack_size={hexadecimal(call, fields['stack_size'])}",
    ]
    if fields["tls"]:
        parts.append(f"tls={fields['tls']:#x}")
    return f"{{{', '.join(parts)}}}"


def _made_by_clone(call: Call, fields: Fields) -> str:
    found = []
    for name, flag in _CLONE_FILLED:
        number = call.exactly(fields[name], 4) if fields["flags"] & flag else None
        if number is not None:
            found.append(f"{name}=[{signed_in(number)}]")
    return ", ".join(found)


def _message_text(call: Call, gva: int, size_bytes: int) -> str:
    """A System V message: a type, then `size_bytes` of text."""
    kind = call.exactly(gva, call.word_bytes) if gva else None
    if kind is None:
        return address(gva)
    return f"{{mtype={signed_in(kind)}, mtext={buffer(call, gva + call.word_bytes, size_bytes)}}}"


def _select_mask(call: Call, gva: int) -> str:
    """The last argument of pselect6: a pointer to a set of signals, and its size."""
    words = call.words(gva, 2) if gva else []
    if len(words) < 2:
        return address(gva)
    data = call.exactly(words[0], 8) if words[0] else None
    mask = address(words[0]) if data is None else signal_set(number_in(data))
    return f"{{sigmask={mask}, sigsetsize={words[1]}}}"


def _scheduling(call: Call, gva: int) -> str:
    """A struct sched_attr, of the size that it says itself."""
    size = call.exactly(gva, 4) if gva else None
    has_clamp = size is not None and number_in(size) >= _CLAMP_BYTES
    return struct("sched_attr_clamp" if has_clamp else "sched_attr")(call, gva)


PROCESSES: dict[str, Callable[[Call, int], str]] = {
    "capabilities": behind(24, _capabilities),
    "old_sigaction": record("old_sigaction", _action),
    "sched_attr": _scheduling,
    "select_mask": _select_mask,
    "sigaction": record("sigaction", _action),
    "siginfo": record("siginfo", _siginfo),
    "wait_status": _wait_status,
}

PROCESS_LISTS: dict[str, Callable[[Call, int, int], str]] = {
    "clone_args": _clone_args,
    "message_text": _message_text,
}
