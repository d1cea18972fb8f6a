"""One clock for all: TSC ticks of the exit loop as nanoseconds of CLOCK_MONOTONIC."""

from __future__ import annotations

import time

from pykvm._native import lib

__all__ = ["TscClock", "clock_pair"]


def clock_pair() -> tuple[int, int]:
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
        self._start = self._end = clock_pair()
        self._ns_per_tick = 1.0

    def settle(self) -> None:
        """Take the second pair."""
        self._end = clock_pair()
        ticks = self._end[0] - self._start[0]
        if ticks > 0:
            self._ns_per_tick = (self._end[1] - self._start[1]) / ticks

    def ns(self, tsc: int) -> int:
        """CLOCK_MONOTONIC ns of a TSC value; 0 stays 0, "not yet"."""
        return self._start[1] + round((tsc - self._start[0]) * self._ns_per_tick) if tsc else 0

    def duration_ns(self, ticks: int) -> int:
        """Ns of a number of ticks."""
        return round(ticks * self._ns_per_tick)
