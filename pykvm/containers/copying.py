"""`container cp`: files between this host and a container, by docker's rules for where they go.

What comes from a container is hostile until checked: names are those that a layer may have, links are made
and never followed, and devices are left out.
"""

from __future__ import annotations

import os
import tarfile
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from pykvm.containers.calls import AgentError, AgentGoneError, Call
from pykvm.containers.layer import Kind, LayerReader
from pykvm.containers.limits import Limits
from pykvm.containers.tarstream import Sink, buffered
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pykvm.containers.calls import AgentClient

__all__ = ["folder_in", "pack", "put", "target_in", "unpack"]

_CHUNK = 1 << 18


def unpack(tar: IO[bytes], where: Path, *, rename: str | None = None, contents: bool = False) -> None:
    """Put a tar of one file or folder into the folder `where`.

    `rename` is its new name; `contents`: what is in the folder, without it. Raises ConfigError, ImageError.
    """
    reader = LayerReader(buffered(tar), "what came from the container", Limits())
    top = ""
    links: list[tuple[Path, Path]] = []
    for member in reader:
        top = top or member.path.partition("/")[0]
        rest = member.path.partition("/")[2]
        if contents:
            path = where / rest if rest else where
        else:
            path = where / (rename or top) / rest if rest else where / (rename or top)
        if member.kind is Kind.DIRECTORY:
            if path != where:
                _folder(path, member.mode)
        elif member.kind is Kind.FILE:
            _file(path, member.mode, reader.data(member))
        elif member.kind is Kind.SYMLINK:
            _clear(path)
            path.symlink_to(member.target)
        elif member.kind is Kind.HARD_LINK:
            inside = member.target.partition("/")[2]
            links.append((path, where / inside if contents else where / (rename or top) / inside))
    for path, target in links:
        _clear(path)
        os.link(target, path, follow_symlinks=False)


def _folder(path: Path, mode: int) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ConfigError(f"cannot overwrite non-directory {str(path)!r} with directory")
    if not path.exists():
        path.mkdir()
        path.chmod(mode & 0o777 | 0o700)


def _clear(path: Path) -> None:
    """Make room for a file or link."""
    if path.is_dir() and not path.is_symlink():
        raise ConfigError(f"cannot overwrite directory {str(path)!r} with non-directory")
    with suppress(FileNotFoundError):
        path.unlink()


def _file(path: Path, mode: int, data: IO[bytes]) -> None:
    _clear(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        while piece := data.read(_CHUNK):
            file.write(piece)
        os.fchmod(file.fileno(), mode & 0o777)


def pack(source: Path, target: IO[bytes], name: str, *, contents: bool = False) -> None:
    """A tar of a file or folder of the host, under `name`; owners are root's. Raises ConfigError."""
    tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return None if info.isdev() else info

    try:
        if contents:
            for path in sorted(source.iterdir()):
                tar.add(path, path.name, filter=owned)
        else:
            tar.add(source, name, filter=owned)
    except OSError as error:
        raise ConfigError(f"{error.filename or source}: {error.strerror}") from None
    tar.close()


def put(client: AgentClient, tar: IO[bytes], **words: Any) -> None:
    """Have the agent unpack a tar in a folder of a container. Raises AgentError, AgentGoneError."""
    call: Call = client.open("copy_in", **words)
    try:
        call.answer(60)
        while piece := tar.read(_CHUNK):
            call.send(piece)
        call.end_input()
        for item in call:
            if isinstance(item, dict) and item.get("event") == "end":
                if isinstance(error := item.get("error"), dict):
                    raise AgentError(error)
                return
        raise AgentGoneError("the guest ended in the midst of a copy")
    finally:
        call.forget()


def folder_in(client: AgentClient | None, name: str, path: str) -> bool | None:
    """Whether a path in a container that runs leads to a directory; None if nothing is there."""
    if client is None:
        return None
    try:
        about = client.ask("stat", 60, name=name, path=path, follow=True)
    except AgentError:
        return None
    return int(about["mode"]) & 0o170000 == 0o040000


def target_in(
    about: Callable[[str], bool | None], path: str, source: str, *, is_folder: bool
) -> tuple[str, str]:
    """The folder in the container, and the name in it, for what is copied to `path`. Raises ConfigError.

    `about` says whether a path in the container is a directory, None if there is none.
    """
    found = about(path)
    if found:
        return path, source
    if path.endswith("/") and not is_folder:
        raise ConfigError(f"destination directory must exist: {path}")
    folder, _, last = path.rstrip("/").rpartition("/")
    if found is False and is_folder:
        raise ConfigError(f"cannot copy directory to a file: {path}")
    if not about(folder or "/"):
        raise ConfigError(f"Could not find the file {folder or '/'} in the container")
    return folder or "/", last
