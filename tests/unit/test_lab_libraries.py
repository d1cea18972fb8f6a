"""Which libraries a program needs, read from ELF files that the test makes or the machine has."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.lab.libraries import Libraries, Needs, read_needs

STRINGS_AT, DYNAMIC_AT = 0x200, 0x400


def elf(
    *,
    names: tuple[str, ...] = (),
    rpath: str = "",
    runpath: str = "",
    interpreter: str = "",
    machine: int = 62,
) -> bytes:
    """An ELF file of one segment at address 0x1000, with a dynamic section and perhaps a loader."""
    strings = b"\0"
    dynamic = []
    for tag, text in [*((1, name) for name in names), (15, rpath), (29, runpath)]:
        if text:
            dynamic.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    loader = len(strings)
    strings += interpreter.encode() + b"\0"
    entries = b"".join(struct.pack("<qQ", *entry) for entry in [*dynamic, (5, 0x1000 + STRINGS_AT), (0, 0)])
    headers = [(1, 0, 0x1000, 0x1000), (2, DYNAMIC_AT, 0x1000 + DYNAMIC_AT, len(entries))]
    if interpreter:
        headers.append((3, STRINGS_AT + loader, 0x1000 + STRINGS_AT + loader, len(interpreter) + 1))
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, 5, at, where, where, n, n, 1) for kind, at, where, n in headers
    )
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0)
    file = bytearray(0x1000)
    file[: len(head) + len(table)] = head + table
    file[STRINGS_AT : STRINGS_AT + len(strings)] = strings
    file[DYNAMIC_AT : DYNAMIC_AT + len(entries)] = entries
    return bytes(file)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_names_loader_and_directories_are_read(tmp_path: Path) -> None:
    """DT_NEEDED in order, PT_INTERP, DT_RPATH and DT_RUNPATH cut at colons."""
    image = elf(
        names=("libb.so.1", "liba.so"), rpath="/r", runpath="/x:$ORIGIN/y", interpreter="/lib64/ld.so"
    )
    assert read_needs(put(tmp_path / "p", image)) == Needs(
        "/lib64/ld.so", ("libb.so.1", "liba.so"), ("/r",), ("/x", "$ORIGIN/y")
    )


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", elf(machine=40), elf()[:70]])
def test_what_is_no_program_of_this_machine_needs_nothing(tmp_path: Path, data: bytes) -> None:
    """A script, another machine's file, a file cut short."""
    assert read_needs(put(tmp_path / "p", data)) is None


def test_what_is_not_there_needs_nothing(tmp_path: Path) -> None:
    """A directory, a missing file."""
    assert read_needs(tmp_path) is None
    assert read_needs(tmp_path / "nothing") is None


@given(at=st.integers(0, 0x4FF), value=st.integers(0, 255), end=st.integers(0, 0x1000))
def test_damage_never_raises(tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int) -> None:
    """Any byte changed, any length: an answer or None."""
    image = bytearray(elf(names=("liba.so",), runpath="/x", interpreter="/ld"))
    image[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(image[:end])
    needs = read_needs(path)
    assert needs is None or isinstance(needs.names, tuple)


def test_the_order_of_search_is_that_of_the_loader(tmp_path: Path) -> None:
    """RPATH only without RUNPATH, then LD_LIBRARY_PATH, RUNPATH, the cache."""
    for place in ("rpath", "env", "runpath", "cache"):
        put(tmp_path / place / "lib.so", b"")
    cache = {"lib.so": str(tmp_path / "cache/lib.so")}
    env = {"LD_LIBRARY_PATH": str(tmp_path / "env")}
    rpath, runpath = str(tmp_path / "rpath"), str(tmp_path / "runpath")

    def found(image: bytes, env: dict[str, str]) -> list[str]:
        program = put(tmp_path / "program", image)
        return [path.parent.name for path in Libraries(env, cache).needed_by(program)]

    assert found(elf(names=("lib.so",), rpath=rpath), env) == ["rpath"]
    assert found(elf(names=("lib.so",), rpath=rpath, runpath=runpath), env) == ["env"]
    assert found(elf(names=("lib.so",), rpath=rpath, runpath=runpath), {}) == ["runpath"]
    assert found(elf(names=("lib.so",)), {}) == ["cache"]


def test_origin_is_the_directory_of_the_file(tmp_path: Path) -> None:
    """$ORIGIN and ${ORIGIN} both."""
    library = put(tmp_path / "lib/lib.so", b"")
    for runpath in ("$ORIGIN/../lib", "${ORIGIN}/../lib"):
        program = put(tmp_path / "bin/program", elf(names=("lib.so",), runpath=runpath))
        (path,) = Libraries({}, {}).needed_by(program)
        assert path.resolve() == library


def test_a_library_that_is_nowhere_is_left_out(tmp_path: Path) -> None:
    """As a wheel may name one that it never uses."""
    program = put(tmp_path / "p", elf(names=("libthere-is-none.so.9", "/no/such/path.so")))
    assert list(Libraries({}, {}).needed_by(program)) == []


def test_it_agrees_with_the_loader_on_this_python() -> None:
    """What ldd says that this interpreter needs itself is found, at the same places."""
    program = Path(sys.executable).resolve()
    shown = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    loaded = {Path(word).resolve() for word in shown.split() if word.startswith("/")}
    libraries = Libraries({})
    found: set[Path] = set()
    waiting = [program]
    while waiting:
        for path in libraries.needed_by(waiting.pop()):
            if path.resolve() not in found:
                found.add(path.resolve())
                waiting.append(path)
    assert found == loaded
