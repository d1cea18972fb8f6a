"""The page: it needs nothing else, has every event, and takes nothing that a guest says for markup."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_javascript
from trace_parts import ABOUT, Memory, event, result, written
from tree_sitter import Language, Parser

from pykvm.trace.html import HtmlSink

PAGE = Path(__file__).resolve().parents[2] / "pykvm" / "trace" / "page"


def page(*found: Any, run: Any = None) -> str:
    out = Memory()
    written(HtmlSink(out), found, run or result(wall_ns=5000, exits=len(found)))  # type: ignore[arg-type]
    assert out.is_closed
    return out.contents.decode()


def blocks(text: str) -> list[dict[str, Any]]:
    """The events' columns as the page's script reads them."""
    found = re.findall(r'<script type="application/x-pykvm-events" data-count="(\d+)">([^<]+)</script>', text)
    made = [json.loads(zlib.decompress(base64.b64decode(packed))) for _, packed in found]
    assert [len(block["time"]) for block in made] == [int(count) for count, _ in found]
    return made


def test_the_page_needs_nothing_else() -> None:
    """No address of another file or server, and a policy that forbids every request."""
    text = page(event())
    assert not re.search(r"""(?:src|href|url\(|import|fetch)\s*[=(]\s*["']?(?:https?:|//|\.)""", text)
    assert "default-src 'none'" in text
    assert not re.search(r"@[A-Z]+@", text)


def test_every_event_is_there_with_all_that_it_has() -> None:
    """Times count from the guest's first entry; -1 stands for what is not known."""
    events = [
        event(5000, guest_ns=1000, duration_ns=10),
        event(
            7000,
            kind="hypercall",
            name="time",
            args=(),
            result=42,
            duration_ns=None,
            guest_ns=None,
            code="out",
        ),
    ]
    (block,) = blocks(page(*events))
    assert block["base"] == 1000
    assert (block["time"], block["takes"], block["after"]) == ([0, 2000], [10, -1], [1000, -1])
    first, second = (block["shapes"][i] for i in block["shape"])
    assert (first["title"], first["group"], first["track"]) == ("IO out DebugConsole", "vCPU 0", "pykvm")
    assert first["args"][1] == ["port", "0xe9"]
    assert (second["kind"], second["where"], second["cr3"]) == ("hypercall", "_start+0x20", "0x92000")
    assert block["texts"][block["text"][0]] == "IO out 0xe9 DebugConsole ← 0x48 'H'"
    assert dict(block["more"])[1] == {"result": "42", "data": "48", "code": "out"}


def test_blocks_are_written_as_they_fill() -> None:
    """Memory stays flat, and what was written stays when the disk is full."""
    out = Memory()
    sink = HtmlSink(out)  # type: ignore[arg-type]
    written(sink, [event(i) for i in range(20_000)], result())
    assert [len(block["time"]) for block in blocks(out.contents.decode())] == [8192, 8192, 3616]
    assert len(out.pieces) == 5


def test_equal_events_share_their_shape_and_text() -> None:
    """Ten thousand prints of the same letter are one text."""
    (block,) = blocks(page(*(event(i) for i in range(1000))))
    assert (len(block["shapes"]), len(block["texts"])) == (1, 1)


def test_what_a_guest_says_is_no_markup() -> None:
    """Not in the events, not in the image's name, not in how the run ended."""
    hostile = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'
    out = Memory()
    sink = HtmlSink(out)  # type: ignore[arg-type]
    sink.open(ABOUT._replace(image=hostile))
    sink.write([event(name=hostile, where=hostile, task=hostile, data=hostile.encode()[:32], code=hostile)])
    sink.close(result())
    text = out.contents.decode()
    assert "<img" not in text
    assert text.count("<script>") == 1
    about = re.search(r'<script type="application/json" id="about">(.*?)</script>', text)
    assert about is not None
    assert json.loads(about[1])["image"] == hostile


def test_the_end_says_how_the_run_ended() -> None:
    """A page without it is shown as cut short."""
    found = re.search(
        r'id="end">(.*?)</script>', page(event(), run=result(wall_ns=77, exits=1, dropped_records=3))
    )
    assert found is not None
    assert json.loads(found[1]) == {
        "reason": "exit 0",
        "is_abnormal": False,
        "wall_ns": 77,
        "exits": 1,
        "dropped": 3,
    }


def test_a_run_without_events_is_a_page_too() -> None:
    """Of nothing."""
    assert blocks(page()) == []


@pytest.mark.parametrize("name", ["model.js", "timeline.js", "panels.js", "main.js"])
def test_the_scripts_are_javascript(name: str) -> None:
    """As far as a parser can tell."""
    parser = Parser(Language(tree_sitter_javascript.language()))
    assert not parser.parse((PAGE / name).read_bytes()).root_node.has_error
