"""From the tap's records to events: every call meets its return, and none is lost on the way."""

from __future__ import annotations

import time
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm._native import ffi, lib
from pykvm.trace.event import TraceEvent
from pykvm.trace.syscalls import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.trace.syscalls import SyscallText

__all__ = ["ABIS", "CallMatcher", "CallSource", "Record"]

ABIS = {lib.TAP_64: "x86-64", lib.TAP_32: "i386"}
_TASKS_MAX = 1 << 16  # the guest chooses what tells tasks apart
_SOON_NS = 100_000_000  # half of the tracer's window: what takes longer is told before it is over
_SMALL = 1 << 20
_MARGIN_NS = 1_000_000  # a record is stamped before it is put into the ring
_SYSCALL_BYTES = 2
_NEVER = 1 << 63
_BY_TIME = itemgetter(0)


class Record(NamedTuple):
    """One call or return as the exit loop stamped it; see struct tap_record. `words` is the call in words."""

    sequence: int
    tsc: int
    task: int
    cr3: int
    number: int
    result: int
    args: tuple[int, ...]
    rip: int
    rsp: int
    flags: int
    vcpu: int
    kind: int
    abi: int
    process: int = 0
    thread: int = 0
    name: str = ""
    words: SyscallText | None = None
    place: tuple[int, int] = (0, 0)
    """The id of its cgroup, the number of its PID namespace."""

    @classmethod
    def of(cls, raw: Any, sequence: int | None = None, words: SyscallText | None = None) -> Record:
        """The record in a struct tap_record."""
        return cls(
            raw.sequence if sequence is None else sequence,
            raw.tsc,
            raw.task,
            raw.cr3,
            signed(raw.number),
            signed(raw.result),
            tuple(raw.args),
            raw.rip,
            raw.rsp,
            raw.flags,
            raw.vcpu,
            raw.kind,
            raw.abi,
            raw.process,
            raw.thread,
            ffi.string(raw.name, 16).decode(errors="replace"),
            words,
            (raw.group, raw.pid_namespace),
        )


def signed(value: int) -> int:
    """A 64-bit register as the signed number that it is."""
    return value - (1 << 64) if value >> 63 else value


class CallMatcher:
    """Finds for each return its call. Both are known by the task: where the kernel keeps its registers.

    A call that never returns (exit, a task that was killed in it) is told when its task is used again or at
    the end; its result stays None. A return without a call began before the tap, and is not told.
    """

    def __init__(
        self, ns: Callable[[int], int], container: Callable[[tuple[int, int]], str] = lambda _place: ""
    ) -> None:
        """`ns` makes CLOCK_MONOTONIC of a TSC value, `container` a container's name of a Record's place."""
        self._ns = ns
        self._container = container
        self._open: dict[int, tuple[Record, int]] = {}
        self._told: set[int] = set()
        self.calls = self.returns = self.unmatched = 0

    @property
    def oldest_ns(self) -> int:
        """The start of the oldest call that is open and not told yet; very late if there is none."""
        return min((at for task, (_, at) in self._open.items() if task not in self._told), default=_NEVER)

    def feed(self, record: Record, put: Callable[[TraceEvent], None]) -> None:
        """Take the next record; events go to `put`."""
        if record.kind == lib.TAP_CALL:
            self.calls += 1
            self._end(record.task, put)
            if len(self._open) >= _TASKS_MAX:
                self._end(next(iter(self._open)), put)
            self._open[record.task] = record, self._ns(record.tsc)
            if record.number in _never_return(record.abi):
                self._end(record.task, put)
            return
        self.returns += 1
        found = self._open.pop(record.task, None)
        self._told.discard(record.task)
        if found is None or found[0].abi != record.abi:
            self.unmatched += 1
            return
        put(self._event(*found, record, self._ns(record.tsc)))

    def tell_long(self, before_ns: int, put: Callable[[TraceEvent], None]) -> None:
        """Tell the calls that began before `before_ns` and have not returned, once."""
        for task, (call, at) in self._open.items():
            if at < before_ns and task not in self._told:
                self._told.add(task)
                put(self._event(call, at))

    def finish(self, put: Callable[[TraceEvent], None]) -> None:
        """Tell all calls that are open."""
        for task in list(self._open):
            self._end(task, put)

    def _end(self, task: int, put: Callable[[TraceEvent], None]) -> None:
        """The task's open call, if there is one, will not return."""
        found = self._open.pop(task, None)
        if found and task not in self._told:
            put(self._event(*found))
        self._told.discard(task)

    def _event(self, call: Record, at_ns: int, back: Record | None = None, end_ns: int = 0) -> TraceEvent:
        """With the container that its task was in when it called."""
        return _event(call, at_ns, back, end_ns, self._container(call.place))


@cache
def _never_return(abi: int) -> frozenset[int]:
    """The numbers of the calls that end the task: their words have a result from the beginning."""
    made = ((number, describe(number, (), read=_nothing, abi=ABIS[abi])) for number in range(lib.TAP_NUMBERS))
    return frozenset(number for number, words in made if words.result)


def _nothing(_gva: int, _size: int) -> bytes:
    return b""


def _event(call: Record, at_ns: int, back: Record | None, end_ns: int, container: str) -> TraceEvent:
    """The event of a call that has returned, or of one that has not."""
    words = call.words or describe(call.number, call.args, read=_nothing, abi=ABIS[call.abi])
    if back and back.words:
        words = back.words
    return TraceEvent(
        at_ns,
        "syscall",
        "guest kernel",
        words.name,
        duration_ns=max(end_ns - at_ns, 0) if back else None,
        vcpu=call.vcpu,
        args=tuple((f"arg{number}", text) for number, text in enumerate(words.arguments)),
        result=_result(call, back) if back else None,
        cpl=3,
        rip=call.rip,
        cr3=call.cr3,
        task=_task(call),
        container=container,
    )


def _task(call: Record) -> str:
    if not call.process:
        return call.name
    return f"{call.name}[{call.process if call.thread == call.process else f'{call.process}:{call.thread}'}]"


def _result(call: Record, back: Record) -> int | str:
    """What came back: a number, in words where that is an address, and what a signal did to it."""
    result, rip = back.result, back.rip
    if back.flags & lib.TAP_SIGNAL and back.args[1] in (call.rip, call.rip - _SYSCALL_BYTES):
        signal, rip, result = back.args[0], back.args[1], signed(back.args[2])
        if rip == call.rip:
            return f"{result} {_error(result)}(signal {signal})"
    if rip == call.rip - _SYSCALL_BYTES and back.rsp == call.rsp:
        return "? ERESTART (to be made again)"
    if 0 <= result < _SMALL or -4096 < result < 0:
        return result
    return f"{result & (1 << 64) - 1:#x}"


def _error(result: int) -> str:
    from errno import errorcode  # noqa: PLC0415 - rare

    return f"{errorcode[-result]} " if -result in errorcode else ""


class CallSource:
    """The tap's events as a Source of the tracer's; see pykvm.trace.event."""

    def __init__(
        self,
        take: Callable[[], Sequence[Record]],
        look: Callable[[], Sequence[str]],
        *,
        last: Callable[[], Sequence[str]] = tuple,
        unfinished: bool = False,
        container: Callable[[tuple[int, int]], str] = lambda _place: "",
    ) -> None:
        """`take` gives new records, `look` the tap's own remarks so far, `last` those at the end.

        With `unfinished`, a call that takes long is told twice: without an end, and again with it. By
        default it is told once, late.
        """
        from pykvm.trace.running_clock import RunningClock  # noqa: PLC0415 - measures when it is made

        self._take, self._look, self._last, self._unfinished = take, look, last, unfinished
        self._clock = RunningClock()
        self._clock.tick()
        self.matcher = CallMatcher(self._clock.ns, container)
        self._waiting: dict[int, Record] = {}
        self._next = 0

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """See Source."""
        now = time.monotonic_ns()
        events: list[TraceEvent] = [_note(text) for text in self._look()]
        records = self._take()
        self._clock.tick()
        self._feed(records, events.append)
        if self._unfinished:
            self.matcher.tell_long(now - _SOON_NS, events.append)
        events.sort(key=_BY_TIME)
        return events, min(self.matcher.oldest_ns, now - _MARGIN_NS)

    def finish(self) -> Sequence[TraceEvent]:
        """See Source."""
        events = list(self.take()[0])
        self.matcher.finish(events.append)
        events += [_note(text) for text in self._last()]
        return sorted(events, key=_BY_TIME)

    def _feed(self, records: Sequence[Record], put: Callable[[TraceEvent], None]) -> None:
        """Records come from several vCPUs by two ways; each has its number, and none is left out."""
        waiting = self._waiting
        waiting.update((record.sequence, record) for record in records)
        while record := waiting.pop(self._next, None):
            self._next += 1
            self.matcher.feed(record, put)


def _note(text: str) -> TraceEvent:
    return TraceEvent(time.monotonic_ns(), "note", "pykvm", text)
