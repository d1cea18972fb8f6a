"""The tracer: all events of all sources, in order of time, to every sink that works."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_parts import ABOUT, event, result

from pykvm.trace.iterate import TraceIterator
from pykvm.trace.running_clock import RunningClock
from pykvm.trace.select import Selection
from pykvm.trace.tracer import FunctionSink, Tracer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent

NEVER = 1 << 62


class Script:
    """A source that gives what a test has written down, turn by turn."""

    def __init__(self, *turns: tuple[Sequence[int], int], last: Sequence[int] = (), vcpu: int = 0) -> None:
        """Each turn: the times of its events, and the time before which no more come."""
        self._turns = list(turns)
        self._last = last
        self._vcpu = vcpu

    def take(self) -> tuple[list[TraceEvent], int]:
        times, until = self._turns.pop(0) if self._turns else ((), self._last[0] if self._last else NEVER)
        return [event(time_ns, vcpu=self._vcpu) for time_ns in times], until

    def finish(self) -> list[TraceEvent]:
        return [event(time_ns, vcpu=self._vcpu) for time_ns in self._last]


class Broken:
    """A source or a sink that fails at one of its methods."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def method(*_: object) -> Any:
            self.calls.append(name)
            if name == self._at:
                raise ZeroDivisionError("on purpose")
            return ([], NEVER) if name == "take" else []

        return method


class Kept:
    """A sink that keeps everything it hears."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.heard: list[str] = []
        self.result: RunResult | None = None

    def open(self, about: TraceAbout) -> None:
        self.heard.append(f"open {about.image}")

    def write(self, events: Sequence[TraceEvent]) -> None:
        assert events
        self.times += [event.time_ns for event in events]

    def close(self, result: RunResult | None) -> None:
        self.heard.append("close")
        self.result = result


def run(*sources: Any, sinks: Sequence[Any] = (), turns: int = 8) -> Tracer:
    """A tracer that has seen all of its sources, without its thread."""
    tracer = Tracer()
    for sink in sinks:
        tracer.add_sink(sink)
    for source in sources:
        tracer.add_source(source)
    for _ in range(turns):
        tracer._turn()
    tracer.finish()
    tracer.close(result())
    return tracer


@pytest.fixture(autouse=True)
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' events are of the first nanoseconds since boot; so is now, or all would be late."""
    monkeypatch.setattr("pykvm.trace.tracer.time.monotonic_ns", lambda: 0)


# ---- order


def test_an_event_waits_for_one_that_may_still_come_before_it() -> None:
    """A source that is not yet past a moment holds back what others know of later ones."""
    sink = Kept()
    tracer = Tracer()
    tracer.add_sink(sink)
    tracer.add_source(Script(((10, 20), 30), ((), 30)))
    tracer.add_source(Script(((), 5), ((15,), 40)))
    tracer._turn()
    assert sink.times == []
    tracer._turn()
    assert sink.times == [10, 15, 20]


def test_nobody_waits_longer_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is stuck can delay the others, not stop them; what it says later is written late."""
    sink = Kept()
    tracer = Tracer()
    tracer.add_sink(sink)
    tracer.add_source(Script(((1000,), 2000), ((), 2000), ((), 2000)))
    tracer.add_source(Script(((), 0), ((), 0), ((500,), NEVER)))
    tracer._turn()
    assert sink.times == []
    monkeypatch.setattr("pykvm.trace.tracer.time.monotonic_ns", lambda: 2000 + 200_000_000)
    tracer._turn()
    assert sink.times == [1000]
    tracer._turn()
    assert sink.times == [1000, 500]


def test_memory_stays_flat_while_a_source_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many events are held back, the newest."""
    monkeypatch.setattr("pykvm.trace.tracer._HELD_MAX", 150)
    sink = Kept()
    tracer = Tracer()
    tracer.add_sink(sink)
    tracer.add_source(Script((range(100), 100), (range(100, 200), 200)))
    tracer.add_source(Script(((), 0), ((), 0)))
    tracer._turn()
    tracer._turn()
    assert len(tracer._held) == 150
    assert sink.times == list(range(50))


@st.composite
def scripts(draw: st.DrawFn) -> list[Script]:
    """Sources that keep their promises: each knows how far it is, and is told of in any number of turns."""
    made = []
    for vcpu in range(draw(st.integers(1, 4))):
        times = sorted(draw(st.lists(st.integers(0, 1000), max_size=30)))
        turns: list[tuple[Sequence[int], int]] = []
        for cut in draw(st.lists(st.integers(0, 9), max_size=5)):
            now, times = times[:cut], times[cut:]
            turns.append((now, draw(st.integers(now[-1] if now else 0, times[0] if times else 1000))))
        made.append(Script(*turns, last=times, vcpu=vcpu))
    return made


@given(scripts())
def test_all_events_come_in_order_of_time_whatever_the_turns(sources: list[Script]) -> None:
    """As long as no source breaks its word: sorted, complete, nothing twice."""
    wanted = sorted(t for s in sources for times in (*(turn[0] for turn in s._turns), s._last) for t in times)
    sink = Kept()
    run(*sources, sinks=[sink], turns=31)
    assert sink.times == wanted


# ---- sinks and sources that fail


def test_a_sink_that_raises_is_switched_off_and_named() -> None:
    """The others get everything; the broken one is closed, once, and bothered no more."""
    bad, good = Broken("write"), Kept()
    tracer = run(Script(((1, 2), 3), ((4,), 5)), sinks=[bad, good])
    assert good.times == [1, 2, 4]
    assert bad.calls == ["write", "close"]
    assert len(tracer.troubles) == 1
    assert "ZeroDivisionError: on purpose" in tracer.troubles[0]


@pytest.mark.parametrize("at", ["open", "close"])
def test_a_sink_may_fail_at_any_call(at: str) -> None:
    """It is reported once."""
    tracer = Tracer()
    tracer.add_sink(Broken(at))
    tracer.start(ABOUT)
    tracer.finish()
    tracer.close(None)
    assert len(tracer.troubles) == 1


@pytest.mark.parametrize("at", ["take", "finish"])
def test_a_source_that_raises_is_switched_off_and_named(at: str) -> None:
    """It holds nobody back."""
    sink = Kept()
    tracer = run(Broken(at), Script(((1,), 2), last=(3,)), sinks=[sink])
    assert sink.times == [1, 3]
    assert tracer.troubles == ["the trace to Broken was switched off: ZeroDivisionError: on purpose"]


def test_a_function_is_a_sink_and_named_by_its_name() -> None:
    """It is called with each event."""

    def hook(event: TraceEvent) -> None:
        seen.append(event.time_ns)
        if event.time_ns == 2:
            raise ValueError("enough")

    seen: list[int] = []
    tracer = run(Script(((1, 2, 3), 4)), sinks=[FunctionSink(hook)])
    assert seen == [1, 2]
    assert "hook" in tracer.troubles[0]
    assert "ValueError: enough" in tracer.troubles[0]


# ---- what a sink hears


def test_a_sink_hears_what_it_selected() -> None:
    """And is not called where nothing is left."""
    sink = Kept()
    tracer = Tracer()
    tracer.add_sink(sink, Selection(only=["hypercall"]))
    tracer.add_source(Script(((1, 2), 3)))
    tracer.finish()
    assert sink.times == []
    assert tracer.events == 2


def test_the_thread_reads_while_the_guest_runs() -> None:
    """Without anybody asking; and the sink hears beginning and end."""
    came = threading.Event()
    sink = Kept()
    tracer = Tracer()
    tracer.add_sink(FunctionSink(lambda _: came.set()))
    tracer.add_sink(sink)
    tracer.add_source(Script(((1,), 2)))
    tracer.start(ABOUT)
    assert came.wait(10)
    tracer.finish()
    ended = result()
    tracer.close(ended)
    assert sink.heard == ["open guest.elf", "close"]
    assert sink.result is ended


# ---- the clock


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**7), st.integers(-300, 300)), min_size=2, max_size=20), st.data())
def test_the_clock_never_goes_backwards(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Whatever the error of its measurements; and what was converted once is converted so again."""
    from pykvm.trace import running_clock

    tsc = ns = 10**9
    points = [(tsc, ns)]
    for ticks, error in steps:
        tsc += ticks * 3
        ns += max(ticks + error, 1)
        points.append((tsc, ns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running_clock, "_SHORTEST_NS", -(10**18))
        patch.setattr(running_clock, "clock_pair", iter(points).__next__)
        clock = RunningClock()
        seen: list[tuple[int, int]] = []
        for before, after in pairwise(points):
            line = clock.tick()
            at = data.draw(st.integers(before[0], after[0]))
            assert abs(line.at(before[0]) - before[1]) <= len(points)
            seen.append((at, line.at(at)))
        times = [when for _, when in seen]
        assert times == sorted(times)
        assert [clock.piece(at)[0].at(at) for at, _ in seen] == times


# ---- the iterator


class Machine:
    """Runs as long as it is not stopped, and tells its one sink of 2,000 events."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.stopped = threading.Event()
        self.sink: Any = None

    def add_sink(self, sink: Any, selection: Selection | None) -> None:
        self.sink = sink

    def stop(self) -> None:
        self.stopped.set()

    def run(self, timeout: float | None) -> RunResult:
        for start in range(0, 2000, 10):
            if self.stopped.is_set():
                break
            self.sink.write([event(start + i) for i in range(10)])
        if self.failure:
            raise self.failure
        return result(exits=2000)


@pytest.fixture(autouse=True)
def short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few events fill it."""
    monkeypatch.setattr("pykvm.trace.iterate._WAITING_MAX", 50)


def iterator(machine: Machine) -> TraceIterator:
    return TraceIterator(machine, None, None)  # type: ignore[arg-type]


def test_the_iterator_gives_every_event_and_then_the_result() -> None:
    """A slow loop holds the guest up, and nothing is lost."""
    found = iterator(Machine())
    assert [event.time_ns for event in found] == list(range(2000))
    assert found.result is not None
    assert found.result.stats.exits == 2000


def test_a_failure_of_the_run_is_raised_in_the_loop() -> None:
    """After the events that came before it."""
    found = iterator(Machine(OSError("no KVM")))
    with pytest.raises(OSError, match="no KVM"):
        list(found)


def test_leaving_the_loop_ends_the_run() -> None:
    """Also one that waits for its reader; close() returns when its thread has ended."""
    machine = Machine()
    with iterator(machine) as found:
        next(found)
        time.sleep(0.05)  # let it fill the queue: only then does it wait
    assert machine.stopped.is_set()
    assert threading.active_count() == 1 or not any(t.name == "traced-run" for t in threading.enumerate())
    assert next(found, None) is None
