"""What a disk's bytes are made of: a raw image, or an overlay that keeps all writes to itself."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from typing import TYPE_CHECKING

from pykvm.boot.disk_file import SECTOR_BYTES, DiskFile
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Overlay", "RawFile"]

_IOV_MAX = 1024
_ZEROS_BYTES = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # fallocate(2)
_CLUSTER = 4096


class RawFile:
    """A raw image: a file or a block device of the host, as large as it is now.

    Raises ImageError if it can't be opened, is no disk, or if another machine writes to it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.is_read_only = read_only
        self._file = DiskFile(path, writable=not read_only)
        self._fd = self.fd = self._file.fileno()
        self.size_bytes = self._file.size_bytes
        self._can_allocate = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self.size_bytes % SECTOR_BYTES:
            self._file.close()
            raise ConfigError(
                f"disk {path}: {self.size_bytes} bytes, no whole sectors; `truncate -s %512` rounds up"
            )

    def read(self, pieces: Sequence[memoryview], at: int) -> None:
        """preadv(2); a file that has become shorter meanwhile is an error."""
        _all(lambda some, where: os.preadv(self._fd, some, where), pieces, at)

    def write(self, pieces: Sequence[memoryview], at: int) -> None:
        """pwritev(2)."""
        _all(lambda some, where: os.pwritev(self._fd, some, where), pieces, at)

    def flush(self) -> None:
        """fdatasync(2)."""
        os.fdatasync(self._fd)

    def discard(self, at: int, size: int) -> None:
        """A hole in the file, where its file system can do that."""
        self._allocate(_PUNCH_HOLE | _KEEP_SIZE, at, size)

    def zero(self, at: int, size: int, *, may_unmap: bool) -> None:
        """A hole, or zeros that are allocated, or zeros that are written."""
        modes = [_PUNCH_HOLE | _KEEP_SIZE] * may_unmap + [_ZERO_RANGE | _KEEP_SIZE]
        if not any(self._allocate(mode, at, size) for mode in modes):
            _write_zeros(self, at, size)

    def _allocate(self, mode: int, at: int, size: int) -> bool:
        """fallocate(2), which Python's os has not with a mode; whether it can be done here."""
        if not self._can_allocate:
            return False
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(self._fd, mode, ctypes.c_long(at), ctypes.c_long(size)) == 0:
            return True
        failed = ctypes.get_errno()
        if failed in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(failed, os.strerror(failed))

    def close(self) -> None:
        """Close the file, which also gives its lock back."""
        self._file.close()


class Overlay:
    """An image whose writes go to a file of their own, without a name, that is gone at the end.

    Whole clusters of 4 KiB are taken over when the guest first writes to them: a bit each says which.
    """

    is_read_only = False

    def __init__(self, base: RawFile) -> None:
        self.base = base
        self.size_bytes = base.size_bytes
        self._taken = bytearray(-(-self.size_bytes // _CLUSTER))
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        except OSError as error:
            base.close()
            raise ConfigError(f"disk: no place for what the guest writes: {error.strerror}") from None
        self._fd = self._file.fileno()

    def read(self, pieces: Sequence[memoryview], at: int) -> None:
        """From where each cluster is now."""
        size = sum(map(len, pieces))
        rest = list(pieces)
        for start, end, is_ours in self._runs(at, at + size):
            part, rest = _cut(rest, end - start)
            if is_ours:
                _all(self._read_ours, part, start)
            else:
                self.base.read(part, start)

    def _read_ours(self, pieces: list[memoryview], at: int) -> int:
        """As preadv(2); behind the end of our file everything is 0."""
        done = os.preadv(self._fd, pieces, at)
        if not done:
            for piece in pieces:
                piece[:] = bytes(len(piece))
            return sum(map(len, pieces))
        return done

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """[start, end) cut where the clusters change from the base's to ours."""
        while start < end:
            cluster = start // _CLUSTER
            ours = self._taken[cluster]
            stop = self._taken.find(1 - ours, cluster, -(-end // _CLUSTER))
            until = min(end, stop * _CLUSTER) if stop >= 0 else end
            yield start, until, bool(ours)
            start = until

    def write(self, pieces: Sequence[memoryview], at: int) -> None:
        """To our own file, the clusters at both ends completed from the base before."""
        end = at + sum(map(len, pieces))
        if end == at:
            return
        for cluster, is_whole in (
            (at // _CLUSTER, at % _CLUSTER == 0),
            ((end - 1) // _CLUSTER, end % _CLUSTER == 0),
        ):
            if not self._taken[cluster] and not is_whole:
                self._take(cluster)
        _all(lambda some, where: os.pwritev(self._fd, some, where), pieces, at)
        first, last = at // _CLUSTER, (end - 1) // _CLUSTER
        self._taken[first : last + 1] = b"\1" * (last + 1 - first)

    def _take(self, cluster: int) -> None:
        at = cluster * _CLUSTER
        data = memoryview(bytearray(min(_CLUSTER, self.size_bytes - at)))
        self.base.read([data], at)
        _all(lambda some, where: os.pwritev(self._fd, some, where), [data], at)
        self._taken[cluster] = 1

    def flush(self) -> None:
        """Nothing of it outlives the run."""

    def discard(self, at: int, size: int) -> None:
        """Nothing is gained by it."""

    def zero(self, at: int, size: int, *, may_unmap: bool) -> None:  # noqa: ARG002 - one way does for both
        """Zeros that are written."""
        _write_zeros(self, at, size)

    def close(self) -> None:
        """Forget all writes, and close the base."""
        self._file.close()
        self.base.close()


def _write_zeros(disk: RawFile | Overlay, at: int, size: int) -> None:
    zeros = memoryview(bytes(min(size, _ZEROS_BYTES)))
    for done in range(0, size, _ZEROS_BYTES):
        disk.write([zeros[: size - done]], at + done)


def _cut(pieces: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `size` bytes of `pieces`, and the rest."""
    head = []
    rest = list(pieces)
    while size and rest:
        piece = rest.pop(0)
        head.append(piece[:size])
        if size < len(piece):
            rest.insert(0, piece[size:])
        size -= len(head[-1])
    return head, rest


def _all(move: Callable[[list[memoryview], int], int], pieces: Sequence[memoryview], at: int) -> None:
    """Call `move` until all of `pieces` is done; it may do a part."""
    left = list(pieces)
    while left:
        done = move(left[:_IOV_MAX], at)
        if not done:
            raise OSError(errno.EIO, "the image has become shorter than it was")
        at += done
        _, left = _cut(left, done)
