"""One read-only disk made of many files: a GUID partition table in front, a partition for each, no copy.

Partitions are named by the first 32 hexadecimal digits of the layer's key, which Linux shows as PARTNAME; the
same digits are the partition's GUID. Source: the UEFI specification, chapter 5, "GUID Partition Table".
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self

from pykvm.containers.blobs import digest_of
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pykvm.containers.layer_files import LayerFile

__all__ = ["Extent", "LayerDisk", "partition_name"]

_SECTOR = 512
_ALIGN = 1 << 20
_MOST_PARTITIONS = 255
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_LINUX_DATA = bytes.fromhex("af3dc60f838472478e793d69d8477de4")  # 0FC63DAF-8483-4772-8E79-3D69D8477DE4
_READ_ONLY = 1 << 60


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes [at, at + size_bytes) of the disk are these of a file, or of memory where `path` is None."""

    at: int
    size_bytes: int
    path: Path | None


def partition_name(layer: LayerFile) -> str:
    """The PARTNAME that a guest finds the layer by."""
    return layer.key.removeprefix("sha256:")[:32]


class _Laid(NamedTuple):
    """Where everything is; replaced as a whole when the disk grows, so that readers need no lock."""

    layers: tuple[LayerFile, ...]
    extents: tuple[Extent, ...]
    size_bytes: int
    front: bytes
    back: bytes
    starts: tuple[int, ...]


class LayerDisk:
    """A disk of layers, as a virtio block device wants its backend; the same layers give the same disk.

    What stands between and behind the files reads as zeros. It grows while guests read. Close it when no
    guest reads any more.
    """

    is_read_only = True

    def __init__(self, layers: Sequence[LayerFile]) -> None:
        """Raises ConfigError for more than 255 layers: Linux has no more partitions on a disk."""
        self._fds: list[int] = []
        self._laid = _lay(())
        self.grow(layers)

    @property
    def layers(self) -> tuple[LayerFile, ...]:
        """What the partitions hold, from the first one on."""
        return self._laid.layers

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where the layers are."""
        return self._laid.extents

    @property
    def size_bytes(self) -> int:
        """Of the whole disk, as it is now."""
        return self._laid.size_bytes

    def grow(self, layers: Sequence[LayerFile]) -> bool:
        """Add those that are not there yet behind the others, which stay; whether there were any.

        The guest learns of it by its device (Block.resized()) and reads the partitions again. Raises
        ConfigError as the constructor, OSError for a file that can't be opened: the disk is as it was then.
        """
        there = {layer.key for layer in self.layers}
        new = list({layer.key: layer for layer in layers if layer.key not in there}.values())
        if len(there) + len(new) > _MOST_PARTITIONS:
            total = len(there) + len(new)
            raise ConfigError(f"{total} layers on one disk; Linux takes {_MOST_PARTITIONS} partitions")
        opened: list[int] = []
        try:
            opened.extend(os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC) for layer in new)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self._fds += opened  # before what leads to them
        self._laid = _lay((*self.layers, *new))
        return bool(new)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def place(self, at: int, size: int) -> tuple[int, int] | None:
        """The descriptor and the offset of [at, at + size) in a layer's file, if that has all of them."""
        laid = self._laid
        number = bisect_right(laid.starts, at) - 1
        if number < 0:
            return None
        extent = laid.extents[number]
        inside = at - extent.at
        return (self._fds[number], inside) if inside + size <= extent.size_bytes else None

    def read(self, pieces: Sequence[memoryview], at: int) -> None:
        """Fill `pieces` from offset `at` on. Raises OSError, EINVAL for what is not on the disk."""
        for piece in pieces:
            self._fill(piece, at)
            at += len(piece)

    def bytes_at(self, at: int, size: int) -> bytes:
        """The bytes [at, at + size). Raises OSError as `read` does."""
        found = bytearray(size)
        self._fill(memoryview(found), at)
        return bytes(found)

    def write(self, pieces: Sequence[memoryview], at: int) -> NoReturn:  # noqa: ARG002 - a backend's signature
        """Raise OSError: layers are not written."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def flush(self) -> None:
        """Nothing is ever unwritten."""

    def discard(self, at: int, size: int) -> NoReturn:  # noqa: ARG002 - a backend's signature
        """Raise OSError: layers stay."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def zero(self, at: int, size: int, *, may_unmap: bool) -> NoReturn:  # noqa: ARG002 - a backend's signature
        """Raise OSError: layers are not written."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())

    def _fill(self, piece: memoryview, at: int) -> None:
        laid = self._laid
        if at < 0 or at + len(piece) > laid.size_bytes:
            raise OSError(errno.EINVAL, "beyond the disk")
        piece[:] = bytes(len(piece))
        for start, data in ((0, laid.front), (laid.size_bytes - len(laid.back), laid.back)):
            _overlay(piece, at, start, data)
        first = max(bisect_right(laid.starts, at) - 1, 0)
        for extent, fd in zip(laid.extents[first:], self._fds[first:], strict=False):
            if extent.at >= at + len(piece):
                break
            low, high = max(at, extent.at), min(at + len(piece), extent.at + extent.size_bytes)
            if low < high:
                _read_fully(fd, piece[low - at : high - at], low - extent.at)


def _lay(layers: tuple[LayerFile, ...]) -> _Laid:
    extents = []
    at = _ALIGN
    for layer in layers:
        extents.append(Extent(at, layer.size_bytes, layer.path))
        at += -(-layer.size_bytes // _ALIGN) * _ALIGN
    front, back = _tables(layers, extents, at + _ALIGN)
    return _Laid(layers, tuple(extents), at + _ALIGN, front, back, tuple(extent.at for extent in extents))


def _tables(layers: Sequence[LayerFile], extents: Sequence[Extent], size_bytes: int) -> tuple[bytes, bytes]:
    """What stands before the first partition, and behind the last one."""
    sectors = size_bytes // _SECTOR
    count = max(128, len(layers))
    entries = b"".join(map(_entry, layers, extents)).ljust(count * _ENTRY.size, b"\0")
    table_sectors = -(-len(entries) // _SECTOR)
    guid = bytes.fromhex(digest_of(entries)[7:39])

    def header(own: int, other: int, table: int) -> bytes:
        usable = 2 + table_sectors, sectors - 2 - table_sectors
        fields = [b"EFI PART", 0x10000, 92, 0, 0, own, other, *usable, guid, table, count, _ENTRY.size]
        fields.append(zlib.crc32(entries))
        fields[3] = zlib.crc32(_HEADER.pack(*fields))
        return _HEADER.pack(*fields).ljust(_SECTOR, b"\0")

    table = entries.ljust(table_sectors * _SECTOR, b"\0")
    front = _protective(sectors) + header(1, sectors - 1, 2) + table
    return front, table + header(sectors - 1, 1, sectors - 1 - table_sectors)


def _entry(layer: LayerFile, extent: Extent) -> bytes:
    first = extent.at // _SECTOR
    last = first + -(-extent.size_bytes // _SECTOR) - 1
    name = partition_name(layer)
    return _ENTRY.pack(_LINUX_DATA, bytes.fromhex(name), first, last, _READ_ONLY, name.encode("utf-16-le"))


def _protective(sectors: int) -> bytes:
    """A master boot record that says: all of this disk is taken."""
    most = min(sectors - 1, 0xFFFF_FFFF)
    record = struct.pack("<8B2I", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, most)
    return bytes(446) + record + bytes(48) + b"\x55\xaa"


def _overlay(piece: memoryview, at: int, start: int, data: bytes) -> None:
    low, high = max(at, start), min(at + len(piece), start + len(data))
    if low < high:
        piece[low - at : high - at] = data[low - start : high - start]


def _read_fully(fd: int, piece: memoryview, at: int) -> None:
    while piece:
        count = os.preadv(fd, [piece], at)
        if not count:
            raise OSError(errno.EIO, "a layer's file has become shorter")
        piece, at = piece[count:], at + count
