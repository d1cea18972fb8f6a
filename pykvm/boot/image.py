"""What a boot format is turned into: segments for guest memory, an entry and a CPU mode, all checked.

Values here, and in the modules that a start of a guest needs, are named tuples: they are as immutable
as frozen dataclasses, and a class of them is made in a fifteenth of the millisecond that one of those
adds to each start of the command.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.errors import ImageError
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.boot.linux import SetupHeader
    from pykvm.boot.multiboot import Header
    from pykvm.boot.source import FilePart, Source

__all__ = [
    "ENTRY_LIMIT",
    "Image",
    "LoadSegment",
    "Symbol",
    "check_fits",
    "checked_image",
    "nearest_symbol",
]

ENTRY_LIMIT = {
    CpuMode.REAL16: layout.LEGACY_END,
    CpuMode.PROT32: layout.FOUR_GIB,
    CpuMode.PAGED32: layout.FOUR_GIB,
    CpuMode.LONG64: layout.FOUR_GIB,  # what the first page tables map
    CpuMode.USER64: layout.FOUR_GIB,
    CpuMode.RESET: layout.FOUR_GIB,
}
"""Where code that a mode starts with must lie below, as a gpa."""

_ADDRESS_SPACE = 1 << 64
_NESTED = 16


class LoadSegment(NamedTuple):
    """Bytes for guest memory at `gpa`; what `size_bytes` has beyond them is to be zero.

    Large ones of a file may still stand there.
    """

    gpa: int
    data: bytes | FilePart
    size_bytes: int

    @property
    def where(self) -> range:
        """The gpas it occupies."""
        return range(self.gpa, self.gpa + self.size_bytes)


class Symbol(NamedTuple):
    """A name of the image's code or data, at the address that its code uses for it (a gva)."""

    name: str
    address: int
    size_bytes: int


class Image(NamedTuple):
    """A guest ready to be put into memory.

    `kind` is "flat", "elf32", "elf64", "multiboot", "linux" or "bootsector". A boot sector's image has no
    segments: it is a disk, and the firmware loads it. `multiboot` and `linux` are the headers of those
    formats.
    """

    kind: str
    mode: CpuMode
    entry: int
    segments: tuple[LoadSegment, ...]
    name: str = "image"
    symbols: tuple[Symbol, ...] = ()
    multiboot: Header | None = None
    linux: SetupHeader | None = None

    @property
    def end(self) -> int:
        """The gpa after the highest byte that the image occupies, 0 if it has no segments."""
        return max((segment.where.stop for segment in self.segments), default=0)

    def without_data(self) -> Image:
        """The same, whose segments know only where they are."""
        return self._replace(segments=tuple(segment._replace(data=b"") for segment in self.segments))


def checked_image(
    source: Source,
    kind: str,
    mode: CpuMode,
    entry: int,
    segments: Iterable[tuple[int, int, int, int]],
    *,
    limit_bytes: int,
    header: Header | None = None,
    is_read_later: bool = False,
) -> Image:
    """The Image of (gpa, file offset, bytes in the file, bytes in memory) quadruples.

    Nothing is read before everything is checked. Raises ImageError if a segment has more bytes in the
    file than in memory, wraps around the address space, or overlaps another; if together they take
    more than `limit_bytes` of the file; or if the entry is not in the loaded bytes or above what the mode
    can reach.
    """
    pieces = sorted(segment for segment in segments if segment[3] or segment[2])
    _check_sizes(source, pieces, limit_bytes)
    for (gpa, _, _, size), (above, *_) in pairwise(pieces):
        if gpa + size > above:
            raise source.error(
                f"its segments overlap: {_span(gpa, size)} reaches into the one at {above:#x}; relink it"
            )
    _check_entry(source, mode, entry, pieces)
    return Image(
        kind=kind,
        mode=mode,
        entry=entry,
        segments=tuple(
            LoadSegment(gpa, _contents(source, offset, in_file, is_read_later=is_read_later), size)
            for gpa, offset, in_file, size in pieces
        ),
        name=source.name,
        multiboot=header,
    )


def check_fits(image: Image, memory: Sequence[range], reserved: Sequence[range] = ()) -> None:
    """Pass if every segment lies in `memory` (ranges of gpas) and clear of `reserved` ones.

    Memory ranges that touch count as one. Raises ImageError that names the segment and the memory.
    """
    blocks = _merged(memory)
    have = ", ".join(_span(block.start, len(block)) for block in blocks) or "none"
    for segment in image.segments:
        where = segment.where
        if not any(block.start <= where.start and where.stop <= block.stop for block in blocks):
            raise ImageError(
                f"{image.name}: its segment {_span(segment.gpa, segment.size_bytes)} does not fit into the "
                f"guest's memory ({have}); give the guest more, or place the image elsewhere"
            )
        for taken in reserved:
            if where.start < taken.stop and taken.start < where.stop:
                raise ImageError(
                    f"{image.name}: its segment {_span(segment.gpa, segment.size_bytes)} overlaps "
                    f"{_span(taken.start, len(taken))}, which {image.mode.value} needs for its own tables; "
                    "place the image elsewhere"
                )


def nearest_symbol(symbols: Sequence[Symbol], address: int) -> tuple[Symbol, int] | None:
    """The symbol that holds `address`, and the offset into it; None if there is none.

    `symbols` are in order of address. One without a size (a label of assembly code) reaches to the
    next. Symbols may lie in one another, so the last few that start below are tried.
    """
    at = bisect_right(symbols, address, key=lambda symbol: symbol.address)
    for symbol in reversed(symbols[max(0, at - _NESTED) : at]):
        offset = address - symbol.address
        if not symbol.size_bytes or offset < symbol.size_bytes:
            return symbol, offset
    return None


def _contents(source: Source, offset: int, in_file: int, *, is_read_later: bool) -> bytes | FilePart:
    """A segment's bytes; one without any may name an offset past the file's end."""
    if not in_file:
        return b""
    return (source.part if is_read_later else source.read)(offset, in_file, "a segment")


def _check_sizes(source: Source, pieces: list[tuple[int, int, int, int]], limit_bytes: int) -> None:
    if not pieces:
        raise source.error("it has nothing to load")
    for gpa, offset, in_file, size in pieces:
        if in_file > size:
            raise source.error(
                f"its segment at {gpa:#x} has {in_file:#x} bytes in the file but {size:#x} in memory: damaged"
            )
        if gpa + size > _ADDRESS_SPACE:
            raise source.error(f"its segment {gpa:#x}+{size:#x} wraps around the address space: damaged")
        if in_file and offset + in_file > source.size_bytes:
            raise source.error(
                f"its segment at {gpa:#x} ends at offset {offset + in_file:#x}, but the file at "
                f"{source.size_bytes:#x}: truncated or damaged"
            )
    total = sum(in_file for _, _, in_file, _ in pieces)
    if total > limit_bytes:
        raise source.error(
            f"it has {total / (1 << 20):.1f} MiB to load, with room for {limit_bytes / (1 << 20):.1f}; "
            "give the guest more memory, or check that this is the right file"
        )


def _check_entry(source: Source, mode: CpuMode, entry: int, pieces: list[tuple[int, int, int, int]]) -> None:
    if not any(gpa <= entry < gpa + in_file for gpa, _, in_file, _ in pieces):
        spans = ", ".join(_span(gpa, in_file) for gpa, _, in_file, _ in pieces[:3] if in_file)
        more = ", …" if len(pieces) > 3 else ""
        raise source.error(
            f"its entry {entry:#x} is not in the bytes that are loaded ({spans or 'none'}{more}); "
            "set the entry in the linker script, or give it by option"
        )
    if entry >= ENTRY_LIMIT[mode]:
        raise source.error(
            f"its entry {entry:#x} is out of reach in {mode.value}, which starts below {ENTRY_LIMIT[mode]:#x}"
        )


def _merged(ranges: Sequence[range]) -> list[range]:
    blocks: list[range] = []
    for block in sorted(ranges, key=lambda block: block.start):
        if blocks and block.start <= blocks[-1].stop:
            blocks[-1] = range(blocks[-1].start, max(blocks[-1].stop, block.stop))
        elif block:
            blocks.append(block)
    return blocks


def _span(gpa: int, size_bytes: int) -> str:
    return f"{gpa:#x}-{gpa + size_bytes - 1:#x}" if size_bytes else f"{gpa:#x}"
