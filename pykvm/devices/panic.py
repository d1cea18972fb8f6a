"""pvpanic: the port on which a guest kernel says that it has crashed (QEMU's docs/specs/pvpanic)."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Panic", "PanicEvent"]


class PanicEvent(IntFlag):
    """What a guest reports."""

    PANICKED = 1 << 0  # it crashed and waits for the host to end it
    CRASH_LOADED = 1 << 1  # it crashed and goes on by itself, into its crash kernel


class Panic:
    """Hands each report to `on_panic`. Reading the port answers the events that are understood."""

    def __init__(self, on_panic: Callable[[PanicEvent], None]) -> None:
        self._on_panic = on_panic
        self._supported = int(PanicEvent.PANICKED | PanicEvent.CRASH_LOADED)

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the supported events."""
        return bytes((self._supported,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Report; bits that are not understood are left out, and nothing is reported if none is."""
        if event := data[0] & self._supported:
            self._on_panic(PanicEvent(event))
