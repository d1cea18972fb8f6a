"""Results of a lab without a shared file system: what it left on a disk becomes the host's shared directory.

What was in the directory when the lab started is remembered, so that what the lab removed is removed here
too, and nothing that somebody else put there meanwhile is lost.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Packed", "bring_back", "pack"]


@dataclass(frozen=True, slots=True)
class Packed:
    """What went to the lab: each name below the directory, with its type, time and size."""

    entries: Mapping[str, tuple[int, int, int]]


def pack(share: Path, where: Path) -> Packed:
    """Copy `share` to the new directory `where`, with links as they are; sockets and devices stay here.

    Raises LabError naming the file that can't be read.
    """
    entries: dict[str, tuple[int, int, int]] = {}
    where.mkdir()
    try:
        _pack(share, where, "", entries)
    except OSError as error:
        raise LabError(f"--share {share}: {error.filename}: {error.strerror}") from error
    return Packed(entries)


def bring_back(results: Path, share: Path, packed: Packed) -> None:
    """Make `share` hold what `results` does. Both are directories of this machine.

    Links in them are never followed. What is the same already is not touched. A file is replaced in one step,
    so that who reads it sees the old or the new one. Raises LabError.
    """
    try:
        _bring_back(results, share)
        _remove_gone(results, share, packed)
    except OSError as error:
        raise LabError(f"bringing results to {share}: {error.filename}: {error.strerror}") from error


def _pack(top: Path, where: Path, below: str, entries: dict[str, tuple[int, int, int]]) -> None:
    for entry in _entries(top / below):
        name = f"{below}{entry.name}"
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            (where / name).symlink_to((top / name).readlink())
        elif stat.S_ISDIR(status.st_mode):
            (where / name).mkdir()
            _pack(top, where, f"{name}/", entries)
            shutil.copystat(top / name, where / name)
        elif stat.S_ISREG(status.st_mode):
            shutil.copy2(top / name, where / name)
        else:
            continue
        entries[name] = _mark(status)


def _bring_back(source: Path, target: Path) -> None:
    for entry in _entries(source):
        theirs = Path(entry.path)
        ours = target / entry.name
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if not _is_directory(ours):
                ours.unlink(missing_ok=True)
                ours.mkdir()
            _bring_back(theirs, ours)
            ours.chmod(_mode(status) | stat.S_IXUSR)
        elif stat.S_ISLNK(status.st_mode):
            if not ours.is_symlink() or ours.readlink() != theirs.readlink():
                _make_room(ours)
                ours.symlink_to(theirs.readlink())
        elif stat.S_ISREG(status.st_mode):
            if not _same(theirs, ours):
                _make_room(ours)
                _replace(theirs, ours, status)
            elif _mode(ours.lstat()) != _mode(status):
                ours.chmod(_mode(status))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _same(theirs: Path, ours: Path) -> bool:
    return not ours.is_symlink() and ours.is_file() and filecmp.cmp(theirs, ours, shallow=False)


def _make_room(path: Path) -> None:
    """A directory is only in the way if it is empty; anything else is replaced."""
    if _is_directory(path):
        path.rmdir()
    elif path.is_symlink():
        path.unlink()


def _replace(theirs: Path, ours: Path, status: os.stat_result) -> None:
    fd, name = tempfile.mkstemp(prefix=".pykvm-", dir=ours.parent)
    os.close(fd)
    try:
        shutil.copyfile(theirs, name)
        Path(name).chmod(_mode(status))
        # the lab's clock is not ours, and a file of tomorrow confuses whoever compares times
        os.utime(name, ns=(time.time_ns(), min(status.st_mtime_ns, time.time_ns())))
        Path(name).replace(ours)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _remove_gone(results: Path, share: Path, packed: Packed) -> None:
    """Remove what the lab removed, unless it changed here meanwhile; what is in a directory before it."""
    for name, mark in sorted(packed.entries.items(), reverse=True):
        ours = share / name
        try:
            status = ours.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if os.path.lexists(results / name) or _parent_is_link(share, name):
            continue
        if stat.S_ISDIR(status.st_mode):
            if not any(ours.iterdir()):
                ours.rmdir()
        elif _mark(status) == mark:
            ours.unlink()


def _parent_is_link(share: Path, name: str) -> bool:
    return any((share / parent).is_symlink() for parent in Path(name).parents)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _mode(status: os.stat_result) -> int:
    """The permissions that a result gets here: no set-user-ID, and this user may read and write it."""
    return status.st_mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IFMT(status.st_mode), status.st_mtime_ns, status.st_size
