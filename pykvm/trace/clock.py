"""One clock for all: TSC ticks of the exit loop as nanoseconds of CLOCK_MONOTONIC."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

from pykvm._native import lib

__all__ = ["FRACTION", "Line", "RunningClock", "TscClock"]

FRACTION = 40
"""Of a Line's rate: the bits behind the point."""
_KEPT = 64
_SHORTEST_NS = 1_000_000


def _pair() -> tuple[int, int]:
    """A TSC value and the CLOCK_MONOTONIC ns of the same moment, as near as a few tries get."""
    best: tuple[int, int, int] | None = None
    for _ in range(3):
        before = lib.tsc_now()
        now = time.monotonic_ns()
        width = lib.tsc_now() - before
        if best is None or width < best[0]:
            best = (width, before + width // 2, now)
    assert best is not None  # noqa: S101 - the loop ran
    return best[1], best[2]


class TscClock:
    """Maps TSC ticks to CLOCK_MONOTONIC ns by two pairs: one of now, one that settle() takes later.

    The longer between the two, the better: after 10 ms the rate is right to about 10 ppm.
    """

    def __init__(self) -> None:
        self._start = self._end = _pair()
        self._ns_per_tick = 1.0

    def settle(self) -> None:
        """Take the second pair."""
        self._end = _pair()
        ticks = self._end[0] - self._start[0]
        if ticks > 0:
            self._ns_per_tick = (self._end[1] - self._start[1]) / ticks

    def ns(self, tsc: int) -> int:
        """CLOCK_MONOTONIC ns of a TSC value; 0 stays 0, "not yet"."""
        return self._start[1] + round((tsc - self._start[0]) * self._ns_per_tick) if tsc else 0

    def duration_ns(self, ticks: int) -> int:
        """Ns of a number of ticks."""
        return round(ticks * self._ns_per_tick)


class Line(NamedTuple):
    """ns = `ns` + ((tsc - `tsc`) * `rate` >> 40): one piece of a RunningClock, right from `tsc` on."""

    tsc: int
    ns: int
    rate: int

    def at(self, tsc: int) -> int:
        """The ns of a TSC value."""
        return self.ns + ((tsc - self.tsc) * self.rate >> FRACTION)


class RunningClock:
    """Maps TSC ticks to CLOCK_MONOTONIC ns while the guest still runs, never backwards.

    Each tick() measures the two clocks against each other and adds a piece of line from the last measured
    point to the new one. A value is converted by the piece it lies in, so what was converted once stays.
    """

    def __init__(self) -> None:
        self._last = _pair()
        self._lines: deque[Line] = deque(maxlen=_KEPT)

    def tick(self) -> Line:
        """Measure now: the piece of line for everything that happened since the last tick.

        Less than a millisecond after the last one it measures nothing: a short piece would be inexact.
        """
        before_tsc, before_ns = self._last
        if self._lines and time.monotonic_ns() - before_ns < _SHORTEST_NS:
            return self._lines[-1]
        tsc, ns = _pair()
        rate = ((ns - before_ns) << FRACTION) // max(tsc - before_tsc, 1)
        line = Line(before_tsc, before_ns, max(rate, 1))
        self._lines.append(line)
        self._last = (tsc, line.at(tsc))
        return line

    def ns(self, tsc: int) -> int:
        """The ns of a TSC value before the last tick; after at least one."""
        at = bisect_right(self._lines, tsc, key=lambda line: line.tsc) - 1
        return self._lines[max(at, 0)].at(tsc)
