"""Boot formats: from a file or bytes to what goes where in guest memory. One format a file.

::

    load ── source    bytes behind a checked door
         ├─ elf       ELF32, ELF64, symbols          ┐
         ├─ multiboot header, boot information       ├─ image   Image, LoadSegment, Symbol: checked
         └─ flat      bytes at an address            ┘
"""

from __future__ import annotations

from pykvm.boot.image import Image, LoadSegment, Symbol, check_fits, nearest_symbol
from pykvm.boot.loader import load, symbols

__all__ = ["Image", "LoadSegment", "Symbol", "check_fits", "load", "nearest_symbol", "symbols"]
