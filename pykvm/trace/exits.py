"""The first producer: each vCPU's exits, from the records of the C loop to events.

One record becomes one event: kind "hypercall" for a call of the paravirtual ABI and for VMCALL, "mark" for a
byte at the POST port, "step" for a sampled instruction, "exit" for everything else. A step stands in the
layer of the guest, which executes the instruction; its duration is what its exit took.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from threading import Condition
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm._native import lib
from pykvm.exits import reason_name
from pykvm.hypercall import CALLS
from pykvm.trace.event import TraceEvent
from pykvm.trace.record import RECORD_BYTES
from pykvm.trace.running_clock import FRACTION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.bus import Bus
    from pykvm.trace.record import TraceRing
    from pykvm.trace.running_clock import RunningClock

__all__ = ["RECORD", "ExitNames", "ExitSource"]

RECORD = Struct("<QQQQ8sIIHBBBBxBQ144xQ24x80x")
"""struct trace_record of vcpu_run.h, as far as every event needs it; a test compares the offsets."""
_CALL = Struct("<4QqI4x32s")
_CALL_AT = 240
_EXIT_TSC = Struct("<Q")
_EXIT_TSC_AT = 8

_IO, _MMIO, _HYPERCALL = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO, lib.KVM_EXIT_HYPERCALL
_MSRS = (lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR)
_WHAT = {  # what record.address means
    lib.KVM_EXIT_DEBUG: "pc",
    lib.KVM_EXIT_INTERNAL_ERROR: "suberror",
    lib.KVM_EXIT_FAIL_ENTRY: "hardware_reason",
    lib.KVM_EXIT_SYSTEM_EVENT: "type",
}
_VERBS = {
    getattr(lib, name): name.removeprefix("VERB_").lower() for name in dir(lib) if name.startswith("VERB_")
}
_SAID_OTHERWISE = (lib.VERB_NONE, lib.VERB_HYPERCALL, lib.VERB_STEP)
_DATA_BYTES = 8
_WRITE, _DONE, _SYNCED = lib.RECORD_WRITE, lib.RECORD_DONE, lib.RECORD_REGS | lib.RECORD_SREGS
_STEP, _BY_RING = lib.VERB_STEP, lib.RECORD_BY_RING
_CALLED, _RESULT = lib.RECORD_CALL, lib.RECORD_RESULT
_SHAPES_MAX = 4096  # the guest chooses addresses: what is remembered about them is bounded
_PLACES_MAX = 1 << 16
_BACKLOG = 4
_MARGIN_NS = 50_000  # between the TSC being read in C and being seen here
_LONGEST_WAIT_S = 0.05

_USER = 3
_FLAGS_AT, _TEXT_BYTES_AT = 51, 55

_Args = tuple[tuple[str, int | str], ...]
_Shape = tuple[str, str, str, _Args, int]  # via, kind, name, args, bytes of data
_new = tuple.__new__  # a NamedTuple's own constructor takes three times as long


class _Bounded(dict[Any, Any]):
    """What was made once, by what it was made from; emptied when the guest has made it too large."""

    def __init__(self, make: Callable[[Any], Any], most: int) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: Any) -> Any:
        if len(self) >= self._most:
            self.clear()
        made = self[key] = self._make(key)
        return made


class ExitNames:
    """What exits are called: devices from the machine's buses, places from the image's symbols.

    `shapes` maps (reason, address, size, count, is_write, verb) to via, kind, name, arguments, and how many
    bytes of data there are; `places` a linear address to its text.
    """

    def __init__(self, ports: Bus, mmio: Bus, place: Callable[[int], str] = hex) -> None:
        """`place` makes a text of a linear address, such as "main+0x10"."""
        self._buses = {_IO: ports, _MMIO: mmio}
        self.shapes: dict[tuple[int, ...], _Shape] = _Bounded(lambda key: self._make(*key), _SHAPES_MAX)
        self.places: dict[int, str] = _Bounded(place, _PLACES_MAX)

    def _make(self, reason: int, address: int, size: int, count: int, is_write: int, verb: int) -> _Shape:
        name = reason_name(reason)
        if verb == lib.VERB_STEP:
            return name, "step", name, (), 0
        if reason in self._buses:
            return self._access(reason, address, size, count, is_write, verb)
        if reason in (_HYPERCALL, _BY_RING):
            what, size = ("number", _DATA_BYTES) if reason == _HYPERCALL else ("ring", 0)
            return name, "hypercall", "vmcall", ((what, address),), size
        if reason in _MSRS:
            return name, "exit", name, (("msr", address),), _DATA_BYTES
        if reason in _WHAT:
            return name, "exit", name, ((_WHAT[reason], address),), 0
        return name, "exit", name, (), 0

    def _access(self, reason: int, address: int, size: int, count: int, is_write: int, verb: int) -> _Shape:
        found = self._buses[reason].find(address)
        where, ways = ("port", ("in", "out")) if reason == _IO else ("gpa", ("read", "write"))
        args: list[tuple[str, int | str]] = [("way", ways[is_write]), (where, address)]
        if found:
            args += [("device", type(found[0]).__name__), ("offset", found[1])]
        args.append(("size", size))
        if count > 1:
            args.append(("count", count))
        if verb not in _SAID_OTHERWISE:
            args.append(("verb", _VERBS.get(verb, str(verb))))
        is_mark = reason == _IO and is_write and address in layout.POST
        length = min(size * max(count, 1), _DATA_BYTES)
        name = reason_name(reason)
        return name, "mark" if is_mark else "exit", name, tuple(args), length


class ExitSource:
    """One vCPU's exits as a Source. collect() is called by any thread, take() by the tracer's.

    Nothing is lost: a vCPU whose ring is full, and whose records have not been taken for four rings, waits in
    collect() for the tracer.
    """

    def __init__(
        self,
        loop: Any,
        ring: TraceRing,
        *,
        clock: RunningClock,
        names: ExitNames,
        keep: Callable[[bytes], object] | None = None,
        describe: Callable[[memoryview], str] | None = None,
    ) -> None:
        """`loop` is the vCPU's struct exit_loop; `keep` gets the raw records too, `describe` makes `code`."""
        self._loop = loop
        self._ring = ring
        self._clock = clock
        self._names = names
        self._keep = keep
        self._describe = describe
        self._waiting: deque[bytes] = deque()
        self._changed = Condition()
        self._is_abandoned = self._is_cut = False

    def collect(self, is_over: Callable[[], bool]) -> None:
        """Take what the ring holds; wait while too much is waiting already, unless the run is over."""
        with self._changed:
            self._collect()
            while len(self._waiting) > _BACKLOG and not self._is_abandoned and not is_over():
                self._changed.wait(_LONGEST_WAIT_S)

    def _collect(self) -> None:
        if self._is_cut:
            return
        if raw := self._ring.take():
            self._waiting.append(raw)
            if self._keep:
                self._keep(raw)

    def abandon(self) -> None:
        """Nobody will take any more: let no vCPU wait."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()

    def cut(self) -> None:
        """The vCPU is stopped and gets another ring: what this one holds is the last; let nobody wait."""
        with self._changed:
            self._collect()
            self._is_cut = self._is_abandoned = True
            self._changed.notify_all()

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """See Source. At most what was collected at once, so that memory stays flat."""
        until = self._until()
        with self._changed:
            self._collect()
            raw = self._waiting.popleft() if self._waiting else b""
            if self._waiting:
                until = min(until, _EXIT_TSC.unpack_from(self._waiting[0], _EXIT_TSC_AT)[0])
            self._changed.notify_all()
        line = self._clock.tick()
        events: list[TraceEvent] = []
        self._decode(raw, events.append)
        return events, line.at(until) - _MARGIN_NS

    def finish(self) -> Sequence[TraceEvent]:
        """See Source."""
        return self.take()[0]

    def _until(self) -> int:
        """The TSC before which no further record's exit can lie.

        A vCPU inside KVM_RUN will leave it later than now. One outside may have read its clock already, and
        not have told the time yet: then it is later than its last entry, and that is all one knows.
        """
        now: int = lib.tsc_now()
        loop = self._loop
        if not loop.outside:
            return now
        exit_is_known = loop.open or loop.pending
        return int(min(now, loop.exit_tsc if exit_is_known else loop.enter_tsc))

    def _decode(self, raw: bytes, put: Callable[[TraceEvent], None]) -> None:
        """The hot loop, about 2 µs a record: what repeats is looked up, what is rare is called."""
        shapes, places, piece, describe = (
            self._names.shapes,
            self._names.places,
            self._clock.piece,
            self._describe,
        )
        base_tsc = end_tsc = base_ns = rate = at = 0
        view = memoryview(raw)
        # fmt: off
        for (
            enter, left, resume, address, data, reason, count, vcpu, size, flags, verb, cpl,
            text_bytes, rip, cr3,
        ) in RECORD.iter_unpack(raw):
            # fmt: on
            if not base_tsc <= left < end_tsc:
                (base_tsc, base_ns, rate), end_tsc = piece(left)
            via, kind, name, args, length = shapes[reason, address, size, count, flags & _WRITE, verb]
            result: int | None = None
            from_vcpu: int | None = vcpu
            stay: int | None = (left - enter) * rate >> FRACTION
            thread = ""
            layer, where, shown = "pykvm", places[rip], data[:length]
            if verb == _STEP:
                layer = "guest user" if cpl == _USER else "guest kernel"
            if flags & _SYNCED != _SYNCED:
                cpl, rip, where, cr3 = _some(flags, cpl, rip, cr3)  # noqa: PLW2901 - other names cost time
            if flags & _CALLED or text_bytes:
                kind, name, args, result, shown = _call(view[at : at + RECORD_BYTES], (kind, name, args))
                if reason == _BY_RING:
                    from_vcpu, stay, thread = None, None, f"ring {address}"
            event = (
                base_ns + ((left - base_tsc) * rate >> FRACTION),
                kind,
                layer,
                name,
                (resume - left) * rate >> FRACTION,
                from_vcpu,
                via,
                args,
                result,
                stay,
                cpl,
                rip,
                where,
                cr3,
                shown,
                "",
                describe(view[at : at + RECORD_BYTES]) if describe else "",
                thread,
                "",
            )
            put(_new(TraceEvent, event))
            at += RECORD_BYTES


def _some(flags: int, cpl: int, rip: int, cr3: int) -> tuple[int | None, int | None, str, int | None]:
    """CPL, RIP, place and CR3 of a record that does not have them all."""
    has_special = flags & lib.RECORD_SREGS
    where = (rip, f"{rip:#x}") if flags & lib.RECORD_REGS else (None, "")
    return (cpl if has_special else None, *where, cr3 if has_special else None)


def _call(record: memoryview, shape: tuple[str, str, _Args]) -> tuple[str, str, _Args, int | None, bytes]:
    """What a hypercall, or a string longer than 8 bytes, has beyond the others."""
    *values, result, number, text = _CALL.unpack_from(record, _CALL_AT)
    flags, text_bytes = record[_FLAGS_AT], record[_TEXT_BYTES_AT]
    if not flags & _CALLED:
        return *shape, None, text[:text_bytes]
    known = CALLS.get(number)
    names = known.args if known else ("arg0", "arg1", "arg2", "arg3")
    name = known.name if known else f"call {number:#x}"
    answer = result if flags & _RESULT and flags & _DONE else None
    return "hypercall", name, tuple(zip(names, values, strict=False)), answer, text[:text_bytes]
