"""A part of this machine's files, to be taken to a lab that can't see the machine: chosen, keyed, copied.

A path is taken as programs use it: with every directory and symbolic link on the way, so that it works in
the lab under the same name. Programs and libraries bring the libraries that they need.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError, LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pykvm.lab.libraries import Libraries

__all__ = ["Tree", "TreeTooLargeError"]

_MOST_LINKS = 40
_BLOCK_BYTES = 4096
_MOST_ENTRIES = 200_000
_LIBRARY_MARKS = (".so", ".so.")
_ELSEWHERE = ("/dev", "/proc", "/run", "/sys")
"""What the lab has of its own."""


class TreeTooLargeError(ConfigError):
    """More was to be taken than a lab shall take."""


class Tree:
    """Paths of this machine with what `lstat` said of each; what `below` has already is not taken again."""

    def __init__(
        self, libraries: Libraries, *, below: Tree | None = None, limit_bytes: int = 16 << 30
    ) -> None:
        self.libraries = libraries
        self._below = below
        self._limit = limit_bytes
        self._entries: dict[str, os.stat_result] = {}
        self._links: dict[str, str] = {}
        self._unread: list[str] = []
        self.size_bytes = 0
        """What the files take on a disk of 4 KiB blocks."""

    def __contains__(self, path: object) -> bool:
        return str(path) in self._entries or (self._below is not None and path in self._below)

    def __len__(self) -> int:
        return len(self._entries)

    def paths(self) -> Iterator[Path]:
        """What was taken, in order."""
        return map(Path, sorted(self._entries))

    @property
    def unread(self) -> tuple[str, ...]:
        """What had to be left out since this user may not read it."""
        return tuple(self._unread)

    def add(self, path: Path | str) -> Path | None:
        """Take a file or an empty directory, with all on the way to it; its path without symbolic links.

        None if it isn't there, can't be read, is a device or socket, or belongs to a file system of the
        lab's own such as /proc.
        """
        parts = _parts(str(Path(path).absolute()))
        where, links = "", 0
        while parts:
            part = parts.pop()
            if part == "..":
                where = where.rpartition("/")[0]
                continue
            where = f"{where}/{part}"
            status = None if where in _ELSEWHERE else self._lstat(where)
            if status is None:
                return None
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS or not self._take_link(where, status):
                    return None
                target = os.readlink(where)  # noqa: PTH115 - plain text
                parts += _parts(target)
                where = "" if target.startswith("/") else where.rpartition("/")[0]
            elif not self._take(where, status):
                return None
        return Path(where or "/")

    def add_link(self, path: Path | str, target: Path | str) -> None:
        """Let `path` be a symbolic link in the lab, whatever it is here."""
        parent = self.add(os.path.dirname(path))  # noqa: PTH120 - plain text
        if parent is not None:
            where = str(parent / os.path.basename(path))  # noqa: PTH119 - same
            self._entries[where] = os.stat_result((stat.S_IFLNK | 0o777, *[0] * 9))
            self._links[where] = str(target)

    def add_tree(
        self,
        top: Path | str,
        leave_out: Collection[str] = (),
        *,
        not_in: Collection[Path] = (),
        limit_bytes: int | None = None,
    ) -> None:
        """Take a directory with all in it, of the same file system; a file is taken as `add` does.

        `leave_out` are names that are not taken, wherever they are, `not_in` are paths. Symbolic links are
        taken as they are; what they point to is taken if it's inside too. Raises TreeTooLargeError if the
        files take more than `limit_bytes`; nothing of the directory is taken then.
        """
        real = self.add(top)
        if real is None or not real.is_dir() or real in not_in:
            return
        device = real.stat().st_dev
        forbidden = {str(path) for path in not_in}
        found: list[tuple[str, os.stat_result]] = []
        size = 0
        for path, status in _walk(str(real), device, frozenset(leave_out), forbidden, self._unread.append):
            found.append((path, status))
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if size > (limit_bytes or self._limit) or len(found) > _MOST_ENTRIES:
                raise TreeTooLargeError(_too_large(str(real), len(found), size, limit_bytes or self._limit))
        for path, status in found:
            if stat.S_ISLNK(status.st_mode):
                self._take_link(path, status)
            else:
                self._take(path, status)

    def add_libraries(self) -> None:
        """Take what the programs and libraries in the tree need, and what that needs in turn."""
        done: set[str] = set()
        waiting = [path for path in self._entries if self._may_need_libraries(path)]
        while waiting:
            path = waiting.pop()
            if path in done:
                continue
            done.add(path)
            for library in self.libraries.needed_by(Path(path)):
                if str(library) not in self:
                    real = self.add(library)
                    waiting += [str(real)] if real else []

    def key(self) -> str:
        """Changes whenever a file in the tree changed, as far as its size, time, mode, or link tells."""
        digest = hashlib.sha256()
        for path, status in sorted(self._entries.items()):
            times = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)
            link = self._links.get(path, "")
            digest.update(os.fsencode(f"{path}\0{link}\0{status.st_mode:o} {times[0]} {times[1]}\n"))
        return digest.hexdigest()[:32]

    def copy_to(self, where: Path) -> None:
        """Copy the tree below the directory `where`. Raises LabError, with the reason and the file."""
        directories = []
        for path, status in sorted(self._entries.items()):
            copy = f"{where}{path}"
            try:
                if stat.S_ISDIR(status.st_mode):
                    os.makedirs(copy, exist_ok=True)  # noqa: PTH103 - thousands of them: plain text
                    directories.append((copy, status))
                elif stat.S_ISLNK(status.st_mode):
                    os.symlink(self._links[path], copy)  # noqa: PTH211 - same
                else:
                    _copy_file(path, copy, status)
            except FileNotFoundError:
                continue  # it was removed since
            except OSError as error:
                raise LabError(f"taking {path} to the lab: {error.strerror}") from error
        for copy, status in reversed(directories):
            os.chmod(copy, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)  # noqa: PTH101 - same
            os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _lstat(self, path: str) -> os.stat_result | None:
        known = self._entries.get(path)
        if known is not None:
            return known
        try:
            return os.lstat(path)
        except OSError:
            return None

    def _take_link(self, path: str, status: os.stat_result) -> bool:
        if path not in self:
            try:
                self._links[path] = os.readlink(path)  # noqa: PTH115 - thousands of them: plain text
            except OSError:
                return False
            self._entries[path] = status
        return True

    def _take(self, path: str, status: os.stat_result) -> bool:
        # a directory is taken again, since the upper one of two layers has its mode
        if path in self and not (stat.S_ISDIR(status.st_mode) and path not in self._entries):
            return True
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        # a directory that may be entered and not read, as /root often is, still leads somewhere
        if stat.S_ISREG(status.st_mode) and not os.access(path, os.R_OK):
            self._unread.append(path)
            return False
        self._entries[path] = status
        if stat.S_ISREG(status.st_mode):
            self.size_bytes += -(-status.st_size // _BLOCK_BYTES) * _BLOCK_BYTES
        if self.size_bytes > self._limit or len(self._entries) > _MOST_ENTRIES:
            raise TreeTooLargeError(_too_large(path, len(self._entries), self.size_bytes, self._limit))
        return True

    def _may_need_libraries(self, path: str) -> bool:
        status = self._entries[path]
        if not stat.S_ISREG(status.st_mode):
            return False
        name = path.rpartition("/")[2]
        return name.endswith(_LIBRARY_MARKS[0]) or _LIBRARY_MARKS[1] in name or bool(status.st_mode & 0o111)


def _too_large(path: str, files: int, size_bytes: int, limit_bytes: int) -> str:
    return (
        f"{path}: with it, {files} files of {size_bytes >> 20} MiB would go to the lab; "
        f"at most {_MOST_ENTRIES} files of {limit_bytes >> 20} MiB may"
    )


def _parts(path: str) -> list[str]:
    """The components, the first one last."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


def _walk(
    top: str, device: int, leave_out: frozenset[str], forbidden: set[str], unread: Callable[[str], None]
) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `top` on the same device; what vanishes meanwhile was not there."""
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:
            unread(directory)
            continue
        for entry in entries:
            if entry.name in leave_out or entry.path in forbidden:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                if status.st_dev != device:
                    continue
                waiting.append(entry.path)
            yield entry.path, status


def _copy_file(path: str, copy: str, status: os.stat_result) -> None:
    shutil.copyfile(path, copy)
    os.chmod(copy, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)  # noqa: PTH101 - thousands of them
    os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
