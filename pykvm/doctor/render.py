"""A Report as text: aligned columns for a pipe, tables with colours for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.doctor.catalogue import PROBES
from pykvm.doctor.outcome import Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TextIO

    from pykvm.doctor.features import Finding
    from pykvm.doctor.report import Report

__all__ = ["print_report", "print_side_by_side"]

_COLOURS = {
    Result.WORKS: "green",
    Result.FAILS: "red",
    Result.HANGS: "red",
    Result.DIFFERS: "yellow",
    Result.BROKEN: "bold red",
}
_ABSENT = "-"
_NESTED = {None: "the module does not say", True: "guests may be hypervisors in turn", False: "off"}


def print_report(report: Report, stream: TextIO, *, everything: bool = False) -> None:
    """Write `report` to `stream`; with `everything`, each capability too."""
    _print_rows(_head(report), stream)
    if report.probes:
        rows = [(name, str(o.result), _tells(name), _more(o)) for name, o in report.probes.items()]
        _print_table(("probe", "result", "what", "more"), rows, stream)
    if features := report.features():
        rows_ = [("no" if found.lacks else "yes", found.name, _because(found)) for found in features]
        _print_table(("here", "what pykvm does", ""), rows_, stream)
    if everything and report.capabilities:
        _print_table(("capability", "value"), [(n, str(v)) for n, v in report.capabilities.items()], stream)


def print_side_by_side(reports: Mapping[str, Report], stream: TextIO) -> None:
    """Write several KVMs' reports side by side: a row a probe, figure or feature, a column a KVM."""
    columns = list(reports)
    rows = [("KVM", *(report.host.module if report.usable else _ABSENT for report in reports.values()))]
    for name in PROBES:
        outcomes = [report.probes.get(name) for report in reports.values()]
        rows.append((name, *(_ABSENT if o is None else str(o.result) for o in outcomes)))
        rows += _figure_rows(outcomes)
    _print_table(("", *columns), rows, stream)
    if any(report.probes for report in reports.values()):
        _print_table(("what pykvm does", *columns), _feature_rows(reports.values()), stream)
    _print_notes(reports, stream)


def _figure_rows(outcomes: Sequence[Outcome | None]) -> list[tuple[str, ...]]:
    """One row for each figure that any of the outcomes has."""
    found = [{f.what: str(f).removeprefix(f.what).strip() for f in o.figures} if o else {} for o in outcomes]
    names = dict.fromkeys(what for figures in found for what in figures)
    return [(f"  {what}", *(figures.get(what, _ABSENT) for figures in found)) for what in names]


def _feature_rows(reports: Iterable[Report]) -> list[tuple[str, ...]]:
    found = [{feature.name: "no" if feature.lacks else "yes" for feature in r.features()} for r in reports]
    names = dict.fromkeys(name for features in found for name in features)
    return [(name, *(features.get(name, _ABSENT) for features in found)) for name in names]


def _print_notes(reports: Mapping[str, Report], stream: TextIO) -> None:
    """What is behind each result that is not "works"."""
    rows = [
        (where, name, str(outcome.result), outcome.detail)
        for where, report in reports.items()
        for name, outcome in report.probes.items()
        if not outcome.works and outcome.detail
    ]
    rows += [(where, "", "", report.problem) for where, report in reports.items() if report.problem]
    if rows:
        _print_table(("where", "probe", "result", "more"), rows, stream)


def _head(report: Report) -> list[tuple[str, str]]:
    host, caps = report.host, report.capabilities
    itself = "itself a virtual machine" if host.is_guest else "not a virtual machine"
    flag = f"flag {host.flag}" if host.flag else "neither vmx nor svm"
    rows = [
        ("KVM", _kvm(report) + (f": {host.kind}" if report.usable else "")),
        ("device", f"/dev/kvm {host.device}" if host.device else "there is no /dev/kvm"),
        ("host", f"Linux {host.kernel}, {host.cpus} CPUs, {host.machine or 'unnamed machine'}, {itself}"),
        ("CPU", f"{host.cpu_vendor} {host.cpu_model}, {flag}"),
    ]
    if report.usable:
        vcpus, slots = caps.get("KVM_CAP_MAX_VCPUS", 0), caps.get("KVM_CAP_NR_MEMSLOTS", 0)
        there = sum(1 for value in caps.values() if value)
        rows += [
            ("limits", f"{vcpus} vCPUs, {slots} memory slots a VM"),
            ("nested", _NESTED[host.nested]),
            ("capabilities", f"{there} of the {len(caps)} that pykvm knows by name (--all lists them)"),
        ]
    return rows


def _kvm(report: Report) -> str:
    if not report.usable:
        return f"not usable: {report.problem}"
    return f"{report.host.module}, API version {report.api_version}"


def _tells(name: str) -> str:
    return PROBES[name].tells if name in PROBES else ""


def _more(outcome: Outcome) -> str:
    return "; ".join(filter(None, (outcome.detail, *map(str, outcome.figures))))


def _because(found: Finding) -> str:
    if found.lacks:
        return f"because of {', '.join(found.lacks)}"
    return f"by {', '.join(found.by)}" if found.by else ""


# ---- two ways to print


def _print_rows(rows: Iterable[tuple[str, str]], stream: TextIO) -> None:
    stream.writelines(f"{name:<13} {text}\n" for name, text in rows)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    if stream.isatty():
        _print_rich(head, rows, stream)
    else:
        _print_plain(head, rows, stream)


def _print_plain(head: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows))
    stream.write("\n")
    stream.writelines(f"{line.rstrip()}\n" for line in lines)


def _print_rich(head: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    from rich.console import Console  # noqa: PLC0415 - a pipe does not pay for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
    stream.write("\n")
    Console(file=stream).print(table)


def _colour(cell: str) -> str:
    words = {str(result): colour for result, colour in _COLOURS.items()} | {"yes": "green", "no": "red"}
    return words.get(cell, "")
