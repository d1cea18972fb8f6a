"""The summary: histograms that are right, rows that add up, a table that people can read."""

from __future__ import annotations

import json
from itertools import starmap
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from trace_parts import Memory, event, result, stats, written

from pykvm.trace.histogram import Histogram
from pykvm.trace.summary import Summary, SummarySink, shares, sums

if TYPE_CHECKING:
    from pykvm.trace.event import TraceEvent

DURATIONS = st.lists(st.integers(0, 10**13), min_size=1, max_size=200)


@given(DURATIONS)
def test_histogram_is_exact_where_it_says_so(values: list[int]) -> None:
    """Count, total, least and most."""
    found = Histogram()
    for value in values:
        found.add(value)
    assert (found.count, found.total) == (len(values), sum(values))
    assert (found.least, found.most) == (min(values), max(values))


@given(DURATIONS, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_right_to_one_part_in_sixty_four(values: list[int], part: float) -> None:
    """Of the value that stands at that place among all of them."""
    found = Histogram()
    for value in values:
        found.add(value)
    exact = sorted(values)[max(round(part * len(values)), 1) - 1]
    assert abs(found.quantile(part) - exact) <= exact / 64


def test_histogram_stays_small() -> None:
    """A hundred thousand different values are some thousand buckets."""
    found = Histogram()
    for value in range(0, 10**9, 10_009):
        found.add(value)
    assert len(found._buckets) < 2000


figures = st.integers(0, 10**12)


@given(figures, figures, figures, figures, figures, st.integers(1, 8))
def test_shares_add_up_to_the_wall_time(
    guest: int, own: int, python: int, wait: int, other: int, vcpus: int
) -> None:
    """Of all vCPUs: nothing is counted twice, and nothing is left out."""
    total = guest + own + python + wait + other
    wall = -(-total // vcpus)
    run = stats(wall_ns=wall, guest_ns=guest, own_ns=own, answer_ns=own + python + wait, wait_ns=wait)
    assert sum(share.ns for share in shares(run, vcpus)) == wall * vcpus


def test_a_hypercall_counts_as_itself_and_as_the_exit_that_brought_it() -> None:
    """So the table of exits adds up to all exits."""
    found = Summary()
    for one in (event(), event(), event(kind="hypercall", name="time", args=(), duration_ns=7)):
        found.add(one)
    assert {name: row.count for name, row in found.rows["hypercall"].items()} == {"time": 1}
    exits = found.rows["exit"]
    assert {name: row.count for name, row in exits.items()} == {
        "IO out 0xe9 DebugConsole": 2,
        "IO hypercall": 1,
    }
    assert sum(row.total for row in exits.values()) == 207


def test_an_unknown_duration_counts_as_nothing_but_counts() -> None:
    """An exit that the guest never came back from has been one."""
    found = Summary()
    found.add(event(duration_ns=None))
    assert [(row.count, row.total) for row in found.rows["exit"].values()] == [(1, 0)]


def test_rows_stay_bounded() -> None:
    """A guest that touches every address there is gets a row "others"."""
    found = Summary()
    for address in range(3000):
        found.add(event(args=(("way", "out"), ("gpa", address), ("size", 1))))
    rows = found.rows["exit"]
    assert len(rows) <= 1001
    assert sum(row.count for row in rows.values()) == 3000


def test_tables_say_who_had_the_time_and_what_took_it() -> None:
    """A title, a row for each name with all its columns, and sums."""
    out = Memory()
    sink = SummarySink(out)  # type: ignore[arg-type]
    many = [event(duration_ns=100 * i) for i in range(1, 101)]
    many += [event(kind="syscall", name="write", via="", layer="guest kernel", args=(), guest_ns=None)]
    written(sink, many, result(wall_ns=10**6, guest_ns=900_000, own_ns=10_000, answer_ns=60_000))
    text = out.contents.decode()
    lines = [line.split() for line in text.splitlines()]
    assert "time of 2 vCPUs: exit 0" in text
    assert ["guest,", "in", "KVM_RUN", "900", "µs", "45.0", "%"] in lines
    assert ["C", "loop", "10.0", "µs", "0.5", "%"] in lines
    assert ["Python:", "devices,", "hypercalls", "50.0", "µs", "2.5", "%"] in lines
    assert ["2", "x", "wall", "time", "2.00", "ms", "100.0", "%"] in lines
    row = "IO out 0xe9 DebugConsole 100 25.2 % 505 µs 100 ns 5.05 µs 5.02 µs 9.92 µs 10.0 µs".split()
    assert [words for words in lines if words[:2] == ["IO", "out"]] == [row]
    assert "syscalls" in text
    assert "\x1b" not in text


def test_json_has_the_same_figures() -> None:
    """In ns, for machines; the rows in order of what took longest."""
    out = Memory()
    sink = SummarySink(out, as_json=True)  # type: ignore[arg-type]
    rows = [(10, "HLT"), (500, "MMIO")]
    written(sink, list(starmap(_plain, rows)), result(wall_ns=2000, guest_ns=1000, exits=2))
    found = json.loads(out.contents)
    assert list(found["exit"]) == ["MMIO", "HLT"]
    assert found["exit"]["MMIO"]["total_ns"] == found["exit"]["MMIO"]["p99_ns"] == 500
    assert (found["wall_ns"], found["exits"], found["vcpus"]) == (2000, 2, 2)
    assert sum(found["time_ns"].values()) == 4000


def test_what_must_agree_is_shown_with_its_parts() -> None:
    """Exits in the table and left out of it, entries that were interrupted, KVM's own counts."""
    summary = Summary()
    for number in range(5):
        summary.add(event(number))
    run = result(exits=9, entries=12, dropped_records=1)
    run = run._replace(exits={"IO": 9}, kvm_counts={"exits": 20, "halts": 21})
    assert sums(summary, run) == [
        ("exits to userspace", "5 in the table + 1 dropped + 3 not selected = 9"),
        ("calls of KVM_RUN", "9 with an exit + 3 interrupted = 12"),
        ("KVM's own statistics", "halts 21, exits 20"),
    ]


def test_our_own_syscalls_are_told_apart_by_their_request() -> None:
    """KVM_RUN is not KVM_GET_REGS."""
    summary = Summary()
    for args in ((("fd", 3), ("request", "KVM_RUN")), (("fd", 3), ("request", "KVM_GET_REGS")), ()):
        summary.add(event(kind="host", name="ioctl", via="", args=args))
    assert set(summary.rows["host"]) == {"ioctl", "ioctl KVM_RUN", "ioctl KVM_GET_REGS"}


def test_notes_are_shown_under_the_tables() -> None:
    """In lines of bearable length; there may be many, and they stay bounded."""
    out = Memory()
    notes = [event(kind="note", name=f"{number} {'word ' * 40}", via="", args=()) for number in range(500)]
    written(SummarySink(out), notes, result())  # type: ignore[arg-type]
    lines = out.contents.decode().splitlines()
    assert max(map(len, lines)) <= 140
    assert sum(line.split()[:1] == ["99"] for line in lines) == 1
    assert not any(line.split()[:1] == ["100"] for line in lines)


def _plain(duration_ns: int, name: str) -> TraceEvent:
    return event(name=name, via=name, args=(), duration_ns=duration_ns)


def test_a_run_that_failed_still_shows_what_was_counted() -> None:
    """Without the run's own figures."""
    out = Memory()
    written(SummarySink(out), [event()], None)  # type: ignore[arg-type]
    assert "IO out 0xe9 DebugConsole" in out.contents.decode()
