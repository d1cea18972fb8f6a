"""The lab's cache: what took time to fetch or build, kept by version and checksum.

An entry is a directory with a `manifest.json` that names each file's size and SHA-256. It appears by one
rename, complete or not at all, and whoever builds holds the lock of the cache, so any number of processes
may set labs up at once. Below `run/` are the rooms of labs that are running; a room whose owner is gone is
removed by whoever comes next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import LabError

if TYPE_CHECKING:
    from pykvm.lab.backend import Progress

__all__ = ["Builder", "DamageError", "Entry", "Store", "cache_root", "need_space"]

Builder = Callable[[Path], Mapping[str, Any]]
"""Fills a directory, and tells about it what json can say."""

_MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Where the lab keeps its cache: $XDG_CACHE_HOME/pykvm/lab, else ~/.cache/pykvm/lab.

    As the XDG base directory specification has it, a relative path counts as not set.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".cache") / "pykvm" / "lab"
    except RuntimeError as error:
        raise LabError("there is no home directory for the lab's cache; set XDG_CACHE_HOME") from error


def need_space(where: Path, size_bytes: int) -> None:
    """Raise LabError unless the file system of `where` has `size_bytes` free."""
    free = shutil.disk_usage(where).free
    if free < size_bytes:
        raise LabError(
            f"{where}: {size_bytes >> 20} MiB are needed and {free >> 20} MiB are free; "
            "make room, or set XDG_CACHE_HOME to another disk"
        )


class DamageError(LabError):
    """A cache entry is not what it was when it was made."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One complete entry: `about` is what its builder said of it, `files` their sizes and checksums."""

    kind: str
    key: str
    path: Path
    about: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    def check(self, *names: str, is_quick: bool = False) -> None:
        """Compare the files named, or all, with the manifest. Raises DamageError where one differs.

        With `is_quick`, of a file that nobody has changed since the manifest was written only the size is
        looked at: its time of change (ctime), which no program can set, says so.
        """
        for name in names or self.files:
            size, digest = self.files.get(name, (-1, ""))
            path = self.path / name
            try:
                status = path.stat()
                is_old = is_quick and status.st_ctime_ns < (self.path / _MANIFEST).stat().st_ctime_ns
                same = status.st_size == size and (is_old or _digest(path) == digest)
            except OSError as error:
                raise DamageError(
                    f"{self.path / name}: the lab's cache is damaged: {error.strerror}"
                ) from error
            if not same:
                raise DamageError(
                    f"{self.path / name}: the lab's cache is damaged: it is not what was put there"
                )


class Store:
    """The cache as a whole. Every path below `root` belongs to it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def get(self, kind: str, key: str) -> Entry | None:
        """The entry, or None if there is none. Raises DamageError if its manifest can't be read."""
        path = self.root / kind / key
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            files = {name: (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
            return Entry(kind, key, path, dict(manifest["about"]), files)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_dir():
                raise DamageError(f"{path}: the lab's cache is damaged: no {_MANIFEST}") from None
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamageError(f"{path / _MANIFEST}: the lab's cache is damaged: {error}") from error

    def kinds(self) -> list[str]:
        """The kinds of entries there are, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name != "run")

    def entries(self, kind: str) -> Iterator[Entry | DamageError]:
        """All entries of a kind, oldest first; what is damaged as the DamageError that says so."""
        with suppress(FileNotFoundError):
            names = [path for path in (self.root / kind).iterdir() if not path.name.startswith(".")]
            for path in sorted(names, key=lambda path: path.lstat().st_mtime_ns):
                try:
                    entry = self.get(kind, path.name)
                except DamageError as damage:
                    yield damage
                else:
                    if entry:
                        yield entry

    def obtain(
        self, kind: str, key: str, build: Builder, progress: Progress, *, keep: int | None = None
    ) -> Entry:
        """The entry, built if it is not there or damaged; every file of it is checked.

        `build` fills an empty directory and tells what is worth knowing about it; symbolic links and all
        but regular files are not kept track of. When one is built, all but the `keep` entries of the kind
        that were used last are removed. Raises LabError, with nothing left behind.
        """
        entry = self._sound(kind, key, progress)
        if entry:
            with suppress(OSError):
                os.utime(entry.path)
            return entry
        with self.locked(progress):
            entry = self._sound(kind, key, lambda _: None)
            if not entry:
                self._build(kind, key, build)
                entry = self.get(kind, key)
                self._remove_oldest(kind, keep)
        if not entry:
            raise LabError(f"{self.root / kind / key}: vanished as soon as it was made; try again")
        return entry

    def remove(self, kind: str | None = None) -> int:
        """Remove a kind of entries, or all but the rooms of running labs. The bytes that are free now."""
        freed = 0
        if not self.root.is_dir():
            return 0
        with self.locked(lambda _: None):
            for path in [self.root / kind] if kind else list(self.root.iterdir()):
                if path.name not in {"run", "lock"}:
                    freed += _tree_bytes(path)
                    _remove_tree(path)
        run = self.root / "run"
        if run.is_dir():
            with _directory_locked(run):
                self._sweep()
        return freed

    def keep_newest(self, kind: str, count: int, in_use: str) -> None:
        """Remove all but the `count` entries of a kind that were used last, of which `in_use` is one now."""
        with suppress(OSError):
            os.utime(self.root / kind / in_use)
        with self.locked(lambda _: None):
            self._remove_oldest(kind, count)

    def rooms(self) -> int:
        """How many labs are running."""
        run = self.root / "run"
        if not run.is_dir():
            return 0
        with _directory_locked(run):
            self._sweep()
            return sum(1 for _ in run.iterdir())

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A private directory for one running lab, removed at the end, whatever the end."""
        run = self.root / "run"
        with _explained(run):
            run.mkdir(parents=True, exist_ok=True)
            with _directory_locked(run):  # nobody may sweep a room away before it is locked
                self._sweep()
                path = Path(tempfile.mkdtemp(prefix="lab-", dir=run))
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Hold the lock of the cache: one process builds or removes at a time."""
        with _explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another pykvm that sets the lab up")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sound(self, kind: str, key: str, progress: Progress) -> Entry | None:
        try:
            entry = self.get(kind, key)
            if entry:
                entry.check(is_quick=True)
        except DamageError as damage:
            progress(f"{damage}; it is made anew")
            return None
        return entry

    def _build(self, kind: str, key: str, build: Builder) -> None:
        parent = self.root / kind
        with _explained(parent):
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(".new-*"):  # whoever made it was killed: the lock is ours
                _remove_tree(left)
            new = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
            try:
                about = build(new)
                files = {str(path.relative_to(new)): _entry(path) for path in _regular_files(new)}
                text = json.dumps({"about": about, "files": files}, indent=1, sort_keys=True)
                (new / _MANIFEST).write_text(text)
                new.chmod(0o755)
                _remove_tree(parent / key)  # what was damaged
                new.rename(parent / key)
            except BaseException:
                _remove_tree(new)
                raise

    def _remove_oldest(self, kind: str, keep: int | None) -> None:
        if keep:
            paths = [path for path in (self.root / kind).iterdir() if not path.name.startswith(".")]
            for path in sorted(paths, key=lambda path: path.lstat().st_mtime_ns)[:-keep]:
                _remove_tree(path)

    def _sweep(self) -> None:
        for path in (self.root / "run").iterdir():
            with suppress(OSError), _directory_locked(path, wait=False):
                _remove_tree(path)


@contextmanager
def _directory_locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


@contextmanager
def _explained(where: Path) -> Iterator[None]:
    """Say it in one line when the disk is full or not ours to write."""
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: "; make room, or set XDG_CACHE_HOME to another disk",
            errno.EDQUOT: "; make room, or set XDG_CACHE_HOME to another disk",
            errno.EACCES: "; set XDG_CACHE_HOME to a directory of yours",
            errno.EROFS: "; set XDG_CACHE_HOME to a directory that can be written",
        }.get(error.errno or 0, "")
        raise LabError(f"{error.filename or where}: {error.strerror or error}{hint}") from error


def _regular_files(top: Path) -> list[Path]:
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def _entry(path: Path) -> tuple[int, str]:
    return path.stat().st_size, _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree_bytes(top: Path) -> int:
    return sum(path.stat().st_size for path in _regular_files(top)) if top.is_dir() else 0


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
