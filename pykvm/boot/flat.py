"""Flat binaries: bytes and nothing else, so the mode and the address come by option or by name.

The name says them as NAME.MODE[@HEXADDR].bin, e.g. hello.real16@0x8000.bin; an option goes before the
name. Without an address real mode starts at layout.FLAT_REAL, the reset vector's image ends at
4 GiB, and everything else starts at layout.FLAT_HIGH.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pykvm import layout
from pykvm.boot.image import Image, checked_image
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from pykvm.boot.source import Source

__all__ = ["load_flat", "mode_and_address"]

_NAME = rf"\.({'|'.join(mode.value for mode in CpuMode)})(?:@([^@./]*))?\.bin$"


def mode_and_address(source: Source) -> tuple[CpuMode | None, int | None]:
    """What an image's name says about it; None where it says nothing.

    Raises ImageError if the name gives an address that is not a hexadecimal number.
    """
    match = re.search(_NAME, source.name, re.IGNORECASE)
    if not match:
        return None, None
    mode, digits = CpuMode(match[1].lower()), match[2]
    if digits is None:
        return mode, None
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,16}", digits):
        raise source.error(f"the address {digits!r} in its name is not a hexadecimal number such as 0x8000")
    return mode, int(digits, 16)


def load_flat(
    source: Source, mode: CpuMode, address: int | None, entry: int | None, *, limit_bytes: int
) -> Image:
    """The Image of a flat binary, entered at its first byte unless `entry` is another gpa in it."""
    size = source.size_bytes
    if address is None:
        address = {
            CpuMode.REAL16: layout.FLAT_REAL,
            CpuMode.RESET: layout.FIRMWARE_HIGH_END - size,
        }.get(mode, layout.FLAT_HIGH)
    if mode is CpuMode.RESET:
        entry = layout.RESET_VECTOR
    if address < 0:
        raise source.error(f"it has {size:#x} bytes, more than the 4 GiB below its end")
    return checked_image(
        source,
        "flat",
        mode,
        address if entry is None else entry,
        [(address, 0, size, size)],
        limit_bytes=limit_bytes,
    )
