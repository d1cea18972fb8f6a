"""A comparison as text: one table for each workload, a column for each way."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pykvm.compare.figures import each, micros, milliseconds, number, parts_of
from pykvm.compare.model import COUNTS, Absent, Comparison, Count
from pykvm.compare.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykvm.compare.model import Cell

__all__ = ["print_table"]

_WIDTH = 110  # where nobody says how wide the paper is
_ABOUT = """\
Each count is of the whole run, start and end with it, in a Linux guest of the process alone; below it what
one operation made, by name.
Times are of runs in which nothing was counted."""


def print_table(comparison: Comparison, file: IO[str]) -> None:
    """Print it on `file`: with colours on a terminal, and there as wide as it is."""
    console = Console(file=file, highlight=False, width=None if file.isatty() else _WIDTH)
    reasons: dict[str, int] = {}
    console.print(Text(f"KVM: {comparison.kvm}; host kernel: {comparison.host}", style="dim"))
    for name in comparison.workloads:
        console.print()
        console.print(_table(comparison, name, reasons))
    console.print()
    for reason, at in reasons.items():
        console.print(Text(f"not measured here ({at}): {reason}"))
    console.print(Text(_ABOUT, style="dim"))


def _table(comparison: Comparison, name: str, reasons: dict[str, int]) -> Table:
    """One workload; why something is absent is noted once, with a number, in `reasons`."""

    def text(value: Count | Absent | str) -> str:
        if isinstance(value, Absent) and value.applies:
            return f"not measured here ({reasons.setdefault(value.reason, len(reasons) + 1)})"
        return number(value.total) if isinstance(value, Count) else str(value)

    def row(
        words: str, values: Iterable[Count | Absent | str], *, style: str = "", ends: bool = False
    ) -> None:
        table.add_row(words, *(Text(text(value)) for value in values), style=style, end_section=ends)

    cells = [comparison.cell(name, column.name) for column in comparison.columns]
    work, operations = WORKLOADS.get(name), cells[0].operations
    title = f"{name}: {operations:,} times one {work.operation if work else 'operation'}"
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("")
    for column in comparison.columns:
        table.add_column(column.title, justify="right", overflow="fold")
    for count, words in COUNTS.items():
        row(words, (cell.count(count) for cell in cells), style="bold")
        if any(isinstance(cell.count(count), Count) for cell in cells):
            row("  for one operation", (_each(cell, count) for cell in cells), ends=True)
    micro = (_time(cell.us_per_operation, micros) for cell in cells)
    row("µs for one operation", micro, style="bold")
    row("ms from start to end of no operation", (_time(cell.start_ms, milliseconds) for cell in cells))
    return table


def _time(value: float | Absent, as_text: Callable[[float | Absent], str]) -> Absent | str:
    return value if isinstance(value, Absent) else as_text(value)


def _each(cell: Cell, name: str) -> str:
    """The parts of one operation, a line each."""
    count = cell.count(name)
    if not isinstance(count, Count):
        return ""
    lines = [f"{part} {number(more / cell.operations)}" for part, more in parts_of(count)]
    return "\n".join(lines if len(lines) > 1 else lines or [each(count, cell.operations)])
