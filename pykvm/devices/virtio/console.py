"""A console (virtio 1.2, section 5.3): one port, with the terminal's size and an emergency write."""

from __future__ import annotations

import os
import select
import struct
import threading
from enum import IntFlag
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import ByteStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Console", "ConsoleFeature"]

_RECEIVE, _TRANSMIT = 0, 1
_QUEUE_BYTES = 65_536
_EMERGENCY_AT = 8


class ConsoleFeature(IntFlag):
    """Feature bits (5.3.3)."""

    SIZE = 1 << 0
    EMERG_WRITE = 1 << 2


class Console(VirtioDevice):
    """Hands what the guest prints to `output`; receive() and resize() are the terminal's side, any thread.

    With `hold`, input waits for release(): a driver that starts throws away what comes too early, and a
    terminal that is not set up yet would echo it.
    """

    device_id = 3
    features = ConsoleFeature.SIZE | ConsoleFeature.EMERG_WRITE
    queue_sizes = (64, 256)
    name = "console"

    def __init__(
        self, output: Callable[[bytes], None], *, columns: int = 0, rows: int = 0, hold: bool = False
    ) -> None:
        super().__init__()
        self._output = output
        self._size = self._shown = columns, rows
        self._holds = hold
        self._input = bytearray()
        self._stream: ByteStream | None = None
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_open = False
        """Whether a driver has the console."""

    def config(self) -> bytes:
        """struct virtio_console_config (5.3.4)."""
        columns, rows = self._size
        return struct.pack("<HHII", columns, rows, 1, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """A character by emerg_wr, which works before there are queues."""
        if offset == _EMERGENCY_AT:
            self._output(data[:1])

    def activate(self) -> None:
        """A driver has come."""
        self.is_open = True

    def deactivate(self) -> None:
        """It has gone."""
        self.is_open = False

    # ---- the terminal's side

    def receive(self, data: bytes) -> int:
        """Type `data`: how many bytes it took, fewer where 64 KiB wait already."""
        with self._lock:
            taken = min(len(data), _QUEUE_BYTES - len(self._input))
            self._input += data[:taken]
        os.eventfd_write(self._wake, 1)
        return taken

    def release(self) -> None:
        """Somebody in the guest reads now."""
        self._holds = False
        os.eventfd_write(self._wake, 1)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's window has another size; also from a signal's handler."""
        self._size = columns, rows
        os.eventfd_write(self._wake, 1)

    # ---- the driver's side

    def watched(self) -> Mapping[int, int]:
        """What receive() and resize() signal."""
        return {self._wake: select.POLLIN}

    def on_ready(self, fd: int) -> None:
        """Something was typed, or the window has another size."""
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        if self._shown != self._size:
            self._shown = self._size
            self.config_changed()
        self._feed()

    def on_notify(self, index: int) -> None:
        """The driver prints, or has room for input again."""
        if index == _TRANSMIT:
            self._print()
        else:
            self._feed()

    def _print(self) -> None:
        """What the driver sends within some milliseconds, in one piece; then others have a turn."""
        queue = self.queues[_TRANSMIT]
        if self._stream is None:
            self._stream = ByteStream(self.doorbells[_TRANSMIT] if self.doorbells else -1)
        while True:
            try:
                large = queue.gather(self._stream)
            finally:
                if data := self._stream.take():
                    self._output(data)
            if large:
                self._output(large.read())
                queue.push(large, 0)
            if queue.is_idle():
                return
            if self.doorbells:
                os.eventfd_write(self.doorbells[_TRANSMIT], 1)
                return

    def _feed(self) -> None:
        queue = self.queues[_RECEIVE]
        while self._input and not self._holds:
            chain = queue.pop()
            if chain is None:
                if queue.is_idle():  # on_notify() says when there are buffers
                    return
                continue
            with self._lock:
                written = chain.write(self._input[: chain.writable_bytes])
                del self._input[:written]
            queue.push(chain, written)

    def close(self) -> None:
        """Close its eventfd."""
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
