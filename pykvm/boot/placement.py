"""Puts a checked image, and what its CPU mode needs around it, into guest memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm import layout
from pykvm.boot import linux, multiboot
from pykvm.boot.image import Image, check_fits
from pykvm.errors import ConfigError
from pykvm.regs import CpuMode, CpuState, boot_structures, initial_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.acpi import VirtioSlot
    from pykvm.memory import GuestMemory

__all__ = ["Placement", "Platform", "place"]

_CMDLINE_OFFSET = 0xC000
_RAM = 1  # the types of memory in e820 and in a multiboot memory map
_RESERVED = 2
_ACPI = 3
_RESTART = bytes.fromhex("ba f90c b0 06 ee f4 eb fd")  # mov $0xcf9, %dx; mov $6, %al; out; 1: hlt; jmp 1b
_TABLES = (
    (layout.ACPI_TABLES.start, len(layout.ACPI_TABLES), _ACPI),
    (layout.MP_TABLE.start, len(layout.MP_TABLE), _RESERVED),
)
_NO_STATE = CpuState({}, {}, {}, {})


class Placement(NamedTuple):
    """What the first vCPU starts with."""

    state: CpuState = _NO_STATE


class Platform(NamedTuple):
    """What firmware tables tell a guest's kernel about its board."""

    vcpus: int = 1
    virtio: Sequence[VirtioSlot] = ()


def boot_area(memory_bytes: int) -> int:
    """The gpa of BOOT: 0x90000, or the last 64 KiB of a smaller RAM."""
    if memory_bytes >= layout.LOW_END:
        return layout.BOOT
    return max(memory_bytes - layout.BOOT_SIZE_BYTES, 0)


def memory_map(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """(gpa, size in bytes, type) of RAM for the guest: low memory, from 1 MiB on, and above 4 GiB."""
    entries = []
    for block in memory.ram():
        if block.start == 0 and block.stop > layout.LEGACY_END:
            entries.append((0, layout.LOW_END, _RAM))
            entries.append((layout.LEGACY_END, block.stop - layout.LEGACY_END, _RAM))
        elif block.start == 0:
            entries.append((0, min(block.stop, layout.LOW_END), _RAM))
        else:
            entries.append((block.start, len(block), _RAM))
    return entries


def place(
    image: Image,
    memory: GuestMemory,
    *,
    cmdline: str,
    modules: Sequence[tuple[bytes, str]] = (),
    initrd: bytes = b"",
    platform: Platform | None = None,
) -> Placement:
    """Write `image` into `memory` and return the first vCPU's state; `initrd` and `platform` are Linux's.

    Raises ImageError if the image does not fit, ConfigError if what surrounds it does not.
    """
    boot = boot_area(memory.size_bytes)
    pieces = boot_structures(image.mode, boot, memory.size_bytes)
    reserved = [range(gpa, gpa + len(data)) for gpa, data in pieces.items()]
    if image.kind in ("multiboot", "linux"):
        reserved.append(range(boot + multiboot.INFO_OFFSET, boot + layout.BOOT_SIZE_BYTES))
    check_fits(image, memory.ram(), reserved)
    for gpa, data in pieces.items():
        memory.write(gpa, data)
    for segment in image.segments:
        if isinstance(segment.data, bytes):
            memory.write(segment.gpa, segment.data)
        else:
            segment.data.read_into(memory.view(segment.gpa, len(segment.data), writable=True))
    regs = {}
    if image.kind == "multiboot":
        regs = _multiboot(image, memory, boot, cmdline, modules)
    elif image.linux:
        regs = _linux(image, image.linux, memory, boot, cmdline, initrd, platform or Platform())
    stack = min(layout.BOOT_SECTOR, memory.size_bytes) if image.mode is CpuMode.REAL16 else boot
    return Placement(initial_state(image.mode, image.entry, boot=boot, stack=stack, regs=regs))


def _multiboot(
    image: Image, memory: GuestMemory, boot: int, cmdline: str, modules: Sequence[tuple[bytes, str]]
) -> dict[str, int]:
    """Write modules and boot information; EAX and EBX as the specification wants them."""
    placed = multiboot.place_modules(image, [len(data) for data, _ in modules], memory.ram())
    for gpa, (data, _) in zip(placed, modules, strict=True):
        memory.write(gpa, data)
    told = [multiboot.Module(gpa, len(data), line) for gpa, (data, line) in zip(placed, modules, strict=True)]
    at = boot + multiboot.INFO_OFFSET
    info = multiboot.build_info(image, at=at, memory_map=memory_map(memory), cmdline=cmdline, modules=told)
    memory.write(at, info)
    return {"rax": multiboot.BOOT_MAGIC, "rbx": at}


def _linux(
    image: Image,
    header: linux.SetupHeader,
    memory: GuestMemory,
    boot: int,
    cmdline: str,
    initrd: bytes,
    platform: Platform,
) -> dict[str, int]:
    """Write boot_params, command line, initrd and tables; RSI or EBX as the boot protocol wants it."""
    line = cmdline.encode() + b"\0"
    room = min(header.cmdline_bytes + 1, layout.BOOT_SIZE_BYTES - _CMDLINE_OFFSET)
    if len(line) > room:
        raise ConfigError(
            f"a command line of {len(line) - 1} bytes: this kernel takes {room - 1}; shorten it"
        )
    at = linux.place_initrd(header, len(initrd), image.end, memory.ram()) if initrd else 0
    told: dict[str, Any] = {
        "cmdline_gpa": boot + _CMDLINE_OFFSET,
        "initrd": (at, len(initrd)),
        "memory_map": sorted([*memory_map(memory), *_TABLES]),
        "rsdp": layout.ACPI_TABLES.start,
    }
    info = boot + multiboot.INFO_OFFSET
    if image.mode is CpuMode.PROT32:
        from pykvm.boot.pvh import start_info  # noqa: PLC0415 - few ask for it

        memory.write(info, start_info(info, **told))
        regs = {"rbx": info}
    else:
        memory.write(info, linux.boot_params(header, **told))
        regs = {"rsi": info}
    _write_tables(memory, platform)
    memory.write(boot + _CMDLINE_OFFSET, line)
    if initrd:
        memory.write(at, initrd)
    return regs


def _write_tables(memory: GuestMemory, platform: Platform) -> None:
    """ACPI tables; for kernels that read none, the MP table; and what restarts the machine.

    A kernel on hardware-reduced ACPI restarts by EFI and, where there is none, by a jump to the BIOS's entry
    below 1 MiB: there the reset control register gets its due.
    """
    from pykvm.boot.acpi import acpi_tables  # noqa: PLC0415 - only Linux pays
    from pykvm.boot.mptable import mp_table  # noqa: PLC0415 - as above

    acpi = acpi_tables(layout.ACPI_TABLES.start, vcpus=platform.vcpus, virtio=platform.virtio)
    if len(acpi) > len(layout.ACPI_TABLES):
        raise ConfigError(f"{platform.vcpus} vCPUs: their ACPI tables take {len(acpi)} bytes; give fewer")
    memory.write(layout.ACPI_TABLES.start, acpi)
    memory.write(layout.MP_TABLE.start, mp_table(layout.MP_TABLE.start, vcpus=platform.vcpus))
    memory.write(layout.BIOS_ENTRY, _RESTART)
