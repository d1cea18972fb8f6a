"""The read-only file set of a program: files of the host, or bytes, under the paths that the program sees."""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm._native import lib
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Entry", "entries_of", "files_of_options", "guest_path", "split_file_option", "tree"]

_DEVICES = {
    "/dev/console": lib.PARAVIRT_CONSOLE,
    "/dev/tty": lib.PARAVIRT_CONSOLE,
    "/dev/null": lib.PARAVIRT_NULL,
    "/dev/zero": lib.PARAVIRT_ZERO,
    "/dev/random": lib.PARAVIRT_RANDOM,
    "/dev/urandom": lib.PARAVIRT_RANDOM,
}
_DISK = "/dev/disk"  # opening it says ENXIO where the machine has none
_PATH_MOST = 1000  # the kernel's buffer has 1024 bytes
_FILE_MODE = stat.S_IFREG | 0o444


class Entry(NamedTuple):
    """One file, directory or device of the set: its path in the guest, what stat() tells, and its bytes.

    `source` is a file of the host, or the bytes; of a device its number, of a directory 0.
    """

    path: str
    mode: int
    size_bytes: int
    mtime_s: int
    source: Path | bytes | int


def guest_path(path: str) -> str:
    """`path` as the guest knows it: absolute and normal. Raises ConfigError if no file can be there."""
    found = posixpath.normpath(posixpath.join("/", path))
    found = "/" + found.lstrip("/")
    if "\0" in found or found == "/" or len(os.fsencode(found)) > _PATH_MOST:
        raise ConfigError(f"{path!r}: no file in the guest can have that path")
    return found


def split_file_option(text: str) -> tuple[Path, str]:
    """(file of the host, path in the guest) of "HOST" or "HOST:/GUEST"."""
    host, found, guest = text.rpartition(":/")
    return (Path(host), guest_path(guest)) if found and host else (Path(text), guest_path(text))


def files_of_options(files: Sequence[str], trees: Sequence[str]) -> dict[str, Path]:
    """The file set of the options --file (later ones win) and --files."""
    found: dict[str, Path] = {}
    for folder in trees:
        found |= tree(Path(folder))
    for text in files:
        path, guest = split_file_option(text)
        found[guest] = path
    return found


def tree(folder: Path) -> dict[str, Path]:
    """Every regular file in `folder` and the folders in it, by the path in the guest, where `folder` is "/".

    Symbolic links to files count as files, links to folders are not followed. Raises ImageError if the
    folder is not there or may not be read.
    """

    def failed(error: OSError) -> None:
        raise ImageError(f"{error.filename}: can't read it: {error.strerror}")

    found = {}
    if not folder.is_dir():
        missing = ImageError if folder.exists() else ImageNotFoundError
        raise missing(f"{folder}: there is no such folder")
    for where, _, names in os.walk(folder, onerror=failed):
        for name in names:
            path = Path(where, name)
            if path.is_file():
                found[guest_path(str(path.relative_to(folder)))] = path
    return found


def entries_of(files: Mapping[str, Path | bytes | str]) -> list[Entry]:
    """The entries for `files` (path in the guest -> file of the host, or bytes), sorted by path, "/" first.

    The folders that hold them and a few devices in /dev come with them. Raises ImageError, or
    ImageNotFoundError, for a file that can't be read, ConfigError where one path is both file and folder.
    """
    found = {path: Entry(path, stat.S_IFCHR | 0o666, 0, 0, number) for path, number in _DEVICES.items()}
    found[_DISK] = Entry(_DISK, stat.S_IFBLK | 0o444, 0, 0, lib.PARAVIRT_DISK)
    for path, source in files.items():
        entry = _entry(guest_path(path), Path(source) if isinstance(source, str) else source)
        found[entry.path] = entry
    for path in [*found]:
        for folder in _folders(path):
            known = found.setdefault(folder, Entry(folder, stat.S_IFDIR | 0o555, 0, 0, 0))
            if not stat.S_ISDIR(known.mode):
                raise ConfigError(f"{folder}: in the guest it can't be a file and hold {path} at once")
    return [found[path] for path in sorted(found, key=lambda path: path.encode(errors="surrogateescape"))]


def _folders(path: str) -> Iterator[str]:
    while path != "/":
        path = posixpath.dirname(path)
        yield path


def _entry(path: str, source: Path | bytes) -> Entry:
    if isinstance(source, bytes):
        return Entry(path, _FILE_MODE, len(source), 0, source)
    try:
        about = source.stat()
    except FileNotFoundError:
        raise ImageNotFoundError(f"{source}: there is no such file") from None
    except OSError as error:
        raise ImageError(f"{source}: can't read it: {error.strerror}") from None
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder; take it with --files" if stat.S_ISDIR(about.st_mode) else "no regular file"
        raise ImageError(f"{source}: it is {kind}")
    mode = stat.S_IFREG | about.st_mode & 0o555
    return Entry(path, mode, about.st_size, int(about.st_mtime), source)
