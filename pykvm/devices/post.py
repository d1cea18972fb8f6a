"""Port 0x80: a firmware or kernel writes a number at each stage of its start (power-on self-test)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PostCode"]


class PostCode:
    """Hands each mark to `on_mark`, which adds the time. Reading answers the last mark, 0 at power-on.

    Some kernels also write here only to pass a microsecond, so there may be many marks.
    """

    def __init__(self, on_mark: Callable[[int], None]) -> None:
        self._on_mark = on_mark
        self._last = b"\0"

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the last mark."""
        return self._last.ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Take a mark."""
        self._last = data[:1]
        self._on_mark(data[0])
