"""A comparison as one HTML page that needs nothing else: charts, drawn here as SVG, and the tables.

Each chart has one quantity and a bar for each way. Its axis is logarithmic, since the ways lie decades apart,
and says so; every bar has its figure at its end. What was not measured has its reason in the bar's place.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm.compare.figures import micros, milliseconds, number, parts_of, place_rows
from pykvm.compare.model import COUNTS, Absent, Comparison, Count, per_operation
from pykvm.compare.workloads import WORKLOADS
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.compare.model import Cell

__all__ = ["check_page", "html_of", "write_page"]

_WIDTH, _ROW, _TOP = 380, 40, 4
_LEFT, _RIGHT = 4, 76  # room for a bar's figure
_COLOURS = 6  # of the style sheet


class _Bar(NamedTuple):
    """One bar: its way, its value or why there is none, and the text at its end."""

    title: str
    colour: int
    value: float | Absent
    text: str


def check_page(path: str) -> None:
    """Raise ConfigError where no file can be written: before anything is measured."""
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}; name another file")
    if target.is_dir() or not os.access(target if target.exists() else folder, os.W_OK):
        raise ConfigError(f"{path}: can't write the page there; name another file")


def write_page(path: str, comparison: Comparison) -> None:
    """Write the page, whole or not at all. Raises ConfigError."""
    target = Path(path)
    is_special = target.exists() and not target.is_file()  # a pipe, a device: nothing to put in its place
    fresh = target if is_special else target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fresh.write_text(html_of(comparison), encoding="utf-8")
        if not is_special:
            fresh.replace(target)
    except OSError as error:
        raise ConfigError(f"{path}: can't write the page: {error.strerror}; name another file") from None
    finally:
        if not is_special:
            with suppress(OSError):
                fresh.unlink()


def html_of(comparison: Comparison) -> str:
    """The page."""
    style = (files("pykvm.compare") / "page.css").read_text(encoding="utf-8")
    data = json.dumps(comparison.as_json()).replace("<", "\\u003c")
    title = "What is the difference?"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{style}</style>"
    )
    legend = "".join(
        f'<li><span class="key c{at % _COLOURS}"></span><b>{escape(column.title)}</b> '
        f"{escape(column.about)}</li>"
        for at, column in enumerate(comparison.columns)
    )
    sections = _places(comparison) if comparison.places else ""
    sections += "".join(_section(comparison, name) for name in comparison.workloads)
    about = f"KVM: {escape(comparison.kvm)}; host kernel: {escape(comparison.host)}."
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head}</head><body><main><h1>{title}</h1>'
        f"<p>The same program did the same work in each of these ways. {about}</p><ul>{legend}</ul>{sections}"
        "<footer>Axes are logarithmic. A table's counts are of the whole run, in a Linux guest of the process"
        " alone; “each”, as in the charts, is what one operation made: the run of all less a run of none, "
        "divided. Times are of runs in which nothing was counted. Made by "
        "<code>pykvm compare</code>.</footer></main>"
        f'<script type="application/json" id="data">{data}</script></body></html>\n'
    )


def _section(comparison: Comparison, name: str) -> str:
    cells = [comparison.cell(name, column.name) for column in comparison.columns]
    titles = [column.title for column in comparison.columns]
    work = WORKLOADS.get(name)
    about = f"{escape(work.about)}; one operation is one {escape(work.operation)}" if work else ""
    charts = [
        ("µs for one operation", [_time_bar(*row) for row in zip(titles, range(99), cells, strict=False)]),
        *(
            (
                f"{COUNTS[count]} for one operation",
                [
                    _count_bar(title, at, cell, count)
                    for at, (title, cell) in enumerate(zip(titles, cells, strict=True))
                ],
            )
            for count in ("exits", "host_syscalls")
        ),
    ]
    drawn = "".join(
        f"<figure><figcaption>{escape(t)}</figcaption>{_chart(t, bars)}</figure>" for t, bars in charts
    )
    return (
        f"<section><h2>{escape(name)}</h2><p>{about}</p>"
        f'<div class="charts">{drawn}</div>{_table(titles, cells)}</section>'
    )


def _time_bar(title: str, at: int, cell: Cell) -> _Bar:
    return _Bar(title, at, cell.us_per_operation, micros(cell.us_per_operation))


def _count_bar(title: str, at: int, cell: Cell, name: str) -> _Bar:
    count = cell.count(name)
    if isinstance(count, Absent):
        return _Bar(title, at, count, str(count) if count.applies else "none: there is no guest")
    value = per_operation(count, cell.operations)
    return _Bar(title, at, value, number(value))


# ---- charts


def _chart(title: str, bars: Sequence[_Bar]) -> str:
    """Horizontal bars, each below its way's name."""
    values = [bar.value for bar in bars if not isinstance(bar.value, Absent) and bar.value > 0]
    low = math.floor(math.log10(min(values, default=1))) - (1 if values else 0)
    high = max(math.ceil(math.log10(max(values, default=1))), low + 1)
    room = _WIDTH - _LEFT - _RIGHT
    height = _TOP + len(bars) * _ROW + 24

    def place(exponent: float) -> float:
        return _LEFT + room * (exponent - low) / (high - low)

    lines = [
        f'<line class="grid" x1="{place(e):.1f}" x2="{place(e):.1f}" y1="{_TOP}" y2="{height - 20}"/>'
        f'<text class="tick" x="{place(e):.1f}" y="{height - 6}">{_decade(e)}</text>'
        for e in (range(low, high + 1, max(1, (high - low) // 4)) if values else ())
    ]
    rows = [_row(bar, _TOP + at * _ROW, place) for at, bar in enumerate(bars)]
    label = escape(f"{title}: " + "; ".join(f"{bar.title} {bar.text}" for bar in bars))
    about = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}"'
    return f"<svg {about}>{''.join(lines)}{''.join(rows)}</svg>"


def _row(bar: _Bar, y: float, place: Callable[[float], float]) -> str:
    name = f'<text class="name" x="{_LEFT}" y="{y + 13}">{escape(bar.title)}</text>'
    if isinstance(bar.value, Absent) or bar.value <= 0:
        return f'{name}<text class="absent" x="{_LEFT}" y="{y + 29}">{escape(bar.text)}</text>'
    end = place(math.log10(bar.value))
    return (
        f'{name}<rect class="c{bar.colour % _COLOURS}" x="{_LEFT}" y="{y + 18}" width="{end - _LEFT:.1f}" '
        f'height="13" rx="2"/><text class="value" x="{end + 6:.1f}" y="{y + 29}">{escape(bar.text)}</text>'
    )


def _decade(exponent: int) -> str:
    return f"{10**exponent:,}" if exponent >= 0 else f"{10.0**exponent:g}"


# ---- tables


def _table(titles: Sequence[str], cells: Sequence[Cell]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    rows = [
        f'<tr><th scope="row">{escape(words)}</th>{"".join(_count_cell(cell, name) for cell in cells)}</tr>'
        for name, words in COUNTS.items()
    ]
    times = (
        ("µs for one operation", [micros(cell.us_per_operation) for cell in cells]),
        ("ms from start to end of no operation", [milliseconds(cell.start_ms) for cell in cells]),
        ("ms of these without the guest's start", [milliseconds(cell.alone_ms) for cell in cells]),
        ("operations counted", [number(cell.operations) for cell in cells]),
        ("operations timed", [number(cell.timed_operations) for cell in cells]),
    )
    for words, texts in times:
        data = "".join(f"<td>{escape(text)}</td>" for text in texts)
        rows.append(f'<tr><th scope="row">{escape(words)}</th>{data}</tr>')
    body = "".join(rows)
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _places(comparison: Comparison) -> str:
    """Where the program finds itself in each way."""
    rows = [
        f'<tr><th scope="row">{escape(words)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in texts)
        + "</tr>"
        for words, texts in place_rows(comparison)
    ]
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in comparison.columns)
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>where the program is</h2><div class="wide">{table}</div></section>'


def _count_cell(cell: Cell, name: str) -> str:
    count = cell.count(name)
    if not isinstance(count, Count):
        return f'<td class="absent">{escape(str(count))}</td>'
    parts = "".join(
        f"<div>{escape(part)} <b>{number(more / cell.operations)}</b> each</div>"
        for part, more in parts_of(count)
    )
    return f'<td>{number(count.total)}<div class="parts">{parts}</div></td>'
