"""Numbers as text, the same in the table and in the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.compare.model import Absent, Comparison, Count, per_operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["each", "micros", "milliseconds", "number", "parts_of", "place_rows"]

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


_PLACE_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("who answers system calls", "kernel", str),
    ("the host name it sees", "host_name", str),
    ("its own number, getpid()", "pid", str),
    ("its PID namespace", "pid_namespace", str),
    ("its memory, kB", "process_bytes", lambda value: number(value // 1000)),
    ("the guest's memory, MB", "machine_bytes", lambda value: number(value / 1e6)),
)


def place_rows(
    comparison: Comparison, absent: Callable[[Absent], str] = str
) -> Iterator[tuple[str, list[str]]]:
    """The words of each row about where the program is, and its texts, one for each way."""
    for words, name, as_text in _PLACE_ROWS:
        values = (getattr(comparison.places[column.name], name) for column in comparison.columns)
        yield words, [absent(value) if isinstance(value, Absent) else as_text(value) for value in values]
