"""Files of this host that go into a layer: found, checked, and written as a tar that is always the same.

Owners, times and the order of names do not depend on the host: root's (or --chown's), 1970, sorted.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pykvm.containers.layer import Kind
from pykvm.containers.tarstream import Sink
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pykvm.containers.tree import FileTree

__all__ = ["Copied", "Ignored", "LayerTar", "files_below", "fingerprint", "resolve", "sources"]

_IGNORE_FILES = (".pykvmignore", ".dockerignore")
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Copied:
    """One thing to copy: where it is, and its path below the target ("" is the target itself)."""

    path: Path
    below: str


class Ignored:
    """What .dockerignore (or .pykvmignore) keeps out of builds; the last pattern that fits decides."""

    def __init__(self, context: Path) -> None:
        found = next((context / name for name in _IGNORE_FILES if (context / name).is_file()), None)
        lines = found.read_text(errors="surrogateescape").splitlines() if found else []
        self._rules = [_rule(line.strip()) for line in lines if line.strip() and not line.startswith("#")]

    def __call__(self, path: str) -> bool:
        """Whether the path, relative to the context, stays out."""
        out = False
        for keep, pattern in self._rules:
            if pattern.match(path):
                out = not keep
        return out


def _rule(line: str) -> tuple[bool, re.Pattern[str]]:
    keep = line.startswith("!")
    text = line.lstrip("!").strip("/").removeprefix("./")
    return keep, re.compile(_glob(text) + r"(?:/.*)?\Z", re.DOTALL)


def _glob(text: str) -> str:
    """A pattern as a regular expression: * and ? stay within a name, ** does not."""
    parts = re.split(r"(\*\*/?|\*|\?|\[[^]]+\])", text)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)


def sources(context: Path, pattern: str) -> list[Path]:
    """The files and directories that a source of COPY names. Raises ConfigError: none, or outside."""
    root = Path(os.path.realpath(context))
    plain = os.path.normpath(pattern.lstrip("/"))
    if plain == ".." or plain.startswith("../"):
        raise ConfigError(f"{pattern}: leads out of the context {context}")
    found = [root / plain]
    if re.search(r"[*?[]", plain):
        found = _matching(root, plain.split("/"))
    checked = []
    for path in found:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(root):
            raise ConfigError(f"{pattern}: is a link that leads out of the context {context}")
        if not real.exists():
            raise ConfigError(f"{pattern}: no such file or directory in {context}")
        checked.append(real if path.is_symlink() and real.is_dir() else path)
    if not checked:
        raise ConfigError(f"{pattern}: nothing in {context} fits")
    return checked


def _matching(folder: Path, parts: list[str]) -> list[Path]:
    pattern = re.compile(_glob(parts[0]) + r"\Z")
    if not folder.is_dir() or folder.is_symlink():
        return []
    found = sorted(path for path in folder.iterdir() if pattern.match(path.name))
    return found if not parts[1:] else [one for path in found for one in _matching(path, parts[1:])]


def files_below(top: Path, is_out: Callable[[Path], bool]) -> Iterator[Copied]:
    """`top` and all below it, sorted, links not followed; what `is_out` says is left out."""
    yield Copied(top, "")
    if top.is_dir() and not top.is_symlink():
        for path in sorted(top.iterdir(), key=lambda path: os.fsencode(path.name)):
            for one in files_below(path, is_out):
                if not is_out(one.path):
                    yield Copied(one.path, f"{path.name}/{one.below}".rstrip("/"))


def resolve(tree: FileTree, path: str, *, last: bool) -> str:
    """Where a path leads in an image, by its symbolic links, which can't lead out of it.

    `last`: also follow a link at the very end. Raises ConfigError for links that never end.
    """
    waiting = [part for part in reversed(path.split("/")) if part]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part in {".", ".."}:
            done = done[:-1] if part == ".." else done
            continue
        node = tree.get("/".join([*done, part]))
        if node and node.kind is Kind.SYMLINK and (waiting or last):
            links += 1
            if links > _MOST_LINKS:
                raise ConfigError(f"/{path}: too many symbolic links in the image")
            done = [] if node.target.startswith("/") else done
            waiting += [one for one in reversed(node.target.split("/")) if one]
        else:
            done.append(part)
    return "/".join(done)


class LayerTar:
    """A layer's tar being written; parents stand before what is in them, each path once."""

    def __init__(self, target: IO[bytes], tree: FileTree) -> None:
        self._tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
        self._tree = tree
        self._done: set[str] = set()

    def close(self) -> None:
        """Write the end."""
        self._tar.close()

    def folder(self, path: str, owner: tuple[int, int] = (0, 0)) -> None:
        """A directory that must be there: as it is in the image, or made."""
        if not path or path in self._done:
            return
        self.folder(path.rpartition("/")[0], owner)
        info, node = _info(path, tarfile.DIRTYPE, 0o755, owner), self._tree.get(path)
        if node and node.kind is Kind.DIRECTORY:
            info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime_ns // 10**9
            info.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
                for key, value in node.xattrs.items()
            }
        self._add(info)

    def add(self, path: str, source: Path, owner: tuple[int, int], mode: int | None) -> None:
        """A file, directory or link of the host, with another owner and, if not None, mode."""
        try:
            self._add_from(path, source, owner, mode)
        except FileNotFoundError:
            raise ConfigError(f"{source}: vanished while it was copied") from None
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise ConfigError(f"{source}: can't be copied: {error.strerror or error}") from None

    def _add_from(self, path: str, source: Path, owner: tuple[int, int], mode: int | None) -> None:
        about = source.lstat()
        bits = stat.S_IMODE(about.st_mode) if mode is None else mode
        if stat.S_ISDIR(about.st_mode):
            self._add(_info(path, tarfile.DIRTYPE, bits, owner))
        elif stat.S_ISLNK(about.st_mode):
            info = _info(path, tarfile.SYMTYPE, 0o777, owner)
            info.linkname = str(source.readlink())
            self._add(info)
        elif stat.S_ISREG(about.st_mode):
            with source.open("rb") as file:
                info = _info(path, tarfile.REGTYPE, bits, owner)
                info.size = os.fstat(file.fileno()).st_size
                self._add(info, file)
        else:
            raise ConfigError(f"{source}: is no file, directory or link, so it can't be copied")

    def _add(self, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        if info.name in self._done:
            if info.type != tarfile.DIRTYPE:
                raise ConfigError(f"/{info.name}: two sources have this name")
            return
        try:
            info.name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{info.name!a}: a name that is not UTF-8 can't stand in an image") from None
        self._done.add(info.name)
        self._tar.addfile(info, file)


def _info(path: str, kind: bytes, mode: int, owner: tuple[int, int]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode = kind, mode
    info.uid, info.gid = owner
    return info


def fingerprint(found: Sequence[tuple[str, Path]]) -> list[list[object]]:
    """What the contents of files depend on, for the cache: paths, kinds, modes, link targets, digests."""
    import hashlib  # noqa: PLC0415 - only COPY needs it

    told: list[list[object]] = []
    for path, source in found:
        about = source.lstat()
        if stat.S_ISLNK(about.st_mode):
            told.append([path, "l", str(source.readlink())])
        elif stat.S_ISREG(about.st_mode):
            with source.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            told.append([path, "f", stat.S_IMODE(about.st_mode), digest])
        else:
            told.append([path, stat.S_IFMT(about.st_mode), stat.S_IMODE(about.st_mode)])
    return told
