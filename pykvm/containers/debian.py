"""A layer made of Debian packages: apt downloads and verifies them, and their files become one tar. No root.

The packages come with all that they depend on. Their scripts are not run, so what those would make (users,
caches, alternatives) is not there. The same versions give the same layer.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pykvm.containers.layer import clean_path
from pykvm.containers.tarstream import Sink
from pykvm.errors import ConfigError, ImageError
from pykvm.lab.deb import deb_members
from pykvm.lab.packages import Apt, Candidate, by_apt
from pykvm.lab.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["packages_for", "write_packages"]

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:=[\w.+~:-]+)?")
_HINT = "Without apt, begin with FROM and a directory or a tar"


def packages_for(names: Sequence[str], progress: Callable[[str], None]) -> list[Candidate]:
    """The packages named and all they depend on. Raises ConfigError or LabError in one line."""
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a Debian package")
    return by_apt(lambda apt: apt.closure(names), "Debian's packages", _HINT, Store(), progress)


def write_packages(
    found: Sequence[Candidate], target: IO[bytes], room: Path, progress: Callable[[str], None]
) -> None:
    """Download packages and write their files as one layer's tar. Raises LabError, ImageError."""
    tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
    seen: dict[str, bool] = {}
    total = sum(one.download_bytes for one in found)
    with tempfile.TemporaryDirectory(dir=room, prefix=".new-") as folder:
        progress(f"fetching {', '.join(f'{one.package} {one.version}' for one in found)} ({total >> 10} KiB)")
        apart = Path(folder)

        def fetch(apt: Apt) -> list[Path]:
            for left in apart.iterdir():  # from a try that failed
                left.unlink()
            return apt.download_all(found, apart, progress)

        for deb in by_apt(fetch, "Debian's packages", _HINT, Store(), progress):
            _append(deb, tar, seen)
    tar.close()


def _append(deb: Path, tar: tarfile.TarFile, seen: dict[str, bool]) -> None:
    """Add what a package holds; a directory that several have comes once."""
    with deb_members(deb) as package:
        for info in package:
            _copy(info, package, tar, seen, deb.name)


def _copy(
    info: tarfile.TarInfo, package: tarfile.TarFile, tar: tarfile.TarFile, seen: dict[str, bool], deb: str
) -> None:
    info.name = clean_path(info.name, deb)
    if info.islnk():
        info.linkname = clean_path(info.linkname, deb)
    info.uname = info.gname = ""
    if not info.name or (info.isdir() and seen.get(info.name)):
        return
    if info.name in seen:
        raise ImageError(f"{deb}: another package has /{info.name}, too")
    seen[info.name] = info.isdir()
    tar.addfile(info, package.extractfile(info) if info.isreg() else None)
