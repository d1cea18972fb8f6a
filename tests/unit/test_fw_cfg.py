"""fw_cfg: keys that hold bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.fw_cfg import FwCfg, FwCfgKey, board_items
from pykvm.errors import ConfigError


def select(device: FwCfg, key: int) -> None:
    device.write(0, key.to_bytes(2, "little"))


def number(device: FwCfg, key: int, size: int) -> int:
    """What a guest reads byte by byte at the data port."""
    select(device, key)
    return int.from_bytes(b"".join(device.read(1, 1) for _ in range(size)), "little")


def test_a_guest_finds_the_board() -> None:
    """Signature, revision, RAM size and CPU counts stand at QEMU's keys."""
    device = FwCfg(board_items(ram_bytes=5 << 30, cpus=3, max_cpus=255))
    assert number(device, 0x00, 4).to_bytes(4, "little") == b"QEMU"
    assert number(device, 0x01, 4) == 1
    assert number(device, 0x03, 8) == 5 << 30
    assert number(device, 0x05, 2) == 3
    assert number(device, 0x0F, 2) == 255


def test_max_cpus_is_cpus_unless_given() -> None:
    """A board that can't grow has as many CPUs as it may have."""
    assert number(FwCfg(board_items(1 << 20, 7)), FwCfgKey.MAX_CPUS, 2) == 7


def test_before_any_selection_the_signature_reads() -> None:
    """At power-on key 0 is selected."""
    device = FwCfg(board_items(1 << 20, 1))
    assert device.read(1, 4) == b"QEMU"


@given(
    st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=20), max_size=4),
    st.lists(
        st.tuples(st.integers(0, 0xFFFF), st.lists(st.sampled_from([1, 2, 4, 8]), max_size=8)), max_size=8
    ),
)
@settings(deadline=None)
def test_reading_is_the_item_then_zeros(items: dict[int, bytes], reads: list[tuple[int, list[int]]]) -> None:
    """For any keys and widths: the item's bytes in order, then zeros; unknown keys are all zeros."""
    device = FwCfg(items)
    for asked, sizes in reads:
        for key in (asked, *items):
            select(device, key)
            expected = items.get(key & ~0x4000, b"") + bytes(64)
            got = b"".join(device.read(1, size) for size in sizes)
            assert got == expected[: sum(sizes)]


def test_selecting_starts_again() -> None:
    """Selecting the same key again reads it from its first byte."""
    device = FwCfg({1: b"abc"})
    select(device, 1)
    assert device.read(1, 2) == b"ab"
    select(device, 1)
    assert device.read(1, 2) == b"ab"


def test_writing_data_changes_nothing() -> None:
    """The data port takes no writes, with the write channel either, and moves nothing."""
    device = FwCfg({1: b"abc"})
    select(device, 0x4001)
    device.write(1, b"X")
    device.write(1, b"\x05\x00")
    device.write(0, b"\x05")
    assert device.read(1, 3) == b"abc"
    select(device, 1)
    assert device.read(1, 3) == b"abc"


def test_the_selector_can_not_be_read() -> None:
    """Reading the selector answers all ones and takes no byte of the item."""
    device = FwCfg({0: b"abc"})
    assert device.read(0, 2) == b"\xff\xff"
    assert device.read(1, 1) == b"a"


@pytest.mark.parametrize("key", [-1, 0x4000, 0x10000, 0xC001])
def test_a_key_that_can_not_be_selected_is_refused(key: int) -> None:
    """Keys have 16 bits, and bit 14 is the write channel."""
    with pytest.raises(ConfigError, match="fw_cfg"):
        FwCfg({}).add(key, b"")


def test_a_key_has_one_owner() -> None:
    """Adding a key twice is refused, and the first bytes stay."""
    device = FwCfg({})
    device.add(0x19, b"first")
    with pytest.raises(ConfigError, match="0x19 is taken"):
        device.add(0x19, b"second")
    select(device, 0x19)
    assert device.read(1, 5) == b"first"
