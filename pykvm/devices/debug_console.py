"""The debug console of Bochs and QEMU: each byte written to the port is printed, nothing to set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DebugConsole"]


class DebugConsole:
    """One port that prints. Reading it answers 0xE9, by which a guest knows that the console is there."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        """`output` takes each byte at once, in the guest's order."""
        self._output = output

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer 0xE9."""
        return b"\xe9".ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Print the first byte; further ones belong to the ports behind this one."""
        self._output(data[:1])
