"""Linux by its PVH entry: 32-bit code, paging off, EBX pointing at one struct that names everything else.

::

    ELF note "Xen", type 18 ──► entry           EBX ──► hvm_start_info ──► command line, RSDP
                                                              ├──► modules: the initrd
                                                              └──► memory map, with e820's types

Source: Xen's docs/misc/pvh.pandoc and include/public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pykvm.boot import elf
from pykvm.boot.vmlinux import notes
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.image import Image
    from pykvm.boot.source import Source

__all__ = ["load_pvh", "start_info"]

_PHYS32_ENTRY = 18
_MAGIC = 0x336E_C578
_VERSION = 1
_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MEMORY = struct.Struct("<QQII")


def load_pvh(source: Source, *, limit_bytes: int) -> Image:
    """The Image of a vmlinux entered by PVH; `linux` is the caller's to set. ImageError without the note."""
    found = next((data for name, kind, data in notes(source) if (name, kind) == (b"Xen", _PHYS32_ENTRY)), b"")
    if len(found) not in (4, 8):
        raise source.error("it has no PVH entry (CONFIG_PVH); boot it without --boot pvh")
    entry = int.from_bytes(found, "little")
    return elf.load_elf(source, CpuMode.PROT32, entry, limit_bytes=limit_bytes)


def start_info(
    at: int,
    *,
    cmdline_gpa: int,
    initrd: tuple[int, int],
    memory_map: Sequence[tuple[int, int, int]],
    rsdp: int,
) -> bytes:
    """struct hvm_start_info for the gpa `at`, with its module list and its memory map behind it.

    The arguments are those of boot_params().
    """
    modules = _MODULE.pack(*initrd, 0, 0) if initrd[1] else b""
    memory = b"".join(_MEMORY.pack(*entry, 0) for entry in memory_map)
    behind = at + _INFO.size
    head = _INFO.pack(
        _MAGIC,
        _VERSION,
        0,
        len(modules) // _MODULE.size,
        behind if modules else 0,
        cmdline_gpa,
        rsdp,
        behind + len(modules),
        len(memory_map),
        0,
    )
    return head + modules + memory
