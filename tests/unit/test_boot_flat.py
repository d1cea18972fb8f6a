"""Flat binaries run where and how an option or their name says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot import load
from pykvm.errors import ConfigError, ImageError
from pykvm.regs import CpuMode

CODE = b"\xf4" * 32


@pytest.mark.parametrize(
    ("mode", "gpa"),
    [
        (CpuMode.REAL16, layout.FLAT_REAL),
        (CpuMode.PROT32, layout.FLAT_HIGH),
        (CpuMode.PAGED32, layout.FLAT_HIGH),
        (CpuMode.LONG64, layout.FLAT_HIGH),
        (CpuMode.USER64, layout.FLAT_HIGH),
    ],
)
def test_default_addresses(mode: CpuMode, gpa: int) -> None:
    """A mode alone says where the image goes, and it is entered at its first byte."""
    image = load(CODE, mode=mode)
    assert (image.kind, image.mode, image.entry) == ("flat", mode, gpa)
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [(gpa, CODE, len(CODE))]


def test_reset_image_ends_at_4_gib() -> None:
    """An image for the reset vector holds it: its last 16 bytes are where the CPU starts."""
    image = load(CODE, mode=CpuMode.RESET)
    assert (image.entry, image.end) == (0xFFFF_FFF0, 1 << 32)
    with pytest.raises(ImageError, match="entry 0xfffffff0"):
        load(CODE[:15], mode=CpuMode.RESET)


def test_reset_takes_no_entry() -> None:
    """The reset vector is not the user's choice."""
    with pytest.raises(ConfigError, match="0xfffffff0"):
        load(CODE, mode=CpuMode.RESET, entry=0xFFFF_FFF1)


@pytest.mark.parametrize(
    ("name", "mode", "gpa"),
    [
        ("hello.real16.bin", CpuMode.REAL16, 0x8000),
        ("hello.real16@0x600.bin", CpuMode.REAL16, 0x600),
        ("dir.d/a.b.LONG64@200000.BIN", CpuMode.LONG64, 0x20_0000),
        ("x.user64@0X100000.bin", CpuMode.USER64, 0x10_0000),
        (".prot32.bin", CpuMode.PROT32, 0x10_0000),
    ],
)
def test_name_says_mode_and_address(name: str, mode: CpuMode, gpa: int) -> None:
    """NAME.MODE[@HEXADDR].bin is all that is needed."""
    image = load(CODE, name=name)
    assert (image.mode, image.entry) == (mode, gpa)


def test_options_go_before_the_name() -> None:
    """Mode, address and entry by option win over those in the name."""
    image = load(CODE, name="x.real16@0x600.bin", mode=CpuMode.LONG64, address=0x30_0000, entry=0x30_0010)
    assert (image.mode, image.segments[0].gpa, image.entry) == (CpuMode.LONG64, 0x30_0000, 0x30_0010)


@pytest.mark.parametrize("address", ["", "zz", "0x", "-1", "1_0", "10000000000000000"])
def test_address_in_the_name_that_is_none(address: str) -> None:
    """An address in a name must be a hexadecimal number of at most 16 digits."""
    with pytest.raises(ImageError, match="not a hexadecimal number"):
        load(CODE, name=f"x.real16@{address}.bin")


@pytest.mark.parametrize("name", ["x.bin", "x.real17.bin", "x.real16.img", "real16.bin", "x.real16.bin.old"])
def test_names_that_say_nothing(name: str) -> None:
    """Without a mode plain bytes are refused with the way to say it."""
    with pytest.raises(ImageError, match=r"NAME\.MODE\.bin"):
        load(CODE, name=name)


@pytest.mark.parametrize(
    ("mode", "address", "entry"),
    [
        (CpuMode.LONG64, None, layout.FLAT_HIGH - 1),
        (CpuMode.LONG64, None, layout.FLAT_HIGH + len(CODE)),
        (CpuMode.REAL16, 0x10_0000, None),
        (CpuMode.LONG64, 1 << 32, None),
        (CpuMode.LONG64, (1 << 64) - 8, None),
    ],
)
def test_entry_that_cannot_be(mode: CpuMode, address: int | None, entry: int | None) -> None:
    """The entry lies in the image and where the mode can start."""
    with pytest.raises(ImageError):
        load(CODE, mode=mode, address=address, entry=entry)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_options_that_are_no_addresses(value: int) -> None:
    """Addresses have 64 bits."""
    with pytest.raises(ConfigError, match="address"):
        load(CODE, mode=CpuMode.LONG64, address=value)
    with pytest.raises(ConfigError, match="entry"):
        load(CODE, mode=CpuMode.LONG64, entry=value)


def test_more_than_there_is_room_for() -> None:
    """A flat image larger than the guest's memory is refused before it is read."""
    with pytest.raises(ImageError, match="room for"):
        load(CODE, mode=CpuMode.LONG64, limit_bytes=len(CODE) - 1)


@given(st.binary(min_size=1, max_size=600), st.integers(0, (1 << 20) - 600))
def test_any_bytes_are_code(data: bytes, address: int) -> None:
    """With mode and address given, bytes are taken as they are, whatever they resemble."""
    if data.startswith(b"\x7fELF"):
        return
    image = load(data, mode=CpuMode.REAL16, address=address)
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [(address, data, len(data))]
    assert image.entry == address
