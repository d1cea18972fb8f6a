"""The reset control register at port 0xCF9 of Intel's chip sets (ICH/PIIX datasheets, RST_CNT)."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResetControl", "Rst"]


class Rst(IntFlag):
    """Bits of the reset control register."""

    SYSTEM = 1 << 1  # SYS_RST: the reset is hard (the whole board), not soft (INIT to the CPUs)
    CPU = 1 << 2  # RST_CPU: its rise from 0 to 1 resets
    FULL = 1 << 3  # FULL_RST: a hard reset also cycles the power


_KEPT = int(Rst.SYSTEM | Rst.CPU | Rst.FULL)
_CPU = int(Rst.CPU)
_SYSTEM = int(Rst.SYSTEM)


class ResetControl:
    """Calls `on_reset(hard)` when RST_CPU rises; `hard` tells a reset of the board from one of the CPUs."""

    def __init__(self, on_reset: Callable[[bool], None]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the bits last written."""
        return bytes((self._value,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Take the new bits; reset if RST_CPU was 0 and is 1."""
        before, self._value = self._value, data[0] & _KEPT
        if self._value & ~before & _CPU:
            self._on_reset(bool(self._value & _SYSTEM))
