"""The reset control register."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.reset import ResetControl, Rst


def write_all(values: list[int]) -> tuple[list[bool], ResetControl]:
    """What a chip does when it gets these values one after the other."""
    resets: list[bool] = []
    chip = ResetControl(resets.append)
    for value in values:
        chip.write(0, bytes([value]))
    return resets, chip


def test_the_usual_hard_reset() -> None:
    """Linux's and every firmware's way, 2 then 6, is one hard reset."""
    assert write_all([0x02, 0x06])[0] == [True]


def test_a_soft_reset() -> None:
    """0 then 4 is one soft reset."""
    assert write_all([0x00, 0x04])[0] == [False]


def test_only_a_rise_resets() -> None:
    """Holding the trigger resets once; letting go and rising again resets once more."""
    assert write_all([0x06, 0x06, 0x04, 0x02, 0x06])[0] == [True, True]


@given(st.lists(st.integers(0, 255)))
def test_resets_are_the_rises_of_bit_2(values: list[int]) -> None:
    """For any writes: one reset a rise of bit 2, hard exactly if bit 1 is set with it."""
    expected = [bool(new & 2) for old, new in zip([0, *values], values, strict=False) if new & ~old & 4]
    resets, chip = write_all(values)
    assert resets == expected
    known = int(Rst.SYSTEM | Rst.CPU | Rst.FULL)
    assert chip.read(0, 1) == bytes([values[-1] & known if values else 0])


def test_the_register_is_one_byte() -> None:
    """A wide access reaches the register with its first byte alone."""
    resets, chip = write_all([])
    chip.write(0, b"\x00\x06\x06\x06")
    assert resets == []
    assert chip.read(0, 4) == b"\x00\xff\xff\xff"
