"""Where a command puts the guest's output: stdout, which may be slow, full, closed, or read by nobody."""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stdout", "printable"]

_CHUNK = 4096  # what a pipe takes at once where it says that it takes anything
_PATIENCE_MS = 100


def printable(text: str) -> str:
    """`text` as one line that can't play tricks with a terminal: what does not print is escaped."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class Stdout:
    """The guest's bytes go to stdout as they come, past Python's buffers: they are nobody's text.

    A reader who does not read holds the guest up, and nothing is lost. But he can't hold up an end from
    outside: when `is_given_up()` says that time is over or somebody has asked to leave, what he has not
    taken is dropped.
    """

    def __init__(self, is_given_up: Callable[[], bool]) -> None:
        """`is_given_up` is asked, from any thread, while stdout takes nothing."""
        self._is_given_up = is_given_up
        self._fd = sys.stdout.fileno() if sys.stdout else -1
        self.is_at_line_start = True
        self._poll = select.poll()
        if self._fd >= 0:
            sys.stdout.flush()
            self._poll.register(self._fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """All of `data`, unless it is given up.

        Raises BrokenPipeError if the reader has gone, PykvmError for a full disk and the like.
        """
        self.is_at_line_start = data.endswith(b"\n") if data else self.is_at_line_start
        while data and self._fd >= 0:
            if self._poll.poll(_PATIENCE_MS):
                data = data[self._write(data[:_CHUNK]) :]
            elif self._is_given_up():
                return

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BrokenPipeError:
            raise
        except BlockingIOError:  # somebody made it non-blocking
            return 0
        except OSError as error:
            raise PykvmError(f"standard output: {error.strerror}") from None
