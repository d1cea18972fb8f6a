"""What a lab says of itself while it works, on a stream that also carries the command's errors."""

from __future__ import annotations

import contextlib
import shutil
from typing import TextIO

__all__ = ["Reporter"]


class Reporter:
    """Says what goes on: steps and states come and go on a terminal, notices stay.

    Without a terminal a state says nothing, so that what the command writes stays as it is; a step, which is
    part of a set-up and takes time, is a line.
    """

    def __init__(self, stream: TextIO | None, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._terminal = bool(stream and stream.isatty())
        self._passing = ""
        self.raw = False
        """The terminal is raw: a line ends with a carriage return too."""

    def step(self, text: str) -> None:
        """Something that takes time begins."""
        if self._terminal:
            self.state(text)
        elif not self._quiet:
            self.notice(text)

    def state(self, text: str) -> None:
        """How far the lab is; replaced by the next."""
        if self._terminal and not self._quiet and text != self._passing:
            width = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{f'pykvm: lab: {text}'[: max(width - 1, 20)]}")
            self._passing = text

    def notice(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"pykvm: lab: {text}\r\n" if self.raw else f"pykvm: lab: {text}\n")

    def clear(self) -> None:
        """Take away what is not to stay."""
        if self._passing:
            self._write("\r\x1b[K")
            self._passing = ""

    def _write(self, text: str) -> None:
        if self._stream:
            with contextlib.suppress(OSError, ValueError):  # nobody listens: no reason to fail
                self._stream.write(text)
                self._stream.flush()
