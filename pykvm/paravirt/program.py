"""The program that the paravirtual kernel runs: a static Linux ELF file, checked before anything starts."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, NamedTuple

from pykvm.boot import elf
from pykvm.boot.source import opened
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pykvm.boot.elf import Elf, ProgramHeader
    from pykvm.boot.image import Symbol
    from pykvm.boot.source import Source

__all__ = ["PIE_BASE", "Program", "environment_of_options", "read_program", "strings", "symbols_of"]

PAGE = 4096
PIE_BASE = 0x5555_5540_0000  # where the kernel puts a position-independent program
_LOWEST = 0x1_0000  # Linux' vm.mmap_min_addr: what is below stays unmapped, so that NULL faults
_HIGHEST = 0x7F00_0000_0000  # the stack and the mappings of a running program are above
_PT_LOAD, _PF_X = 1, 1
_MOST_STRINGS = 2 << 20  # bytes of arguments and environment; Linux: a quarter of the stack's limit
_MOST_STRING = 128 << 10


class Program(NamedTuple):
    """A checked program. `name` is what its user calls it, `path` its own path in the guest.

    `segments` are the addresses of what is loaded, as its file has them.
    """

    name: str
    path: str
    data: bytes
    segments: tuple[range, ...] = ()


def read_program(source: Path | bytes, *, limit_bytes: int, name: str = "") -> Program:
    """The program in a file, or in bytes.

    Raises ImageError, or ImageNotFoundError, in one line if it is no static 64-bit x86 ELF program, is
    damaged, or takes more than `limit_bytes`.
    """
    with opened(source, name) as image:
        head = image.head(4)
        if head[:2] == b"#!":
            raise image.error("it is a script; give the program that runs it, built with gcc -static")
        if head != elf.MAGIC:
            raise image.error("it is no ELF program; build one with gcc -static")
        found = elf.read_elf(image, relocatable=True)
        if not found.is_64bit:
            raise image.error("it is a 32-bit program, for another kernel; build it with -m64")
        if image.size_bytes > limit_bytes:
            raise image.error(
                f"it has {image.size_bytes >> 20} MiB, more than the guest's memory; give it more"
            )
        segments = _checked_segments(image, found)
        path = posixpath.normpath(posixpath.join("/", posixpath.basename(image.name)))
        return Program(image.name, path, image.read(0, image.size_bytes, "the program"), segments)


def symbols_of(program: Program) -> tuple[Symbol, ...]:
    """Its symbols in order of address, none if it was stripped. Raises ImageError for damaged tables."""
    with opened(program.data, program.name) as image:
        return elf.read_symbols(image, relocatable=True)


def _checked_segments(image: Source, found: Elf) -> tuple[range, ...]:
    loads = [p for p in found.programs if p.type == _PT_LOAD and p.memsz]
    if not loads:
        raise image.error("it has nothing to load")
    base = PIE_BASE if found.is_relocatable else 0
    for p in loads:
        _check_segment(image, p, base)
    if not any(p.flags & _PF_X and p.vaddr <= found.entry < p.vaddr + p.filesz for p in loads):
        raise image.error(f"its entry {found.entry:#x} is in no executable segment: damaged")
    return tuple(range(p.vaddr, p.vaddr + p.memsz) for p in loads)


def _check_segment(image: Source, p: ProgramHeader, base: int) -> None:
    where = f"its segment at {p.vaddr:#x}"
    if p.filesz > p.memsz:
        raise image.error(f"{where} has {p.filesz:#x} bytes in the file but {p.memsz:#x} in memory: damaged")
    if p.offset + p.filesz > image.size_bytes:
        raise image.error(f"{where} ends behind the end of the file: truncated or damaged")
    if (p.vaddr - p.offset) % PAGE:
        raise image.error(f"{where} and its offset {p.offset:#x} differ within the page: damaged")
    if base + p.vaddr < _LOWEST:
        raise image.error(f"{where} is below {_LOWEST:#x}, where no program may be; link it higher")
    if base + p.vaddr + p.memsz > _HIGHEST:
        raise image.error(f"{where} reaches above {_HIGHEST:#x}, where the stack is; link it lower")


def environment_of_options(words: Sequence[str]) -> dict[str, str]:
    """The environment of the options --env NAME=VALUE, or NAME, whose value is the host's.

    Raises ConfigError for a NAME that the host does not have.
    """
    found = {}
    for word in words:
        name, given, value = word.partition("=")
        if not given and name not in os.environ:
            raise ConfigError(
                f"--env {name}: there is no such variable here; give it a value, as in {name}=…"
            )
        found[name] = value if given else os.environ[name]
    return found


def strings(words: Sequence[str], environment: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """Arguments and environment as the kernel takes them: the bytes with their NULs, and where each begins.

    Raises ConfigError for a NUL within one, a "=" in the name of a variable, and for too many.
    """
    for name in environment:
        if not name or "=" in name:
            raise ConfigError(f"environment: {name!r} is no name of a variable")
    everything = [*words, *(f"{name}={value}" for name, value in environment.items())]
    pieces, offsets, at = [], [], 0
    for text in everything:
        piece = text.encode(errors="surrogateescape") + b"\0"
        if piece.index(b"\0") != len(piece) - 1:
            raise ConfigError(f"{text!r}: an argument or a variable can't hold a NUL")
        if len(piece) > _MOST_STRING:
            raise ConfigError(f"{text[:20]!r}…: an argument or a variable has at most {_MOST_STRING} bytes")
        pieces.append(piece)
        offsets.append(at)
        at += len(piece)
    if at + 8 * len(pieces) > _MOST_STRINGS:
        raise ConfigError(f"arguments and environment take {at} bytes; the most is {_MOST_STRINGS}")
    return b"".join(pieces), offsets
