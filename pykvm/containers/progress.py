"""How long work says how far it is: to anybody who gives it a function to call."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO

    from _typeshed import WriteableBuffer

__all__ = ["Counted", "Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""Called with what is worked on, the bytes done and the bytes in all (0: not known)."""


def silent(_what: str, _done: int, _all: int) -> None:
    """Say nothing."""


class Counted(io.RawIOBase):
    """A stream whose reader is told how far he is."""

    def __init__(
        self, source: IO[bytes] | io.RawIOBase, what: str, size_bytes: int, progress: Progress
    ) -> None:
        self._source = source
        self._what = what
        self._size = size_bytes
        self._progress = progress
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read(len(view)) or b""
        view[: len(data)] = data
        self._done += len(data)
        self._progress(self._what, self._done, self._size)
        return len(data)
