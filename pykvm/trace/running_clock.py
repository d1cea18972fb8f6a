"""The same clock while the guest still runs: TSC ticks as ns, piece by piece, never backwards."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from typing import NamedTuple

from pykvm.trace.clock import clock_pair

__all__ = ["FRACTION", "Line", "RunningClock"]

FRACTION = 40
"""Of a Line's rate: the bits behind the point."""

_KEPT = 64
_SHORTEST_NS = 1_000_000
_NEVER = 1 << 64


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
        self._last = clock_pair()
        self._lines: deque[Line] = deque(maxlen=_KEPT)

    def tick(self) -> Line:
        """Measure now: the piece of line for everything that happened since the last tick.

        Less than a millisecond after the last one it measures nothing: a short piece would be inexact.
        """
        before_tsc, before_ns = self._last
        if self._lines and time.monotonic_ns() - before_ns < _SHORTEST_NS:
            return self._lines[-1]
        tsc, ns = clock_pair()
        rate = ((ns - before_ns) << FRACTION) // max(tsc - before_tsc, 1)
        line = Line(before_tsc, before_ns, max(rate, 1))
        self._lines.append(line)
        self._last = (tsc, line.at(tsc))
        return line

    def piece(self, tsc: int) -> tuple[Line, int]:
        """The line that a TSC value lies on, and the TSC at which another begins; after at least one tick."""
        at = max(bisect_right(self._lines, tsc, key=lambda line: line.tsc) - 1, 0)
        end = self._lines[at + 1].tsc if at + 1 < len(self._lines) else _NEVER
        return self._lines[at], end

    def ns(self, tsc: int) -> int:
        """CLOCK_MONOTONIC ns of a TSC value; after at least one tick."""
        return self.piece(tsc)[0].at(tsc)
