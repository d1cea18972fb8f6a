"""The console in memory: its three registers, in any width and at any offset."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.mmio_console import MmioConsole


def test_id_reads_as_letters_and_can_not_be_written() -> None:
    """The first four bytes are "pkvm", whatever the guest writes there."""
    device = MmioConsole(lambda _data: None)
    device.write(0, bytes(4))
    assert device.read(0, 4) == b"pkvm"


def test_only_the_byte_on_console_is_printed() -> None:
    """A wide store prints the one byte that falls on offset 4; it reads back as 0."""
    printed: list[bytes] = []
    device = MmioConsole(printed.append)
    device.write(4, b"a")
    device.write(2, b"..bc")
    assert printed == [b"a", b"b"]
    assert device.read(4, 4) == bytes(4)


@given(st.integers(0, 15), st.binary(min_size=1, max_size=8))
def test_scratch_keeps_what_falls_on_it(offset: int, data: bytes) -> None:
    """Of any access the bytes on offsets 8 to 15 are kept, and what lies behind reads as all ones."""
    device = MmioConsole(lambda _data: None)
    device.write(offset, data)
    want = {at: value for at, value in enumerate(data, start=offset) if 8 <= at < 16}
    found = b"".join(device.read(at, 1) for at in range(8, 16))
    assert found == bytes(want.get(at, 0) for at in range(8, 16))
    assert device.read(offset, len(data)) == b"".join(
        device.read(at, 1) for at in range(offset, offset + len(data))
    )
    assert device.read(15, 8)[1:] == b"\xff" * 7
