"""TraceRecord: one exit as the C loop stamped it, decoded into a value; the ring it comes from."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from pykvm._native import ffi, lib
from pykvm.exits import reason_name
from pykvm.hypercall import CALLS
from pykvm.value import value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.trace.clock import TscClock

__all__ = ["RECORD_BYTES", "Call", "TraceRecord", "TraceRecords", "TraceRing"]

RECORD_BYTES: int = ffi.sizeof("struct trace_record")
_REGISTERS = "rip rsp rflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_SPECIAL = "cr0 cr3 cr4 efer cs_base cpl code_bits".split()
_VERBS = {
    lib.VERB_DISCARD: "discard",
    lib.VERB_APPEND: "append",
    lib.VERB_DOORBELL: "doorbell",
    lib.VERB_HYPERCALL: "hypercall",
    lib.VERB_STEP: "step",
}


class Call(NamedTuple):
    """A hypercall: its number, its four arguments, and its result, None if it was not answered."""

    number: int
    args: tuple[int, ...]
    result: int | None

    def __str__(self) -> str:
        shape = CALLS.get(self.number)
        name, args = shape or (f"call {self.number:#x}", ("arg0", "arg1", "arg2", "arg3"))
        given = ", ".join(f"{name}={value:#x}" for name, value in zip(args, self.args, strict=False))
        answer = "" if self.result is None else f" = {self.result}"
        return f"{name}({given}){answer}"


@value
class TraceRecord:
    """One exit. Times are CLOCK_MONOTONIC ns: KVM_RUN called, returned, and the guest going on.

    `reason` is the header's word ("IO", "MMIO"); `address` a port, gpa, MSR or number; `data` the first
    bytes (at most 8) of what was written or answered; `verb` which fast verb of the C loop answered,
    "" when Python did. `regs` holds what was synced: rip and the general registers, or also cr3 and cpl.
    `is_done` is False for an exit that the guest never went on from. `call` is the hypercall, if it was
    one; `text` the first 32 bytes of a string I/O or of what a hypercall wrote.

    A hypercall out of a ring has a record too, although it is no exit: its `reason` is "RING", its `address`
    the ring's number, and it has no registers.
    """

    vcpu: int
    reason: str
    enter_ns: int
    exit_ns: int
    resume_ns: int
    address: int
    size: int
    count: int
    is_write: bool
    data: bytes
    verb: str
    is_done: bool
    regs: dict[str, int]
    call: Call | None = None
    text: bytes = b""

    def __str__(self) -> str:
        rip = f" at rip={self.regs['rip']:#x}" if "rip" in self.regs else ""
        if self.call:
            return f"{self.reason} hypercall {self.call}{rip}"
        if self.reason not in ("IO", "MMIO"):
            return f"{self.reason}{rip}"
        times = f" {self.count} times" if self.count > 1 else ""
        value = int.from_bytes(self.data[: self.size], "little")
        verb, way = ("wrote", "to") if self.is_write else ("read", "from")
        place = f"port {self.address:#x}" if self.reason == "IO" else f"gpa {self.address:#x}"
        return f"{self.reason} {verb} {value:#0{2 + 2 * self.size}x} {way} {place}{times}{rip}"


def _decode(record: Any, clock: TscClock) -> TraceRecord:
    flags = record.flags
    regs = {name: getattr(record, name) for name in _REGISTERS} if flags & lib.RECORD_REGS else {}
    if flags & lib.RECORD_SREGS:
        regs.update((name, getattr(record, name)) for name in _SPECIAL)
    size = record.size * record.count if record.count else record.size
    return TraceRecord(
        vcpu=record.vcpu,
        reason=reason_name(record.reason),
        enter_ns=clock.ns(record.enter_tsc),
        exit_ns=clock.ns(record.exit_tsc),
        resume_ns=clock.ns(record.resume_tsc),
        address=record.address,
        size=record.size,
        count=record.count or 1,
        is_write=bool(flags & lib.RECORD_WRITE),
        data=bytes(ffi.buffer(record.data))[: min(size, 8)],
        verb=_VERBS.get(record.verb, ""),
        is_done=bool(flags & lib.RECORD_DONE),
        regs=regs,
        call=_call(record, flags),
        text=bytes(ffi.buffer(record.text, record.text_bytes)),
    )


def _call(record: Any, flags: int) -> Call | None:
    if not flags & lib.RECORD_CALL:
        return None
    result = record.call_result if flags & lib.RECORD_RESULT else None
    return Call(record.call_number, tuple(record.call_args), result)


class TraceRecords(Sequence[TraceRecord]):
    """Records in a row as the exit loop wrote them, 320 bytes each, decoded when they are looked at."""

    def __init__(self, raw: bytes, clock: TscClock) -> None:
        """`raw` holds `struct trace_record`s; `clock` turns their TSC values into ns."""
        self._raw = raw[: len(raw) // RECORD_BYTES * RECORD_BYTES]
        self._clock = clock

    @classmethod
    def merged(cls, parts: Iterable[bytes], clock: TscClock) -> TraceRecords:
        """The records of several vCPUs, each in order, as one row in order of the exits' times."""
        filled = [part for part in parts if part]
        raw = b"".join(filled)
        if len(filled) > 1:
            times = ffi.from_buffer("struct trace_record[]", raw)
            order = sorted(range(len(times)), key=lambda i: times[i].exit_tsc)
            raw = b"".join(raw[i * RECORD_BYTES : (i + 1) * RECORD_BYTES] for i in order)
        return cls(raw, clock)

    def __len__(self) -> int:
        return len(self._raw) // RECORD_BYTES

    @overload
    def __getitem__(self, index: int) -> TraceRecord: ...
    @overload
    def __getitem__(self, index: slice) -> TraceRecords: ...
    def __getitem__(self, index: int | slice) -> TraceRecord | TraceRecords:
        found = range(len(self))[index]
        if isinstance(found, int):
            at = found * RECORD_BYTES
            record = ffi.from_buffer("struct trace_record *", self._raw[at : at + RECORD_BYTES])
            return _decode(record, self._clock)
        parts = (self._raw[i * RECORD_BYTES : (i + 1) * RECORD_BYTES] for i in found)
        return TraceRecords(b"".join(parts), self._clock)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # it equals tuples of what it holds, whose hash it does not know

    def __repr__(self) -> str:
        return f"<{len(self)} trace records>"


class TraceRing:
    """The records of one vCPU: the C loop produces, take() consumes.

    `capacity` is a power of two. `keep_newest` makes it a flight recorder that overwrites the oldest;
    otherwise a full ring stops the vCPU until it is drained, or, with `drop`, drops and counts.
    """

    def __init__(self, ring: Any, capacity: int, *, keep_newest: bool, drop: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE  # a page fault costs many records
        self._map = mmap.mmap(-1, max(capacity * RECORD_BYTES, mmap.PAGESIZE), flags=flags)
        self._hold = ffi.from_buffer(self._map)
        self._ring = ring
        self._keep_newest = keep_newest
        self._capacity = capacity
        mode = lib.RING_DROP if drop else lib.RING_STOP
        self._mode = lib.RING_OVERWRITE if keep_newest else mode
        self.install()

    def install(self) -> None:
        """Be the vCPU's ring, and empty, from now on; the vCPU is stopped."""
        ring = self._ring
        ring.records = ffi.cast("struct trace_record *", self._hold)
        ring.capacity, ring.mode = self._capacity, self._mode
        ring.head = ring.tail = 0

    @property
    def dropped(self) -> int:
        """Records lost because the ring was full, by the user's choice."""
        return int(self._ring.dropped)

    def take(self) -> bytes:
        """The raw bytes of all completed records, in order; a stopping ring is empty afterwards."""
        head, capacity = self._ring.head, self._ring.capacity
        tail = max(head - capacity, 0) if self._keep_newest else self._ring.tail
        first, last = tail % capacity, head % capacity
        if head == tail:
            return b""
        if first < last:
            raw = self._map[first * RECORD_BYTES : last * RECORD_BYTES]
        else:
            raw = self._map[first * RECORD_BYTES : capacity * RECORD_BYTES] + self._map[: last * RECORD_BYTES]
        if not self._keep_newest:
            self._ring.tail = head
        return raw

    def close(self) -> None:
        """Give the memory back; the vCPU must not run any more."""
        self._ring.capacity = 0
        self._ring.records = ffi.NULL
        ffi.release(self._hold)
        self._map.close()
