"""What a lab's kernel said on its console: kept, and searched for the reason of an end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConsoleLog", "printable"]

_KEPT_BYTES = 256 * 1024
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]+)")
_BUG = re.compile(
    rb"(?:\] |^)((?:BUG: |kernel BUG at |Oops: |general protection fault)[^\r\n]+)", re.MULTILINE
)
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TROUBLE = re.compile(r"Kernel panic|BUG: |kernel BUG at |Oops: |general protection fault")
_REGISTERS = re.compile(r"\b(R[A-Z0-9]{2}|CR\d|FS|CS|Code|PKRU|DR\d): ")
_STAMP = re.compile(r"^(<\d+>)?\[ *\d+\.\d+\] ?")


class ConsoleLog:
    """The last 256 KiB of the console; all of it also goes to `copies`."""

    def __init__(self, copies: Sequence[BinaryIO] = ()) -> None:
        self._data = bytearray()
        self._copies = copies

    def append(self, data: bytes) -> None:
        """Take what came. Raises OSError if a copy can't be written."""
        self._data += data
        del self._data[:-_KEPT_BYTES]
        for copy in self._copies:
            copy.write(data)
            copy.flush()

    def lines(self, count: int) -> list[str]:
        """The last `count` lines that are not empty, without control characters."""
        tail = bytes(self._data[-(count + 8) * 1024 :])
        lines = (printable(line).rstrip() for line in re.split(rb"[\r\n]+", tail))
        return [line for line in lines if line][-count:]

    def telling_lines(self, count: int) -> list[str]:
        """The lines that tell most of a bad end: from the panic or the bug before it on, else the last."""
        lines = self.lines(400)
        first = next((at for at, line in enumerate(lines) if _TROUBLE.search(line)), None)
        if first is None:
            return lines[-count:]
        wanted = [line for line in lines[first:] if not _REGISTERS.search(line)]
        return wanted[:count]

    @property
    def last_line(self) -> str:
        """The last line, without the kernel's time stamp; empty if there is none."""
        return _STAMP.sub("", (self.lines(1) or [""])[0])

    @property
    def panic(self) -> str | None:
        """Why the kernel gave up, in its own words, if it did."""
        panics = _PANIC.findall(self._data)
        bugs = _BUG.findall(self._data)
        if not panics:
            return None
        words = [panics[0], *bugs[:1]]
        return "; ".join(map(printable, words))


def printable(text: bytes) -> str:
    """What a guest said, without anything that would move the cursor or change the terminal."""
    plain = _SEQUENCE.sub("", text.decode("utf-8", "replace"))
    return "".join(filter(str.isprintable, plain))
