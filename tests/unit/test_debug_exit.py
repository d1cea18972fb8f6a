"""The ports by which a guest speaks to the host in one instruction: console, exits, panic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.debug_console import DebugConsole
from pykvm.devices.debug_exit import DebugExit, PlainExit
from pykvm.devices.panic import Panic, PanicEvent

widths = st.sampled_from([1, 2, 4])


@given(st.data(), widths)
def test_debug_exit_ends_with_an_odd_code(data: st.DataObject, width: int) -> None:
    """isa-debug-exit: v ends the run with (v << 1) | 1, whatever the width."""
    value = data.draw(st.integers(0, (1 << 8 * width) - 1))
    codes: list[int] = []
    DebugExit(codes.append).write(0, value.to_bytes(width, "little"))
    assert codes == [value << 1 | 1]


@given(st.data(), widths)
def test_plain_exit_ends_with_the_value(data: st.DataObject, width: int) -> None:
    """The plain exit: the value is the code."""
    value = data.draw(st.integers(0, (1 << 8 * width) - 1))
    codes: list[int] = []
    PlainExit(codes.append).write(0, value.to_bytes(width, "little"))
    assert codes == [value]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_reading_an_exit_port_ends_nothing(size: int) -> None:
    """Reads answer 0 and call nobody."""
    codes: list[int] = []
    assert DebugExit(codes.append).read(0, size) == bytes(size)
    assert PlainExit(codes.append).read(0, size) == bytes(size)
    assert codes == []


def test_debug_console_prints_in_order_and_tells_that_it_is_there() -> None:
    """Bytes come out one by one in the guest's order; reading answers 0xE9."""
    out: list[bytes] = []
    console = DebugConsole(out.append)
    for byte in b"hello":
        console.write(0, bytes([byte]))
    assert out == [b"h", b"e", b"l", b"l", b"o"]
    assert console.read(0, 1) == b"\xe9"
    assert console.read(0, 4) == b"\xe9\xff\xff\xff"


def test_debug_console_prints_the_first_byte_of_a_wide_write() -> None:
    """A wide write is one of successive ports, and only the first is the console."""
    out: list[bytes] = []
    DebugConsole(out.append).write(0, b"abcd")
    assert out == [b"a"]


@pytest.mark.parametrize(
    ("value", "events"),
    [
        (1, [PanicEvent.PANICKED]),
        (2, [PanicEvent.CRASH_LOADED]),
        (3, [PanicEvent.PANICKED | PanicEvent.CRASH_LOADED]),
        (0, []),
        (4, []),
        (0xFD, [PanicEvent.PANICKED]),
    ],
)
def test_panic_reports_the_events_it_knows(value: int, events: list[PanicEvent]) -> None:
    """Each write reports its known bits once; a write without any reports nothing."""
    seen: list[PanicEvent] = []
    Panic(seen.append).write(0, bytes([value]))
    assert seen == events


def test_panic_tells_which_events_it_knows() -> None:
    """Reading answers the bits that a guest may set."""
    assert Panic(lambda _event: None).read(0, 1) == b"\x03"
    assert Panic(lambda _event: None).read(0, 2) == b"\x03\xff"
