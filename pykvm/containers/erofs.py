"""A layer becomes an erofs file system: a kernel mounts it read-only, and overlay lays it over others.

The file is written in one pass over the layer's tar, without root and with little memory: data as they come,
then directories, then inodes with the ends of small files beside them. The same layer gives the same bytes.
Whiteouts become what overlay knows: the character device 0:0, and the attribute trusted.overlay.opaque.
"""

from __future__ import annotations

import stat
import struct
import tempfile
from array import array
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from pykvm.containers.erofs_format import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    HOLE,
    INODE_BYTES,
    LAYOUT_CHUNKS,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    SLOT_BYTES,
    device_number,
    directory_block,
    directory_blocks,
    inode,
    superblock,
    xattr_body,
)
from pykvm.containers.layer import Kind
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pykvm.containers.layer import LayerReader, Member
    from pykvm.containers.tree import FileTree

__all__ = ["write_erofs"]

_CHUNK = CHUNK_BLOCKS * BLOCK_BYTES
_ZEROS = bytes(_CHUNK)
_PIECE = 16 * _CHUNK
_MOST_BLOCKS = (1 << 32) - 2
_OPEN_BLOCKS = 16
_FIRST_SLOT = 2  # nid 0 would make an inode number that programs take for none
_OPAQUE = {"trusted.overlay.opaque": b"y"}
_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.WHITEOUT: stat.S_IFCHR,
}
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}


@dataclass(slots=True, eq=False)
class _Inode:
    mode: int
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    links: int = 1
    layout: int = LAYOUT_PLAIN
    place: int = 0
    tail_at: int = 0
    tail_bytes: int = 0
    chunks: array[int] | None = None
    children: dict[str, _Inode] | None = None
    blocks: list[list[bytes]] = field(default_factory=list)
    parent: _Inode | None = None
    is_implied: bool = False
    nid: int = 0
    body: bytes = b""

    @property
    def kind(self) -> int:
        return _TYPES[stat.S_IFMT(self.mode)]

    def head_bytes(self) -> int:
        """The inode, its attributes, its table of chunks."""
        return INODE_BYTES + len(self.body) + 4 * len(self.chunks or ())


def write_erofs(
    layer: LayerReader, target: IO[bytes], uuid: bytes, room: Path, below: FileTree | None = None
) -> int:
    """Write a layer as an erofs image into an empty file; its size in bytes.

    `uuid` has 16 bytes. `room` is a directory for a temporary file. `below`, the files of the layers below,
    tells how directories look that the layer has something in but does not describe. Raises ImageError.
    """
    with tempfile.TemporaryFile(dir=room) as spool:
        writer = _Writer(target, spool)
        for member in layer:
            writer.add(member, layer)
        return writer.finish(uuid, below)


class _Writer:
    def __init__(self, target: IO[bytes], spool: IO[bytes]) -> None:
        self._out = target
        self._spool = spool
        self._spooled = 0
        self._root = _directory()
        self._next_block = 1
        self._whiteouts: list[str] = []
        self._out.seek(BLOCK_BYTES)

    def add(self, member: Member, layer: LayerReader) -> None:
        """Take in one entry, and a file's data with it."""
        if member.kind is Kind.OPAQUE:
            self._folder(member.path).xattrs |= _OPAQUE
        elif member.kind is Kind.WHITEOUT:
            self._whiteouts.append(member.path)
        elif member.kind is Kind.HARD_LINK:
            linked = self._get(member.target)
            linked.links += 1
            self._put(member.path, linked)
        elif member.kind is Kind.DIRECTORY:
            self._describe(self._folder(member.path), member)
        else:
            node = self._node(member)
            if member.kind is Kind.FILE:
                self._store_file(node, member, layer)
            elif member.kind is Kind.SYMLINK:
                node.mode = stat.S_IFLNK | 0o777  # Linux knows no other
                self._store_tail(node, member.target.encode())
                node.size_bytes = len(member.target.encode())
            self._put(member.path, node)

    def finish(self, uuid: bytes, below: FileTree | None) -> int:
        """Write directories, inodes and the superblock; the image's size in bytes."""
        self._place_whiteouts()
        if below:
            _inherit(self._root, below)
        inodes = list(_each(self._root))
        for node in inodes:
            if node.children is not None:
                self._lay_out(node)
                node.body = xattr_body(node.xattrs, "a directory")
                self._choose(node)
        base = self._next_block
        blocks = base + _Slots().place(inodes)
        if blocks > _MOST_BLOCKS:
            raise ImageError("the layer is larger than the 16 TiB that erofs takes")
        for number, node in enumerate(inodes, 1):
            self._write(node, number, base)
        self._out.write(bytes(blocks * BLOCK_BYTES - self._out.seek(0, 2)))
        self._out.seek(0)
        self._out.write(superblock(self._root.nid, len(inodes), blocks, base, uuid))
        return blocks * BLOCK_BYTES

    def _node(self, member: Member) -> _Inode:
        node = _Inode(_FORMATS[member.kind] | member.mode)
        self._describe(node, member)
        node.body = xattr_body(node.xattrs, member.path)
        if member.kind in {Kind.CHAR, Kind.BLOCK}:
            node.place = device_number(*member.device)
        return node

    def _describe(self, node: _Inode, member: Member) -> None:
        node.mode = stat.S_IFMT(node.mode) | member.mode
        node.owner, node.mtime_ns = (member.uid, member.gid), member.mtime_ns
        node.xattrs = member.xattrs | (_OPAQUE if node.xattrs.keys() & _OPAQUE else {})
        node.is_implied = False

    def _store_file(self, node: _Inode, member: Member, layer: LayerReader) -> None:
        """Whole blocks go out, chunks of zeros are left out, the end waits for the inode."""
        data, left = layer.data(member), member.size_bytes
        node.size_bytes, node.place = left, self._next_block
        while left >= BLOCK_BYTES:
            piece = _exactly(data, min(left & -_CHUNK, _PIECE) or left & -BLOCK_BYTES)
            left -= len(piece)
            self._store_piece(node, piece)
        tail = _exactly(data, left)
        if node.chunks is None:
            self._store_tail(node, tail)
        else:
            self._end_chunks(node, tail)

    def _store_piece(self, node: _Inode, piece: bytes) -> None:
        whole = len(piece) // _CHUNK
        if node.chunks is None and not any(piece.startswith(_ZEROS, at * _CHUNK) for at in range(whole)):
            self._emit(piece)
            return
        if node.chunks is None:
            done = (self._next_block - node.place) // CHUNK_BLOCKS
            node.chunks = array("I", [node.place + at * CHUNK_BLOCKS for at in range(done)])
        for at in range(0, len(piece), _CHUNK):
            if piece.startswith(_ZEROS, at):
                node.chunks.append(HOLE)
            else:
                node.chunks.append(self._next_block)
                self._emit(piece[at : at + _CHUNK])

    def _end_chunks(self, node: _Inode, tail: bytes) -> None:
        """The last, incomplete chunk of a file with holes must be in one piece."""
        node.layout = LAYOUT_CHUNKS
        chunks = node.chunks or array("I")
        if tail and len(chunks) * _CHUNK < node.size_bytes:
            chunks.append(self._next_block)
        self._emit(tail)

    def _store_tail(self, node: _Inode, tail: bytes) -> None:
        """What is all of a small file stands beside its inode, and is read with it.

        The end of a larger one follows its blocks, although that takes half a block more on average: the
        kernel reads blocks of inodes one by one, the blocks of a file together.
        """
        if not tail:
            return
        if INODE_BYTES + len(node.body) + len(tail) > BLOCK_BYTES or node.size_bytes > len(tail):
            node.place = node.place or self._next_block
            self._emit(tail)
            return
        node.layout, node.tail_at, node.tail_bytes = LAYOUT_INLINE, self._spooled, len(tail)
        self._spool.write(tail)
        self._spooled += len(tail)

    def _emit(self, data: bytes) -> None:
        """Data at the next block, filled up with zeros."""
        self._out.write(data)
        if rest := -len(data) % BLOCK_BYTES:
            self._out.write(bytes(rest))
        self._next_block += -(-len(data) // BLOCK_BYTES)

    def _get(self, path: str) -> _Inode:
        node = self._root
        for part in path.split("/"):
            node = (node.children or {})[part]
        return node

    def _folder(self, path: str) -> _Inode:
        """The directory at a path, made if nothing has described it yet."""
        node = self._root
        for part in path.split("/") if path else ():
            children = node.children if node.children is not None else {}
            if part not in children:
                children[part] = _directory()
            node = children[part]
        return node

    def _put(self, path: str, node: _Inode) -> None:
        folder, _, name = path.rpartition("/")
        children = self._folder(folder).children
        if children is None or name in children:
            raise ImageError(f"{path!r} can't be where it is")
        children[name] = node

    def _place_whiteouts(self) -> None:
        """What takes away something that this layer has itself makes a directory opaque, and else nothing."""
        for path in self._whiteouts:
            folder, _, name = path.rpartition("/")
            children = self._folder(folder).children
            there = children.get(name) if children is not None else None
            if children is not None and there is None:
                children[name] = _Inode(stat.S_IFCHR)
            elif there and there.children is not None:
                there.xattrs |= _OPAQUE

    def _lay_out(self, node: _Inode) -> None:
        """Decide which name stands in which block; that fixes the directory's size."""
        children = node.children or {}
        node.links = 2 + sum(child.children is not None for child in children.values())
        names = sorted([b".", b"..", *(name.encode() for name in children)])
        node.blocks = directory_blocks(names)
        last = sum(12 + len(name) for name in node.blocks[-1])
        node.size_bytes = (len(node.blocks) - 1) * BLOCK_BYTES + last
        node.tail_bytes = last

    def _choose(self, node: _Inode) -> None:
        """A directory's last block stands beside its inode if it fits; the others get blocks."""
        count = len(node.blocks)
        if INODE_BYTES + len(node.body) + node.tail_bytes <= BLOCK_BYTES:
            node.layout, count = LAYOUT_INLINE, count - 1
        else:
            node.layout, node.tail_bytes = LAYOUT_PLAIN, 0
        node.place = self._next_block
        self._next_block += count

    def _write(self, node: _Inode, number: int, base: int) -> None:
        packed = inode(
            layout=node.layout,
            xattr_bytes=len(node.body),
            mode=node.mode,
            size_bytes=node.size_bytes,
            place=node.place,
            number=number,
            owner=node.owner,
            mtime_ns=node.mtime_ns,
            links=node.links,
        )
        tail = b""
        if node.children is not None:
            tail = self._write_directory(node)
        elif node.tail_bytes:
            self._spool.seek(node.tail_at)
            tail = self._spool.read(node.tail_bytes)
        table = struct.pack(f"<{len(node.chunks)}I", *node.chunks) if node.chunks else b""
        self._out.seek(base * BLOCK_BYTES + node.nid * SLOT_BYTES)
        self._out.write(packed + node.body + table + tail)

    def _write_directory(self, node: _Inode) -> bytes:
        """Write the blocks that stand apart; what stands beside the inode."""
        packed = [self._block(node, names) for names in node.blocks]
        tail = packed.pop() if node.layout == LAYOUT_INLINE else b""
        self._out.seek(node.place * BLOCK_BYTES)
        for block in packed:
            self._out.write(block.ljust(BLOCK_BYTES, b"\0"))
        return tail

    def _block(self, node: _Inode, names: list[bytes]) -> bytes:
        special = {b".": node, b"..": node.parent or node}
        found = [special.get(name) or (node.children or {})[name.decode()] for name in names]
        return directory_block(names, [one.nid for one in found], [one.kind for one in found])


class _Slots:
    """Where inodes stand: none with its tail across the end of a block."""

    def __init__(self) -> None:
        self._blocks = 0
        self._open: list[tuple[int, int]] = []  # (block, bytes used)

    def place(self, inodes: list[_Inode]) -> int:
        """Give every inode its nid; how many blocks that takes."""
        self._open_next(_FIRST_SLOT * SLOT_BYTES)
        for node in inodes:
            node.nid = self._slot(node.head_bytes() + node.tail_bytes)
        return self._blocks

    def _slot(self, needed: int) -> int:
        if needed > BLOCK_BYTES:  # only attributes and tables are that long; they may cross
            at = self._blocks * BLOCK_BYTES
            self._blocks += -(-needed // BLOCK_BYTES)
            return at // SLOT_BYTES
        for place, (_block, used) in enumerate(self._open):
            if used + needed <= BLOCK_BYTES:
                return self._take(place, needed)
        self._open_next(0)
        return self._take(len(self._open) - 1, needed)

    def _take(self, place: int, needed: int) -> int:
        block, used = self._open[place]
        after = used + needed + -needed % SLOT_BYTES
        if after > BLOCK_BYTES - INODE_BYTES:
            del self._open[place]
        else:
            self._open[place] = block, after
        return (block * BLOCK_BYTES + used) // SLOT_BYTES

    def _open_next(self, used: int) -> None:
        if len(self._open) == _OPEN_BLOCKS:
            self._open.remove(max(self._open, key=lambda one: one[1]))
        self._open.append((self._blocks, used))
        self._blocks += 1


def _directory() -> _Inode:
    return _Inode(stat.S_IFDIR | 0o755, children={}, is_implied=True)


def _each(root: _Inode) -> Iterator[_Inode]:
    """Every inode once, a directory before what it holds; parents are noted on the way."""
    root.parent = root
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        for _, child in sorted(node.children.items(), reverse=True) if node.children else ():
            child.parent = node
            waiting.append(child)


def _inherit(node: _Inode, below: FileTree, path: str = "") -> None:
    """Directories that the layer only passes through look as they do below."""
    for name, child in (node.children or {}).items():
        if child.children is None:
            continue
        where = f"{path}/{name}".lstrip("/")
        found = below.get(where) if child.is_implied else None
        if found and found.kind is Kind.DIRECTORY:
            child.mode = stat.S_IFDIR | found.mode
            child.owner, child.mtime_ns = (found.uid, found.gid), found.mtime_ns
            child.xattrs = found.xattrs | child.xattrs
        _inherit(child, below, where)


def _exactly(data: IO[bytes], size: int) -> bytes:
    """The next `size` bytes, which the layer's reader has promised."""
    piece = data.read(size) if size else b""
    while len(piece) < size:
        more = data.read(size - len(piece))
        if not more:
            raise ImageError("a file in the layer ends too early")
        piece += more
    return piece
