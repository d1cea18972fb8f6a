"""A kernel image as a lab boots it: its release, and the ELF file inside a bzImage.

A bzImage unpacks itself, which takes a software CPU longer than all the rest of the boot; what can be
unpacked here is. The fields are those of the kernel's Documentation/arch/x86/boot.rst; a kernel whose ELF
file has the PVH note (XEN_ELFNOTE_PHYS32_ENTRY) can be entered without its setup code.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.boot import codecs
from pykvm.errors import ConfigError, LabError
from pykvm.lab.modules import ModuleTree, modinfo, read_module

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Kernel", "given_kernel", "release_of", "unpack"]

_HDRS = b"HdrS"
_ELF64 = b"\x7fELF\x02\x01"
_PT_NOTE = 4
_PHYS32_ENTRY = 18


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a lab boots: `image` a bzImage, `elf` the ELF file with a PVH entry if there is one."""

    release: str
    image: Path
    elf: Path | None
    modules: Path
    key: str
    """Names it in the cache; empty for a kernel that was given by option."""


def given_kernel(image: Path, modules: Path | None) -> Kernel:
    """The kernel that the user named, with its modules, by default those in /lib/modules.

    Raises ConfigError if it is no kernel or the modules belong to another one.
    """
    try:
        data = image.read_bytes()
    except OSError as error:
        raise ConfigError(f"--kernel {image}: {error.strerror}") from error
    release = release_of(data)
    if not release:
        raise ConfigError(f"--kernel {image}: neither a bzImage nor a vmlinux of x86-64 Linux")
    where = modules or Path("/lib/modules", release)
    if not where.is_dir():
        raise ConfigError(f"{where}: no such directory; name the modules of {release} with --modules DIR")
    _check_modules(where, release)
    return Kernel(release, image, image if _has_pvh_entry(data) else None, where, "")


def release_of(image: bytes) -> str:
    """The kernel release (`uname -r`) that a bzImage or vmlinux names; empty if it is neither."""
    if image[0x202:0x206] == _HDRS and len(image) > 0x250:
        (at,) = struct.unpack_from("<H", image, 0x20E)
        text = image[at + 0x200 : at + 0x300].partition(b"\0")[0]
        return text.decode("latin-1").partition(" ")[0]
    if image.startswith(_ELF64):
        found = re.search(rb"Linux version ([\w.+~-]+) ", image)
        return found[1].decode() if found else ""
    return ""


def unpack(image: bytes) -> bytes | None:
    """The ELF file with a PVH entry inside a bzImage; None where there is none that we can unpack."""
    if image[0x202:0x206] != _HDRS or len(image) < 0x250:
        return None
    setup_bytes = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup_bytes + offset :][:length]
    if codecs.codec_of(payload) in ("", "elf"):
        return None
    try:
        elf = codecs.unpack(payload)
    except ValueError as error:
        raise LabError(f"the kernel can't be unpacked: {error}") from error
    return elf if _has_pvh_entry(elf) else None


def _check_modules(where: Path, release: str) -> None:
    path = ModuleTree(where).any_file()
    magic = modinfo(read_module(path)).get("vermagic", "").partition(" ")[0]
    if magic != release:
        raise ConfigError(f"--modules {where}: the modules of kernel {magic}, but the kernel is {release}")


def _has_pvh_entry(elf: bytes) -> bool:
    return any(name == b"Xen" and kind == _PHYS32_ENTRY for name, kind in _notes(elf))


def _notes(elf: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and type of each note in the PT_NOTE segments of a 64-bit ELF file."""
    if not elf.startswith(_ELF64) or len(elf) < 64:
        return
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for at in range(table, min(table + size * count, len(elf) - 56 + 1), size or 56):
        kind, _, offset, _, _, length = struct.unpack_from("<II4Q", elf, at)
        notes = elf[offset : offset + length] if kind == _PT_NOTE else b""
        while len(notes) >= 12:
            name_bytes, desc_bytes, note_kind = struct.unpack_from("<III", notes)
            yield notes[12 : 12 + name_bytes].rstrip(b"\0"), note_kind
            notes = notes[12 + -(-name_bytes // 4) * 4 + -(-desc_bytes // 4) * 4 :]
