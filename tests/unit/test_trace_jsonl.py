"""JSON Lines: every event a line, nothing lost, in the keys that the documentation names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_parts import ABOUT, Memory, event, events, result, written

from pykvm.trace.jsonl import VERSION, JsonLinesSink, Shapes, event_line

if TYPE_CHECKING:
    from pykvm.trace.event import TraceEvent

DOCS = Path(__file__).resolve().parents[2] / "docs" / "trace-format.md"


def lines(found: list[TraceEvent], run: Any = None) -> list[dict[str, Any]]:
    out = Memory()
    written(JsonLinesSink(out), found, run)  # type: ignore[arg-type]
    assert out.is_closed
    return [json.loads(line) for line in out.contents.decode().splitlines()]


def test_the_first_line_says_which_run_it_is() -> None:
    """Format, version, and what a sink was told."""
    first = lines([])[0]
    assert (first["kind"], first["format"], first["version"]) == ("start", "pykvm-trace", VERSION)
    assert first["image"] == ABOUT.image
    assert first["start_ns"] == ABOUT.start_ns


def test_the_last_line_says_how_it_ended() -> None:
    """And how many events there were, so that a reader knows whether he has all."""
    last = lines([event(), event()], result(exits=2, wall_ns=7, dropped_records=1, skipped_steps=3))[-1]
    assert last["kind"] == "end"
    assert (last["events"], last["exits"], last["dropped"], last["skipped_steps"]) == (2, 2, 1, 3)
    assert (last["reason"], last["exit_code"]) == ("exit", 0)


@settings(max_examples=30)
@given(events())
def test_a_line_has_everything_that_the_event_has(found: TraceEvent) -> None:
    """Read back, it is the same; what is not known has no key."""
    text = event_line(found, Shapes())
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    line = json.loads(text)
    same = ("time_ns", "kind", "layer", "name", "duration_ns", "vcpu", "via", "result", "guest_ns", "where")
    for key in (*same, "task", "code", "thread"):
        value = getattr(found, key)
        assert line.get(key) == (None if value == "" else value) or line.get(key) == value
    assert line.get("args", {}) == dict(found.args)
    assert bytes.fromhex(line.get("data", "")) == found.data
    for key in ("rip", "cr3"):
        value = getattr(found, key)
        assert line.get(key) == (None if value is None else hex(value))


def test_arguments_with_one_name_are_still_json() -> None:
    """No producer makes them; the last one counts, as in every JSON reader."""
    assert json.loads(event_line(event(args=(("a", 1), ("a", 2))), Shapes()))["args"] == {"a": 2}


def test_what_is_remembered_stays_bounded() -> None:
    """A guest with ever new arguments."""
    shapes = Shapes()
    for number in range(10_000):
        event_line(event(args=(("gpa", number),)), shapes)
    assert len(shapes) <= 8192


def test_a_batch_is_written_whole() -> None:
    """One write for all its lines: a disk that fills up can cut between batches only."""
    out = Memory()
    sink = JsonLinesSink(out)  # type: ignore[arg-type]
    sink.write([event(), event(), event()])
    assert len(out.pieces) == 1


@settings(max_examples=20)
@given(st.lists(events(), max_size=5))
def test_every_key_is_documented(found: list[TraceEvent]) -> None:
    """docs/trace-format.md names each key of each line."""
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    for line in lines(found, result()):
        assert set(line) <= documented


def test_every_documented_key_is_there() -> None:
    """The documentation names none that no line can have."""
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    full = event(result=1, task="sh", code="out dx, al", thread="vcpu0", container="web")
    found = set().union(*lines([full], result()))
    assert documented == found


@pytest.mark.parametrize("hostile", ['"', "\\", "\x00", "\u2028", "\ud800"])
def test_strings_of_any_kind_are_json(hostile: str) -> None:
    """Also those that a guest's program can have in a name."""
    assert json.loads(event_line(event(task=hostile), Shapes()))["task"] == hostile
