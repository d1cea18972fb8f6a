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
    from pykvm.compare.model import Cell

__all__ = ["print_table"]

_WIDTH = 110  # where nobody says how wide the paper is


def print_table(comparison: Comparison, file: IO[str]) -> None:
    """Print it on `file`: with colours on a terminal, and there as wide as it is."""
    console = Console(file=file, highlight=False, width=None if file.isatty() else _WIDTH)
    console.print(Text(f"KVM: {comparison.kvm}; host kernel: {comparison.host}", style="dim"))
    for name in comparison.workloads:
        console.print()
        console.print(_table(comparison, name))
    console.print(
        Text("\nEach count is of the whole run, start and end with it; below it what one operation", "dim")
    )
    console.print(Text("made, by name. Times are of runs in which nothing was counted.", "dim"))


def _table(comparison: Comparison, name: str) -> Table:
    cells = [comparison.cell(name, column.name) for column in comparison.columns]
    work, operations = WORKLOADS.get(name), cells[0].operations
    title = f"{name}: {operations:,} times one {work.operation if work else 'operation'}"
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("")
    for column in comparison.columns:
        table.add_column(column.title, justify="right", overflow="fold")
    for count, words in COUNTS.items():
        table.add_row(words, *(_total(cell.count(count)) for cell in cells), style="bold")
        if any(isinstance(cell.count(count), Count) for cell in cells):
            table.add_row("  for one operation", *(_each(cell, count) for cell in cells), end_section=True)
    table.add_row("µs for one operation", *(micros(cell.us_per_operation) for cell in cells), style="bold")
    table.add_row("ms from start to end of no operation", *(milliseconds(cell.start_ms) for cell in cells))
    return table


def _total(count: Count | Absent) -> str:
    return number(count.total) if isinstance(count, Count) else str(count)


def _each(cell: Cell, name: str) -> str:
    """The parts of one operation, a line each."""
    count = cell.count(name)
    if not isinstance(count, Count):
        return ""
    lines = [f"{part} {number(more / cell.operations)}" for part, more in parts_of(count)]
    return "\n".join(lines if len(lines) > 1 else lines or [each(count, cell.operations)])
