"""Linux for x86-64: a bzImage, unpacked here and entered as the ELF file inside it (64-bit boot protocol).

::

    bzImage   boot sector ─ setup header (0x1f1) ─ setup code ─ payload: a packed vmlinux
                                   │                               │ unpacked on the host
                                   ▼                               ▼
    guest     boot_params ("zero page") ◄── RSI          PT_LOAD segments at their physical addresses
              command line, initrd, e820                 entry: startup_64, in long mode, paging on

Source: the kernel's Documentation/arch/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.boot import codecs, elf
from pykvm.boot.source import opened
from pykvm.errors import ConfigError, ImageError
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pykvm.boot.image import Image
    from pykvm.boot.source import Source

__all__ = [
    "BOOTS",
    "BOOT_PARAMS_BYTES",
    "SetupHeader",
    "boot_params",
    "load_bzimage",
    "place_initrd",
    "read_header",
    "read_initrds",
    "unpacked",
]

BOOT_PARAMS_BYTES = 4096
_HEADER_AT = 0x1F1
_MAGIC_AT = 0x202
_MAGIC = b"HdrS"
_OLDEST = 0x020C  # 2.12, Linux 3.8: the first with a 64-bit entry that may be above 4 GiB
_LOADED_HIGH = 1 << 0
_CAN_USE_HEAP = 1 << 7
_LOADER_UNDEFINED = 0xFF
_KERNEL_64 = 1 << 0  # xloadflags: a 64-bit entry
_INITRD_ALIGN = 4096
_ENTRY_64 = 0x200  # of the code behind the setup sectors
BOOTS = ("elf", "packed", "pvh")
"""How a kernel is entered: unpacked here and entered as ELF, unpacking itself, or by its PVH entry."""


class SetupHeader(NamedTuple):
    """What a loader needs of the setup header. Sizes in bytes; `raw` is the header to copy."""

    raw: bytes
    version: int
    setup_bytes: int
    payload_offset: int
    payload_bytes: int
    cmdline_bytes: int
    initrd_most: int
    release: str
    preferred_gpa: int = 0
    init_bytes: int = 0


def read_header(source: Source) -> SetupHeader | None:
    """The setup header of a bzImage; None if `source` is none.

    Raises ImageError if it is damaged, too old, or of another architecture.
    """
    head = source.head(0x290)
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return None
    if len(head) < 0x290:
        raise source.error("it is a Linux kernel that ends inside its setup header; get a whole one")
    (version,) = struct.unpack_from("<H", head, 0x206)
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    if version < _OLDEST or not head[0x211] & _LOADED_HIGH:
        raise source.error(
            f"its boot protocol is {version >> 8}.{version & 255:02}; pykvm needs 2.12 or newer"
        )
    if not xloadflags & _KERNEL_64:
        raise source.error("it is a 32-bit Linux kernel; pykvm boots 64-bit ones")
    end = _MAGIC_AT + head[0x201]
    initrd_most, cmdline_bytes = (
        struct.unpack_from("<I", head, 0x22C)[0],
        struct.unpack_from("<I", head, 0x238)[0],
    )
    payload_offset, payload_bytes = struct.unpack_from("<II", head, 0x248)
    preferred_gpa, init_bytes = struct.unpack_from("<QI", head, 0x258)
    return SetupHeader(
        raw=head[_HEADER_AT:end],
        version=version,
        setup_bytes=((head[_HEADER_AT] or 4) + 1) * 512,
        payload_offset=payload_offset,
        payload_bytes=payload_bytes,
        cmdline_bytes=cmdline_bytes,
        initrd_most=initrd_most,
        release=_release(source, struct.unpack_from("<H", head, 0x20E)[0]),
        preferred_gpa=preferred_gpa,
        init_bytes=init_bytes,
    )


def _release(source: Source, at: int) -> str:
    """`uname -r` of the kernel, as far as its version string can be read."""
    if not at or at + 0x200 + 1 > source.size_bytes:
        return ""
    text = source.read(at + 0x200, min(256, source.size_bytes - at - 0x200), "the version string")
    return text.partition(b"\0")[0].decode("latin-1").partition(" ")[0]


def load_bzimage(source: Source, header: SetupHeader, *, limit_bytes: int, boot: str = "elf") -> Image:
    """The Image of a bzImage, or of the vmlinux inside it, entered as `boot` says: one of BOOTS.

    Raises ImageError with one line for damage of any kind.
    """
    if boot == "packed":
        return _packed(source, header, limit_bytes=limit_bytes)
    with opened(_payload(source, header), source.name) as inner:
        if boot == "pvh":
            from pykvm.boot.pvh import load_pvh  # noqa: PLC0415 - few ask for it

            image = load_pvh(inner, limit_bytes=limit_bytes)
        else:
            image = elf.load_elf(inner, CpuMode.LONG64, None, limit_bytes=limit_bytes)
    return image._replace(kind="linux", name=source.name, linux=header)


def _packed(source: Source, header: SetupHeader, *, limit_bytes: int) -> Image:
    """The bzImage's own code, which unpacks the kernel where KASLR has it."""
    from pykvm.boot.image import checked_image  # noqa: PLC0415 - as above

    size = source.size_bytes - header.setup_bytes
    if size < header.payload_offset + header.payload_bytes or size <= _ENTRY_64:
        raise source.error("it ends inside its payload; get a whole one")
    at = header.preferred_gpa or layout.LEGACY_END
    room = max(size, header.init_bytes)
    if room > limit_bytes:
        raise source.error(f"it needs {room >> 20} MiB to unpack itself; give the guest more memory")
    pieces = [(at, header.setup_bytes, size, room)]
    image = checked_image(source, "linux", CpuMode.LONG64, at + _ENTRY_64, pieces, limit_bytes=limit_bytes)
    return image._replace(linux=header)


def unpacked(image: Path) -> bytes:
    """The vmlinux inside a bzImage. Raises ImageError if it is none, or damaged."""
    with opened(image) as source:
        header = read_header(source)
        if header is None:
            raise source.error("it is no Linux kernel that unpacks itself")
        return _payload(source, header)


def _payload(source: Source, header: SetupHeader) -> bytes:
    at = header.setup_bytes + header.payload_offset
    try:
        return codecs.unpack(source.read(at, header.payload_bytes, "its payload"))
    except ValueError as error:
        raise source.error(f"{error}; get a whole one") from None


def boot_params(
    header: SetupHeader,
    *,
    cmdline_gpa: int,
    initrd: tuple[int, int],
    memory_map: Sequence[tuple[int, int, int]],
    rsdp: int = 0,
) -> bytes:
    """The 4096 bytes of boot_params: zero but for the setup header, what a loader fills in, and e820.

    `initrd` is (gpa, size in bytes), (0, 0) for none; `memory_map` has (gpa, size in bytes, e820 type);
    `rsdp` is the gpa of ACPI's first table, 0 for none.
    """
    page = bytearray(BOOT_PARAMS_BYTES)
    page[_HEADER_AT : _HEADER_AT + len(header.raw)] = header.raw
    struct.pack_into("<Q", page, 0x70, rsdp)
    page[0x210] = _LOADER_UNDEFINED
    page[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<II", page, 0x218, initrd[0] & 0xFFFFFFFF, initrd[1] & 0xFFFFFFFF)
    struct.pack_into("<I", page, 0x228, cmdline_gpa)
    page[0x1E8] = len(memory_map)
    for number, entry in enumerate(memory_map):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, *entry)
    return bytes(page)


def place_initrd(header: SetupHeader, size_bytes: int, kernel_end: int, memory: Sequence[range]) -> int:
    """The gpa for an initrd: as high as the kernel allows, below 4 GiB and above the kernel.

    Raises ConfigError if guest memory has no room for it.
    """
    low = next((block for block in memory if block.start <= layout.LEGACY_END < block.stop), range(0))
    top = min(low.stop, header.initrd_most + 1, layout.FOUR_GIB)
    at = (top - size_bytes) & -_INITRD_ALIGN
    if at < kernel_end:
        raise ConfigError(
            f"an initrd of {size_bytes >> 10} KiB does not fit between the kernel's end at {kernel_end:#x} "
            f"and {top:#x}; give the guest more memory"
        )
    return at


def read_initrds(paths: Sequence[Path], *, limit_bytes: int = layout.FOUR_GIB) -> bytes:
    """Several initrds as one, each padded to 4 bytes, as the kernel unpacks them one after the other.

    Raises ImageError for what can't be read, and for more than `limit_bytes`: pipes may never end.
    """
    parts, left = [], limit_bytes
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(left + 1)
        except OSError as error:
            raise ImageError(f"initrd {path}: {error.strerror}") from None
        if len(data) > left:
            raise ImageError(
                f"initrd {path}: more than the guest's {limit_bytes >> 20} MiB; give it more memory"
            )
        parts.append(data + bytes(-len(data) % 4))
        left -= len(data)
    return b"".join(parts)
