"""The paravirtual ABI, host side: what a guest asks for with one OUT of an argument struct's gpa.

The numbers, offsets and error codes have their home in guests/include/hypercall_abi.h. The C exit loop
answers the frequent calls; what it does not know, or finds wrong, comes here.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm._native import ffi, lib
from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.memory import GuestMemory

__all__ = ["CALLS", "HypercallPort", "HypercallShape"]

_SIZE: int = ffi.sizeof("struct hypercall")
_LONGEST = 1 << 20
_SHOWN = 32
_FOREVER = (1 << 64) - 1


class HypercallShape(NamedTuple):
    """How a call is shown: its name, and the names of the arguments that it takes."""

    name: str
    args: tuple[str, ...] = ()


CALLS = {
    lib.HC_VERSION: HypercallShape("version"),
    lib.HC_EXIT: HypercallShape("exit", ("code",)),
    lib.HC_CONSOLE_WRITE: HypercallShape("console_write", ("gpa", "size")),
    lib.HC_TIME: HypercallShape("time"),
    lib.HC_MARK: HypercallShape("mark", ("value",)),
    lib.HC_CONSOLE_READ: HypercallShape("console_read", ("gpa", "size")),
    lib.HC_RANDOM: HypercallShape("random", ("gpa", "size")),
    lib.HC_YIELD: HypercallShape("yield", ("ns", "flags")),
    lib.HC_TRACE_RING: HypercallShape("trace_ring", ("gpa", "size")),
    lib.HC_TRACE_DRAIN: HypercallShape("trace_drain"),
    lib.HC_FAULT: HypercallShape("fault", ("gpa", "size")),
}
"""Every call of the ABI by its number."""


class HypercallPort:
    """The device at layout.HYPERCALL: reads the struct in guest memory, does the call, writes the result."""

    def __init__(
        self,
        memory: GuestMemory,
        *,
        output: Callable[[bytes], None],
        on_exit: Callable[[int], None],
        on_mark: Callable[[int], None],
        record: Callable[[], Any],
        read: Callable[[int], bytes | None],
        wait: Callable[[int | None, bool], None],
        more: Mapping[int, Callable[[Any], int]] | None = None,
    ) -> None:
        """`record` gives the open trace record of the exit that is being answered, or NULL.

        `read` gives at most that many bytes of the console's input, b"" at its end, None if there is
        nothing yet. `wait` returns after so many ns (None: never), or with True when there is input.
        `more` are calls beyond the common ones: number -> function of the struct, its result.
        """
        self._memory = memory
        self._record = record
        self._output = output
        self._on_exit = on_exit
        self._on_mark = on_mark
        self._read_input = read
        self._wait = wait
        self._calls: dict[int, Callable[[Any], int]] = {
            lib.HC_VERSION: lambda _: int(lib.HYPERCALL_ABI_VERSION),
            lib.HC_EXIT: self._exit,
            lib.HC_CONSOLE_WRITE: self._console_write,
            lib.HC_TIME: lambda _: time.monotonic_ns(),
            lib.HC_MARK: self._mark,
            lib.HC_CONSOLE_READ: self._console_read,
            lib.HC_RANDOM: self._random,
            lib.HC_YIELD: self._yield,
            **(more or {}),
        }

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - every offset is the same
        """Answer the ABI's version, so that a guest can find out whether it runs on pykvm."""
        return int(lib.HYPERCALL_ABI_VERSION).to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - the call starts at any offset
        """Do the call whose struct is at the gpa in `data`.

        Raises GuestAddressError if the struct itself is not in guest RAM: there is no place for an answer.
        """
        gpa = int.from_bytes(data, "little")
        raw = self._memory.read(gpa, _SIZE)
        self._memory.view(gpa, _SIZE, writable=True).release()
        request = ffi.from_buffer("struct hypercall *", bytearray(raw))
        call = self._calls.get(request.number)
        if record := self._record():
            lib.record_call(record, request, 0)
        try:
            result = call(request) if call else int(lib.HC_ENOSYS)
        except GuestAddressError:
            result = int(lib.HC_EFAULT)
        self._memory.write(gpa + lib.HC_RESULT, result.to_bytes(8, "little", signed=True))
        if record:
            request.result = result
            lib.record_call(record, request, lib.RECORD_RESULT)

    def _exit(self, request: Any) -> int:
        self._on_exit(request.arg[0])
        return 0

    def _console_write(self, request: Any) -> int:
        gpa, size = request.arg[0], request.arg[1]
        if size > _LONGEST:
            return int(lib.HC_EINVAL)
        text = self._memory.read(gpa, size)
        if record := self._record():
            lib.record_text(record, text[:_SHOWN], len(text[:_SHOWN]))
        self._output(text)
        return int(size)

    def _mark(self, request: Any) -> int:
        self._on_mark(request.arg[0])
        return 0

    def _target(self, request: Any) -> int:
        """How many bytes the guest wants at its gpa. Raises GuestAddressError if they are not all in RAM."""
        gpa, size = request.arg[0], request.arg[1]
        if size <= _LONGEST:
            self._memory.view(gpa, size, writable=True).release()
        return int(size)

    def _console_read(self, request: Any) -> int:
        size = self._target(request)  # first: input that has nowhere to go must not get lost
        if size > _LONGEST:
            return int(lib.HC_EINVAL)
        data = self._read_input(size)
        if data is None:
            return int(lib.HC_EAGAIN)
        if record := self._record():
            lib.record_text(record, data[:_SHOWN], len(data[:_SHOWN]))
        self._memory.write(request.arg[0], data)
        return len(data)

    def _random(self, request: Any) -> int:
        size = self._target(request)
        if size > _LONGEST:
            return int(lib.HC_EINVAL)
        self._memory.write(request.arg[0], os.urandom(size))
        return size

    def _yield(self, request: Any) -> int:
        ns, flags = request.arg[0], request.arg[1]
        if flags & ~lib.HC_YIELD_INPUT:
            return int(lib.HC_EINVAL)
        self._wait(None if ns == _FOREVER else ns, bool(flags & lib.HC_YIELD_INPUT))
        return 0
