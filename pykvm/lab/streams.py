"""The user's side of the command's standard streams."""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass

__all__ = ["Output", "Streams"]


@dataclass(frozen=True, slots=True)
class Streams:
    """The descriptors that the command's standard streams are connected to, and how."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    terminal: bool = False


class Output:
    """One stream of the command on its way to a descriptor of ours."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = bytearray()
        self.unreported = 0
        # poll calls a pipe writable when PIPE_BUF bytes fit; a file takes any amount
        self._piece = 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF

    def write(self) -> None:
        """Write what goes without blocking. Raises OSError."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            return
        try:
            done = os.write(self.fd, self.waiting[: self._piece])
        except BlockingIOError:
            return
        del self.waiting[:done]
        self.unreported += done

    def drop(self) -> None:
        """Nobody will read it."""
        self.unreported += len(self.waiting)
        self.waiting.clear()
