"""Calls and returns become events: each return meets its call, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import lib
from pykvm.tap.calls import CallMatcher, CallSource, Record

if TYPE_CHECKING:
    from pykvm.trace.event import TraceEvent

READ, GETPID, EXIT, NANOSLEEP = 0, 39, 60, 35


def record(sequence: int, kind: int, task: int = 1, number: int = GETPID, **more: object) -> Record:
    values: dict[str, object] = {
        "tsc": sequence * 10,
        "cr3": 0x1000,
        "result": 0,
        "args": (0,) * 6,
        "rip": 0x400002,
        "rsp": 0x7000,
        "flags": 0,
        "vcpu": 0,
        "abi": lib.TAP_64,
    } | more
    return Record(sequence=sequence, task=task, number=number, kind=kind, **values)  # type: ignore[arg-type]


def events_of(*records: Record) -> list[TraceEvent]:
    matcher = CallMatcher(lambda tsc: tsc)
    events: list[TraceEvent] = []
    for each in records:
        matcher.feed(each, events.append)
    matcher.finish(events.append)
    return events


def test_two_processes_are_inside_at_once() -> None:
    """Returns come in any order and on any vCPU; the task tells whose they are."""
    events = events_of(
        record(0, lib.TAP_CALL, task=1, number=READ, vcpu=0),
        record(1, lib.TAP_CALL, task=2, number=GETPID, vcpu=0),
        record(2, lib.TAP_RETURN, task=2, number=GETPID, result=42, vcpu=1),
        record(3, lib.TAP_RETURN, task=1, number=READ, result=-9, vcpu=1),
    )
    assert [(e.name, e.result, e.time_ns, e.duration_ns) for e in events] == [
        ("getpid", 42, 10, 10),
        ("read", -9, 0, 30),
    ]


def test_what_does_not_return_is_told_at_once() -> None:
    """exit has no result and no duration."""
    (event,) = events_of(record(0, lib.TAP_CALL, number=EXIT, args=(7, 0, 0, 0, 0, 0)))
    assert (event.name, event.result, event.duration_ns) == ("exit", None, None)
    assert event.args == (("arg0", "7"),)


def test_a_killed_task_leaves_its_call_behind() -> None:
    """When its kernel stack is another task's, the call of before is told without a result."""
    events = events_of(
        record(0, lib.TAP_CALL, number=READ),
        record(1, lib.TAP_CALL, number=GETPID),
        record(2, lib.TAP_RETURN, number=GETPID, result=3),
    )
    assert [(e.name, e.result) for e in events] == [("read", None), ("getpid", 3)]


def test_a_return_whose_call_was_before_the_tap_is_no_event() -> None:
    """It is counted, and nothing is made up for it."""
    matcher = CallMatcher(lambda tsc: tsc)
    events: list[TraceEvent] = []
    matcher.feed(record(0, lib.TAP_RETURN), events.append)
    assert not events
    assert matcher.unmatched == 1


def test_a_signal_hides_the_result_and_it_is_found() -> None:
    """A call that a signal ended returns into the handler; its true result is in the signal's frame."""
    (event,) = events_of(
        record(0, lib.TAP_CALL, number=NANOSLEEP),
        record(
            1,
            lib.TAP_RETURN,
            number=NANOSLEEP,
            result=0,
            rip=0x401000,
            rsp=0x6000,
            flags=lib.TAP_SIGNAL,
            args=(14, 0x400002, (1 << 64) - 4, 0, 0, 0),
        ),
    )
    assert event.result == "-4 EINTR (signal 14)"


def test_a_call_that_is_made_again_says_so() -> None:
    """Linux sends the program back to its SYSCALL instruction."""
    (event,) = events_of(
        record(0, lib.TAP_CALL, number=READ), record(1, lib.TAP_RETURN, number=READ, rip=0x400000)
    )
    assert event.result == "? ERESTART (to be made again)"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_every_call_is_told_once(steps: list[tuple[int, bool]]) -> None:
    """Whatever the order of calls and returns, there are as many events as calls."""
    records = [
        record(at, lib.TAP_CALL if is_call else lib.TAP_RETURN, task=task)
        for at, (task, is_call) in enumerate(steps)
    ]
    times = Counter(event.time_ns for event in events_of(*records))
    assert times == Counter(each.tsc for each in records if each.kind == lib.TAP_CALL)


@given(st.permutations(range(8)), st.integers(1, 8))
def test_records_by_two_ways_are_put_in_order(order: list[int], batch: int) -> None:
    """They come from a ring and from Python's own hands; their numbers decide, and a gap is waited for."""
    made = [record(at, lib.TAP_RETURN if at % 2 else lib.TAP_CALL, result=at // 2) for at in range(8)]
    batches = [[made[i] for i in order[at : at + batch]] for at in range(0, 8, batch)]
    source = CallSource(lambda: batches.pop(0) if batches else [], list)
    events: list[TraceEvent] = []
    while batches:
        events += source.take()[0]
    events += source.finish()
    assert sorted(event.result for event in events) == [0, 1, 2, 3]  # type: ignore[type-var]
    assert source.matcher.unmatched == 0


def test_remarks_become_notes() -> None:
    """What the tap has to say, now and at the end, is in the trace."""
    source = CallSource(list, lambda: ["now"], last=lambda: ["at the end"])
    assert [(e.kind, e.name) for e in source.take()[0]] == [("note", "now")]
    assert [e.name for e in source.finish()] == ["now", "at the end"]


@pytest.mark.parametrize("result", [-1, -4095, 5, 1 << 19])
def test_results_are_numbers_where_a_reader_wants_numbers(result: int) -> None:
    """Errors and counts; what is an address is hexadecimal text."""
    call = record(0, lib.TAP_CALL)
    assert events_of(call, record(1, lib.TAP_RETURN, result=result))[0].result == result
    assert events_of(call, record(1, lib.TAP_RETURN, result=0x7F00_0000_0000))[0].result == "0x7f0000000000"
