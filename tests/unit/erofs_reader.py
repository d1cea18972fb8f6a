"""A small reader of erofs, made after the kernel's description; it shares nothing with the writer.

It raises AssertionError for anything a kernel would stumble over.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["Erofs", "File"]

_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}


@dataclass(frozen=True)
class File:
    """One file: what stat(2), listxattr(2), read(2) and readlink(2) tell."""

    nid: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    links: int
    rdev: int
    xattrs: dict[str, bytes]
    data: bytes


class Erofs:
    """A whole image in memory."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        assert len(image) % 4096 == 0
        block = bytearray(image[:4096])
        magic, checksum, compat, bits, slots, root, _count = struct.unpack_from("<IIIBBHQ", block, 1024)
        blocks, metadata, _xattr = struct.unpack_from("<III", block, 1024 + 36)
        (incompat,) = struct.unpack_from("<I", block, 1024 + 80)
        assert (magic, bits, slots, incompat & ~4) == (0xE0F5E1E2, 12, 0, 0)
        assert compat & 1
        struct.pack_into("<I", block, 1028, 0)
        assert checksum == _crc32c(bytes(block[1024:]))
        assert blocks * 4096 == len(image)
        self.inode_count = struct.unpack_from("<Q", block, 1024 + 16)[0]
        self.metadata = metadata * 4096
        self.root = root

    def walk(self) -> dict[str, File]:
        """Every path and its file; directories are checked on the way."""
        found: dict[str, File] = {}
        self._walk("", self.root, self.root, found)
        assert len({file.nid for file in found.values()}) == self.inode_count
        return found

    def _walk(self, path: str, nid: int, parent: int, found: dict[str, File]) -> None:
        file = self.read(nid)
        found[path] = file
        if not stat.S_ISDIR(file.mode):
            return
        names = self._names(file.data)
        assert [name for name, _, _ in names] == sorted({name for name, _, _ in names})
        assert {name: where for name, where, _ in names if name in (b".", b"..")} == {
            b".": nid,
            b"..": parent,
        }
        below = [(name, where, kind) for name, where, kind in names if name not in (b".", b"..")]
        for name, where, kind in below:
            self._walk(f"{path}/{name.decode()}".lstrip("/"), where, nid, found)
            mode = self.read(where).mode
            assert {1: 0o10, 2: 0o4, 3: 0o2, 4: 0o6, 5: 0o1, 7: 0o12}[kind] == stat.S_IFMT(mode) >> 12
        folders = sum(stat.S_ISDIR(self.read(where).mode) for _, where, _ in below)
        assert file.links == 2 + folders

    def _names(self, data: bytes) -> list[tuple[bytes, int, int]]:
        found = []
        for start in range(0, len(data), 4096):
            block = data[start : start + 4096]
            count = struct.unpack_from("<H", block, 8)[0] // 12
            entries: list[Any] = [struct.unpack_from("<QHB", block, 12 * at) for at in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, offset, kind), end in zip(entries, ends, strict=True):
                found.append((block[offset:end].rstrip(b"\0"), nid, kind))
                assert found[-1][0]
        return found

    def read(self, nid: int) -> File:
        at = self.metadata + nid * 32
        form, icount, mode, _, size, place = struct.unpack_from("<HHHHQI", self.image, at)
        uid, gid, mtime, nsec, links = struct.unpack_from("<IIQII", self.image, at + 24)
        assert form & 1
        body = 12 + 4 * (icount - 1) if icount else 0
        behind = at + 64 + body
        layout = form >> 1
        rdev = place if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
        data = b"" if rdev else self._data(layout, size, place, behind)
        seconds = struct.unpack("<q", struct.pack("<Q", mtime))[0]
        xattrs = self._xattrs(at + 64, body)
        return File(nid, mode, uid, gid, seconds * 10**9 + nsec, links, rdev, xattrs, data)

    def _data(self, layout: int, size: int, place: int, behind: int) -> bytes:
        if layout == 4:
            bits = 12 + (place & 31)
            assert not place & ~31
            pieces = []
            for at in range(-(-size >> bits)):
                (block,) = struct.unpack_from("<I", self.image, (behind + 3 & ~3) + 4 * at)
                some = min(1 << bits, size - (at << bits))
                piece = bytes(some) if block == 0xFFFFFFFF else self.image[block * 4096 :][:some]
                assert len(piece) == some
                pieces.append(piece)
            return b"".join(pieces)
        whole = size if layout == 0 else size & -4096
        data = self.image[place * 4096 :][:whole]
        if layout == 2 and size > whole:
            assert behind // 4096 == (behind + size - whole - 1) // 4096, "a tail crosses a block's end"
            data += self.image[behind : behind + size - whole]
        assert layout in (0, 2)
        assert len(data) == size
        return data

    def _xattrs(self, at: int, body: int) -> dict[str, bytes]:
        found = {}
        end = at + body
        at += 12
        while body and at < end:
            length, index, size = struct.unpack_from("<BBH", self.image, at)
            name = self.image[at + 4 : at + 4 + length].decode()
            found[_PREFIXES[index] + name] = self.image[at + 4 + length :][:size]
            at += (4 + length + size + 3) & ~3
        return found


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
