"""A console in memory: the smallest MMIO device, for a guest's first load and store to one.

Sixteen bytes, to be touched in any width; nothing else is behind them::

    0x0  ID       read only: the letters "pkvm"
    0x4  CONSOLE  the byte written is printed; reads as 0
    0x8  SCRATCH  eight bytes that keep what is written
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MmioConsole"]

_ID = b"pkvm"
_CONSOLE, _SCRATCH, _SIZE_BYTES = 0x4, 0x8, 0x10


class MmioConsole:
    """Prints what is written to CONSOLE; ID and SCRATCH let a guest see whether it is there."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        """`output` takes each byte at once, in the guest's order."""
        self._output = output
        self._registers = bytearray(_ID.ljust(_SIZE_BYTES, b"\0"))

    def read(self, offset: int, size: int) -> bytes:
        """Answer the bytes there; behind the end, all ones."""
        return bytes(self._registers[offset : offset + size]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Print the byte that falls on CONSOLE, keep those that fall on SCRATCH; others are lost."""
        for at, value in enumerate(data, start=offset):
            if at == _CONSOLE:
                self._output(bytes((value,)))
            elif _SCRATCH <= at < _SIZE_BYTES:
                self._registers[at] = value
