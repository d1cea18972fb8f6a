"""The structures of erofs on disk, packed. Source: the kernel's fs/erofs/erofs_fs.h and its documentation.

All numbers are little-endian. Blocks have 4 KiB. An inode's number (nid) is its place in units of 32 bytes
from the block where the metadata begin; its extended attributes follow it, and then its tail or its table of
chunks.
"""

from __future__ import annotations

import struct
from functools import cache

from pykvm.errors import ImageError

__all__ = [
    "BLOCK_BYTES",
    "CHUNK_BLOCKS",
    "HOLE",
    "INODE_BYTES",
    "LAYOUT_CHUNKS",
    "LAYOUT_INLINE",
    "LAYOUT_PLAIN",
    "SLOT_BYTES",
    "device_number",
    "directory_block",
    "directory_blocks",
    "inode",
    "superblock",
    "xattr_body",
]

BLOCK_BYTES = 4096
SLOT_BYTES = 32
INODE_BYTES = 64
CHUNK_BLOCKS = 16
HOLE = 0xFFFF_FFFF
LAYOUT_PLAIN, LAYOUT_INLINE, LAYOUT_CHUNKS = 0, 2, 4

_MAGIC = 0xE0F5_E1E2
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBx")
_COMPAT_CHECKSUM, _COMPAT_MTIME = 0x1, 0x2
_INCOMPAT_CHUNKED = 0x4
_EXTENDED = 1
_CHUNK_BITS = CHUNK_BLOCKS.bit_length() - 1
_PREFIXES = (  # the longer first
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
    ("user.", 1),
)
_MOST_XATTR_WORDS = 65534


def superblock(root_nid: int, inodes: int, blocks: int, metadata_block: int, uuid: bytes) -> bytes:
    """The first block, checksum and all."""
    packed = bytearray(BLOCK_BYTES)

    def fill(checksum: int) -> None:
        _SUPERBLOCK.pack_into(
            packed,
            1024,
            _MAGIC,
            checksum,
            _COMPAT_CHECKSUM | _COMPAT_MTIME,
            BLOCK_BYTES.bit_length() - 1,
            0,
            root_nid,
            inodes,
            0,  # the time of inodes that have none of their own; ours have
            0,
            blocks,
            metadata_block,
            0,
            uuid,
            b"",
            _INCOMPAT_CHUNKED,
        )

    fill(0)
    fill(_crc32c(packed[1024:]))
    return bytes(packed)


def inode(
    *,
    layout: int,
    xattr_bytes: int,
    mode: int,
    size_bytes: int,
    place: int,
    number: int,
    owner: tuple[int, int],
    mtime_ns: int,
    links: int,
) -> bytes:
    """An extended inode. `place` is the first block, or the device's number; not used with chunks."""
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    return _INODE.pack(
        _EXTENDED | layout << 1,
        (xattr_bytes - 12) // 4 + 1 if xattr_bytes else 0,
        mode,
        0,
        size_bytes,
        _CHUNK_BITS if layout == LAYOUT_CHUNKS else place,
        number & 0xFFFF_FFFF,
        *owner,
        seconds & 0xFFFF_FFFF_FFFF_FFFF,
        nanoseconds,
        links,
    )


def device_number(major: int, minor: int) -> int:
    """As the kernel's new_encode_dev()."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def directory_blocks(names: list[bytes]) -> list[list[bytes]]:
    """Sorted names put into as few blocks as there must be, in order."""
    blocks: list[list[bytes]] = []
    room = 0
    for name in names:
        needed = _DIRENT.size + len(name)
        if needed > room:
            blocks.append([])
            room = BLOCK_BYTES
        blocks[-1].append(name)
        room -= needed
    return blocks


def directory_block(names: list[bytes], nids: list[int], kinds: list[int]) -> bytes:
    """One block of a directory, as long as it must be: entries, then names."""
    at = _DIRENT.size * len(names)
    entries = []
    for name, nid, kind in zip(names, nids, kinds, strict=True):
        entries.append(_DIRENT.pack(nid, at, kind))
        at += len(name)
    return b"".join(entries) + b"".join(names)


def xattr_body(xattrs: dict[str, bytes], where: str) -> bytes:
    """Extended attributes as they follow an inode; those erofs has no name for are left out."""
    entries = []
    for name, value in sorted(xattrs.items()):
        found = next(((prefix, index) for prefix, index in _PREFIXES if name.startswith(prefix)), None)
        if found:
            rest = name.removeprefix(found[0]).encode("utf-8", "surrogateescape")
            entry = struct.pack("<BBH", len(rest), found[1], len(value)) + rest + value
            entries.append(entry + bytes(-len(entry) % 4))
    body = b"".join(entries)
    if len(body) // 4 > _MOST_XATTR_WORDS:
        raise ImageError(f"{where!r} has {len(body)} bytes of extended attributes; erofs takes 256 KiB")
    return bytes(12) + body if body else b""


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _crc32c(data: bytes | bytearray) -> int:
    """Castagnoli's CRC without the last inversion, as the kernel's crc32c(~0, …) is."""
    table, crc = _crc_table(), 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc
