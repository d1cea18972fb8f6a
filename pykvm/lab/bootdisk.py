"""A disk that boots Linux on a PC BIOS in no time: the kernel lies on it as it will lie in memory.

What a boot loader does slowly in a software CPU is done here: the bzImage is unpacked, its segments are
placed, boot_params and page tables are made. The boot sector (bootdisk.S) reads them and enters the kernel.
Sectors of the disk::

    0        the boot sector
    1 - 72   the low block, read to 0x10000
             +0x0000 boot_params      +0x2000 entry, and what to read where
             +0x1000 command line     +0x3000 page tables: 4 GiB in pages of 2 MiB
    73 -     the kernel's segments, and the initramfs
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.boot import linux
from pykvm.boot.source import opened
from pykvm.errors import ConfigError, LabError, ToolchainError
from pykvm.lab.ext4 import CYLINDER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["make_boot_disk", "make_low_block"]

_SOURCE = Path(__file__).parent / "bootdisk.S"
_SECTOR = 512
_LOW = 0x10000
_LOW_SECTORS = 72
_CMDLINE, _LIST, _PAGE_TABLES = 0x1000, 0x2000, 0x3000
_PAGE_BYTES = 4096
_PRESENT_WRITABLE, _LARGE = 3, 0x80
_MOST_PARTS = (_PAGE_BYTES - 8) // 12 - 1
_BELOW_TOP_BYTES = 1 << 20
"""The BIOS keeps its ACPI tables at the end of RAM."""
_MOST_KERNEL_BYTES = 1 << 30


def make_boot_disk(disk: Path, kernel: Path, initramfs: Path, arguments: str, mem_mib: int) -> None:
    """Make the image `disk`, which boots a computer with that much memory.

    Raises ImageError if the kernel is damaged or none, ConfigError if it does not fit, ToolchainError without
    an assembler.
    """
    memory = [range(mem_mib * (1 << 20) - _BELOW_TOP_BYTES)]
    with opened(kernel) as source:
        header = linux.read_header(source)
        if header is None:
            raise ConfigError(
                f"{kernel}: the intel lab boots a bzImage, as in /boot/vmlinuz-VERSION, and this is none"
            )
        image = linux.load_bzimage(source, header, limit_bytes=_MOST_KERNEL_BYTES)
    if image.end > memory[0].stop:
        raise ConfigError(f"{kernel}: it needs {image.end >> 20} MiB of memory; the lab has {mem_mib} MiB")
    if len(arguments) >= min(header.cmdline_bytes, _PAGE_BYTES):
        raise ConfigError(f"the kernel's command line has {len(arguments)} bytes: too many")
    data = initramfs.read_bytes()
    initrd = linux.place_initrd(header, len(data), image.end, memory)
    params = linux.boot_params(header, cmdline_gpa=_LOW + _CMDLINE, initrd=(initrd, len(data)), memory_map=())
    parts = [(segment.gpa, bytes(segment.data)) for segment in image.segments if segment.data]
    # the bytes that fill up a part's last sector must not be those that remain
    parts = sorted([*parts, (initrd, data)])
    _write(disk, params, arguments, image.entry, parts)


def make_low_block(params: bytes, arguments: str, entry: int, parts: Sequence[tuple[int, int]]) -> bytes:
    """What the boot sector reads first; `parts` are (address, size in bytes) of what follows on the disk."""
    low = bytearray(_LOW_SECTORS * _SECTOR)
    low[: len(params)] = params
    line = arguments.encode()
    low[_CMDLINE : _CMDLINE + len(line)] = line
    struct.pack_into("<Q", low, _LIST, entry)
    sector = 1 + _LOW_SECTORS
    for number, (address, size) in enumerate(parts[:_MOST_PARTS]):
        count = -(-size // _SECTOR)
        struct.pack_into("<III", low, _LIST + 8 + 12 * number, sector, count, address)
        sector += count
    _put_page_tables(low)
    return bytes(low)


def _put_page_tables(low: bytearray) -> None:
    """PML4, PDPT and four page directories, one after the other."""
    table = _LOW + _PAGE_TABLES
    struct.pack_into("<Q", low, _PAGE_TABLES, (table + _PAGE_BYTES) | _PRESENT_WRITABLE)
    for number in range(4):
        directory = table + (2 + number) * _PAGE_BYTES
        struct.pack_into("<Q", low, _PAGE_TABLES + _PAGE_BYTES + 8 * number, directory | _PRESENT_WRITABLE)
    for number in range(4 * 512):
        entry = (number << 21) | _PRESENT_WRITABLE | _LARGE
        struct.pack_into("<Q", low, _PAGE_TABLES + 2 * _PAGE_BYTES + 8 * number, entry)


def _write(disk: Path, params: bytes, arguments: str, entry: int, parts: list[tuple[int, bytes]]) -> None:
    if len(parts) > _MOST_PARTS or any(address + len(data) > 1 << 32 for address, data in parts):
        raise ConfigError(
            f"a kernel of {len(parts) - 1} parts that ends at {parts[-1][0]:#x} can't be read by the lab"
        )
    low = make_low_block(params, arguments, entry, [(address, len(data)) for address, data in parts])
    try:
        with disk.open("wb") as file:
            file.write(_assembled(disk.with_suffix(".sector")))
            file.write(low)
            for _, data in parts:
                file.write(data)
                file.write(bytes(-len(data) % _SECTOR))
            file.truncate(-(-file.tell() // CYLINDER_BYTES) * CYLINDER_BYTES)
    except OSError as error:
        raise LabError(f"{disk}: {error.strerror}") from error


def _assembled(where: Path) -> bytes:
    """The boot sector."""
    command = ["gcc", "-m64", "-nostdlib", "-static", "-Wl,--oformat=binary", "-Wl,-Ttext=0x7c00"]
    command += ["-Wl,--build-id=none", "-o", str(where), str(_SOURCE)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolchainError("the lab's boot sector: there is no gcc; apt-get install gcc") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["gcc failed"]
        raise ToolchainError(f"the lab's boot sector: {said[0]}")
    sector = where.read_bytes()
    where.unlink()
    if len(sector) != _SECTOR:
        raise ToolchainError(
            f"the lab's boot sector has {len(sector)} bytes; is this gcc for another machine?"
        )
    return sector
