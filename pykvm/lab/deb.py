"""What a Debian package holds, read while it is unpacked: the reader keeps what it wants of it."""

from __future__ import annotations

import subprocess
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["deb_members"]


@contextmanager
def deb_members(deb: Path) -> Iterator[tarfile.TarFile]:
    """The package's files as a tar archive that can be read once, in its order. Raises LabError."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
            process.wait()
        except tarfile.TarError as error:
            raise LabError(f"{deb.name}: can't be unpacked: {error}") from error
        finally:
            process.kill()
    if process.returncode:
        raise LabError(f"{deb.name}: dpkg-deb can't unpack it")
