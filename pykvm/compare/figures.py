"""Numbers as text, the same in the table and in the page."""

from __future__ import annotations

from pykvm.compare.model import Absent, Count, per_operation

__all__ = ["each", "micros", "milliseconds", "number", "parts_of"]

_SHOWN = 6


def number(value: float) -> str:
    """Three digits that mean something, thousands apart: 12,345, 3.14, 0.0314."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def micros(value: float | Absent) -> str:
    """µs, or why there are none."""
    return str(value) if isinstance(value, Absent) else number(value)


def milliseconds(value: float | Absent) -> str:
    """ms, or why there are none."""
    return str(value) if isinstance(value, Absent) else f"{value:,.1f}"


def each(count: Count, operations: int) -> str:
    """What one operation makes of a count."""
    return number(per_operation(count, operations))


def parts_of(count: Count) -> list[tuple[str, int]]:
    """The names that the operations made more of, most first; the rest as one."""
    parts = [*count.extra.items()]
    rest = sum(more for _, more in parts[_SHOWN:])
    return [*parts[:_SHOWN], *([("others", rest)] if len(parts) > _SHOWN else [])]
