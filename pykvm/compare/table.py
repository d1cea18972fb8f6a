"""A comparison as text: one table for each workload, a column for each way."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pykvm.compare.figures import each, micros, milliseconds, number, parts_of, place_rows
from pykvm.compare.model import COUNTS, Absent, Comparison, Count
from pykvm.compare.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykvm.compare.model import Cell

__all__ = ["print_table"]

_LABEL, _COLUMN, _WIDEST = 24, 13, 18
_WIDTH = 110  # where nobody says how wide the paper is
_ABOUT = """\
Each count is of the whole run, start and end with it, in a Linux guest of the process alone; below it what
one operation made, by name. Times are of runs in which nothing was counted; no operation is start and end.
Inode numbers of namespaces are each kernel's own: the same number in two kernels is two namespaces."""


def print_table(comparison: Comparison, file: IO[str]) -> None:
    """Print it on `file`: with colours on a terminal, and there as wide as it is."""
    console = Console(file=file, highlight=False, width=None if file.isatty() else _WIDTH)
    reasons: dict[str, int] = {}
    console.print(Text(f"KVM: {comparison.kvm}; host kernel: {comparison.host}", style="dim"))
    if comparison.places:
        console.print()
        console.print(_places(comparison, reasons))
    for name in comparison.workloads:
        console.print()
        console.print(_table(comparison, name, reasons))
    console.print()
    for reason, at in reasons.items():
        console.print(Text(f"({at}) not measured here: {reason}"))
    console.print(Text(_ABOUT, style="dim"))


def _places(comparison: Comparison, reasons: dict[str, int]) -> Table:
    """Where the program finds itself, as it sees it."""
    table = _frame(comparison, "where the program is")
    for words, texts in place_rows(comparison, lambda value: _noted(value, reasons)):
        table.add_row(words, *map(Text, texts))
    return table


def _frame(comparison: Comparison, title: str) -> Table:
    """A table with a column for each way."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", min_width=_LABEL, no_wrap=True)
    for column in comparison.columns:
        table.add_column(column.short, justify="right", overflow="fold", min_width=_COLUMN, max_width=_WIDEST)
    return table


def _noted(value: Absent, reasons: dict[str, int]) -> str:
    """Why something is absent is noted once, with a number, in `reasons`."""
    if not value.applies:
        return str(value)
    return f"({reasons.setdefault(value.reason, len(reasons) + 1)})"


def _table(comparison: Comparison, name: str, reasons: dict[str, int]) -> Table:
    """One workload; why something is absent is noted once, with a number, in `reasons`."""

    def text(value: Count | Absent | str) -> str:
        if isinstance(value, Absent):
            return _noted(value, reasons)
        return number(value.total) if isinstance(value, Count) else str(value)

    def row(
        words: str, values: Iterable[Count | Absent | str], *, style: str = "", ends: bool = False
    ) -> None:
        table.add_row(words, *(Text(text(value)) for value in values), style=style, end_section=ends)

    cells = [comparison.cell(name, column.name) for column in comparison.columns]
    work, operations = WORKLOADS.get(name), cells[0].operations
    title = f"{name}: {operations:,} times one {work.operation if work else 'operation'}"
    table = _frame(comparison, title)
    for count, words in COUNTS.items():
        row(words, (cell.count(count) for cell in cells), style="bold")
        if any(isinstance(cell.count(count), Count) for cell in cells):
            row("  for one operation", (_each(cell, count) for cell in cells), ends=True)
    micro = (_time(cell.us_per_operation, micros) for cell in cells)
    row("µs for one operation", micro, style="bold")
    row("ms of no operation", (_time(cell.start_ms, milliseconds) for cell in cells))
    row("  without guest's start", (_time(cell.alone_ms, milliseconds) for cell in cells))
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
