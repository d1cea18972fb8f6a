"""The paravirtual ABI, host side: what a guest asks for, by whichever way the argument struct's gpa comes.

::

    OUT, MMIO ─> HypercallPort ─┐                       ┌─ CALLS: names for traces
    VMCALL ─────────────────────┴> Hypercalls.at(gpa) ──┤
    ring ─> CallRings ──────────> Hypercalls.answer() ──┴─ one table: number -> function of the struct

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

__all__ = ["CALLS", "HypercallPort", "HypercallRegister", "HypercallShape", "Hypercalls"]

_SIZE: int = ffi.sizeof("struct hypercall")
_RANGE_BYTES: int = ffi.sizeof("struct memory_range")
_LONGEST = 1 << 20
_SHOWN = 32
_FOREVER = (1 << 64) - 1
_VERSION: int = lib.HYPERCALL_ABI_VERSION


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
    lib.HC_FEATURES: HypercallShape("features"),
    lib.HC_MEMORY_MAP: HypercallShape("memory_map", ("gpa", "size")),
    lib.HC_STATS: HypercallShape("stats", ("gpa", "size")),
    lib.HC_CALL_RING: HypercallShape("call_ring", ("gpa", "size", "flags")),
    lib.HC_BLOCK_INFO: HypercallShape("block_info", ("gpa", "size")),
    lib.HC_BLOCK_READ: HypercallShape("block_read", ("sector", "count", "gpa")),
    lib.HC_BLOCK_WRITE: HypercallShape("block_write", ("sector", "count", "gpa")),
    lib.HC_NOTHING: HypercallShape("unreadable", ("gpa",)),
}
"""Every call of the ABI by its number; the last one stands in traces for what could not be read."""


def _no_disk(_: Any) -> int:
    return int(lib.HC_ENODEV)


class Hypercalls:
    """The calls, each a function of its struct to its result; the same by every transport.

    Whatever the guest says is a claim. A bad pointer or length is an error to the guest, HC_EFAULT or
    HC_EINVAL, which stands as the call's result in the trace too.
    """

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
        """`record` gives the open trace record of what is being answered, or NULL.

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
            lib.HC_VERSION: _version,
            lib.HC_EXIT: self._exit,
            lib.HC_CONSOLE_WRITE: self._console_write,
            lib.HC_TIME: lambda _: time.monotonic_ns(),
            lib.HC_MARK: self._mark,
            lib.HC_CONSOLE_READ: self._console_read,
            lib.HC_RANDOM: self._random,
            lib.HC_YIELD: self._yield,
            lib.HC_FEATURES: lambda _: int(lib.HC_HAS_OUT | lib.HC_HAS_OUT << lib.HC_PREFERRED_SHIFT),
            lib.HC_MEMORY_MAP: self._memory_map,
            lib.HC_BLOCK_INFO: _no_disk,
            lib.HC_BLOCK_READ: _no_disk,
            lib.HC_BLOCK_WRITE: _no_disk,
            **(more or {}),
        }
        self._not_in_rings = (lib.HC_YIELD, lib.HC_CALL_RING)

    def at(self, gpa: int) -> None:
        """Do the call whose struct is at `gpa`, and write its result there.

        Raises GuestAddressError if the struct itself is not in guest RAM: there is no place for an answer.
        """
        record = self._record()
        try:
            raw = self._memory.read(gpa, _SIZE)
            self._memory.view(gpa, _SIZE, writable=True).release()
        except GuestAddressError:
            if record:
                told = {"number": lib.HC_NOTHING, "result": lib.HC_EFAULT, "arg": [gpa]}
                lib.record_call(record, ffi.new("struct hypercall *", told), lib.RECORD_RESULT)
            raise
        request = ffi.from_buffer("struct hypercall *", bytearray(raw))
        if record:
            lib.record_call(record, request, 0)
        request.result = self._result(request)
        self._memory.write(gpa + lib.HC_RESULT, request.result.to_bytes(8, "little", signed=True))
        if record:
            lib.record_call(record, request, lib.RECORD_RESULT)

    def answer(self, request: Any) -> int:
        """The result of a call out of a ring; `request` is our own copy of its struct."""
        if request.number in self._not_in_rings:  # they are about the vCPU, which has gone on
            return int(lib.HC_EINVAL)
        return self._result(request)

    def _result(self, request: Any) -> int:
        call = self._calls.get(request.number)
        try:
            return call(request) if call else int(lib.HC_ENOSYS)
        except GuestAddressError:
            return int(lib.HC_EFAULT)

    # ---- the console, time, the end

    def _exit(self, request: Any) -> int:
        self._on_exit(request.arg[0])
        return 0

    def _console_write(self, request: Any) -> int:
        gpa, size = request.arg[0], request.arg[1]
        if size > _LONGEST:
            return int(lib.HC_EINVAL)
        text = self._memory.read(gpa, size)
        self._show(text)
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
        self._show(data)
        self._memory.write(request.arg[0], data)
        return len(data)

    def _show(self, data: bytes) -> None:
        """The first bytes that a call moves, for the trace."""
        if record := self._record():
            lib.record_text(record, data[:_SHOWN], len(data[:_SHOWN]))

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

    # ---- what the guest may know of its machine

    def fill(self, request: Any, data: bytes) -> int:
        """Put as much of `data` as fits at the call's gpa: the bytes written.

        Raises GuestAddressError if its buffer (arg0, arg1) is not wholly in RAM.
        """
        gpa, size = request.arg[0], request.arg[1]
        self._memory.view(gpa, size, writable=True).release()
        self._memory.write(gpa, data[:size])
        return min(len(data), int(size))

    def _memory_map(self, request: Any) -> int:
        slots = self._memory.slots
        ranges = ffi.new("struct memory_range[]", len(slots))
        for found, slot in zip(ranges, slots, strict=True):
            found.start, found.size_bytes = slot.gpa, slot.size_bytes
            found.kind = lib.MEMORY_ROM if slot.read_only else lib.MEMORY_RAM
        whole = request.arg[1] // _RANGE_BYTES * _RANGE_BYTES
        self.fill(request, bytes(ffi.buffer(ranges))[:whole])
        return len(slots)


def _version(request: Any) -> int:
    """A guest that was built against an older version finds that one; 0 is from before there were two."""
    return min(max(int(request.abi), 1), _VERSION)


class HypercallPort:
    """A device that takes the gpa of a call's struct."""

    def __init__(self, calls: Hypercalls) -> None:
        self._calls = calls

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - every offset is the same
        """Answer the ABI's version, so that a guest can find out whether it runs on pykvm."""
        return _VERSION.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - the call starts at any offset
        """Do the call whose struct is at the gpa in `data`. Raises GuestAddressError as Hypercalls.at()."""
        self._calls.at(int.from_bytes(data, "little"))


class HypercallRegister(HypercallPort):
    """The same in memory: a store at its beginning is the call, others are lost."""

    def write(self, offset: int, data: bytes) -> None:
        """Do the call, see HypercallPort."""
        if offset == 0:
            super().write(offset, data)
