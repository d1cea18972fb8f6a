"""A folder of the host, node by node: no guest gets out of it, whatever names it gives.

A node is held by an O_PATH descriptor. Names are single components that are looked up relative to their
folder's descriptor, and symbolic links are never followed here: the guest reads them and follows them itself,
on its own side. So there is no path to check, and no one who renames things meanwhile changes what a node is.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ROOT", "HostFolder", "Node", "failure"]

ROOT = 1
_NAME_BYTES = 255
_NODES_MOST = 1 << 20


def failure(number: int) -> OSError:
    """The OSError for an errno."""
    return OSError(number, os.strerror(number))


class Node:
    """A file, folder or link that the guest knows, and how often it was told of it."""

    __slots__ = ("fd", "key", "lookups")

    def __init__(self, fd: int, key: tuple[int, int]) -> None:
        self.fd = fd
        self.key = key
        self.lookups = 0


class HostFolder:
    """The nodes of one shared folder, by the guest's number for them. Errors are OSErrors."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises ConfigError if `path` is no folder that can be read."""
        self.path = path
        self.is_read_only = read_only
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise ConfigError(f"share {path}: {error.strerror}") from None
        self._nodes = {ROOT: Node(fd, _key(os.fstat(fd)))}
        self._numbers = {self._nodes[ROOT].key: ROOT}
        self._last = ROOT

    def close(self) -> None:
        """Close all descriptors."""
        for node in self._nodes.values():
            os.close(node.fd)
        self._nodes, self._numbers = {}, {}

    def forget_all(self) -> None:
        """The guest knows no node any more, but for the root."""
        for number in [n for n in self._nodes if n != ROOT]:
            self._drop(number)

    def _drop(self, number: int) -> None:
        node = self._nodes.pop(number)
        del self._numbers[node.key]
        os.close(node.fd)

    # ---- nodes

    def fd(self, number: int) -> int:
        """The O_PATH descriptor of a node. Raises ESTALE for one that there is not."""
        node = self._nodes.get(number)
        if node is None:
            raise failure(errno.ESTALE)
        return node.fd

    def stat(self, number: int) -> os.stat_result:
        """The attributes of a node."""
        return os.fstat(self.fd(number))

    def look_up(self, parent: int, name: bytes) -> tuple[int, os.stat_result]:
        """The number of `name` in the folder `parent`, counted as known once more; and its attributes."""
        fd = self._open(parent, check_name(name))
        try:
            about = os.fstat(fd)
            number = self._numbers.get(_key(about))
            if number is None:
                if len(self._nodes) >= _NODES_MOST:
                    raise failure(errno.ENFILE)
                self._last = number = self._last + 1
                self._nodes[number] = Node(fd, _key(about))
                self._numbers[_key(about)] = number
                fd = -1
        finally:
            if fd >= 0:
                os.close(fd)
        self._nodes[number].lookups += 1
        return number, about

    def _open(self, parent: int, name: bytes) -> int:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd(parent))

    # ---- owners

    def shown_owner(self, about: os.stat_result) -> tuple[int, int]:
        """The user and group that the guest sees."""
        return about.st_uid, about.st_gid

    def real_owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Whom the guest means by these."""
        return uid, gid

    def forget(self, number: int, count: int) -> None:
        """The guest has forgotten a node `count` times; with the last it goes."""
        node = self._nodes.get(number)
        if node is None or number == ROOT:
            return
        node.lookups -= min(count, node.lookups)
        if not node.lookups:
            self._drop(number)

    # ---- opening

    def reopen(self, number: int, flags: int) -> int:
        """A descriptor for reading or writing a node that is a file or a folder; of nothing else.

        A device or a pipe of the host is not the guest's to open.
        """
        fd = self.fd(number)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise failure(errno.ELOOP if stat.S_ISLNK(mode) else errno.EPERM)
        return os.open(magic_link(fd), flags & ~os.O_NOFOLLOW & ~os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY)


def check_name(name: bytes) -> bytes:
    """One component of a path. Raises EINVAL for one that leads elsewhere, ENAMETOOLONG."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise failure(errno.EINVAL)
    if len(name) > _NAME_BYTES:
        raise failure(errno.ENAMETOOLONG)
    return name


def magic_link(fd: int) -> str:
    """The name under which what `fd` holds can be opened again."""
    return f"/proc/self/fd/{fd}"


def _key(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino
