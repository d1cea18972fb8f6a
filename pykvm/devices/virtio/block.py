"""A disk (virtio 1.2, section 5.2): reads and writes go straight between the image and guest memory.

What a disk is made of is a Backend; those that there are stand in pykvm.devices.virtio.disk_files.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Protocol

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError, split
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Backend", "Block", "BlockFeature", "Request"]

SECTOR_BYTES = 512
_HEADER = struct.Struct("<IIQ")
_SEGMENT = struct.Struct("<QII")
_ID_BYTES = 20
_SEGMENTS_MOST = 1022  # with header and status it fills the queue: 1 MiB of single pages, and more
_DISCARD_SECTORS = 1 << 22  # 2 GiB in one go
_UNMAP = 1
_OK, _IO_ERROR, _UNSUPPORTED = b"\0", b"\1", b"\2"


class BlockFeature(IntFlag):
    """Feature bits (5.2.3)."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class Request(IntEnum):
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Backend(Protocol):
    """Where a disk's bytes are. Offsets and sizes in bytes; errors are OSErrors.

    Every range asked for lies inside `size_bytes`. A backend that is one file, byte for byte, may have its
    descriptor as the attribute `fd`: reads and writes go straight there then. One that is made of several
    files may have a method `place(at, size)`: the descriptor and offset of those bytes, if one file has all.
    """

    is_read_only: bool

    @property
    def size_bytes(self) -> int:
        """How large the disk is now."""

    def read(self, pieces: Sequence[memoryview], at: int) -> None:
        """Fill `pieces` from offset `at` on."""

    def write(self, pieces: Sequence[memoryview], at: int) -> None:
        """Put `pieces` at offset `at`."""

    def flush(self) -> None:
        """What was written stays, whatever happens."""

    def discard(self, at: int, size: int) -> None:
        """Nobody will ask for these bytes again: they may be anything."""

    def zero(self, at: int, size: int, *, may_unmap: bool) -> None:
        """These bytes are 0 from now on."""

    def close(self) -> None:
        """Give everything back."""


class Block(VirtioDevice):
    """One disk on one queue. `on_error` hears, in one line, of the host's first error of each kind."""

    device_id = 2
    queue_sizes = (1024,)

    def __init__(
        self, backend: Backend, *, serial: str = "", on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        """`serial` is what the guest sees as the disk's serial number, at most 20 bytes."""
        super().__init__()
        self._serial = serial.encode()
        if len(self._serial) > _ID_BYTES:
            raise ConfigError(f"a serial number of {len(self._serial)} bytes; a disk has at most {_ID_BYTES}")
        self.name = f"disk {serial}" if serial else "disk"
        self.backend = backend
        self._fd: int = getattr(backend, "fd", -1)
        self._place: Callable[[int, int], tuple[int, int] | None]
        self._place = getattr(backend, "place", lambda _at, _size: None)
        self._on_error = on_error
        self._told: set[int] = set()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.features = BlockFeature.SEG_MAX | BlockFeature.BLK_SIZE | BlockFeature.FLUSH
        if backend.is_read_only:
            self.features |= BlockFeature.RO
        else:
            self.features |= BlockFeature.DISCARD | BlockFeature.WRITE_ZEROES
        self._do: dict[int, Callable[[int, Chain], int]] = {
            Request.IN: self._read,
            Request.OUT: self._write,
            Request.FLUSH: self._flush,
            Request.GET_ID: self._get_id,
            Request.DISCARD: lambda _, chain: self._segments(chain, self._discard),
            Request.WRITE_ZEROES: lambda _, chain: self._segments(chain, self._zero),
        }

    def config(self) -> bytes:
        """struct virtio_blk_config (5.2.4), up to write_zeroes_may_unmap."""
        sectors = self.backend.size_bytes // SECTOR_BYTES
        head = struct.pack("<QIIHBBI", sectors, 0, _SEGMENTS_MOST, 0, 0, 0, SECTOR_BYTES)
        topology = struct.pack("<BBHI", 0, 0, 1, 0)
        rest = struct.pack("<BBH", 0, 0, 1)
        discard = struct.pack("<III", _DISCARD_SECTORS, _SEGMENTS_MOST, 8)
        zeroes = struct.pack("<IIB3x", _DISCARD_SECTORS, _SEGMENTS_MOST, 1)
        return head + topology + rest + discard + zeroes

    def resized(self) -> None:
        """The backend has another size: tell the driver (5.2.5.1); from any thread, until close()."""
        os.eventfd_write(self._wake, 1)

    def watched(self) -> Mapping[int, int]:
        """What resized() signals."""
        return {self._wake: select.POLLIN}

    def on_ready(self, fd: int) -> None:
        """The size is another one."""
        os.eventfd_read(fd)
        self.config_changed()

    def on_notify(self, index: int) -> None:
        """Serve all requests that wait."""
        queue = self.queues[index]
        while True:
            while chain := queue.pop():
                queue.push(chain, self._serve(chain))
            if queue.is_idle():
                return

    def _serve(self, chain: Chain) -> int:
        """One request; how many bytes of its writable part were written, the status byte among them."""
        head, room = chain.read(_HEADER.size), chain.writable_bytes
        if len(head) < _HEADER.size or not room:
            raise QueueError("a request without its header or without room for its status")
        kind, _, sector = _HEADER.unpack(head)
        done = 0
        try:
            do = self._do.get(kind)
            status = _UNSUPPORTED
            if do:
                done = do(sector, chain)
                status = _OK
        except OSError as error:
            status = self._failed(error)
        except _RefusedError as refused:
            status = refused.status
        chain.write(status, room - 1)
        return room if done else 1

    def _failed(self, error: OSError) -> bytes:
        if error.errno == errno.EOPNOTSUPP:
            return _UNSUPPORTED
        number = error.errno or 0
        if number not in self._told:
            self._told.add(number)
            self._on_error(f"{self.name}: {error.strerror}; the guest gets an I/O error")
        return _IO_ERROR

    def _range(self, sector: int, size: int) -> int:
        """The offset of `sector`, if `size` bytes from there are all on the disk."""
        at = sector * SECTOR_BYTES
        if size % SECTOR_BYTES or at + size > self.backend.size_bytes:
            raise _RefusedError(_IO_ERROR)
        return at

    def _writable(self) -> None:
        if self.backend.is_read_only:
            raise _RefusedError(_IO_ERROR)

    def _read(self, sector: int, chain: Chain) -> int:
        size = chain.writable_bytes - 1
        at = self._range(sector, size)
        if self._fd >= 0:
            chain.fill(self._fd, at, size)
        elif place := self._place(at, size):
            chain.fill(*place, size)
        else:
            self.backend.read(split(chain.writable, size)[0], at)
        return size

    def _write(self, sector: int, chain: Chain) -> int:
        self._writable()
        size = chain.readable_bytes - _HEADER.size
        at = self._range(sector, size)
        if self._fd >= 0:
            chain.empty(self._fd, at, size, _HEADER.size)
        else:
            self.backend.write(split(chain.readable, _HEADER.size)[1], at)
        return 0

    def _flush(self, _: int, __: Chain) -> int:
        self.backend.flush()
        return 0

    def _get_id(self, _: int, chain: Chain) -> int:
        return chain.write(self._serial.ljust(_ID_BYTES, b"\0")[: chain.writable_bytes - 1])

    def _segments(self, chain: Chain, do: Callable[[int, int, int], None]) -> int:
        self._writable()
        size = chain.readable_bytes - _HEADER.size
        if not size or size % _SEGMENT.size or size // _SEGMENT.size > _SEGMENTS_MOST:
            raise _RefusedError(_IO_ERROR)
        for sector, sectors, flags in _SEGMENT.iter_unpack(chain.read(size, _HEADER.size)):
            if flags & ~_UNMAP:
                raise _RefusedError(_UNSUPPORTED)
            if sectors > _DISCARD_SECTORS:
                raise _RefusedError(_IO_ERROR)
            do(self._range(sector, sectors * SECTOR_BYTES), sectors * SECTOR_BYTES, flags)
        return 0

    def _discard(self, at: int, size: int, flags: int) -> None:
        if flags:
            raise _RefusedError(_UNSUPPORTED)
        if size:
            self.backend.discard(at, size)

    def _zero(self, at: int, size: int, flags: int) -> None:
        if size:
            self.backend.zero(at, size, may_unmap=bool(flags & _UNMAP))

    def close(self) -> None:
        """Close the image."""
        self.backend.close()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1


class _RefusedError(Exception):
    """A request that the guest may not make."""

    def __init__(self, status: bytes) -> None:
        self.status = status
