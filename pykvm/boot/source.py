"""The bytes of an image behind one checked door: what is not there is an ImageError, never a surprise."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from pykvm.errors import ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["FilePart", "Source", "opened"]


class _File(NamedTuple):
    """A file as it was when it was opened."""

    path: Path
    identity: tuple[int, int, int, int]


class FilePart(NamedTuple):
    """A run of bytes that stands in a file, and is read when it is wanted."""

    file: _File
    name: str
    offset: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def __bytes__(self) -> bytes:
        """Its bytes in a piece."""
        found = bytearray(self.size_bytes)
        self.read_into(memoryview(found))
        return bytes(found)

    def read_into(self, target: memoryview) -> None:
        """Read all of it. Raises ImageError if the file is not the one that was looked at."""
        descriptor = _open(self.file.path, self.name)
        try:
            if _identity(os.fstat(descriptor)) != self.file.identity:
                raise ImageError(f"{self.name}: it changed while it was loaded; try again")
            done = 0
            while done < self.size_bytes:
                step = os.preadv(descriptor, [target[done : self.size_bytes]], self.offset + done)
                if not step:
                    raise ImageError(f"{self.name}: it became shorter while it was read")
                done += step
        except OSError as error:
            raise ImageError(f"{self.name}: can't read it: {error.strerror}") from error
        finally:
            os.close(descriptor)


class Source:
    """A named run of bytes, from memory or from an open file, of which only what is asked for is read."""

    def __init__(
        self, name: str, size_bytes: int, read: Callable[[int, int], bytes], file: _File | None = None
    ) -> None:
        """`read(size_bytes, offset)` gives up to that many bytes, none at the end; they stand in `file`."""
        self._file = file
        self.name = name
        self.size_bytes = size_bytes
        self._read = read

    def read(self, offset: int, size_bytes: int, what: str) -> bytes:
        """Exactly `size_bytes` at `offset`, or an ImageError that says what (`what`) is not there."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise self.error(
                f"{what} should be {size_bytes:#x} bytes at offset {offset:#x}, but the file ends at "
                f"{self.size_bytes:#x}: truncated or damaged"
            )
        pieces = []
        while size_bytes:
            try:
                piece = self._read(size_bytes, offset)
            except OSError as error:
                raise self.error(f"can't read it: {error.strerror}") from error
            if not piece:
                raise self.error("it became shorter while it was read")
            pieces.append(piece)
            offset, size_bytes = offset + len(piece), size_bytes - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def part(self, offset: int, size_bytes: int, what: str) -> FilePart | bytes:
        """As read(), of a file only where it stands: for what is large and goes straight to guest memory."""
        if self._file is None or offset + size_bytes > self.size_bytes:
            return self.read(offset, size_bytes, what)
        return FilePart(self._file, self.name, offset, size_bytes)

    def head(self, size_bytes: int) -> bytes:
        """The first `size_bytes`, or all if there are fewer."""
        return self.read(0, min(size_bytes, self.size_bytes), "its beginning")

    def error(self, text: str) -> ImageError:
        """An ImageError that names this image."""
        return ImageError(f"{self.name}: {text}")


@contextmanager
def opened(source: bytes | Path, name: str = "") -> Iterator[Source]:
    """The Source of an image in memory or in a file, which stays open inside the `with`.

    Raises ImageNotFoundError if there is no such file, ImageError if it is not a regular file, is
    empty, or may not be read.
    """
    if isinstance(source, bytes):
        yield _checked(Source(_shown(name or "image"), len(source), _reader(source)))
        return
    shown = _shown(name or str(source))
    descriptor = _open(source, shown)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{shown}: it is {kind}; give the file of an image")
        file = _File(source, _identity(status))
        yield _checked(Source(shown, status.st_size, lambda size, at: os.pread(descriptor, size, at), file))
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda size_bytes, offset: data[offset : offset + size_bytes]


def _open(path: Path, shown: str) -> int:
    try:
        # Not blocking: to open a FIFO must not wait for somebody who writes to it.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageNotFoundError(f"{shown}: there is no such file") from error
    except OSError as error:
        raise ImageError(f"{shown}: can't open it: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ImageNotFoundError(f"{shown}: no file can have such a name") from error


def _shown(name: str) -> str:
    """The name as it may stand in a message of one line."""
    return name if name.isprintable() else ascii(name)


def _checked(source: Source) -> Source:
    if not source.size_bytes:
        raise source.error("it is empty")
    return source
