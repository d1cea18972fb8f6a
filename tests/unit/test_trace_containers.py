"""The container that a syscall comes from, in every form of a trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from trace_parts import ABOUT, Memory, event, result

from pykvm.trace.html import HtmlSink
from pykvm.trace.jsonl import JsonLinesSink
from pykvm.trace.live import LiveSink
from pykvm.trace.select import Selection
from pykvm.trace.summary import SummarySink
from pykvm.trace.text import track

if TYPE_CHECKING:
    from pykvm.trace.event import TraceEvent


def call(container: str, task: str = "sh[7]", name: str = "write") -> TraceEvent:
    where: dict[str, Any] = {
        "kind": "syscall",
        "layer": "guest kernel",
        "via": "",
        "args": (),
        "data": b"",
        "where": "",
    }
    return event(name=name, task=task, container=container, **where)


EVENTS = [call("web"), call("db"), call("web", name="read"), call("")]


def through(sink: Any) -> None:
    sink.open(ABOUT)
    sink.write(EVENTS)
    sink.close(result())


def test_lines_begin_with_it() -> None:
    """In brackets before the process; a process in none has no brackets."""
    memory: Any = Memory()
    through(LiveSink(memory))
    lines = b"".join(memory.pieces).decode().splitlines()[1:]
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "[web] sh[7]: write() = ?",
        "[db] sh[7]: write() = ?",
        "[web] sh[7]: read() = ?",
        "sh[7]: write() = ?",
    ]


def test_the_summary_counts_by_it() -> None:
    """A part of its own below all syscalls, which it adds up to with those of no container."""
    memory: Any = Memory()
    through(SummarySink(memory, as_json=True))
    found = json.loads(b"".join(memory.pieces))
    assert {name: row["count"] for name, row in found["syscall"].items()} == {"write": 3, "read": 1}
    counts = {name: row["count"] for name, row in found["container"].items()}
    assert counts == {"web: write": 1, "web: read": 1, "db: write": 1}


def test_json_lines_and_pages_have_it() -> None:
    """A key of a line; in a page a group of tracks of its own."""
    memory: Any = Memory()
    through(JsonLinesSink(memory))
    lines = [json.loads(line) for line in b"".join(memory.pieces).splitlines()[1:-1]]
    assert [line.get("container") for line in lines] == ["web", "db", "web", None]
    assert [track(one)[0] for one in EVENTS[1:]] == ["container db", "container web", "guest processes"]
    page: Any = Memory()
    through(HtmlSink(page))
    assert page.pieces


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"containers": ["web"]}, [0, 2]),
        ({"containers": ["web"], "syscalls": ["write"]}, [0]),
        ({"containers": ["web", "db"], "processes": [8]}, []),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_it_can_be_chosen(options: dict[str, Any], wanted: list[int]) -> None:
    """By name, together with names of syscalls and numbers of processes."""
    selection = Selection(**options)
    assert selection.may_want("syscall")
    assert list(selection.keep(EVENTS)) == [EVENTS[at] for at in wanted]
    assert selection.wants(event()) == (not options)
