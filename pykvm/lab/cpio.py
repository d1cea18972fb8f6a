"""A writer of cpio archives in the "newc" format, the one that Linux unpacks as an initramfs.

The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: per entry a
header of the magic `070701` and thirteen numbers of eight hex digits, the name, the data, each padded to
four bytes; an entry named `TRAILER!!!` ends it. Archives repeat byte for byte: no time, no owner, inode
numbers counted from 1.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

__all__ = ["Entry", "device", "directory", "file", "pack", "symlink"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512
_LARGEST = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: `mode` as in stat(2), `rdev` for device nodes, `data` the content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """A directory; it stands before what is in it."""
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))


def device(path: str, kind: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A device node; `kind` is `c` or `b` as for mknod(1)."""
    return Entry(path, {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[kind] | permissions, rdev=(major, minor))


def pack(entries: list[Entry]) -> bytes:
    """The archive of `entries` in their order, padded to 512 bytes.

    Raises ValueError for a path that is empty, absolute, climbs out with `..`, holds a NUL, comes twice or
    before its directory, and for data of 4 GiB or more.
    """
    out = bytearray()
    directories = {""}
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        _check(entry, directories, seen)
        seen.add(entry.path)
        if stat.S_ISDIR(entry.mode):
            directories.add(entry.path)
        out += _member(entry, number)
    out += _member(Entry(_TRAILER, 0), 0)
    out += bytes(-len(out) % _BLOCK)
    return bytes(out)


def _check(entry: Entry, directories: set[str], seen: set[str]) -> None:
    parts = entry.path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in entry.path or entry.path == _TRAILER:
        raise ValueError(f"cpio: {entry.path!r} can't be the path of a member")
    if entry.path in seen:
        raise ValueError(f"cpio: {entry.path} comes twice")
    if "/".join(parts[:-1]) not in directories:
        raise ValueError(f"cpio: {entry.path} comes before its directory")
    if len(entry.data) > _LARGEST:
        raise ValueError(f"cpio: {entry.path} has {len(entry.data)} bytes, more than the format can say")


def _member(entry: Entry, inode: int) -> bytes:
    name = os.fsencode(entry.path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode mode uid gid links mtime size major minor rmajor rminor namesize check
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % number for number in numbers) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
