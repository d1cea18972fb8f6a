"""Numbers as they lie in memory: little-endian bytes in, text out."""

from __future__ import annotations

from pykvm.trace.syscalls.strings import address

__all__ = ["hexadecimal_in", "number_in", "pointer_in", "signed_in", "signed_text_in", "unsigned_text_in"]


def number_in(data: bytes) -> int:
    """The unsigned number."""
    return int.from_bytes(data, "little")


def signed_in(data: bytes) -> int:
    """The signed number."""
    return int.from_bytes(data, "little", signed=True)


def unsigned_text_in(data: bytes) -> str:
    """The unsigned number in decimal."""
    return str(int.from_bytes(data, "little"))


def signed_text_in(data: bytes) -> str:
    """The signed number in decimal."""
    return str(int.from_bytes(data, "little", signed=True))


def hexadecimal_in(data: bytes) -> str:
    """The unsigned number in hexadecimal; 0 stays 0."""
    value = int.from_bytes(data, "little")
    return f"{value:#x}" if value else "0"


def pointer_in(data: bytes) -> str:
    """An address, or NULL."""
    return address(int.from_bytes(data, "little"))
