"""The summary, in the manner of `strace -c` and `perf kvm stat`: how many, how long, whose time it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.trace.histogram import Histogram
from pykvm.trace.text import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.result import RunResult, RunStats
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["Share", "Summary", "SummarySink", "shares"]

_SECTIONS = {
    "exit": "exits to userspace",
    "hypercall": "hypercalls",
    "syscall": "syscalls",
    "kvm": "exits that KVM answered",
    "host": "host syscalls",
}
_EXITS = ("exit", "mark", "step")
_RING = "RING"
_ROWS_MAX = 1000  # a guest can touch as many addresses as it likes
_KNOWN_MAX = 4096
_COLUMNS = ("count", "share", "time", "min", "mean", "p50", "p99", "max")


class Share(NamedTuple):
    """One part of the run's time: who had it, and how many ns."""

    name: str
    ns: int


def shares(stats: RunStats, vcpus: int) -> list[Share]:
    """Whose time it was. The parts add up to `vcpus` times the run's wall time."""
    python = max(stats.answer_ns - stats.own_ns - stats.wait_ns, 0)
    known = stats.guest_ns + stats.own_ns + python + stats.wait_ns
    parts = [
        Share("guest, in KVM_RUN", stats.guest_ns),
        Share("C loop", stats.own_ns),
        Share("Python: devices, hypercalls", python),
        Share("waiting for the trace's reader", stats.wait_ns),
        Share("other: start, end, waiting for each other", max(stats.wall_ns * vcpus - known, 0)),
    ]
    return [part for part in parts if part.ns or part.name != "waiting for the trace's reader"]


class Summary:
    """Counts events by section and row, with a histogram of durations each. Memory stays flat."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Histogram]] = {section: {} for section in _SECTIONS}
        self._known: dict[Any, tuple[Histogram, ...]] = {}
        self.events = 0

    def add(self, event: TraceEvent) -> None:
        """Count one event: a hypercall counts as itself and as the exit that brought it."""
        self.events += 1
        kind = event.kind
        key = (kind, event.name, event.via, event.args if kind in _EXITS else ())
        histograms = self._known.get(key)
        if histograms is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            histograms = self._known[key] = tuple(self._row(*row) for row in _rows(event))
        for histogram in histograms:
            histogram.add(event.duration_ns or 0)

    def _row(self, section: str, name: str) -> Histogram:
        rows = self.rows[section]
        if name not in rows and len(rows) >= _ROWS_MAX:
            name = "others"
        return rows.setdefault(name, Histogram())

    def as_json(self, result: RunResult | None, vcpus: int) -> dict[str, Any]:
        """The whole summary as plain values; durations in ns."""
        found: dict[str, Any] = {
            section: {name: _figures(rows[name]) for name in _order(rows)}
            for section, rows in self.rows.items()
            if rows
        }
        if result:
            stats = result.stats
            found["end"] = str(result)
            found["vcpus"] = vcpus
            found["wall_ns"] = stats.wall_ns
            found["time_ns"] = {share.name: share.ns for share in shares(stats, vcpus)}
            found["exits"], found["dropped_records"] = stats.exits, stats.dropped_records
        return found


def _rows(event: TraceEvent) -> list[tuple[str, str]]:
    """The sections and rows in which an event counts."""
    kind = event.kind
    if kind in _EXITS:
        return [("exit", _exit_name(event))]
    if kind == "hypercall":
        rows = [("hypercall", event.name)]  # out of a ring it is no exit
        return rows if event.via == _RING else [*rows, ("exit", f"{event.via} hypercall")]
    return [(kind, event.name)] if kind in _SECTIONS else []


def _exit_name(event: TraceEvent) -> str:
    """IO out 0x3f8 Serial; the port is that of the device's first register, and so is a gpa."""
    args = event.args
    if len(args) < 2 or args[0][0] != "way":
        return f"{event.name} step" if event.kind == "step" else event.name
    way, (_, address) = args[0][1], args[1]
    return f"{event.name} {way} {address:#x} {args[2][1] if args[2][0] == 'device' else 'nobody'}"


def _order(rows: Mapping[str, Histogram]) -> list[str]:
    return sorted(rows, key=lambda name: (-rows[name].total, -rows[name].count, name))


def _figures(histogram: Histogram) -> dict[str, Any]:
    return {
        "count": histogram.count,
        "total_ns": histogram.total,
        "min_ns": histogram.least,
        "mean_ns": round(histogram.mean),
        "p50_ns": histogram.quantile(0.5),
        "p99_ns": histogram.quantile(0.99),
        "max_ns": histogram.most,
    }


class SummarySink:
    """Counts while the guest runs; shows the tables at the end, or JSON."""

    def __init__(self, output: TraceOutput, *, as_json: bool = False) -> None:
        self.summary = Summary()
        self._output = output
        self._as_json = as_json
        self._about: TraceAbout | None = None

    def __repr__(self) -> str:
        return self._output.name

    def open(self, about: TraceAbout) -> None:
        """Remember which run it is."""
        self._about = about

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Count the events."""
        add = self.summary.add
        for event in events:
            add(event)

    def close(self, result: RunResult | None) -> None:
        """Write the summary."""
        vcpus = self._about.vcpus if self._about else 1
        if self._as_json:
            text = json.dumps(self.summary.as_json(result, vcpus), indent=2) + "\n"
        else:
            text = render(self.summary, result, vcpus, is_terminal=self._output.is_terminal)
        self._output.write(text.encode())
        self._output.close()


def render(summary: Summary, result: RunResult | None, vcpus: int, *, is_terminal: bool = False) -> str:
    """The summary as tables: whose time it was, then a table for each section that has rows."""
    wall_ns = (
        result.stats.wall_ns * vcpus if result else sum(row.total for row in summary.rows["exit"].values())
    )
    tables = [_time_table(result, vcpus)] if result else []
    for section, title in _SECTIONS.items():
        if rows := summary.rows[section]:
            tables.append(_section(title, rows, wall_ns))
    return _print(tables, is_terminal=is_terminal)


def _time_table(result: RunResult, vcpus: int) -> Any:
    from rich.table import Table  # noqa: PLC0415 - 60 ms that only a summary pays

    stats = result.stats
    whole = stats.wall_ns * vcpus
    table = _table(Table, f"time of {vcpus} vCPU{'s' if vcpus > 1 else ''}: {result}", ("time", "share"))
    for share in shares(stats, vcpus):
        table.add_row(share.name, duration_text(share.ns), _percent(share.ns, whole))
    table.add_section()
    table.add_row(
        f"{vcpus} x wall time" if vcpus > 1 else "wall time", duration_text(whole), _percent(whole, whole)
    )
    return table


def _section(title: str, rows: Mapping[str, Histogram], whole_ns: int) -> Any:
    from rich.table import Table  # noqa: PLC0415 - as above

    table = _table(Table, title, _COLUMNS)
    for name in _order(rows):
        table.add_row(name, *_cells(rows[name], whole_ns))
    if len(rows) > 1:
        count, total = sum(row.count for row in rows.values()), sum(row.total for row in rows.values())
        table.add_section()
        table.add_row("all", str(count), _percent(total, whole_ns), duration_text(total))
    return table


def _table(make: Callable[..., Any], title: str, columns: Sequence[str]) -> Any:
    from rich import box  # noqa: PLC0415 - as above

    table = make(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(row: Histogram, whole_ns: int) -> list[str]:
    times = (row.total, row.least, round(row.mean), row.quantile(0.5), row.quantile(0.99), row.most)
    return [str(row.count), _percent(row.total, whole_ns), *map(duration_text, times)]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _print(tables: Sequence[Any], *, is_terminal: bool) -> str:
    from io import StringIO  # noqa: PLC0415 - as above

    from rich.console import Console  # noqa: PLC0415 - as above

    out = StringIO()
    console = Console(file=out, width=140, force_terminal=is_terminal, highlight=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
