"""The user's terminal as the guest's: raw while a guest runs, restored always; Ctrl-A X leaves."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Terminal"]

_CTRL_A = 0x01
_CTRL_C = 0x03
_CHUNK = 4096
_RETRY_S = 0.01


class Terminal:
    r"""Feeds stdin to a guest from a thread of its own, while the `with` block runs.

    `send` takes what is typed (or piped in) and says how much of it, `leave` is called for Ctrl-A X, and for
    Ctrl-C as long as `listens()` says that the guest has shown no interest in input. Ctrl-A twice types one
    Ctrl-A. With `has_tty` the guest makes \r\n of \n itself.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes], int],
        leave: Callable[[], None],
        listens: Callable[[], bool],
        ended: Callable[[], None] = lambda: None,
        has_tty: bool = False,
    ) -> None:
        self._send = send
        self._ended = ended
        self._leave = leave
        self._has_tty = has_tty
        self._listens = listens
        self._escaped = False
        self._fd = sys.stdin.fileno() if sys.stdin else -1
        self._saved: list[Any] | None = None
        self._over = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._read, name="terminal", daemon=True)

    def __enter__(self) -> Self:
        if self._fd >= 0:
            if os.isatty(self._fd) and os.getpgrp() == os.tcgetpgrp(self._fd):
                self._saved = termios.tcgetattr(self._fd)
                tty.setraw(self._fd, termios.TCSANOW)
                if not self._has_tty:
                    self._keep_output_processing()
            elif os.isatty(self._fd):
                return self  # in the background: the terminal is not ours
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        if self._saved is not None:
            with suppress(termios.error):  # the terminal has gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        os.close(self._wake)

    def _keep_output_processing(self) -> None:
        """A bare newline of a tiny guest still returns the carriage."""
        mode = termios.tcgetattr(self._fd)
        mode[1] |= termios.OPOST | termios.ONLCR
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake in ready:
                return
            try:
                data = os.read(self._fd, _CHUNK)
            except OSError:
                data = b""
            if not data:
                self._ended()
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._saved is None:  # a pipe or a file: no key means anything but itself
            self._send_all(data)
            return
        typed = bytearray()
        for key in data:
            if self._escaped:
                self._escaped = False
                if key in b"xX":
                    self._leave()
                    return
                typed.append(key)
            elif key == _CTRL_A:
                self._escaped = True
            elif key == _CTRL_C and not self._listens():
                self._leave()
                return
            else:
                typed.append(key)
        if typed:
            self._send_all(bytes(typed))

    def _send_all(self, data: bytes) -> None:
        """Hand everything on, as fast as the guest takes it, unless the run ends first."""
        while data := data[self._send(data) :]:
            if self._over.wait(_RETRY_S):
                return
