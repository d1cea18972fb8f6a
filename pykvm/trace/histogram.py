"""A histogram of durations that stays small: exact to 1.6 %, whatever the number of values."""

from __future__ import annotations

__all__ = ["Histogram"]

_EXACT_BITS = 6  # 64 steps in each doubling


class Histogram:
    """Counts non-negative integers. Count, total, least and most are exact, quantiles to one part in 64.

    Values below 128 have a bucket each; above, each doubling has 64 of them: a few thousand buckets at most.
    """

    __slots__ = ("_buckets", "count", "least", "most", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.least = 0
        self.most = 0

    def add(self, value: int) -> None:
        """Count one value."""
        shift = value.bit_length() - _EXACT_BITS - 1
        bucket = value if shift <= 0 else ((shift << _EXACT_BITS) + (value >> shift))
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.most = max(self.most, value)
        self.least = min(self.least, value) if self.count else value
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float:
        """The mean; 0 if nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, part: float) -> int:
        """The value that `part` (0 to 1) of all values do not exceed; 0 if nothing was counted."""
        wanted, seen = max(round(part * self.count), 1), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return max(self.least, min(_middle(bucket), self.most))
        return 0


def _middle(bucket: int) -> int:
    """The middle of a bucket's values."""
    shift = max((bucket >> _EXACT_BITS) - 1, 0)
    least = (bucket - (shift << _EXACT_BITS)) << shift
    return least + ((1 << shift) >> 1)
