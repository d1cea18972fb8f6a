"""The user's terminal while a lab has it: raw, put back whatever happens, and with a way out."""

from __future__ import annotations

import os
import termios
import time
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EscapeWatch", "in_background", "raw_terminal", "window_size"]

_ESCAPE = 0x1D
_DEFAULT_SIZE = (24, 80)


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Pass every key on as it is typed; at the end the terminal is as it was."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with suppress(termios.error):  # it hung up
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal; 24 and 80 if it does not say."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return _DEFAULT_SIZE
    return size.lines or _DEFAULT_SIZE[0], size.columns or _DEFAULT_SIZE[1]


def in_background(fd: int) -> bool:
    """Whether `fd` is our controlling terminal and another job has it: to read would stop us (SIGTTIN)."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


class EscapeWatch:
    """Sees Ctrl-] typed three times within a second, the way out of a lab that does not answer."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def feed(self, data: bytes) -> bool:
        """Whether `data` completes the three."""
        now = time.monotonic()
        for byte in data:
            self._times = [*self._times, now] if byte == _ESCAPE else []
        self._times = [at for at in self._times if now - at <= 1][-3:]
        return len(self._times) == 3
