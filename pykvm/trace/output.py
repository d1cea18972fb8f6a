"""Where a trace is written: a file, or a stream that somebody else reads. What is written stays valid."""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["OutputError", "TraceOutput"]

_CHUNK = 4096  # what a pipe takes at once where it says that it takes anything
_PATIENCE_MS = 100


class OutputError(PykvmError):
    """A trace could not be written: the disk is full, or may not be written to."""


class TraceOutput:
    """Bytes to a file descriptor, all of a piece or none of it.

    A file on a full disk is cut back to the last whole piece. A reader who does not read holds the guest
    up, and nothing is lost, until `is_given_up()` says that the run was to end: then the rest is dropped.
    """

    def __init__(self, fd: int, name: str, is_given_up: Callable[[], bool] = lambda: False) -> None:
        """`name` is what errors call it. The descriptor is closed by close() unless it is 1 or 2."""
        self.name = name
        self.is_terminal = os.isatty(fd)
        self._fd = fd
        self._is_given_up = is_given_up
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._good = os.lseek(fd, 0, os.SEEK_CUR) if self._is_file else 0
        self._poll = select.poll()
        if not self._is_file:
            self._poll.register(fd, select.POLLOUT)

    @classmethod
    def create(cls, path: Path, is_given_up: Callable[[], bool] = lambda: False) -> TraceOutput:
        """A new file, or an old one emptied. Raises OutputError with the path and what is wrong."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; give another file with -o") from None
        return cls(fd, str(path), is_given_up)

    def write(self, piece: bytes) -> None:
        """All of `piece`. Raises BrokenPipeError if the reader has gone, OutputError for a full disk."""
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._some(rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._cut()
            raise OutputError(f"{self.name}: {error.strerror}") from None
        self._good += len(piece)

    def _some(self, rest: memoryview) -> int:
        if self._is_file:
            return os.write(self._fd, rest)
        if not self._poll.poll(_PATIENCE_MS):
            return len(rest) if self._is_given_up() else 0
        try:
            return os.write(self._fd, rest[:_CHUNK])
        except BlockingIOError:  # somebody made it non-blocking
            return 0

    def _cut(self) -> None:
        if self._is_file:
            with suppress(OSError):  # the file stays as it is; its format ends at a whole line anyhow
                os.ftruncate(self._fd, self._good)
                os.lseek(self._fd, self._good, os.SEEK_SET)

    def close(self) -> None:
        """Close the file. Raises OutputError where the file system says only now that it is full."""
        if self._fd > 2:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:
                raise OutputError(f"{self.name}: {error.strerror}") from None
