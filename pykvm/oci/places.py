"""The places of mounts in a root that its machine may only read: made on the host, as other runtimes do."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["make_places"]

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_places(root: Path, places: Iterable[tuple[str, bool]]) -> None:
    """Make the directories, and for those marked True the empty files, that are missing below `root`.

    The root is a stranger's: no link in it is followed, so that nothing is made anywhere else. A place that
    can't be made so is left to who mounts there and says what is wrong with it.
    """
    for path, is_file in places:
        with suppress(OSError):
            _make(root, [part for part in path.split("/") if part not in {"", "."}], is_file=is_file)


def _make(root: Path, parts: list[str], *, is_file: bool) -> None:
    fd = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1] if is_file else parts:
            fd = _enter(fd, part)
        if is_file and parts:
            os.close(os.open(parts[-1], _FILE, 0o644, dir_fd=fd))
    finally:
        os.close(fd)


def _enter(above: int, name: str) -> int:
    """The directory `name`, made if it is missing; `above` is closed, unless this raises OSError."""
    if name == "..":
        raise OSError
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=above)
    fd = os.open(name, _FOLDER, dir_fd=above)
    os.close(above)
    return fd
