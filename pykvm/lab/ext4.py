"""ext4 images made from directories and read back into them, by e2fsprogs, without root or mounting.

The images have no journal: they live as long as one lab. Their size is a multiple of a cylinder of 16 heads
and 63 sectors, so that an emulator that thinks in cylinders has them whole.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from pykvm.errors import LabError
from pykvm.lab.backend import Tool
from pykvm.lab.store import need_space
from pykvm.lab.tools import find_program

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CYLINDER_BYTES", "E2FSPROGS", "count_entries", "make_image", "read_image"]

E2FSPROGS = (Tool("mke2fs", "e2fsprogs"), Tool("e2fsck", "e2fsprogs"), Tool("debugfs", "e2fsprogs"))

CYLINDER_BYTES = 16 * 63 * 512
_BLOCK_BYTES = 4096
_INODE_BYTES = 256
_LEAST_BYTES = 4 << 20
_FEATURES = "^has_journal,^resize_inode,^metadata_csum,^64bit,^huge_file"


def make_image(image: Path, content: Path, label: str, *, free_bytes: int = 0) -> None:
    """Make `image` an ext4 file system with all that is in the directory `content`, owned as there.

    `label` is at most 16 bytes. `free_bytes` stay free for what the lab writes. Raises LabError.
    """
    entries, data_bytes = count_entries(content)
    inodes = entries + 64 + free_bytes // (16 * 1024)
    # a block for each directory is counted with its entries; extents and bitmaps take less than a 32nd
    size = data_bytes + data_bytes // 32 + inodes * _INODE_BYTES + free_bytes + _LEAST_BYTES
    size = -(-size // CYLINDER_BYTES) * CYLINDER_BYTES
    need_space(image.parent, size - free_bytes)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK_BYTES), "-I", str(_INODE_BYTES)]
    command += ["-N", str(inodes), "-m", "0", "-L", label, "-O", _FEATURES, "-d", str(content)]
    command += ["-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", str(image), f"{size // 1024}k"]
    try:
        with image.open("wb") as file:
            file.truncate(size)
        _run(command)
        _run(["debugfs", "-w", "-R", "rmdir lost+found", str(image)])
    except OSError as error:
        raise LabError(f"{image}: {error.strerror}") from error


def read_image(image: Path, where: Path) -> None:
    """Copy all that is in the file system `image` to the new directory `where`, as this user.

    The file system is checked, and repaired if the lab left it unfinished, before a name in it is believed:
    after that no directory has two entries of one name and no name leads out of it. Raises LabError.
    """
    if _check(image, "-fn"):
        _check(image, "-fy")
        if _check(image, "-fn"):
            raise LabError(f"{image}: the lab left its results in a file system that can't be repaired")
    where.mkdir()
    try:
        # debugfs has no exit status for what it could not copy, and this user can't give files to others
        _run(["debugfs", "-R", f'rdump / "{where.name}"', str(image)], cwd=where.parent)
    except OSError as error:
        raise LabError(f"{image}: {error.strerror}") from error


def count_entries(top: Path) -> tuple[int, int]:
    """How many files, directories and links there are below `top`, and what they take in whole blocks."""
    entries = blocks = 0
    for _, directories, files in os.walk(top):
        entries += len(directories) + len(files)
        blocks += 1 + (len(directories) + len(files)) // 16
    for where, _, files in os.walk(top):
        for name in files:
            blocks += -(-os.lstat(f"{where}/{name}").st_size // _BLOCK_BYTES)
    return entries, blocks * _BLOCK_BYTES


def _check(image: Path, how: str) -> int:
    program = find_program("e2fsck") or "e2fsck"
    done = subprocess.run(
        [program, how, str(image)], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode


def _run(command: list[str], cwd: Path | None = None) -> None:
    program = find_program(command[0]) or command[0]
    done = subprocess.run(
        [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=cwd
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        raise LabError(f"{command[0]}: {said[-1]}")
