"""A layer's tar, read once and forward, with every entry checked before anybody acts on it.

What the OCI image specification ("layer.md") means by an entry: a file, directory, link or device that
replaces what lower layers have at its path; `.wh.NAME` takes NAME away; `.wh..wh..opq` takes away all that
lower layers have in its directory.
"""

from __future__ import annotations

import enum
import io
import stat
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from pykvm.containers.tarstream import SKIPPED_BYTES, Forward, StrictInfo
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.containers.limits import Limits

__all__ = ["Kind", "LayerReader", "Member", "clean_path"]

_XATTR = "SCHILY.xattr."
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MOST_PATH_BYTES = 4095
_MOST_NAME_BYTES = 255
_MOST_ID = 0xFFFF_FFFE


class Kind(enum.Enum):
    """What an entry of a layer is; the values are those of find(1)'s -type, and two of our own."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    HARD_LINK = "hard link"
    CHAR = "c"
    BLOCK = "b"
    FIFO = "p"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"


_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One checked entry. `path` is relative and plain, "" is the layer's root.

    `target` is a symbolic link's text as it stands, or a hard link's path, cleaned like `path`. A whiteout's
    `path` is what it takes away, an opaque marker's the directory. `mode` is the twelve permission bits.
    """

    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int
    target: str
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    info: tarfile.TarInfo


def clean_path(name: str, where: str) -> str:
    """`name` without `./` and a last slash. Raises ImageError for one that could lead elsewhere."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ImageError(f"{where}: the name {name!a} is not UTF-8") from None
    if name.startswith("/"):
        raise ImageError(f"{where}: the name {name[:80]!r} is absolute")
    if size > _MOST_PATH_BYTES or "\0" in name:
        raise ImageError(f"{where}: the name {name[:40]!r}… is too long or has a zero byte in it")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    for part in parts:
        if part == "..":
            raise ImageError(f"{where}: the name {name[:80]!r} leads out of the archive with ..")
        if len(part) > _MOST_NAME_BYTES // 4 and len(part.encode()) > _MOST_NAME_BYTES:
            raise ImageError(f"{where}: the name {name[:40]!r}… has a part of more than 255 bytes")
    return "/".join(parts)


class LayerReader:
    """The checked entries of a layer's unpacked tar. Iterate once; read a file's data when it comes up.

    When it is through, `size_bytes` is the sum of its files, and `implied` are the directories that it has
    something in but does not describe. Every error is an ImageError that names the layer: a name or link
    that leads out, a file where a directory must be, an entry that comes twice, too much of anything, damage.
    """

    def __init__(self, stream: io.BufferedIOBase, what: str, limits: Limits) -> None:
        self._what = what
        self._limits = limits
        self._file = Forward(stream)
        self._stream = stream
        self._seen: dict[str, Kind] = {}
        self.implied: set[str] = set()
        self._devices = 0
        self._entries = 0
        self.size_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except ImageError as error:
            prefix = f"{self._what}: "
            text = str(error)
            raise ImageError(text if text.startswith(prefix) else prefix + text) from None
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError) as error:
            raise ImageError(f"{self._what}: is no sound tar: {error}") from None

    def data(self, member: Member) -> IO[bytes]:
        """The bytes of the file that came up last; a hole reads as zeros."""
        if member.info.issparse():
            found = self._tar.extractfile(member.info)
            if found:
                return found
        self._file.seek(member.info.offset_data)
        return _Data(self._file, member.info.size, self._what)  # type: ignore[return-value]

    def drain(self) -> None:
        """Read what stands behind the last entry, so that the whole stream has been seen."""
        while self._stream.read(SKIPPED_BYTES):
            pass

    def _members(self) -> Iterator[Member]:
        self._file.next_entry()
        self._tar = tarfile.TarFile(
            fileobj=self._file,  # type: ignore[arg-type]  # it has what a reader of it uses
            mode="r",
            tarinfo=StrictInfo,
            encoding="utf-8",
            errors="surrogateescape",
        )
        info = self._tar.next()
        while info is not None:
            self._tar.members.clear()  # type: ignore[attr-defined]  # or it keeps them all
            self._entries += 1
            if self._entries > self._limits.entries:
                raise ImageError(f"more than {self._limits.entries} entries")
            member = self._checked(info)
            if member:
                self._file.no_bound()
                yield member
            self._file.next_entry()
            info = self._tar.next()
        self.drain()

    def _checked(self, info: tarfile.TarInfo) -> Member | None:
        path = clean_path(info.name, self._what)
        kind = _KINDS.get(info.type)
        if kind is None:
            raise ImageError(f"{path!r} is of the unknown type {info.type!r}")
        folder, _, name = path.rpartition("/")
        if name.startswith(_WHITEOUT):
            return self._whiteout(info, path, folder, name)
        self._place(path, folder, kind)
        self.size_bytes += info.size if kind is Kind.FILE else 0
        if self.size_bytes > self._limits.image_bytes:
            raise ImageError(
                f"its files have more than the {self._limits.image_bytes} bytes allowed (--max-size)"
            )
        return self._member(info, path, kind)

    def _whiteout(self, info: tarfile.TarInfo, path: str, folder: str, name: str) -> Member | None:
        hidden = _hidden(path, folder, name)
        if hidden is None:
            return None
        self._enter(folder, path)
        return self._member(info, *hidden)

    def _place(self, path: str, folder: str, kind: Kind) -> None:
        """Note that `path` is taken; its parents are directories, and it comes once."""
        self._enter(folder, path)
        if not path and kind is not Kind.DIRECTORY:
            raise ImageError("its root is no directory")
        before = self._seen.get(path)
        if before and not before is kind is Kind.DIRECTORY:
            raise ImageError(f"{path!r} comes twice")
        self._seen[path] = kind
        self.implied.discard(path)

    def _enter(self, folder: str, path: str) -> None:
        """Note that `folder` and all above it are directories, described or not."""
        while folder:
            kind = self._seen.get(folder)
            if kind is Kind.DIRECTORY:
                return
            if kind:
                raise ImageError(f"{path!r} stands below {folder!r}, which is no directory")
            self._seen[folder] = Kind.DIRECTORY
            self.implied.add(folder)
            folder = folder.rpartition("/")[0]

    def _member(self, info: tarfile.TarInfo, path: str, kind: Kind) -> Member:
        if not 0 <= info.uid <= _MOST_ID or not 0 <= info.gid <= _MOST_ID:
            raise ImageError(f"{path!r} has an owner that can't be: {info.uid}:{info.gid}")
        return Member(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(info.mode),
            uid=info.uid,
            gid=info.gid,
            mtime_ns=_nanoseconds(info),
            size_bytes=info.size if kind is Kind.FILE else 0,
            target=self._target(info, path, kind),
            device=self._device(info, path, kind),
            xattrs=_xattrs(info, path) if info.pax_headers else {},
            info=info,
        )

    def _target(self, info: tarfile.TarInfo, path: str, kind: Kind) -> str:
        if kind is Kind.HARD_LINK:
            target = clean_path(info.linkname, self._what)
            if self._seen.get(target) in {None, Kind.DIRECTORY} or target == path:
                raise ImageError(f"{path!r} is a hard link to {target!r}, which is no file in this layer")
            return target
        if kind is Kind.SYMLINK:
            _check_symlink(info.linkname, path)
            return info.linkname
        return ""

    def _device(self, info: tarfile.TarInfo, path: str, kind: Kind) -> tuple[int, int]:
        if kind not in {Kind.CHAR, Kind.BLOCK}:
            return 0, 0
        self._devices += 1
        if self._devices > self._limits.devices:
            raise ImageError(f"more than {self._limits.devices} device nodes")
        device = info.devmajor, info.devminor
        if not 0 <= device[0] < 1 << 12 or not 0 <= device[1] < 1 << 20:
            raise ImageError(f"{path!r} is a device {device[0]}:{device[1]}, which can't be")
        if kind is Kind.CHAR and device == (0, 0):
            raise ImageError(f"{path!r} is the device 0:0, which overlay takes for a whiteout")
        return device


class _Data(io.RawIOBase):
    """The next `size` bytes of the archive."""

    def __init__(self, file: Forward, size: int, what: str) -> None:
        self._file = file
        self._left = size
        self._what = what

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        if not data and self._left and size:
            raise ImageError(f"{self._what}: ends in the middle of a file")
        self._left -= len(data)
        return data


def _hidden(path: str, folder: str, name: str) -> tuple[str, Kind] | None:
    """What a whiteout takes away; None for the notes of aufs to itself, which mean nothing here."""
    if name == _OPAQUE:
        return folder, Kind.OPAQUE
    if name.startswith(".wh..wh."):
        return None
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in {"", ".", ".."}:
        raise ImageError(f"{path!r} is a whiteout of nothing")
    return f"{folder}/{hidden}".lstrip("/"), Kind.WHITEOUT


def _check_symlink(target: str, path: str) -> None:
    try:
        size = len(target.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _MOST_PATH_BYTES or "\0" in target:
        raise ImageError(f"{path!r} is a symbolic link with a target that can't be: {target[:40]!a}")


def _nanoseconds(info: tarfile.TarInfo) -> int:
    """The time of last change; a PAX header says it to the nanosecond, and as text."""
    said = info.pax_headers.get("mtime")
    if said is None:
        return int(info.mtime) * 1_000_000_000
    whole, _, rest = said.partition(".")
    fraction = int((rest + "000000000")[:9])
    nanoseconds = int(whole or 0) * 1_000_000_000 + (-fraction if whole.startswith("-") else fraction)
    if abs(nanoseconds) >= 1 << 63:
        raise ImageError(f"{info.name!a} has a time that can't be: {said[:40]!a}")
    return nanoseconds


def _xattrs(info: tarfile.TarInfo, path: str) -> dict[str, bytes]:
    found = {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in info.pax_headers.items()
        if key.startswith(_XATTR)
    }
    for name, value in found.items():
        if name.startswith("trusted.overlay."):
            raise ImageError(
                f"{path!r} has the attribute {name!r}, with which overlay is told to look elsewhere"
            )
        if not name or len(name.encode("utf-8", "replace")) > 255 or len(value) > 65535:
            raise ImageError(f"{path!r} has an extended attribute that is too large: {name[:40]!a}")
    return found
