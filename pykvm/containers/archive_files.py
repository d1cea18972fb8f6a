"""The files in an archive of images: a directory, or a tar that may be packed; no link leads out of it."""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from pykvm.containers.layer import clean_path
from pykvm.containers.tarstream import HeaderGuard, StrictInfo
from pykvm.containers.unpack import Unpacked, packing_of
from pykvm.errors import ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.containers.store import ImageStore

__all__ = ["ArchiveFiles", "opened"]

_MOST_MEMBERS = 65536
_MOST_LINKS = 16
_CHUNK = 1 << 18


class ArchiveFiles(Protocol):
    """What an archive holds, by name; `where` is what errors call the archive."""

    where: str

    def __contains__(self, name: str) -> bool: ...

    def open(self, name: str) -> IO[bytes]: ...


class _Directory:
    """An archive's files in a directory."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = Path(os.path.realpath(root))

    def __contains__(self, name: str) -> bool:
        return (self._root / name).is_file()

    def open(self, name: str) -> IO[bytes]:
        path = Path(os.path.realpath(self._root / clean_path(name, self.where)))
        if not path.is_relative_to(self._root):
            raise ImageError(f"{self.where}: {name} is a link that leads out of the archive")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ImageError(f"{self.where}: {name} is missing") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{self.where}: {name} is no regular file")
        return os.fdopen(fd, "rb")


class _Tar:
    """An archive's files in a tar that can be read anywhere."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            guard = HeaderGuard(file)
            guard.next_entry()
            self._tar = tarfile.TarFile(fileobj=guard, mode="r", tarinfo=StrictInfo, encoding="utf-8")  # type: ignore[arg-type]  # it has what a reader of it uses
            for info in self._tar:
                self._add(info)
                guard.next_entry()
            guard.no_bound()
        except ImageError as error:
            raise ImageError(f"{where}: is no image archive, or is damaged: {error}") from None
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise ImageError(f"{where}: is no image archive: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> IO[bytes]:
        path = clean_path(name, self.where)
        for _ in range(_MOST_LINKS):
            info = self._members.get(path)
            if info is None:
                raise ImageError(f"{self.where}: {name} is missing")
            if info.isreg():
                found = self._tar.extractfile(info)
                if found:
                    return found
            if not info.issym() and not info.islnk():
                break
            path = self._followed(path, info)
        raise ImageError(f"{self.where}: {name} is no regular file, or links lead round in a circle")

    def _add(self, info: tarfile.TarInfo) -> None:
        path = clean_path(info.name, self.where)
        if info.isdir():
            return
        if path in self._members:
            raise ImageError(f"{path} comes twice")
        if len(self._members) >= _MOST_MEMBERS:
            raise ImageError(f"more than {_MOST_MEMBERS} files")
        self._members[path] = info

    def _followed(self, path: str, info: tarfile.TarInfo) -> str:
        if info.islnk():
            return clean_path(info.linkname, self.where)
        target = os.path.normpath(os.path.join(os.path.dirname(path), info.linkname))  # noqa: PTH118, PTH120 - no file system's
        if target.startswith(("/", "../")):
            raise ImageError(f"{self.where}: {path} is a link that leads out of the archive")
        return clean_path(target, self.where)


@contextmanager
def opened(store: ImageStore, source: Path | IO[bytes]) -> Iterator[ArchiveFiles]:
    """The files of an archive; a stream, or one that is packed, goes through a temporary file."""
    if not isinstance(source, Path):
        with _unpacked_file(store, source, "standard input") as file:
            yield _Tar(file, "standard input")
        return
    if source.is_dir():
        yield _Directory(source)
        return
    try:
        file = source.open("rb")
    except FileNotFoundError:
        raise ImageNotFoundError(f"{source}: no such file") from None
    with file:
        seekable = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if seekable and not packing_of(file.read(4)):
            file.seek(0)
            yield _Tar(file, str(source))
            return
        if seekable:
            file.seek(0)
        with _unpacked_file(store, file, str(source)) as plain:
            yield _Tar(plain, str(source))


@contextmanager
def _unpacked_file(store: ImageStore, source: IO[bytes], where: str) -> Iterator[IO[bytes]]:
    with store.blobs.temporary() as file:
        stream = Unpacked(source, 2 * store.limits.image_bytes, where)
        while data := stream.read(_CHUNK):
            file.write(data)
        file.seek(0)
        yield file
