"""A trace as one HTML page that needs nothing else: no network, no server, no other file.

The page's own parts lie in `page/`; this file puts them together and the events behind them, in blocks of
columns, each compressed by itself and written whole: a page that was cut short still shows what it has.
Nothing that a guest says becomes markup: texts travel as base64 and are set as text.
"""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pykvm.trace.event import beginning
from pykvm.trace.text import describe, result_text, title, track, value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["HtmlSink"]

_SCRIPTS = ("model.js", "timeline.js", "panels.js", "main.js")
_BLOCK = 8192


class HtmlSink:
    """Writes the page's head at once, then a block whenever 8192 events have come, and the end."""

    def __init__(self, output: TraceOutput) -> None:
        self._output = output
        self._waiting: list[TraceEvent] = []
        self._zero_ns: int | None = None
        self._is_begun = False

    def __repr__(self) -> str:
        return self._output.name

    def open(self, about: TraceAbout) -> None:
        """Write everything before the events."""
        self._output.write(_head(about).encode())
        self._is_begun = True

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Collect the events, and write the blocks that are full."""
        self._waiting += events
        while len(self._waiting) >= _BLOCK:
            self._block(self._waiting[:_BLOCK])
            del self._waiting[:_BLOCK]

    def close(self, result: RunResult | None) -> None:
        """Write the rest of the events, and how the run ended."""
        if self._waiting:
            self._block(self._waiting)
            self._waiting = []
        if result and self._is_begun:
            end = {
                "reason": str(result),
                "is_abnormal": result.reason.is_abnormal,
                "wall_ns": result.stats.wall_ns,
                "exits": result.stats.exits,
                "dropped": result.stats.dropped_records,
            }
            text = f'<script type="application/json" id="end">{_json(end)}</script>\n</body>\n</html>\n'
            self._output.write(text.encode())
        self._output.close()

    def _block(self, events: Sequence[TraceEvent]) -> None:
        if self._zero_ns is None:
            self._zero_ns = beginning(events)
        packed = zlib.compress(_json(_Block(events, self._zero_ns).columns()).encode(), 6)
        text = base64.b64encode(packed).decode()
        head = f'<script type="application/x-pykvm-events" data-count="{len(events)}">'
        self._output.write(f"{head}{text}</script>\n".encode())


def _head(about: TraceAbout) -> str:
    page = files("pykvm.trace") / "page"
    parts = {
        "TITLE": escape(about.image),
        "STYLE": (page / "style.css").read_text(),
        "SCRIPT": "\n".join((page / name).read_text() for name in _SCRIPTS),
        "ABOUT": _json(about._asdict()),
    }
    text = (page / "page.html").read_text()
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _json(value: Any) -> str:
    """Compact JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


class _Table:
    """Values that are written once for a block and then called by their index."""

    def __init__(self) -> None:
        self._index: dict[Any, int] = {}
        self.values: list[Any] = []

    def index(self, key: Any) -> int | None:
        return self._index.get(key)

    def add(self, key: Any, value: Any) -> int:
        found = self._index[key] = len(self.values)
        self.values.append(value)
        return found


class _Block:
    """Events as columns. Unknown durations are -1; what few events have stands in `more`."""

    def __init__(self, events: Sequence[TraceEvent], zero_ns: int) -> None:
        self._shapes = _Table()
        self._texts = _Table()
        self._events = events
        self._zero_ns = zero_ns

    def columns(self) -> dict[str, Any]:
        """The block as main.js and its neighbours read it."""
        events = self._events
        times = [event.time_ns for event in events]
        return {
            "base": times[0] - self._zero_ns,
            "time": [0, *(after - before for before, after in pairwise(times))],
            "takes": [-1 if event.duration_ns is None else event.duration_ns for event in events],
            "after": [-1 if event.guest_ns is None else event.guest_ns for event in events],
            "shape": [self._shape(event) for event in events],
            "text": [self._text(event) for event in events],
            "more": [(i, more) for i, event in enumerate(events) if (more := _more(event))],
            "shapes": self._shapes.values,
            "texts": self._texts.values,
        }

    def _shape(self, event: TraceEvent) -> int:
        what = (event.kind, event.layer, event.name, event.via, event.args, event.where, event.vcpu)
        key = (
            what,
            event.cr3,
            event.cpl,
            event.task,
            event.container,
            event.thread,
            event.data if event.kind == "mark" else b"",
        )
        found = self._shapes.index(key)
        return self._shapes.add(key, _about(event)) if found is None else found

    def _text(self, event: TraceEvent) -> int:
        code = event.code if event.kind == "step" else ""
        key = (event.kind, event.name, event.args, event.result, event.data, event.via, code)
        found = self._texts.index(key)
        return self._texts.add(key, describe(event)) if found is None else found


def _about(event: TraceEvent) -> dict[str, Any]:
    """What an event has in common with many others."""
    group, name = track(event)
    return {
        "kind": event.kind,
        "layer": event.layer,
        "title": title(event),
        "via": event.via,
        "group": group,
        "track": name,
        "vcpu": event.vcpu,
        "cpl": event.cpl,
        "where": event.where,
        "cr3": "" if event.cr3 is None else f"{event.cr3:#x}",
        "task": event.task,
        "container": event.container,
        "thread": event.thread,
        "args": [(name, value_text(name, value)) for name, value in event.args],
    }


def _more(event: TraceEvent) -> dict[str, str]:
    more = {"result": result_text(event.result)} if event.result is not None else {}
    if event.data:
        more["data"] = event.data.hex()
    if event.code:
        more["code"] = event.code
    return more
