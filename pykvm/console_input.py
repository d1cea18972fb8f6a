"""What a guest reads from its console by hypercall: bytes given beforehand, typed meanwhile, or a file's."""

from __future__ import annotations

import os
import select
import threading

__all__ = ["ConsoleInput"]

_QUEUE_BYTES = 65_536


class ConsoleInput:
    """A queue that another thread may feed, or a file descriptor that is read when the guest asks.

    `data` comes first. Without `fd` the input goes on with feed() until end(); with one it is the file's,
    to its end, and no byte is taken that the guest has not asked for.
    """

    def __init__(self, data: bytes = b"", *, fd: int | None = None) -> None:
        self._data = bytearray(data)
        self._fd = fd
        self._is_ended = False
        self._changed = threading.Condition()
        self.is_wanted = False
        """Whether the guest has ever asked."""

    # ---- who types

    def feed(self, data: bytes) -> int:
        """Put `data` at the end of the queue: how many bytes it took, fewer where 64 KiB wait already."""
        with self._changed:
            taken = min(len(data), max(_QUEUE_BYTES - len(self._data), 0))
            self._data += data[:taken]
            self._changed.notify_all()
        return taken

    def end(self) -> None:
        """No more will come: after what waits the guest finds the end of its input."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    # ---- who reads

    def is_ready(self) -> bool:
        """Whether read() has something to say: bytes, or that there are no more."""
        if self._data or self._is_ended:
            return True
        return self._fd is not None and _can_read(self._fd, 0)

    def read(self, size: int) -> bytes | None:
        """At most `size` bytes, b"" at the end of the input, None if there is nothing yet. It never waits.

        Of size 0: b"" where is_ready().
        """
        self.is_wanted = True
        with self._changed:
            if self._data or self._is_ended:
                found = bytes(self._data[:size])
                del self._data[:size]
                return found
        if self._fd is None or not _can_read(self._fd, 0):
            return None
        return self._read_file(self._fd, size) if size else b""

    def wait(self, seconds: float) -> None:
        """Return when there may be something, or after `seconds`."""
        if self._fd is not None and not self._is_ended:
            if not self._data:
                _can_read(self._fd, seconds)
            return
        with self._changed:
            if not self._data and not self._is_ended:
                self._changed.wait(seconds)

    def _read_file(self, fd: int, size: int) -> bytes | None:
        try:
            found = os.read(fd, size)
        except BlockingIOError:  # somebody else was faster
            return None
        except OSError:  # a terminal that has gone, a folder: there is nothing to be read
            found = b""
        if not found and not os.isatty(fd):  # on a terminal more may follow Ctrl-D
            self.end()
        return found


def _can_read(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
