"""Folders of the host in containers: on one virtiofs device, each under a name in its otherwise empty root.

What a container's root makes in them belongs on the host to whom this process runs as; so do, for a process
that is not root, that user's files to the container's root. Users whom a container has not are nobody.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pykvm.devices.virtio.host_folder import ROOT, HostFolder, failure

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ID_COUNT", "VOLUME_FIRST_ID", "VolumeFolder"]

VOLUME_FIRST_ID = 100_000
"""The guest's number for the root of every container that has volumes: they share their users."""
ID_COUNT = 65_536
_NOBODY = 65_534


class VolumeFolder(HostFolder):
    """The device's root; share() and unshare() put folders there and take them away, from any thread."""

    def __init__(self, empty: Path, *, read_only: bool) -> None:
        """`empty` is a folder that stays so."""
        super().__init__(empty, read_only=read_only)
        self._shares: dict[bytes, Path] = {}
        self._uid, self._gid = os.geteuid(), os.getegid()

    def share(self, name: str, path: Path) -> None:
        """Have `path` there under `name`."""
        self._shares[name.encode()] = path

    def unshare(self, name: str) -> None:
        """No more; what is open stays so."""
        self._shares.pop(name.encode(), None)

    def _open(self, parent: int, name: bytes) -> int:
        if parent != ROOT:
            return super()._open(parent, name)
        if name not in self._shares:
            raise failure(errno.ENOENT)
        return os.open(self._shares[name], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def shown_owner(self, about: os.stat_result) -> tuple[int, int]:
        """Moved into the containers' users."""
        return _shown(about.st_uid, self._uid), _shown(about.st_gid, self._gid)

    def real_owner(self, uid: int, gid: int) -> tuple[int, int]:
        """And back."""
        return _real(uid, self._uid), _real(gid, self._gid)


def _shown(number: int, own: int) -> int:
    if number == own:
        return VOLUME_FIRST_ID
    is_known = 0 < number < ID_COUNT and not own
    return VOLUME_FIRST_ID + (number if is_known else _NOBODY)


def _real(number: int, own: int) -> int:
    inside = number - VOLUME_FIRST_ID
    if not 0 <= inside < ID_COUNT:
        raise failure(errno.EPERM)
    return inside or own
