"""The summary, in the manner of `strace -c` and `perf kvm stat`: how many, how long, whose time it was."""

from __future__ import annotations

import json
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.trace.histogram import Histogram
from pykvm.trace.text import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.result import RunResult, RunStats
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["Share", "Summary", "SummarySink", "shares", "sums"]

_SECTIONS = {  # from the program down to the hardware
    "syscall": "syscalls of the guest's programs",
    "container": "of these, syscalls of containers",
    "hypercall": "hypercalls of its kernel",
    "kvm": "exits that KVM answered",
    "exit": "exits to userspace",
    "host": "syscalls of pykvm",
}
_EXITS = ("exit", "mark", "step")
_RING = "RING"
_KEYED = (*_EXITS, "host")  # whose row's name depends on their arguments
_NOTES_MAX = 100
_WIDTH = 120
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
        self.notes: list[str] = []
        self.events = 0

    def add(self, event: TraceEvent) -> None:
        """Count one event: a hypercall counts as itself and as the exit that brought it."""
        self.events += 1
        kind = event.kind
        if kind == "note" and len(self.notes) < _NOTES_MAX:
            self.notes.append(event.name)
        key = (kind, event.name, event.via, event.container, event.args if kind in _KEYED else ())
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
            found["entries"], found["skipped_steps"] = stats.entries, stats.skipped_steps
            found["kvm_counts"] = dict(result.kvm_counts)
        if self.notes:
            found["notes"] = self.notes
        return found


def _rows(event: TraceEvent) -> list[tuple[str, str]]:
    """The sections and rows in which an event counts."""
    kind = event.kind
    if kind in _EXITS:
        return [("exit", _exit_name(event))]
    if kind == "hypercall":
        rows = [("hypercall", event.name)]  # out of a ring it is no exit
        return rows if event.via == _RING else [*rows, ("exit", f"{event.via} hypercall")]
    if kind == "host":
        request = dict(event.args).get("request")
        return [("host", f"{event.name} {request}" if request else event.name)]
    rows = [(kind, event.name)] if kind in _SECTIONS else []
    return [*rows, ("container", f"{event.container}: {event.name}")] if event.container else rows


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
    """The summary as text: whose time it was, one table of everything that happened, what adds up."""
    wall_ns = (
        result.stats.wall_ns * vcpus if result else sum(row.total for row in summary.rows["exit"].values())
    )
    tables = [_time_table(result, vcpus)] if result else []
    if any(summary.rows.values()):
        tables.append(_events_table(summary.rows, wall_ns))
    text = _print(tables, is_terminal=is_terminal)
    lines = [f"{what}: {how}" for what, how in (sums(summary, result) if result else ())]
    lines += summary.notes
    return text + "".join(f"{fill(line, _WIDTH, subsequent_indent='  ')}\n" for line in lines)


def sums(summary: Summary, result: RunResult) -> list[tuple[str, str]]:
    """What must agree, and whether it does: the rows with the exit loop's counters, and KVM's own figures."""
    counts = result.kvm_counts
    found = _counted(summary, result) if result.exits else []  # who came in the middle can't compare
    if counts:
        named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        found.append(("KVM's own statistics", ", ".join(f"{name} {count}" for name, count in named)))
    return found


def _counted(summary: Summary, result: RunResult) -> list[tuple[str, str]]:
    stats = result.stats
    listed = sum(row.count for row in summary.rows["exit"].values())
    more = [(stats.dropped_records, "dropped"), (stats.skipped_steps, "steps between the sampled ones")]
    parts = "".join(f" + {count} {word}" for count, word in more if count)
    left_out = stats.exits - listed - stats.dropped_records - stats.skipped_steps
    interrupted = stats.entries - stats.exits
    return [
        ("exits to userspace", f"{listed} in the table{parts}{_rest(left_out)} = {stats.exits}"),
        ("calls of KVM_RUN", f"{stats.exits} with an exit + {interrupted} interrupted = {stats.entries}"),
    ]


def _rest(count: int) -> str:
    """What a selection has left out of the table."""
    return f" + {count} not selected" if count else ""


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


def _events_table(sections: Mapping[str, Mapping[str, Histogram]], whole_ns: int) -> Any:
    """A part for each section that has rows; its first line is the sum of the others."""
    from rich.table import Table  # noqa: PLC0415 - as above

    table = _table(Table, "what happened, layer by layer", _COLUMNS)
    for section, title in _SECTIONS.items():
        rows = sections[section]
        if not rows:
            continue
        count, total = sum(row.count for row in rows.values()), sum(row.total for row in rows.values())
        table.add_section()
        table.add_row(title, str(count), _percent(total, whole_ns), duration_text(total), style="bold")
        for name in _order(rows):
            table.add_row(f"  {name}", *_cells(rows[name], whole_ns))
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
    console = Console(file=out, width=_WIDTH + 20, force_terminal=is_terminal, highlight=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
