"""Multiboot 1: the header that a kernel carries, and the information that it is handed.

The Multiboot Specification, version 0.6.96. The header stands in the first 8 KiB of the file, 4-byte
aligned (section 3.1)::

    +0   magic 0x1BADB002          +12  header_addr    ┐
    +4   flags                     +16  load_addr      │ where a file that is
    +8   checksum: the three       +20  load_end_addr  │ not ELF belongs; valid
         sum up to 0               +24  bss_end_addr   │ if flags bit 16 is set
                                   +28  entry_addr     ┘
    +32  mode_type, width, height, depth: the video mode wished for, if flags bit 2 is set

The kernel starts in 32-bit protected mode with EAX = BOOT_MAGIC and EBX = the information (section
3.3), which `build_info` makes in one piece::

    +0    flags: which of the fields below are there     +44   memory map: size, gpa
    +4    mem_lower, mem_upper in KiB                    +64   boot loader name
    +16   command line                                   +72…  APM and video: zero, their flags too
    +20   modules: count, gpa                            +120  modules, memory map, strings
"""

from __future__ import annotations

from itertools import accumulate
from struct import Struct, pack, pack_into
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.boot.elf import load_segments, physical_entry, read_elf
from pykvm.boot.image import Image, checked_image
from pykvm.errors import ConfigError
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.source import Source

__all__ = [
    "BOOT_MAGIC",
    "INFO_OFFSET",
    "MEMORY_AVAILABLE",
    "MEMORY_RESERVED",
    "Header",
    "Module",
    "build_info",
    "find_header",
    "has_multiboot2",
    "load_multiboot",
    "place_modules",
]

BOOT_MAGIC = 0x2BADB002
INFO_OFFSET = 0x8000  # in BOOT, and up to its end
MEMORY_AVAILABLE = 1
MEMORY_RESERVED = 2

_MAGIC = 0x1BADB002
_MAGIC2 = 0xE85250D6
_SEARCH_BYTES = 8192
_SEARCH2_BYTES = 32768
_PAGE_BYTES = 4096
_ALIGN_MODULES, _WANTS_MEMORY, _WANTS_VIDEO, _HAS_ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_MUST_UNDERSTAND = 0xFFFF
_LINEAR_GRAPHICS = 0

_INFO_BYTES = 120
_INFO_MEMORY, _INFO_COMMAND_LINE, _INFO_MODULES = 1 << 0, 1 << 2, 1 << 3
_INFO_MAP, _INFO_LOADER = 1 << 6, 1 << 9
_MODULE = Struct("<4I")
_MAP_ENTRY = Struct("<IQQI")


class Header(NamedTuple):
    """A kernel's multiboot header; `offset` is its place in the file.

    `addresses` are header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr, or None if the file
    is ELF and says them itself. `video` is mode_type, width, height, depth, or None.
    """

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None = None
    video: tuple[int, int, int, int] | None = None

    @property
    def aligns_modules(self) -> bool:
        """True if modules must start on page boundaries."""
        return bool(self.flags & _ALIGN_MODULES)


class Module(NamedTuple):
    """A file in guest memory that the kernel is told of."""

    gpa: int
    size_bytes: int
    cmdline: str = ""


def find_header(source: Source) -> Header | None:
    """The multiboot header of a file, None if there is none.

    Raises ImageError if there is one and it is cut off.
    """
    head = source.head(_SEARCH_BYTES)
    at = _find(head, _MAGIC, align=4, words=3)
    if at < 0:
        return None
    flags = int.from_bytes(head[at + 4 : at + 8], "little")
    fields = Struct("<9I")
    need = 48 if flags & _WANTS_VIDEO else 32 if flags & _HAS_ADDRESSES else 12
    if at + need > len(head):
        raise source.error(
            f"its multiboot header at offset {at:#x} has {len(head) - at} of {need} bytes before the end of "
            "the file or of the first 8 KiB: damaged"
        )
    rest = fields.unpack(head[at + 12 : at + 48].ljust(fields.size, b"\0"))
    return Header(
        at,
        flags,
        addresses=rest[:5] if flags & _HAS_ADDRESSES else None,
        video=rest[5:] if flags & _WANTS_VIDEO else None,
    )


def has_multiboot2(source: Source) -> bool:
    """The file carries a header of Multiboot 2, the other specification."""
    return _find(source.head(_SEARCH2_BYTES), _MAGIC2, align=8, words=4) >= 0


def load_multiboot(
    source: Source,
    header: Header,
    entry: int | None,
    *,
    is_elf: bool,
    limit_bytes: int,
    ignore_video: bool = False,
) -> Image:
    """The Image of a multiboot kernel, placed by its header or by its ELF program headers.

    Flags bits 0-15 are requirements: ImageError for one that is unknown, or for bit 2 when the mode
    wished for is graphics, which this board has not (`ignore_video` starts it all the same).
    """
    _check_flags(source, header, ignore_video=ignore_video)
    if header.addresses:
        at, segment = _addressed_segment(source, header.offset, header.addresses)
        segments = [segment]
    elif is_elf:
        elf = read_elf(source)
        at, segments = physical_entry(elf), load_segments(elf)
    else:
        raise source.error(
            f"it has a multiboot header at offset {header.offset:#x} but is not ELF and gives no addresses "
            "(flags bit 16); link it as ELF"
        )
    for gpa, _, _, size in segments:
        if gpa + size > layout.FOUR_GIB:
            raise source.error(f"its segment {gpa:#x}+{size:#x} is out of a multiboot kernel's 4 GiB")
    if entry is not None:
        at = entry
    return checked_image(
        source, "multiboot", CpuMode.PROT32, at, segments, limit_bytes=limit_bytes, header=header
    )


def build_info(
    image: Image,
    *,
    at: int,
    memory_map: Sequence[tuple[int, int, int]],
    cmdline: str = "",
    modules: Sequence[Module] = (),
    limit_bytes: int = layout.BOOT_SIZE_BYTES - INFO_OFFSET,
) -> bytes:
    """The information for a multiboot kernel, to be written at the gpa `at` and given in EBX.

    `memory_map` has (gpa, size in bytes, type) in order of address, from which mem_lower and mem_upper
    follow. The command line is always there, as it is given: loaders put the image's name first.
    Raises ConfigError if it takes more than `limit_bytes`, holds a NUL, or if a module lies where the
    kernel can't have it.
    """
    _check_modules(image, modules)
    lines = [_c_string(text) for text in (cmdline, "pykvm", *(m.cmdline for m in modules))]
    map_at = _INFO_BYTES + _MODULE.size * len(modules)
    strings_at = map_at + _MAP_ENTRY.size * len(memory_map)
    total = strings_at + sum(map(len, lines))
    if total > limit_bytes or at < 0 or at % 4 or at + total > layout.FOUR_GIB:
        raise ConfigError(
            f"multiboot information of {total:#x} bytes at {at:#x} does not fit in {limit_bytes:#x} bytes; "
            "shorten the command line"
        )
    where = list(accumulate((len(line) for line in lines), initial=at + strings_at))
    lower, upper = _lower_and_upper(memory_map)
    info = bytearray(_INFO_BYTES)
    flags = _INFO_MEMORY | _INFO_COMMAND_LINE | _INFO_MODULES | _INFO_MAP | _INFO_LOADER
    pack_into("<3I", info, 0, flags, lower, upper)
    pack_into("<3I", info, 16, where[0], len(modules), at + _INFO_BYTES)
    pack_into("<2I", info, 44, _MAP_ENTRY.size * len(memory_map), at + map_at)
    pack_into("<I", info, 64, where[1])
    for module, line in zip(modules, where[2:-1], strict=True):
        info += _MODULE.pack(module.gpa, module.gpa + module.size_bytes, line, 0)
    for gpa, size, kind in memory_map:
        info += _MAP_ENTRY.pack(_MAP_ENTRY.size - 4, gpa, size, kind)
    return bytes(info + b"".join(lines))


def place_modules(image: Image, sizes_bytes: Sequence[int], memory: Sequence[range]) -> tuple[int, ...]:
    """A gpa for each module: page-aligned, one after the other, above the image and above 1 MiB.

    Raises ConfigError if the guest's memory below 4 GiB ends before.
    """
    at = _page_up(max(image.end, layout.LEGACY_END))
    placed = []
    for size in sizes_bytes:
        if not any(b.start <= at and at + size <= min(b.stop, layout.FOUR_GIB - 1) for b in memory):
            raise ConfigError(
                f"{image.name}: a module of {size:#x} bytes at {at:#x} does not fit into the guest's memory; "
                "give it more"
            )
        placed.append(at)
        at = _page_up(at + size)
    return tuple(placed)


def _find(head: bytes, magic: int, *, align: int, words: int) -> int:
    """The offset of an aligned header whose first words sum up to 0 modulo 2**32, or -1."""
    form, wanted = Struct(f"<{words}I"), pack("<I", magic)
    at = head.find(wanted)
    while 0 <= at <= len(head) - form.size:
        if at % align == 0 and sum(form.unpack_from(head, at)) % (1 << 32) == 0:
            return at
        at = head.find(wanted, at + 1)
    return -1


def _check_flags(source: Source, header: Header, *, ignore_video: bool) -> None:
    known = _ALIGN_MODULES | _WANTS_MEMORY | _WANTS_VIDEO
    unknown = header.flags & _MUST_UNDERSTAND & ~known
    if unknown:
        raise source.error(
            f"its multiboot header requires {unknown:#x} in its flags, which version 0.6.96 does not define"
        )
    # Text mode is what a machine without graphics offers; the fields are a wish, the flag is not.
    if header.video and header.video[0] == _LINEAR_GRAPHICS and not ignore_video:
        raise source.error(
            "its multiboot header requires a graphics mode (flags bit 2), and this board has no graphics; "
            "clear that bit, or ask for text mode"
        )


def _addressed_segment(
    source: Source, offset: int, addresses: tuple[int, int, int, int, int]
) -> tuple[int, tuple[int, int, int, int]]:
    """The entry and the one segment that the header's address fields describe (section 3.1.3)."""
    header_addr, load_addr, load_end, bss_end, entry = addresses
    start = offset - (header_addr - load_addr)
    if load_addr > header_addr or start < 0:
        raise source.error(
            f"its multiboot header at offset {offset:#x} can't lie at {header_addr:#x} if the load address "
            f"is {load_addr:#x}: damaged"
        )
    in_file = load_end - load_addr if load_end else source.size_bytes - start
    size = bss_end - load_addr if bss_end else in_file
    if in_file < 0 or size < in_file:
        raise source.error(
            f"its multiboot addresses are not in order: load {load_addr:#x}, load end {load_end:#x}, "
            f"bss end {bss_end:#x}: damaged"
        )
    return entry, (load_addr, start, in_file, size)


def _check_modules(image: Image, modules: Sequence[Module]) -> None:
    for module in modules:
        where = range(module.gpa, module.gpa + module.size_bytes)
        if where.start < 0 or where.stop >= layout.FOUR_GIB:  # its end must fit in 32 bits
            raise ConfigError(f"{image.name}: a module at {module.gpa:#x} is not below 4 GiB")
        if image.multiboot and image.multiboot.aligns_modules and module.gpa % _PAGE_BYTES:
            raise ConfigError(f"{image.name}: it requires modules on page boundaries, not at {module.gpa:#x}")
        for segment in image.segments:
            if where.start < segment.where.stop and segment.where.start < where.stop:
                raise ConfigError(f"{image.name}: the module at {module.gpa:#x} overlaps the image")


def _lower_and_upper(memory_map: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """KiB of memory from 0 (640 at most), and from 1 MiB to the first hole."""
    lower = min(_available_end(memory_map, 0), layout.LOW_END)
    upper = _available_end(memory_map, layout.LEGACY_END) - layout.LEGACY_END
    return lower >> 10, min(upper >> 10, (1 << 32) - 1)


def _available_end(memory_map: Sequence[tuple[int, int, int]], start: int) -> int:
    """Where the available memory that holds `start` ends, or `start`."""
    for gpa, size, kind in memory_map:
        if kind == MEMORY_AVAILABLE and gpa <= start < gpa + size:
            start = gpa + size
    return start


def _c_string(text: str) -> bytes:
    try:
        data = text.encode(errors="surrogateescape")  # as the shell gave it
    except UnicodeEncodeError as error:
        raise ConfigError(f"a command line of such characters can't be encoded: {text!a}") from error
    if b"\0" in data:
        raise ConfigError(f"a command line can't hold a NUL: {text!a}")
    return data + b"\0"


def _page_up(gpa: int) -> int:
    return -(-gpa // _PAGE_BYTES) * _PAGE_BYTES
