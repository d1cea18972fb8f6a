"""Frames come out as they went in, and both sides of the channel mean the same by them."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pykvm.lab
from pykvm.errors import LabError
from pykvm.lab import wire
from pykvm.lab.wire import Decoder, Ending, Frame, Kind

frames = st.lists(
    st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2), st.binary(max_size=300)), max_size=12
)


@given(frames, st.lists(st.integers(1, 64), min_size=1))
def test_frames_survive_any_cut_of_the_stream(sent: list[Frame], cuts: list[int]) -> None:
    """The decoder gives the frames that were encoded, however the bytes arrive."""
    data = b"".join(wire.encode(frame.kind, frame.payload, frame.stream) for frame in sent)
    decoder = Decoder()
    got: list[Frame] = []
    step = 0
    while data:
        size = cuts[step % len(cuts)]
        got += decoder.feed(data[:size])
        data = data[size:]
        step += 1
    assert got == sent


@given(st.binary(min_size=4, max_size=64))
def test_noise_is_refused_or_waited_for_but_never_a_crash(noise: bytes) -> None:
    """A stream that is none of ours raises LabError."""
    with suppress(LabError):
        for frame in Decoder().feed(noise):
            assert frame.kind in set(Kind)


def test_a_payload_has_a_limit() -> None:
    """What does not fit is a mistake of the caller, not a broken stream."""
    assert len(wire.encode(Kind.DATA, bytes(wire.MAX_PAYLOAD))) == wire.MAX_PAYLOAD + 4
    with pytest.raises(ValueError, match="at most"):
        wire.encode(Kind.DATA, bytes(wire.MAX_PAYLOAD + 1))


def test_a_long_job_is_cut_into_frames_and_ends_with_an_empty_one() -> None:
    """The pieces joined are the NUL-terminated strings."""
    argument = b"x" * 100_000
    data = b"".join(wire.encode_job([b"cat", argument], {b"A": b"b=c"}, b"/tmp", {b"tty": b"24x80"}))
    got = list(Decoder().feed(data))
    assert got[-1] == Frame(Kind.JOB, 0, b"")
    strings = b"".join(frame.payload for frame in got).split(b"\0")
    assert strings == [b"arg=cat", b"arg=" + argument, b"env=A=b=c", b"cwd=/tmp", b"tty=24x80", b""]


@pytest.mark.parametrize(
    ("payload", "status"),
    [(b"\0\7", 7), (b"\0\0", 0), (b"\1\x09", 137), (b"\2\2no", 127), (b"\2\x0d", 126), (b"\2\x08", 126)],
)
def test_an_ending_is_the_status_a_shell_gives(payload: bytes, status: int) -> None:
    """7 is 7, a signal 128 and its number, ENOENT 127, any other error of exec 126."""
    assert Ending.decode(payload).exit_status == status


@pytest.mark.parametrize("payload", [b"", b"\0", b"\x09\0"])
def test_an_ending_that_makes_no_sense_is_refused(payload: bytes) -> None:
    """It is never taken for an exit status."""
    with pytest.raises(LabError, match="makes no sense"):
        Ending.decode(payload)


def c_numbers() -> dict[str, int]:
    """The constants of init.h: characters, and products of numbers."""
    text = (Path(pykvm.lab.__file__).parent / "init.h").read_text()
    found = re.findall(r"\b([A-Z_0-9]+) = ('.'|[\dxa-f *]+)", text)
    return {
        name: ord(value[1]) if value[0] == "'" else math.prod(int(part, 0) for part in value.split("*"))
        for name, value in found
    }


def test_the_init_means_the_same_numbers() -> None:
    """init.h and wire.py agree on each kind, on the window, the protocol, the ways to end."""
    c = c_numbers()
    for kind in Kind:
        assert c["CREDIT" if kind is Kind.WINDOW else kind.name] == kind
    assert (c["PROTOCOL"], c["MAX_PAYLOAD"], c["WINDOW"]) == (wire.PROTOCOL, wire.MAX_PAYLOAD, wire.WINDOW)
    assert (c["EXITED"], c["SIGNALLED"], c["NOT_STARTED"]) == tuple(wire.How)
