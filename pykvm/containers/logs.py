"""What a container printed, byte for byte, with when and on which stream.

A log is a row of entries: a header, and its bytes. An entry that a killed process left unfinished is where
reading stops. The file is turned over when it is large: the older half is `log.1`, what is older is gone.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["MOST_BYTES", "LogEntry", "LogWriter", "follow", "last_lines", "read_log"]

MOST_BYTES = 32 << 20
_HEADER = struct.Struct("<QB3xI")
_MOST_ENTRY = 1 << 20
_LOOK_S = 0.05


class LogEntry(NamedTuple):
    """`stream` is 1 or 2, stdout or stderr; `time_ns` Unix time."""

    time_ns: int
    stream: int
    data: bytes


class LogWriter:
    """Appends to a log; from any thread."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most = most_bytes
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes) -> None:
        """Append an entry, all at once."""
        with self._lock:
            if self._fd < 0 or not data:
                return
            if self._size > self._most // 2:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(self._fd)
                self._open()
            self._size += os.write(self._fd, _HEADER.pack(time.time_ns(), stream, len(data)) + data)

    def close(self) -> None:
        """Everything is on the disk when this returns."""
        with self._lock:
            if self._fd >= 0:
                with suppress(OSError):
                    os.fsync(self._fd)
                os.close(self._fd)
                self._fd = -1


def read_log(path: Path) -> Iterator[LogEntry]:
    """All there is now."""
    for one in (path.with_name(path.name + ".1"), path):
        with suppress(FileNotFoundError), one.open("rb") as file:
            while (entry := _next(file.fileno())) is not None:
                yield entry


def follow(path: Path, is_over: Callable[[], bool], sleep: Callable[[float], None]) -> Iterator[LogEntry]:
    """All there is, and what comes, until `is_over` says so and the rest has been read."""
    with suppress(FileNotFoundError):
        yield from _all(path.with_name(path.name + ".1"))
    fd = -1
    try:
        while True:
            over = is_over()  # asked before reading: what comes until then is read
            if fd < 0:
                with suppress(FileNotFoundError):
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            while fd >= 0 and (entry := _next(fd)) is not None:
                yield entry
            if fd >= 0 and _turned(fd, path):
                while (entry := _next(fd)) is not None:
                    yield entry
                os.close(fd)
                fd = -1
                continue
            if over:
                return
            sleep(_LOOK_S)
    finally:
        if fd >= 0:
            os.close(fd)


def last_lines(entries: Iterable[LogEntry], count: int) -> list[LogEntry]:
    """The last `count` lines, each an entry of its own; a line keeps its newline and its beginning's time."""
    open_lines: dict[int, LogEntry] = {}
    lines: list[LogEntry] = []
    for entry in entries:
        held = open_lines.pop(entry.stream, None)
        data = (held.data if held else b"") + entry.data
        began = held.time_ns if held else entry.time_ns
        for part in _lines(data):
            if part.endswith(b"\n"):
                lines.append(LogEntry(began, entry.stream, part))
            else:
                open_lines[entry.stream] = LogEntry(began, entry.stream, part)
            began = entry.time_ns
        del lines[: -count or None]
    lines += open_lines.values()
    return lines[-count:] if count else []


def _lines(data: bytes) -> list[bytes]:
    parts = [part + b"\n" for part in data.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    return [part for part in parts if part]


def _all(path: Path) -> Iterator[LogEntry]:
    with path.open("rb") as file:
        while (entry := _next(file.fileno())) is not None:
            yield entry


def _next(fd: int) -> LogEntry | None:
    """The entry at the file's offset, which goes behind it; None if there is no whole one."""
    at = os.lseek(fd, 0, os.SEEK_CUR)
    head = os.read(fd, _HEADER.size)
    if len(head) == _HEADER.size:
        time_ns, stream, size = _HEADER.unpack(head)
        data = os.read(fd, size) if size <= _MOST_ENTRY else b""
        if size and len(data) == size:
            return LogEntry(time_ns, stream, data)
    os.lseek(fd, at, os.SEEK_SET)
    return None


def _turned(fd: int, path: Path) -> bool:
    """Whether the file under that name is another one now."""
    try:
        return path.stat().st_ino != os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
