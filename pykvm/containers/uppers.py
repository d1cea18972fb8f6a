"""What a container changed, as a layer's tar, laid over what it changed before: the two become one tar."""

from __future__ import annotations

import tarfile
from typing import IO, TYPE_CHECKING

from pykvm.containers.layer import Kind, LayerReader
from pykvm.containers.limits import Limits
from pykvm.containers.tarstream import Sink, buffered

if TYPE_CHECKING:
    from pykvm.containers.layer import Member

__all__ = ["merge"]

_OPAQUE = ".wh..wh..opq"


def merge(earlier: IO[bytes], later: IO[bytes], target: IO[bytes]) -> None:
    """Write both as one layer's tar: what `later` has or takes away hides what `earlier` has there.

    Both are read from their beginnings, several times. Raises ImageError for one that is damaged.
    """
    over = _Over(_again(later))
    heirs = _heirs(_again(earlier), over)
    tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
    first, second = _again(earlier), _again(later)
    for member in first:
        info = member.info
        if over.turns_into_folder(member):  # what is below both stays hidden, as it was by the file
            tar.addfile(tarfile.TarInfo(f"{member.path}/{_OPAQUE}"))
        if member.path in heirs:  # its name is hidden, its data live on under another one
            _rename(info, "path", heirs[member.path])
        elif over.hides(member) or heirs.get(member.target) == member.path:
            continue
        elif member.kind is Kind.DIRECTORY and member.path in over.folders:
            info = over.folders.pop(member.path)
        elif member.kind is Kind.HARD_LINK and member.target in heirs:
            _rename(info, "linkpath", heirs[member.target])
        _add(tar, info, first, member)
    for member in second:
        if member.kind is not Kind.DIRECTORY or member.path in over.folders:
            _add(tar, member.info, second, member)
    tar.close()


def _rename(info: tarfile.TarInfo, what: str, name: str) -> None:
    info.pax_headers = {key: value for key, value in info.pax_headers.items() if key != what}
    if what == "path":
        info.name = name
    else:
        info.linkname = name


class _Over:
    """What the later tar says of paths. `folders` are its directories that the result has not yet."""

    def __init__(self, later: LayerReader) -> None:
        self.folders: dict[str, tarfile.TarInfo] = {}
        self._files: set[str] = set()
        self._opaque: set[str] = set()
        for member in later:
            if member.kind is Kind.DIRECTORY:
                self.folders[member.path] = member.info
            elif member.kind is Kind.OPAQUE:
                self._opaque.add(member.path)
            else:
                self._files.add(member.path)
        self._known = {*self.folders, *later.implied}

    def hides(self, member: Member) -> bool:
        """Whether nothing of an earlier entry is to be seen."""
        path = member.path
        if member.kind is Kind.OPAQUE:  # it hides what is below both; the later one may say so again
            return path in self._opaque or self._is_below_file(path) or path in self._files
        if path in self._files or self._is_below_file(path):
            return True
        return path in self._known and member.kind is not Kind.DIRECTORY

    def turns_into_folder(self, member: Member) -> bool:
        """Whether what was no directory, or had gone, is one now, and does not itself hide what is below."""
        if member.kind in {Kind.DIRECTORY, Kind.OPAQUE} or member.path in self._opaque:
            return False
        return member.path in self._known and not self._is_below_file(member.path)

    def _is_below_file(self, path: str) -> bool:
        folder = path.rpartition("/")[0] if path else ""
        while True:
            if folder in self._opaque or (folder and folder in self._files):
                return bool(path)
            if not folder:
                return False
            folder = folder.rpartition("/")[0]


def _heirs(earlier: LayerReader, over: _Over) -> dict[str, str]:
    """Files that are hidden while a hard link to them is not, each with the first of such links."""
    hidden: set[str] = set()
    found: dict[str, str] = {}
    for member in earlier:
        if member.kind is Kind.HARD_LINK:
            if member.target in hidden and not over.hides(member):
                found.setdefault(member.target, member.path)
        elif member.kind is not Kind.DIRECTORY and over.hides(member):
            hidden.add(member.path)
    return found


def _again(file: IO[bytes]) -> LayerReader:
    file.seek(0)
    return LayerReader(buffered(file), "what the container changed", Limits())


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, reader: LayerReader, member: Member) -> None:
    info.uname = info.gname = ""
    info.name = info.name.rstrip("/")
    tar.addfile(info, reader.data(member) if info.isreg() else None)
