"""Which shared libraries a program needs, read from its ELF headers as the dynamic loader would read them.

Nothing is run but `ldconfig -p`: ldd runs the program's loader, once for each file, and there are hundreds.
The structures are those of the System V gABI, chapter 5; the order of search is that of ld.so(8).
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pykvm.lab.tools import find_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Libraries", "Needs", "read_needs"]

_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_X86_64 = 62
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
_MOST_PROGRAM_HEADERS = 128
_MOST_DYNAMIC_BYTES = 64 * 1024
_LONGEST_NAME = 4096
_CACHE_LINE = re.compile(r"^\s+(\S+) \(([^)]*x86-64[^)]*)\) => (\S.*)$", re.MULTILINE)
_USUAL = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")


@dataclass(frozen=True, slots=True)
class Needs:
    """What an ELF file asks for: its loader, libraries by name, directories to search for them."""

    interpreter: str | None
    names: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def read_needs(path: Path) -> Needs | None:
    """What the x86-64 ELF file `path` needs; None if it is none, is damaged, or can't be read."""
    try:
        with path.open("rb") as file:
            return _needs(file)
    except (OSError, struct.error, ValueError):
        return None


class Libraries:
    """Finds libraries as ld.so does: RPATH, LD_LIBRARY_PATH, RUNPATH, the cache, the usual directories."""

    def __init__(self, env: Mapping[str, str], cache: Mapping[str, str] | None = None) -> None:
        """`cache` maps names to paths; None: that of this machine, by ldconfig."""
        self._env = [part for part in env.get("LD_LIBRARY_PATH", "").split(":") if part]
        self._cache = _ldconfig() if cache is None else cache

    def needed_by(self, path: Path) -> Iterator[Path]:
        """The loader and the libraries that the file itself needs; those that are nowhere are left out."""
        needs = read_needs(path)
        if needs is None:
            return
        if needs.interpreter:
            yield Path(needs.interpreter)
        for name in needs.names:
            found = self._find(name, needs, path.parent)
            if found:
                yield found

    def find(self, name: str) -> Path | None:
        """The library of that name, as a program without directories of its own would find it."""
        return self._find(name, Needs(None, (), (), ()), Path("/"))

    def _find(self, name: str, needs: Needs, origin: Path) -> Path | None:
        if "/" in name:
            return Path(name) if Path(name).is_file() else None
        own = () if needs.runpath else needs.rpath
        before = [*_expand(own, origin), *self._env, *_expand(needs.runpath, origin)]
        cached = self._cache.get(name)
        places = [os.path.join(place, name) for place in before]  # noqa: PTH118 - thousands of them
        places += [cached] if cached else []
        places += [f"{place}/{name}" for place in _USUAL]
        return next((Path(place) for place in places if os.path.isfile(place)), None)  # noqa: PTH113 - same


def _needs(file: BinaryIO) -> Needs | None:
    magic, bits, order, *_, machine = _HEADER.unpack(file.read(_HEADER.size))[:5]
    if magic != b"\x7fELF" or (bits, order) != (2, 1) or machine != _X86_64:
        return None
    file.seek(0)
    fields = _HEADER.unpack(file.read(_HEADER.size))
    table, size, count = fields[7], fields[11], min(fields[12], _MOST_PROGRAM_HEADERS)
    file.seek(table)
    headers = [_PROGRAM.unpack_from(file.read(max(size, _PROGRAM.size))) for _ in range(count)]
    interpreter = None
    dynamic: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length, *_ in headers:
        if kind == _PT_INTERP:
            interpreter = _text(file, offset, min(length, _LONGEST_NAME))
        elif kind == _PT_DYNAMIC:
            file.seek(offset)
            data = file.read(min(length, _MOST_DYNAMIC_BYTES))
            dynamic = list(_DYNAMIC.iter_unpack(data[: len(data) // _DYNAMIC.size * _DYNAMIC.size]))
    return _from_dynamic(file, interpreter, dynamic, headers)


def _from_dynamic(
    file: BinaryIO,
    interpreter: str | None,
    dynamic: list[tuple[int, int]],
    headers: Iterable[tuple[int, ...]],
) -> Needs:
    end = next((at for at, (tag, _) in enumerate(dynamic) if tag == _DT_NULL), len(dynamic))
    strings = next((value for tag, value in dynamic[:end] if tag == _DT_STRTAB), None)
    base = None if strings is None else _offset_of(strings, headers)
    if base is None:
        return Needs(interpreter, (), (), ())

    def texts(wanted: int) -> list[str]:
        return [_text(file, base + value, _LONGEST_NAME) for tag, value in dynamic[:end] if tag == wanted]

    def places(wanted: int) -> tuple[str, ...]:
        return tuple(part for text in texts(wanted) for part in text.split(":") if part)

    return Needs(interpreter, tuple(texts(_DT_NEEDED)), places(_DT_RPATH), places(_DT_RUNPATH))


def _offset_of(address: int, headers: Iterable[tuple[int, ...]]) -> int | None:
    for kind, _, offset, start, _, length, *_ in headers:
        if kind == _PT_LOAD and start <= address < start + length:
            return address - start + offset
    return None


def _text(file: BinaryIO, offset: int, limit: int) -> str:
    file.seek(offset)
    return os.fsdecode(file.read(limit).partition(b"\0")[0])


def _expand(places: Iterable[str], origin: Path) -> Iterator[str]:
    for place in places:
        yield place.replace("${ORIGIN}", str(origin)).replace("$ORIGIN", str(origin))


def _ldconfig() -> dict[str, str]:
    """The loader's cache, name to path; empty where there is no ldconfig."""
    program = find_program("ldconfig")
    if program is None:
        return {}
    try:
        shown = subprocess.run([program, "-p"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, _, path in _CACHE_LINE.findall(os.fsdecode(shown.stdout)):
        found.setdefault(name, path)
    return found
