"""ACPI Machine Language, as much of it as a virtual board's DSDT needs: terms in, bytes out.

Source: ACPI specification 6.4, chapter 20 (AML grammar) and 6.4 (resource data types).
"""

from __future__ import annotations

import struct

__all__ = [
    "buffer",
    "device",
    "eisa_id",
    "if_equal",
    "integer",
    "interrupt",
    "io_ports",
    "irq",
    "memory32",
    "method",
    "name",
    "notify",
    "package",
    "path",
    "resources",
    "scope",
    "string",
]

_ARG0 = b"\x68"
_EDGE_HIGH = 0b0011  # extended interrupt: a consumer, edge-triggered, active high, exclusive


def _length(body: bytes) -> bytes:
    """PkgLength of `body`, counting itself (20.2.4)."""
    for extra, limit in enumerate((0x3F, 1 << 12, 1 << 20, 1 << 28)):
        total = len(body) + 1 + extra
        if total <= limit - (extra > 0):
            if not extra:
                return bytes([total])
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError("an AML package of 256 MiB or more")


def _segment(text: str) -> bytes:
    """One name of four characters; shorter ones are padded with `_`."""
    if not (0 < len(text) <= 4 and text.isascii() and text.replace("_", "A").isalnum() and text.isupper()):
        raise ValueError(f"{text!r} is no name of AML: one to four of A-Z, 0-9 and _")
    return text.ljust(4, "_").encode()


def path(text: str) -> bytes:
    r"""A NameString: `_HID`, `\_SB_`, `\_SB_.PWRB`."""
    root, segments = text.startswith("\\"), [_segment(part) for part in text.lstrip("\\").split(".")]
    head = {1: b"", 2: b"\x2e"}.get(len(segments), b"\x2f" + bytes([len(segments)]))
    return b"\\" * root + head + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant for 0 to 2**64 - 1."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    """A string of ASCII."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA id as an integer: `PNP0501` (19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def name(where: str, value: bytes) -> bytes:
    """Name(where, value)."""
    return b"\x08" + path(where) + value


def package(*elements: bytes) -> bytes:
    """A package of constants."""
    body = bytes([len(elements)]) + b"".join(elements)
    return b"\x12" + _length(body) + body


def buffer(data: bytes) -> bytes:
    """A buffer of constant bytes."""
    body = integer(len(data)) + data
    return b"\x11" + _length(body) + body


def scope(where: str, *terms: bytes) -> bytes:
    """Scope(where) { terms }."""
    body = path(where) + b"".join(terms)
    return b"\x10" + _length(body) + body


def device(where: str, *terms: bytes) -> bytes:
    """Device(where) { terms }."""
    body = path(where) + b"".join(terms)
    return b"\x5b\x82" + _length(body) + body


def method(where: str, arguments: int, *terms: bytes) -> bytes:
    """Method(where, arguments, Serialized) { terms }."""
    body = path(where) + bytes([arguments | 1 << 3]) + b"".join(terms)
    return b"\x14" + _length(body) + body


def if_equal(value: int, *terms: bytes) -> bytes:
    """If (Arg0 == value) { terms }."""
    body = b"\x93" + _ARG0 + integer(value) + b"".join(terms)
    return b"\xa0" + _length(body) + body


def notify(where: str, value: int) -> bytes:
    """Notify(where, value)."""
    return b"\x86" + path(where) + integer(value)


# ---- resource descriptors (6.4)


def resources(*descriptors: bytes) -> bytes:
    """A resource template: the descriptors and their end tag, whose checksum 0 counts as correct."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(where: range) -> bytes:
    """IO(Decode16, …): ports that do not move; 1 to 255 of them."""
    return struct.pack("<BBHHBB", 0x47, 1, where.start, where.start, 1, len(where))


def irq(number: int) -> bytes:
    """IRQNoFlags: an ISA interrupt, edge-triggered and active high."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32(where: range) -> bytes:
    """Memory32Fixed(ReadWrite, …)."""
    return struct.pack("<BHBII", 0x86, 9, 1, where.start, len(where))


def interrupt(gsi: int) -> bytes:
    """Interrupt(ResourceConsumer, Edge, ActiveHigh, Exclusive): one GSI."""
    return struct.pack("<BHBBI", 0x89, 6, _EDGE_HIGH, 1, gsi)
