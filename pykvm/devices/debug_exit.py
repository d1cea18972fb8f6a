"""Ports by which a guest ends its run with an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DebugExit", "PlainExit"]


class DebugExit:
    """QEMU's isa-debug-exit: the written value v ends the run with the exit code `(v << 1) | 1`.

    So no guest can end with 0, and the guests written for it take 1 for success. v is what was
    written in its whole width (1, 2 or 4 bytes); that a process's status holds only 8 bits is the
    command's business. Reads answer 0.
    """

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - every offset is the same
        """Answer 0."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - every offset is the same
        """End the run."""
        self._on_exit(int.from_bytes(data, "little") << 1 | 1)


class PlainExit:
    """The written value, unsigned and in its whole width, is the exit code. Reads answer 0."""

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - every offset is the same
        """Answer 0."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - every offset is the same
        """End the run."""
        self._on_exit(int.from_bytes(data, "little"))
