"""Makes images for the tests of pykvm.boot: ELF files field by field, and multiboot headers."""

from __future__ import annotations

from dataclasses import dataclass
from struct import calcsize, pack
from typing import TYPE_CHECKING, TypeVar

from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

EHDR = {32: "<16sHHIIIIIHHHHHH", 64: "<16sHHIQQQIHHHHHH"}
PHDR = {32: "<8I", 64: "<IIQQQQQQ"}
SHDR = {32: "<10I", 64: "<IIQQQQIIQQ"}
MACHINE = {32: 3, 64: 62}


@dataclass(frozen=True)
class Part:
    """A program header and its bytes; what is None follows from the others."""

    paddr: int
    data: bytes = b"\xf4"
    vaddr: int | None = None
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    type: int = 1


@dataclass(frozen=True)
class Name:
    """A symbol: info is its type (0 label, 1 object, 2 function), section 0 is undefined."""

    name: str
    value: int
    size: int = 0
    info: int = 0
    section: int = 1


def build_elf(
    bits: int = 64,
    parts: tuple[Part, ...] = (Part(0x10_0000),),
    entry: int = 0x10_0000,
    names: tuple[Name, ...] = (),
    fields: Mapping[str, int] | None = None,
) -> bytes:
    """An ELF file: header, program headers, the parts' bytes, symbols, section headers.

    `fields` override the header: data, kind, machine, phoff, phentsize, phnum, shentsize, shnum.
    """
    head, program, section = calcsize(EHDR[bits]), calcsize(PHDR[bits]), calcsize(SHDR[bits])
    at = head + program * len(parts)
    table = body = b""
    for part in parts:
        offset = at + len(body) if part.offset is None else part.offset
        table += _program(bits, part, offset)
        body += part.data
    symbols, strings = _symbols(bits, names)
    shoff = at + len(body) + len(symbols) + len(strings)
    rows = [
        (0, 0, 0, 0),
        (2, at + len(body), len(symbols), 2),
        (3, at + len(body) + len(symbols), len(strings), 0),
    ]
    sections = b"".join(
        pack(SHDR[bits], 0, kind, 0, 0, where, size, link, 0, 0, 0) for kind, where, size, link in rows
    )
    values = {"kind": 2, "machine": MACHINE[bits], "phoff": head, "phentsize": program, "phnum": len(parts)}
    values |= {
        "data": 1,
        "shoff": shoff if names else 0,
        "shentsize": section,
        "shnum": len(rows) if names else 0,
    }
    values |= fields or {}
    ident = b"\x7fELF" + bytes([bits // 32, values["data"], 1]) + bytes(9)
    header = pack(
        EHDR[bits],
        *(ident, values["kind"], values["machine"], 1, entry, values["phoff"], values["shoff"], 0, head),
        *(values[name] for name in ("phentsize", "phnum", "shentsize", "shnum")),
        0,
    )
    return header + table + body + (symbols + strings + sections if names else b"")


def result_or_line(call: Callable[[], T]) -> T | str:
    """What `call` returns, or the text of the ImageError that it raises, which is one line."""
    try:
        return call()
    except ImageError as error:
        text = str(error)
    assert "\n" not in text
    return text


def multiboot_header(flags: int = 0, *words: int) -> bytes:
    """The header with a checksum that is right, and whatever words follow."""
    magic = 0x1BADB002
    return pack(f"<{3 + len(words)}I", magic, flags, -(magic + flags) % (1 << 32), *words)


def _program(bits: int, part: Part, offset: int) -> bytes:
    filesz = len(part.data) if part.filesz is None else part.filesz
    memsz = filesz if part.memsz is None else part.memsz
    vaddr = part.paddr if part.vaddr is None else part.vaddr
    if bits == 64:
        return pack(PHDR[64], part.type, 7, offset, vaddr, part.paddr, filesz, memsz, 1)
    return pack(PHDR[32], part.type, offset, vaddr, part.paddr, filesz, memsz, 7, 1)


def _symbols(bits: int, names: tuple[Name, ...]) -> tuple[bytes, bytes]:
    strings, table = b"\0", b""
    for n in names:
        at = len(strings)
        strings += n.name.encode() + b"\0"
        if bits == 64:
            table += pack("<IBBHQQ", at, n.info, 0, n.section, n.value, n.size)
        else:
            table += pack("<IIIBBH", at, n.value, n.size, n.info, 0, n.section)
    return table, strings
