"""Arguments that point to one thing of a known size: what prints it, or the address where it is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.strings import address
from pykvm.trace.syscalls.structs import layouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

    Formatter = Callable[[Call, int], str]

__all__ = ["behind", "one_of", "record", "struct"]


def behind(size_bytes: int, text: Callable[[bytes], str]) -> Formatter:
    """What prints the `size_bytes` behind a pointer; 0 bytes mean the program's word."""

    def formatter(call: Call, gva: int) -> str:
        data = call.exactly(gva, size_bytes or call.word_bytes) if gva else None
        return address(gva) if data is None else text(data)

    return formatter


def one_of(size_bytes: int, text: Callable[[bytes], str]) -> Formatter:
    """The same in brackets, as [5]: how strace prints a number behind a pointer."""
    return behind(size_bytes, lambda data: f"[{text(data)}]")


def struct(name: str) -> Formatter:
    """What prints the struct `name` behind a pointer, as its layout says."""

    def formatter(call: Call, gva: int) -> str:
        layout = layouts(is_64bit=call.is_64bit)[name]
        data = call.exactly(gva, layout.size_bytes) if gva else None
        return address(gva) if data is None else layout.text(call, data)

    return formatter


def record(name: str, text: Callable[[Call, Fields], str]) -> Formatter:
    """What prints the struct `name` in its own way: `text` gets its fields."""

    def formatter(call: Call, gva: int) -> str:
        layout = layouts(is_64bit=call.is_64bit)[name]
        data = call.exactly(gva, layout.size_bytes) if gva else None
        return address(gva) if data is None else text(call, layout.fields(data))

    return formatter
