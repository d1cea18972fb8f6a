"""Linux for x86-64 as the ELF file that its build makes: no setup header, so one is made here.

The 64-bit boot protocol asks for it all the same: boot_params begins with what a bzImage's header would say
(the kernel's Documentation/arch/x86/boot.rst). A kernel shows itself by its ELF notes of the name "Linux"
(include/linux/build-salt.h, since 4.18).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pykvm.boot import elf
from pykvm.boot.linux import SetupHeader
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.boot.image import Image
    from pykvm.boot.source import Source

__all__ = ["load_vmlinux", "notes", "release"]

_PT_NOTE = 4
_NOTES_MOST_BYTES = 1 << 16
_BUILD_SALT = 0x100  # its text: the release, unless the builder said something else
_ELFCLASS64, _EM_X86_64 = 2, 62
_HEADER_BYTES = 0x268 - 0x1F1
_VERSION = 0x020F
_LOADED_HIGH = 1
_ALIGNMENT = 2 << 20
_CMDLINE_BYTES = 2047
_INITRD_MOST = 0x7FFF_FFFF


def release(source: Source) -> str | None:
    """What a vmlinux says of its release, perhaps nothing; None if `source` is none.

    Raises ImageError for an ELF file of x86-64 whose headers are damaged.
    """
    head = source.head(20)
    if head[:5] != elf.MAGIC + bytes([_ELFCLASS64]) or head[16:20] != struct.pack("<HH", 2, _EM_X86_64):
        return None
    found = None
    for name, kind, data in notes(source):
        if name == b"Linux":
            text = data.rstrip(b"\0").decode("latin-1") if kind == _BUILD_SALT else ""
            found = found or text
    return found


def notes(source: Source) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and description of each ELF note of an executable. Raises ImageError for damage."""
    for program in elf.read_elf(source).programs:
        if program.type == _PT_NOTE and program.filesz <= _NOTES_MOST_BYTES:
            yield from _notes(source.read(program.offset, program.filesz, "its notes"))


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and description of each note, as far as they are whole."""
    while len(data) >= 12:
        name_bytes, size, kind = struct.unpack_from("<III", data)
        at = 12 + -(-name_bytes // 4) * 4
        yield data[12 : 12 + name_bytes].rstrip(b"\0"), kind, data[at : at + size]
        data = data[at + -(-size // 4) * 4 :]


def load_vmlinux(source: Source, named: str, *, limit_bytes: int, boot: str = "elf") -> Image:
    """The Image of a vmlinux whose release is `named`, entered as `boot` says: see linux.BOOTS.

    Raises ImageError with one line for damage.
    """
    if boot == "packed":
        raise source.error("it is a vmlinux, which has nothing to unpack; give --boot packed a bzImage")
    if boot == "pvh":
        from pykvm.boot.pvh import load_pvh  # noqa: PLC0415 - few ask for it

        image = load_pvh(source, limit_bytes=limit_bytes)
    else:
        image = elf.load_elf(source, CpuMode.LONG64, None, limit_bytes=limit_bytes, is_read_later=True)
    return image._replace(kind="linux", linux=_header(named))


def _header(named: str) -> SetupHeader:
    raw = bytearray(_HEADER_BYTES)

    def put(form: str, at: int, value: int) -> None:
        struct.pack_into(form, raw, at - 0x1F1, value)

    put("<H", 0x1FE, 0xAA55)
    raw[0x202 - 0x1F1 : 0x206 - 0x1F1] = b"HdrS"
    put("<H", 0x206, _VERSION)
    put("<B", 0x211, _LOADED_HIGH)
    put("<I", 0x22C, _INITRD_MOST)
    put("<I", 0x230, _ALIGNMENT)
    put("<I", 0x238, _CMDLINE_BYTES)
    return SetupHeader(
        raw=bytes(raw),
        version=_VERSION,
        setup_bytes=0,
        payload_offset=0,
        payload_bytes=0,
        cmdline_bytes=_CMDLINE_BYTES,
        initrd_most=_INITRD_MOST,
        release=named,
    )
