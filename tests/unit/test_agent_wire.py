"""Frames between the host and the agent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.containers import wire
from pykvm.containers.wire import (
    AgentFrame,
    AgentWireError,
    Decoder,
    Kind,
    encode,
    encode_credit,
    encode_json,
)

HEADER = Path(__file__).parents[2] / "guests" / "agent" / "protocol.h"
FRAMES = st.builds(
    AgentFrame,
    st.sampled_from([Kind.DATA, Kind.ANSWER, Kind.EVENT]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2),
    st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_as_they_went_in(frames: list[AgentFrame], cuts: list[int]) -> None:
    """Whatever pieces the stream comes in."""
    sent = b"".join(encode(frame.kind, frame.id, frame.stream, frame.body) for frame in frames)
    decoder, found = Decoder(), []
    while sent:
        for cut in cuts:
            found += decoder.feed(sent[:cut])
            sent = sent[cut:]
    assert found == frames
    assert decoder.is_between


@given(
    st.text(
        st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
    )
)
def test_bytes_that_are_no_text_pass_through_objects(text: str) -> None:
    """A name of a file is any bytes: each surrogate travels as the byte that it stands for."""
    raw = text.encode(errors="surrogateescape")
    (frame,) = Decoder().feed(encode_json(Kind.REQUEST, 1, {"a": text}))
    assert frame.json()["a"].encode(errors="surrogateescape") == raw


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0?\0\0\0\0\0\0\0",
        b"\1\0\0\0C\0\0\0\0\0\0\0",
        b"\0\0\0\0D\3\0\0\0\0\0\0",
        b"\0\0\0\0D\0\1\0\0\0\0\0",
        b"\xff\xff\xff\xffA\0\0\0\0\0\0\0",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """Before anything is kept of it."""
    with pytest.raises(AgentWireError):
        Decoder().feed(data)


def test_bodies_have_limits_and_shapes() -> None:
    """A credit is four bytes, an object is an object, and nothing is larger than agreed."""
    (frame,) = Decoder().feed(encode_credit(7, 1, 65536))
    assert (frame.id, frame.stream, frame.credit()) == (7, 1, 65536)
    for kind, size in ((Kind.DATA, wire.DATA_MOST + 1), (Kind.REQUEST, wire.REQUEST_MOST + 1)):
        with pytest.raises(AgentWireError):
            encode(kind, body=bytes(size))
    for body in (b"[]", b"{", b'"\xff'):
        with pytest.raises(AgentWireError):
            AgentFrame(Kind.ANSWER, body=body).json()


def test_the_agent_has_the_same_numbers() -> None:
    """Kinds and limits of protocol.h."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = dict(re.findall(r"(\w+) = ([^,}]+?)(?=\s*[,}])", text))
    for kind in Kind:
        assert found[kind.name] == f"'{chr(kind)}'"
    assert int(found["AGENT_PORT"]) == wire.PORT
    for name in ("PROTOCOL", "WINDOW", "OUT_WINDOW", "DATA_MOST", "STREAM_IN", "STREAM_OUT", "STREAM_ERR"):
        assert int(found[name]) == getattr(wire, name)
    assert found["REQUEST_MOST"] == found["ANSWER_MOST"] == "1 << 20"
