"""One clock for all: TSC ticks of the exit loop are CLOCK_MONOTONIC's nanoseconds."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import lib
from pykvm.trace import clock as clock_module
from pykvm.trace.clock import TscClock

if TYPE_CHECKING:
    from collections.abc import Callable

Pairs = list[tuple[int, int]]


def scripted(monkeypatch: pytest.MonkeyPatch, pairs: Pairs) -> TscClock:
    """A settled clock whose two measurements are `pairs`."""
    monkeypatch.setattr(clock_module, "clock_pair", lambda: pairs.pop(0))
    clock = TscClock()
    clock.settle()
    return clock


def test_a_tsc_value_becomes_the_ns_of_its_moment() -> None:
    """A moment between two readings of the clock lies between them."""
    clock = TscClock()
    before = time.monotonic_ns()
    tsc = lib.tsc_now()
    after = time.monotonic_ns()
    while time.monotonic_ns() < after + 5_000_000:
        pass  # the longer between the two pairs, the better the rate
    clock.settle()
    slack = 50_000
    assert before - slack <= clock.ns(tsc) <= after + slack


def test_a_duration_is_what_the_other_clock_says() -> None:
    """Within a percent, over some milliseconds; a busy host may take its time between two readings."""
    clock = TscClock()
    start_ns, start, started_ns = time.monotonic_ns(), lib.tsc_now(), time.monotonic_ns()
    while time.monotonic_ns() < start_ns + 20_000_000:
        pass
    end_ns, end, ended_ns = time.monotonic_ns(), lib.tsc_now(), time.monotonic_ns()
    clock.settle()
    least, most = end_ns - started_ns, ended_ns - start_ns
    assert least * 0.99 - 100_000 <= clock.duration_ns(end - start) <= most * 1.01 + 100_000


@given(st.integers(1, 1 << 62), st.integers(0, 1 << 62), st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_both_pairs_are_hit_exactly_and_the_middle_in_the_middle(
    tsc: int, ns: int, ticks: int, span: int
) -> None:
    """A straight line through the two measurements, to the rounding of a float's 53 bits."""
    with pytest.MonkeyPatch.context() as patch:
        clock = scripted(patch, [(tsc, ns), (tsc + ticks, ns + span)])
    assert clock.ns(tsc) == ns
    assert clock.ns(tsc + ticks) == pytest.approx(ns + span, rel=1e-12, abs=1)
    assert clock.duration_ns(ticks) == pytest.approx(span, rel=1e-12, abs=1)
    assert ns <= clock.ns(tsc + ticks // 2) <= ns + span + 1


def test_0_is_not_yet_and_stays_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that never got its time shows none."""
    assert scripted(monkeypatch, [(1000, 5000), (2000, 6000)]).ns(0) == 0


def test_a_clock_that_stood_still_divides_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two measurements in the same tick: a rate of one, no error."""
    clock = scripted(monkeypatch, [(1000, 5000), (1000, 5000)])
    assert clock.ns(1010) == 5010


def test_the_narrowest_of_several_measurements_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was interrupted between the two clocks is not taken."""
    readings = iter([100, 900, 1000, 1010, 2000, 2500])
    times = iter([1, 2, 3])

    class Lib:
        tsc_now: Callable[[], int] = staticmethod(lambda: next(readings))

    class Time:
        monotonic_ns: Callable[[], int] = staticmethod(lambda: next(times))

    monkeypatch.setattr(clock_module, "lib", Lib)
    monkeypatch.setattr(clock_module, "time", Time)
    assert clock_module.clock_pair() == (1005, 2)


def test_a_clock_survives_pickling() -> None:
    """The records of a result take their clock along."""
    clock = TscClock()
    clock.settle()
    again = pickle.loads(pickle.dumps(clock))  # noqa: S301 - our own bytes
    tsc = lib.tsc_now()
    assert again.ns(tsc) == clock.ns(tsc)
