"""Puts the kernel, its boot information, the program and its files into guest memory.

From the kernel's image on::

    kernel | boot information, arguments and environment, files' entries and paths | program | files … | free

Each of the last but the free memory begins on a page of its own. guests/include/paravirt_boot.h says what the
boot information is.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.errors import ConfigError, ImageError
from pykvm.paravirt.files import Entry, entries_of
from pykvm.paravirt.program import Program, strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pykvm.memory import GuestMemory

__all__ = ["RING_RECORDS", "Wanted", "place_program"]

_PAGE = 4096
_PROGRAM_MODE = stat.S_IFREG | 0o555
RING_RECORDS = 1 << 12  # of system calls, where they are traced
_LEAST_FREE_BYTES = 2 << 20  # for that ring, page tables, the stack, the heap of a small program
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
_FILE_BYTES: int = ffi.sizeof("struct paravirt_file")


class Wanted(NamedTuple):
    """What a program is started with. The first of `args` is the program's name for itself."""

    program: Program
    args: Sequence[str] = ()
    env: Mapping[str, str] = {}
    files: Mapping[str, Path | bytes | str] = {}


class _Room:
    """Guest memory from a gpa on, given out in order."""

    def __init__(self, memory: GuestMemory, start: int) -> None:
        self.memory = memory
        self.end = min(memory.size_bytes, layout.HOLE.start)
        self.at = start

    def take(self, size: int, align: int = 16) -> int:
        """The gpa of `size` bytes. Raises ConfigError if they don't fit."""
        gpa = -(-self.at // align) * align
        if gpa + size > self.end:
            need = (gpa + size + _LEAST_FREE_BYTES + (1 << 20) - 1) >> 20
            raise ConfigError(
                f"program and files need {need} MiB of guest memory or more, and the guest has "
                f"{self.memory.size_bytes / (1 << 20):g}; give it more (--memory)"
            )
        self.at = gpa + size
        return gpa

    def put(self, data: bytes | Any, align: int = 16) -> int:
        """The gpa where `data` is."""
        gpa = self.take(max(len(data), 1), align)
        self.memory.write(gpa, data)
        return gpa


def place_program(memory: GuestMemory, start: int, wanted: Wanted) -> int:
    """Write everything behind the kernel, whose image ends at the gpa `start`; the boot information's gpa.

    Raises ConfigError if it does not fit, ImageError for a file that can't be read.
    """
    room = _Room(memory, start)
    boot = ffi.new("struct paravirt_boot *")
    size = ffi.sizeof("struct paravirt_boot")
    at = room.take(size, _PAGE)
    args = [*wanted.args] or [wanted.program.name]
    text, offsets = strings(args, wanted.env)
    path = wanted.program.path.encode(errors="surrogateescape")
    boot.magic, boot.version, boot.size_bytes = lib.PARAVIRT_MAGIC, lib.PARAVIRT_VERSION, size
    boot.argc = len(args)
    boot.envc = len(offsets) - boot.argc
    boot.strings, boot.strings_bytes = room.put(text), len(text)
    boot.string_at = room.put(ffi.buffer(ffi.new("uint32_t[]", offsets)))
    boot.path, boot.path_bytes = room.put(path), len(path)
    boot.realtime_ns = time.time_ns() - time.monotonic_ns()
    ffi.buffer(boot.random)[:] = os.urandom(len(boot.random))
    files = [
        entry._replace(mode=_PROGRAM_MODE) if entry.source is wanted.program.data else entry
        for entry in entries_of({wanted.program.path: wanted.program.data, **wanted.files})
    ]
    _place_files(room, boot, files, wanted.program)
    boot.ram[0].start = room.take(_LEAST_FREE_BYTES, _PAGE)
    boot.ram[0].end = room.end // _PAGE * _PAGE
    if memory.size_bytes > room.end:
        boot.ram[1].start = layout.FOUR_GIB
        boot.ram[1].end = layout.FOUR_GIB + memory.size_bytes - room.end
    memory.write(at, ffi.buffer(boot))
    return at


def _place_files(room: _Room, boot: Any, files: list[Entry], program: Program) -> None:
    table = ffi.new("struct paravirt_file[]", len(files))
    index = {entry.path: number for number, entry in enumerate(files)}
    boot.files = room.take(ffi.sizeof(table))
    boot.file_count = len(files)
    for target, entry in zip(table, files, strict=True):
        path = entry.path.encode(errors="surrogateescape")
        target.path, target.path_bytes, target.path_hash = room.put(path, 1), len(path), _hash(path)
        target.size_bytes, target.mtime_s, target.mode = entry.size_bytes, entry.mtime_s, entry.mode
        target.parent = index[entry.path.rpartition("/")[0] or "/"]
    boot.program = room.put(program.data, _PAGE)
    boot.program_bytes = len(program.data)
    for target, entry in zip(table, files, strict=True):
        if entry.source is program.data:
            target.data = boot.program
        else:
            target.data = entry.source if isinstance(entry.source, int) else _place_file(room, entry)
    room.memory.write(boot.files, ffi.buffer(table))


def _place_file(room: _Room, entry: Entry) -> int:
    source = entry.source
    if isinstance(source, bytes):
        return room.put(source, _PAGE)
    assert not isinstance(source, int)  # noqa: S101 - for the type checker: a device has no contents
    gpa = room.take(max(entry.size_bytes, 1), _PAGE)
    try:
        with source.open("rb") as file, room.memory.view(gpa, entry.size_bytes, writable=True) as target:
            read = file.readinto(target)
    except OSError as error:
        raise ImageError(f"{source}: can't read it: {error.strerror}") from None
    if read < entry.size_bytes:
        raise ImageError(f"{source}: it became shorter while it was read")
    return gpa


def _hash(path: bytes) -> int:
    found = _FNV_START
    for byte in path:
        found = (found ^ byte) * _FNV_PRIME % (1 << 64)
    return found
