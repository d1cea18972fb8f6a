"""Debian's crun and runc as files for a guest.

They are fetched as the labs' kernels are: apt downloads and verifies, nothing is installed. A program goes
into the guest's initramfs with the libraries that it needs, at the places where Debian has them.
"""

from __future__ import annotations

import posixpath
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pykvm.containers.runtimes import RUNTIMES
from pykvm.errors import LabError
from pykvm.lab import cpio
from pykvm.lab.deb import deb_members
from pykvm.lab.libraries import read_needs
from pykvm.lab.packages import Apt, by_apt
from pykvm.lab.store import DamageError, Entry, Store, need_space

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pykvm.lab.backend import Progress

__all__ = ["cached_runtime", "runtime_members", "runtime_tree"]

_KIND = "runtimes"
_KEPT = 4
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_NEXT = "leave --runtime away, or fetch it once where there is a network"


def runtime_members(trees: Iterable[Path]) -> list[cpio.Entry]:
    """The files of runtimes (see runtime_tree) as members of an initramfs, what they share once."""
    files = {
        path.relative_to(tree).as_posix(): path
        for tree in trees
        for path in tree.rglob("*")
        if path.is_file() and path.parent != tree  # where the cache has its own notes
    }
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}
    found = [cpio.directory(folder) for folder in sorted(folders)]
    return found + [cpio.file(name, path.read_bytes(), 0o755) for name, path in sorted(files.items())]


def cached_runtime(name: str, store: Store) -> Path | None:
    """What runtime_tree() has fetched before, if it is sound."""
    for entry in reversed(list(store.entries(_KIND))):
        if isinstance(entry, Entry) and entry.about.get("package") == name:
            with suppress(DamageError):
                entry.check(is_quick=True)
                return entry.path
    return None


def runtime_tree(name: str, store: Store, progress: Progress) -> Path:
    """A directory with the program and its libraries, as they lie below /; fetched unless the cache has it.

    Raises LabError in one line, which names the next step.
    """
    if found := cached_runtime(name, store):
        return found
    try:
        return by_apt(lambda apt: _fetch(apt, name, store, progress), f"Debian's {name}", "", store, progress)
    except LabError as error:
        raise LabError(f"--runtime {name}: {error}; {_NEXT}") from None


def _fetch(apt: Apt, name: str, store: Store, progress: Progress) -> Path:
    wanted = apt.closure([name])
    version = next(one.version for one in wanted if one.package == name)

    def build(where: Path) -> Mapping[str, Any]:
        need_space(store.root, sum(one.download_bytes + one.installed_bytes for one in wanted))
        size = sum(one.download_bytes for one in wanted)
        progress(f"fetching {name} {version} and what it needs ({size >> 10} KiB)")
        debs = where / "debs"
        debs.mkdir()
        unpacked = _Unpacked(where / "all")
        for deb in apt.download_all(wanted, debs, progress):
            unpacked.add(deb)
            deb.unlink()
        debs.rmdir()
        unpacked.keep(RUNTIMES[name], where)
        return {"package": name, "version": version}

    key = f"{name}_{version.replace(':', '%3a')}"
    return store.obtain(_KIND, key, build, progress, keep=_KEPT).path


class _Unpacked:
    """Programs and libraries of packages, by their paths in them; symbolic links are followed by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._links: dict[str, str] = {}
        self._files: dict[str, Path] = {}

    def add(self, deb: Path) -> None:
        """Take what may be needed out of a package. Raises LabError."""
        with deb_members(deb) as archive:
            for member in archive:
                self._take(archive, member)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _usual(member.name)
        if path not in RUNTIMES.values() and ".so" not in path:
            return
        if member.issym():
            self._links[path] = _usual(posixpath.join("/", posixpath.dirname(path), member.linkname))
        elif source := archive.extractfile(member) if member.isreg() else None:
            own = self._files[path] = self._folder / str(len(self._files))
            own.write_bytes(source.read())

    def keep(self, program: str, where: Path) -> None:
        """Put the program and what it needs in its place below `where`; the rest goes. Raises LabError."""
        todo, done = [program], set()
        while todo:
            path = todo.pop()
            if path in done:
                continue
            done.add(path)
            found = self._find(path)
            target = where / (_LOADER if path.endswith(posixpath.basename(_LOADER)) else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(found.read_bytes())
            target.chmod(0o755)
            needs = read_needs(found)
            todo += [f"{_LIBRARIES}/{one}" for one in needs.names] if needs else []
            todo += [f"{_LIBRARIES}/{posixpath.basename(_LOADER)}"] if needs and needs.interpreter else []
        for rest in self._folder.iterdir():
            rest.unlink()
        self._folder.rmdir()

    def _find(self, path: str) -> Path:
        for _ in range(8):
            if path in self._files:
                return self._files[path]
            if path not in self._links:
                break
            path = self._links[path]
        raise LabError(f"the packages have no /{path}")


def _usual(name: str) -> str:
    """A path of a package without the leading /, below usr/ as on a system where those are merged."""
    path = posixpath.normpath(posixpath.join("/", name)).lstrip("/")
    return f"usr/{path}" if path.split("/")[0] in {"bin", "sbin", "lib", "lib64"} else path
