"""A raw disk image in a file, by sector, with a lock so that two machines don't write the same one."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["SECTOR_BYTES", "DiskFile"]

SECTOR_BYTES = 512


class DiskFile:
    """Sectors of a regular file, of a block device, or of bytes in memory."""

    def __init__(self, source: str | Path | bytes | BinaryIO, *, writable: bool) -> None:
        """Raises ImageError or ImageNotFoundError: absent, not permitted, in use, empty, or no disk."""
        self.name = _name(source)
        self._fd = _open(source, self.name, writable=writable)
        try:
            self.size_bytes = _size(self._fd, self.name)
            if not isinstance(source, bytes):
                _lock(self._fd, self.name, exclusive=writable)
        except BaseException:
            self.close()
            raise
        self.sectors = -(-self.size_bytes // SECTOR_BYTES)

    def close(self) -> None:
        """Close the file, which gives its lock back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Its file descriptor, for who reads and writes by bytes."""
        return self._fd

    def read(self, first: int, count: int) -> bytes:
        """The sectors [first, first + count); zeros where the file has ended. Raises OSError."""
        at, left = first * SECTOR_BYTES, count * SECTOR_BYTES
        parts = []
        while left and (part := os.pread(self._fd, left, at)):
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return b"".join(parts) + bytes(left)

    def write(self, first: int, data: bytes) -> None:
        """Put whole sectors at `first`. Raises OSError; then a part may have been written."""
        at, rest = first * SECTOR_BYTES, memoryview(data)
        while rest:
            done = os.pwrite(self._fd, rest, at)
            at, rest = at + done, rest[done:]

    def flush(self) -> None:
        """Return when what was written is on the disk. Raises OSError."""
        os.fsync(self._fd)


def _name(source: str | Path | bytes | BinaryIO) -> str:
    if isinstance(source, bytes):
        return "disk image"
    name = str(source if isinstance(source, (str, Path)) else getattr(source, "name", "disk image"))
    return name if name.isprintable() else ascii(name)


def _open(source: str | Path | bytes | BinaryIO, name: str, *, writable: bool) -> int:
    """A descriptor of our own."""
    if isinstance(source, bytes):
        fd = os.memfd_create("pykvm-disk", os.MFD_CLOEXEC)
        with open(fd, "wb", closefd=False) as file:
            file.write(source)
        return fd
    try:
        if not isinstance(source, (str, Path)):
            return os.dup(source.fileno())
        # Not blocking: to open a FIFO must not wait for somebody at its other end.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(source, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"{name}: there is no such file") from None
    except OSError as error:
        hint = "; open it read-only or as a snapshot" if writable else ""
        raise ImageError(f"{name}: can't open the disk image: {error.strerror or error}{hint}") from None
    except ValueError:  # a NUL in the path
        raise ImageNotFoundError(f"{name}: no file can have such a name") from None


def _size(fd: int, name: str) -> int:
    status = os.fstat(fd)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise ImageError(f"{name}: a disk image is a regular file or a block device")
    size = os.lseek(fd, 0, os.SEEK_END)  # st_size of a block device is 0
    if not size:
        raise ImageError(f"{name}: it is empty")
    return size


def _lock(fd: int, name: str, *, exclusive: bool) -> None:
    """Many may read an image, or one may write it. A file system without locks lets everybody pass."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ImageError(
            f"{name}: another machine uses this disk image; wait for it, or run one of them on a copy"
        ) from None
    except OSError:
        return
