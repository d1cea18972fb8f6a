"""The paravirtual kernel's host side without a KVM: programs, files, rings, faults, input, the command."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from boot_images import Name, Part, build_elf, result_or_line
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.cli.run import MachineCommand, machine_options
from pykvm.console_input import ConsoleInput
from pykvm.errors import ConfigError, GuestAddressError, ImageError, ImageNotFoundError
from pykvm.hypercall import CALLS, HypercallPort, Hypercalls
from pykvm.memory import GuestMemory
from pykvm.paravirt.boot_info import RING_RECORDS, Wanted, place_program
from pykvm.paravirt.fault import FAULT_BYTES, fault_of, fault_report
from pykvm.paravirt.files import entries_of, files_of_options, guest_path, split_file_option
from pykvm.paravirt.program import (
    PIE_BASE,
    Program,
    environment_of_options,
    read_program,
    strings,
    symbols_of,
)
from pykvm.paravirt.syscall_ring import RECORD_BYTES, SyscallRing, decode

MIB = 1 << 20
PAGE = 4096
AT = 0x40_0000
RING_AT = 0x10_0000
CALL_AT = 0x8_0000
HEADER = 64


def elf(*parts: Part, entry: int = AT + 0x1000, **options: Any) -> bytes:
    """A program of one page-aligned segment, or of `parts`."""
    return build_elf(64, parts or (Part(AT + 0x1000, b"\xf4" * 16, offset=0),), entry, **options)


def read(data: bytes, limit: int = MIB) -> Program | str:
    return result_or_line(lambda: read_program(data, limit_bytes=limit, name="prog"))


# ---- programs


def test_a_static_program_is_taken() -> None:
    """Name, path, bytes and segments are those of the file."""
    data = elf()
    assert read(data) == Program("prog", "/prog", data, (range(AT + 0x1000, AT + 0x1010),))


def test_a_position_independent_program_is_taken() -> None:
    """A static PIE begins at 0 in its file; where it will be is the kernel's business."""
    data = elf(Part(0, b"\xf4" * 8, offset=0), entry=4, fields={"kind": 3})
    found = read(data)
    assert isinstance(found, Program)
    assert found.segments == (range(8),)
    assert PIE_BASE % (2 * MIB) == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"#!/bin/sh\n", "it is a script"),
        (b"text, no program", "no ELF program"),
        (b"\x7fELF", "ELF identification"),
        (build_elf(32), "32-bit program"),
        (elf(fields={"machine": 183}), "64-bit ARM"),
        (elf(fields={"kind": 1}), "object file"),
        (elf(fields={"kind": 3}, entry=0), "shared library"),
        (elf(Part(AT, type=3), Part(AT + 0x1000)), "dynamically linked"),
        (elf(fields={"phnum": 0}), "no program headers"),
        (elf(fields={"phoff": 1 << 40}), "truncated"),
        (elf(Part(AT, type=4)), "nothing to load"),
        (elf(entry=AT), "in no executable segment"),
        (elf(Part(AT + 0x1000, b"x" * 8, offset=0, filesz=9, memsz=8)), "damaged"),
        (elf(Part(AT + 0x1000, b"x", offset=0, filesz=1 << 40)), "truncated or damaged"),
        (elf(Part(AT + 0x1001, b"x" * 8, offset=0), entry=AT + 0x1001), "differ within the page"),
        (elf(Part(0x1000, b"x" * 8, offset=0), entry=0x1000), "below 0x10000"),
        (elf(Part(1 << 47, b"x" * 8, offset=0), entry=1 << 47), "where the stack is"),
        (elf(Part(AT, b"x" * 8, offset=0, memsz=1 << 47), entry=AT), "where the stack is"),
        (elf(Part(AT, b"x" * 8, offset=0, memsz=(1 << 64) - 1), entry=AT), "where the stack is"),
    ],
)
def test_what_can_t_run_is_said_in_one_line(data: bytes, text: str) -> None:
    """Each kind of wrong file has a line of its own that names it."""
    found = read(data)
    assert isinstance(found, str)
    assert found.startswith("prog: ")
    assert text in found


def test_a_program_larger_than_memory() -> None:
    """A file that can't fit is refused before it is read."""
    found = read(elf() + bytes(4 * MIB))
    assert isinstance(found, str)
    assert "more than the guest's memory" in found


@given(st.binary(max_size=200), st.integers(0, 400), st.binary(min_size=1, max_size=16))
def test_damaged_programs_are_an_error_or_fit(tail: bytes, at: int, junk: bytes) -> None:
    """Whatever is overwritten, a program is refused in one line or its segments are in the lower half."""
    data = bytearray(elf() + tail)
    data[at : at + len(junk)] = junk
    found = read(bytes(data))
    if isinstance(found, Program):
        assert all(0 <= s.start <= s.stop <= 1 << 47 for s in found.segments)
        assert isinstance(result_or_line(lambda: symbols_of(found)), tuple | str)


def test_symbols_of_a_position_independent_program() -> None:
    """Their addresses are the file's own, as load_base is taken off a fault's."""
    names = (Name("main", 4, 8, 2),)
    found = read(elf(Part(0, b"\xf4" * 16, offset=0), entry=4, names=names, fields={"kind": 3}))
    assert isinstance(found, Program)
    assert [(s.name, s.address) for s in symbols_of(found)] == [("main", 4)]


# ---- arguments and environment


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=8))
def test_strings_are_found_where_they_are_said_to_be(words: list[str]) -> None:
    """Each offset leads to its word, which ends at the next NUL."""
    env = {f"V{i}": word for i, word in enumerate(words)}
    data, offsets = strings(words, env)
    found = [data[at : data.index(0, at)].decode() for at in offsets]
    assert found == [*words, *(f"{name}={value}" for name, value in env.items())]


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["a\0b"], {}),
        ([], {"A": "\0"}),
        ([], {"A=B": ""}),
        ([], {"": "x"}),
        (["x" * 131_072], {}),
        (["x" * 100_000] * 21, {}),
        ([""] * 300_000, {}),
    ],
)
def test_strings_that_no_program_can_get(words: list[str], env: dict[str, str]) -> None:
    """NULs, names that are none, and too much are a clear error."""
    with pytest.raises(ConfigError):
        strings(words, env)


def test_environment_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME=VALUE is taken as it is, NAME is the host's, one that the host lacks an error."""
    monkeypatch.setenv("HERE", "value")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert environment_of_options(["A=1=2", "B=", "HERE"]) == {"A": "1=2", "B": "", "HERE": "value"}
    with pytest.raises(ConfigError, match="no such variable"):
        environment_of_options(["NOT_HERE"])


# ---- files


@pytest.mark.parametrize(
    ("given_path", "found"),
    [("a", "/a"), ("./a//b/../c", "/a/c"), ("/a/", "/a"), ("//a", "/a"), ("../../a", "/a")],
)
def test_paths_in_the_guest_are_absolute_and_normal(given_path: str, found: str) -> None:
    """The guest has one root, and nothing is above it."""
    assert guest_path(given_path) == found


@pytest.mark.parametrize("path", ["", "/", ".", "a\0b", "x" * 1001])
def test_paths_that_no_file_can_have(path: str) -> None:
    """The root, a NUL and what is too long for the kernel are refused."""
    with pytest.raises(ConfigError):
        guest_path(path)


@pytest.mark.parametrize(
    ("text", "host", "guest"),
    [
        ("data", "data", "/data"),
        ("/etc/hosts", "/etc/hosts", "/etc/hosts"),
        ("a:/b", "a", "/b"),
        ("a:b:/c/d", "a:b", "/c/d"),
        ("a:b", "a:b", "/a:b"),
    ],
)
def test_file_option(text: str, host: str, guest: str) -> None:
    """HOST:/GUEST names both, HOST alone is its own path in the guest; colons in names are no separators."""
    assert split_file_option(text) == (Path(host), guest)


def test_file_set_of_options(tmp_path: Path) -> None:
    """--files takes a folder with all in it, links to files too, but what is no file; --file wins over it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = files_of_options([f"{tmp_path / 'b'}:/sub/a"], [str(tmp_path)])
    assert found == {"/sub/a": tmp_path / "b", "/b": tmp_path / "b", "/link": tmp_path / "link"}
    with pytest.raises(ImageNotFoundError):
        files_of_options([], [str(tmp_path / "nowhere")])
    with pytest.raises(ImageError, match="no such folder"):
        files_of_options([], [str(tmp_path / "b")])


def test_entries_have_their_folders_and_the_devices(tmp_path: Path) -> None:
    """Every folder on the way is there, "/" first, all sorted by path; files keep mode, size and time."""
    file = tmp_path / "f"
    file.write_bytes(b"123")
    file.chmod(0o750)
    os.utime(file, (5, 1234))
    entries = {entry.path: entry for entry in entries_of({"/x/y/f": file, "/x/y.txt": b"22"})}
    assert next(iter(entries)) == "/"
    assert list(entries) == sorted(entries)
    assert {"/x", "/x/y", "/dev/null"} < set(entries)
    assert stat.S_ISDIR(entries["/x/y"].mode)
    assert stat.S_ISCHR(entries["/dev/null"].mode)
    assert entries["/x/y/f"][1:4] == (stat.S_IFREG | 0o550, 3, 1234)
    assert entries["/x/y.txt"].size_bytes == 2


def test_entries_that_can_t_be(tmp_path: Path) -> None:
    """A missing file, a folder in a file's place, and a path below a file are one clear error each."""
    with pytest.raises(ImageNotFoundError):
        entries_of({"/a": tmp_path / "nowhere"})
    with pytest.raises(ImageError, match="--files"):
        entries_of({"/a": tmp_path})
    with pytest.raises(ConfigError, match="file and hold"):
        entries_of({"/a": b"", "/a/b": b""})


# ---- boot information


def place(memory: GuestMemory, **options: Any) -> Any:
    """The boot information that place_program() writes behind 1 MiB + 64 KiB; it keeps the memory's bytes."""
    program = read_program(elf(), limit_bytes=MIB, name="prog")
    gpa = place_program(memory, 0x11_0000, Wanted(program, **options))
    return ffi.from_buffer("struct paravirt_boot *", memory.read(gpa, ffi.sizeof("struct paravirt_boot")))


def test_boot_information_leads_to_everything(tmp_path: Path) -> None:
    """Program, words, files and free memory are where the struct says, none over another."""
    host = tmp_path / "host"
    host.write_bytes(b"h" * 5000)
    with GuestMemory(16 * MIB) as memory:
        boot = place(memory, args=("prog", "x"), env={"A": "b"}, files={"/h": host, "/deep/er/b": b"bytes"})
        assert (boot.magic, boot.version, boot.size_bytes) == (lib.PARAVIRT_MAGIC, lib.PARAVIRT_VERSION, 176)
        assert (boot.argc, boot.envc, boot.trace_records) == (2, 1, 0)
        assert memory.read(boot.program, boot.program_bytes) == elf()
        assert memory.read(boot.strings, boot.strings_bytes) == b"prog\0x\0A=b\0"
        assert memory.read(boot.path, boot.path_bytes) == b"/prog"
        assert boot.program % PAGE == boot.ram[0].start % PAGE == 0
        assert boot.ram[0].end == 16 * MIB
        assert (boot.ram[1].start, boot.ram[1].end) == (0, 0)
        size = ffi.sizeof("struct paravirt_file")
        table = memory.read(boot.files, boot.file_count * size)
        files = ffi.from_buffer("struct paravirt_file[]", table)
        paths = [memory.read(file.path, file.path_bytes).decode() for file in files]
        assert paths == sorted(paths)
        for path, file in zip(paths, files, strict=True):
            assert paths[file.parent] == (path.rpartition("/")[0] or "/")
            assert file.path_hash == fnv(path.encode())
            if path in ("/h", "/deep/er/b"):
                assert file.data % PAGE == 0
                assert file.data + file.size_bytes <= boot.ram[0].start
                want = host.read_bytes() if path == "/h" else b"bytes"
                assert memory.read(file.data, file.size_bytes) == want
            if path == "/prog":
                assert (file.data, file.mode) == (boot.program, stat.S_IFREG | 0o555)
        free = boot.ram[0].end - boot.ram[0].start
        assert not any(memory.read(boot.ram[0].start, free))


def fnv(data: bytes) -> int:
    """FNV-1a as its authors define it, 64 bit."""
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 % (1 << 64)
    return found


def test_the_hash_is_the_published_one() -> None:
    """FNV-1a of "foobar" is in its authors' test vectors."""
    assert fnv(b"foobar") == 0x85944171F73967E8


def test_memory_above_the_hole_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit below the hole goes on at 4 GiB."""
    monkeypatch.setattr(layout, "HOLE", range(16 * MIB, layout.FOUR_GIB))
    with GuestMemory(24 * MIB) as memory:
        boot = place(memory)
        assert boot.ram[0].end == layout.HOLE.start
        assert (boot.ram[1].start, boot.ram[1].end) == (layout.FOUR_GIB, layout.FOUR_GIB + 8 * MIB)


def test_what_does_not_fit_says_how_much_would(tmp_path: Path) -> None:
    """The amount in the message is enough, and less by 2 MiB is not."""
    with GuestMemory(4 * MIB) as memory, pytest.raises(ConfigError, match="need 10 MiB") as caught:
        place(memory, files={"/big": bytes(6 * MIB)})
    assert "--memory" in str(caught.value)
    with GuestMemory(10 * MIB) as memory:
        place(memory, files={"/big": bytes(6 * MIB)})
    with GuestMemory(8 * MIB) as memory, pytest.raises(ConfigError):
        place(memory, files={"/big": bytes(6 * MIB)})


def test_a_file_that_becomes_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that loses its end while it is read is an error, not a file of zeros."""
    file = tmp_path / "f"
    file.write_bytes(bytes(100))
    known = file.stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: known)
    file.write_bytes(b"")
    with GuestMemory(8 * MIB) as memory, pytest.raises(ImageError, match="shorter"):
        place(memory, files={"/f": file})


# ---- the ring of system calls


class Guest:
    """A guest that writes records into a ring in its memory."""

    def __init__(self, memory: GuestMemory, capacity: int) -> None:
        self.memory, self.capacity, self.head = memory, capacity, 0
        header = {"header_bytes": HEADER, "record_bytes": RECORD_BYTES, "capacity": capacity}
        memory.write(RING_AT, ffi.buffer(ffi.new("struct syscall_ring *", header)))

    @property
    def size(self) -> int:
        return HEADER + self.capacity * RECORD_BYTES

    @property
    def tail(self) -> int:
        return int.from_bytes(self.memory.read(RING_AT + 24, 8), "little")

    def call(self, number: int) -> None:
        record = ffi.new("struct syscall_record *", {"number": number, "flags": lib.SYSCALL_DONE})
        at = RING_AT + HEADER + self.head % self.capacity * RECORD_BYTES
        self.memory.write(at, ffi.buffer(record))
        self.set_head(self.head + 1)

    def set_head(self, head: int) -> None:
        self.head = head
        self.memory.write(RING_AT + 16, (head % (1 << 64)).to_bytes(8, "little"))


@given(st.lists(st.integers(0, 8), max_size=40))
def test_everything_comes_out_once_and_in_order(steps: list[int]) -> None:
    """However many are written between two reads, as long as the ring holds them."""
    with GuestMemory(4 * MIB) as memory:
        guest = Guest(memory, 8)
        ring = SyscallRing(memory, RING_AT, guest.size)
        raw, number = [], 0
        for count in steps:
            for _ in range(count):
                guest.call(number)
                number += 1
            raw.append(ring.take())
            assert guest.tail == number
        assert [r.number for r in decode(b"".join(raw), int)] == list(range(number))
        ring.close()


@given(st.integers(0, (1 << 64) - 1))
def test_a_head_that_can_t_be_is_said_and_not_followed(head: int) -> None:
    """More records than the ring has are nobody's: nothing is read any more, and `trouble` says why."""
    with GuestMemory(4 * MIB) as memory:
        guest = Guest(memory, 8)
        ring = SyscallRing(memory, RING_AT, guest.size)
        guest.set_head(head)
        raw = ring.take()
        assert len(raw) == (head * RECORD_BYTES if head <= 8 else 0)
        assert bool(ring.trouble) == (head > 8)
        assert ring.take() == b""
        ring.close()


@given(
    st.tuples(*[st.integers(0, (1 << 32) - 1)] * 2),
    st.integers(0, (1 << 64) - 1),
    st.one_of(st.integers(0, 1 << 12), st.integers(0, (1 << 64) - 1)),
)
@settings(deadline=None)
def test_wild_announcements_are_refused(sizes: tuple[int, int], capacity: int, size: int) -> None:
    """Any header and length: refused, or a ring that lies in memory as a whole."""
    with GuestMemory(4 * MIB) as memory:
        header = {"header_bytes": sizes[0], "record_bytes": sizes[1], "capacity": capacity}
        memory.write(RING_AT, ffi.buffer(ffi.new("struct syscall_ring *", header)))
        try:
            ring = SyscallRing(memory, RING_AT, size)
        except (GuestAddressError, ValueError):
            return
        assert HEADER + ring.capacity * RECORD_BYTES <= size <= 4 * MIB
        ring.close()


def test_records_become_values() -> None:
    """Times go through the clock; one that never returned has no result and no end."""
    done = {
        "number": 1,
        "arg": [1, 2, 3, 4, 5, 6],
        "result": -9,
        "start_time": 100,
        "end_time": 300,
        "cr3": 7,
    }
    done |= {"rip": 8, "flags": lib.SYSCALL_DONE | lib.SYSCALL_UNKNOWN, "vcpu": 1, "pid": 2, "tid": 3}
    never = {"number": 231, "result": 5, "start_time": 400, "end_time": 500}
    raw = b"".join(bytes(ffi.buffer(ffi.new("struct syscall_record *", r))) for r in (done, never))
    first, second = decode(raw, lambda tsc: tsc * 10)
    assert first == (1, (1, 2, 3, 4, 5, 6), -9, 1000, 3000, 7, 8, 1, 2, 3, True, False)
    assert (second.result, second.start_ns, second.end_ns, second.is_done) == (0, 4000, 0, False)
    assert second.is_known


def test_a_closed_ring_is_empty() -> None:
    """After close() nothing is read from memory that may be gone."""
    with GuestMemory(4 * MIB) as memory:
        guest = Guest(memory, 8)
        ring = SyscallRing(memory, RING_AT, guest.size)
        guest.call(1)
        ring.close()
        assert ring.take() == b""
        ring.close()


def test_the_ring_that_the_kernel_makes_has_a_capacity_it_can_use() -> None:
    """A power of two, small beside the least memory that a program is given."""
    assert RING_RECORDS & RING_RECORDS - 1 == 0
    assert HEADER + RING_RECORDS * RECORD_BYTES < MIB


# ---- faults

PROGRAM = Program("prog", "/prog", b"", (range(0x1000, 0x2000),))


def fault(symbols: Any = (), **fields: Any) -> Any:
    raw = bytes(ffi.buffer(ffi.new("struct program_fault *", fields)))
    return fault_of(raw, PROGRAM, symbols)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"vector": 14, "error": 4, "address": 8}, "it read from 0x8, where nothing is"),
        ({"vector": 14, "error": 7, "address": 8}, "it wrote to 0x8, which it may not"),
        ({"vector": 14, "error": 0x14, "address": 8}, "it jumped to 0x8, where nothing is"),
        (
            {"vector": 14, "error": 6, "kind": lib.FAULT_STACK},
            "it wrote to 0x0, which its stack has outgrown",
        ),
        ({"vector": 14, "kind": lib.FAULT_FILE_END}, "it read from 0x0, behind the end of the mapped file"),
        ({"vector": 14, "kind": lib.FAULT_NO_MEMORY}, "(--memory gives it more)"),
        ({"vector": 0}, "division by zero"),
        ({"vector": 99, "error": 5}, "exception 99, error code 0x5"),
        ({"kind": lib.FAULT_RAISED, "vector": 14}, "it sent itself the signal"),
        ({"kind": 77, "vector": 6}, "does not exist"),
    ],
)
def test_causes_in_words(fields: dict[str, int], cause: str) -> None:
    """What the CPU says in bits is said in words."""
    assert cause in fault(**fields).cause


def test_a_fault_names_symbol_and_instruction() -> None:
    """RIP minus where the program was put is looked up in its file's symbols; code is disassembled."""
    name = symbols_of(Program("x", "/x", elf(names=(Name("main", 0x1800, 16, 2),))))
    found = fault(
        name, signal=4, vector=6, rip=0x55_1804, load_base=0x55_0000, code=b"\x0f\x0b", code_bytes=16
    )
    assert found.where == "main+0x4"
    assert found.instruction == "ud2"
    assert str(found) == (
        "prog: killed by SIGILL: an instruction that does not exist, at main+0x4 (0x551804): ud2"
    )
    assert "> 0x551804  0f 0b" in fault_report(found)


def test_a_place_outside_the_program_has_no_symbol() -> None:
    """A jump to nowhere is not "somewhere behind the last function"."""
    name = symbols_of(Program("x", "/x", elf(names=(Name("last", 0x1800),))))
    assert fault(name, rip=0x7FFF_0000).where == ""
    assert fault(name, rip=0x1900).where == "last+0x100"


@given(st.binary(min_size=FAULT_BYTES, max_size=FAULT_BYTES))
@settings(deadline=None)
def test_any_report_of_a_guest_can_be_shown(raw: bytes) -> None:
    """Whatever the guest's kernel writes into the struct, it becomes one line and a few more."""
    found = fault_of(raw, PROGRAM, ())
    assert "\n" not in str(found)
    assert fault_report(found)


# ---- the console's input


def test_input_given_beforehand_comes_first_and_ends() -> None:
    """Bytes, in pieces as they are asked for, then the end, again and again."""
    source = ConsoleInput(b"abc")
    source.end()
    assert [source.read(2), source.read(5), source.read(5), source.read(5)] == [b"ab", b"c", b"", b""]


def test_input_without_an_end_is_nothing_yet() -> None:
    """Before anything is typed read() says so; a question of no bytes tells whether there is something."""
    source = ConsoleInput()
    assert (source.read(5), source.read(0), source.is_ready()) == (None, None, False)
    assert source.feed(b"xy") == 2
    assert (source.read(0), source.is_ready(), source.read(5), source.read(5)) == (b"", True, b"xy", None)
    assert source.is_wanted


def test_input_that_nobody_reads_is_refused_in_time() -> None:
    """The queue holds 64 KiB; the rest stays with who types."""
    source = ConsoleInput()
    assert source.feed(bytes(70_000)) == 65_536
    assert source.feed(b"x") == 0


def test_waiting_ends_when_something_is_typed() -> None:
    """wait() returns for feed() and for end(), long before its time is over."""
    for wake in (lambda s: s.feed(b"x"), lambda s: s.end()):
        source = ConsoleInput()
        threading.Timer(0.01, wake, (source,)).start()
        source.wait(60)
        assert source.is_ready()


def test_input_from_a_file_is_read_as_it_is_asked_for() -> None:
    """Nothing is taken ahead: what the guest leaves is still in the pipe."""
    reader, writer = os.pipe()
    try:
        source = ConsoleInput(fd=reader)
        assert (source.read(4), source.is_ready()) == (None, False)
        os.write(writer, b"0123456789")
        source.wait(60)
        assert (source.read(0), source.read(4)) == (b"", b"0123")
        assert os.read(reader, 100) == b"456789"
        os.close(writer)
        writer = -1
        assert source.is_ready()
        assert (source.read(4), source.read(4)) == (b"", b"")
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_input_from_what_can_t_be_read_is_at_its_end(tmp_path: Path) -> None:
    """A folder as stdin, or one that was closed, is an empty input."""
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert ConsoleInput(fd=folder).read(10) == b""
    finally:
        os.close(folder)
    assert ConsoleInput(fd=folder).read(10) == b""


def test_the_end_on_a_terminal_is_not_for_ever() -> None:
    """After Ctrl-D a terminal's next line is read as well."""
    master, slave = os.openpty()
    try:
        source = ConsoleInput(fd=slave)
        os.write(master, b"\x04")
        source.wait(60)
        assert source.read(10) == b""
        os.write(master, b"more\n")
        source.wait(60)
        assert source.read(10) == b"more\n"
    finally:
        os.close(master)
        os.close(slave)


# ---- the calls


class Host:
    """What a hypercall port asks of its machine."""

    def __init__(self, memory: GuestMemory) -> None:
        self.input = ConsoleInput(b"typed")
        self.waits: list[tuple[int | None, bool]] = []
        self.exits: list[int] = []
        self.marks: list[int] = []
        self.printed = bytearray()
        calls = Hypercalls(
            memory,
            output=self.printed.extend,
            on_exit=self.exits.append,
            on_mark=self.marks.append,
            record=lambda: ffi.NULL,
            read=self.input.read,
            wait=lambda ns, wants_input: self.waits.append((ns, wants_input)),
        )
        self.port = HypercallPort(calls)


def ask(memory: GuestMemory, host: Host, number: int, *args: int, at: int = RING_AT) -> int:
    """One hypercall: the struct at `at`, its result."""
    call = ffi.new("struct hypercall *", {"number": number, "abi": 1, "arg": list(args)})
    memory.write(at, ffi.buffer(call))
    host.port.write(0, at.to_bytes(4, "little"))
    return int.from_bytes(memory.read(at + lib.HC_RESULT, 8), "little", signed=True)


def test_yield_hands_its_wish_on() -> None:
    """~0 is without end, flag 1 is "or until there is input", other flags are an error."""
    with GuestMemory(4 * MIB) as memory:
        host = Host(memory)
        assert ask(memory, host, lib.HC_YIELD, 5) == 0
        assert ask(memory, host, lib.HC_YIELD, (1 << 64) - 1, lib.HC_YIELD_INPUT) == 0
        assert ask(memory, host, lib.HC_YIELD, 0, 2) == lib.HC_EINVAL
        assert host.waits == [(5, False), (None, True)]


def test_input_is_not_lost_to_a_bad_buffer() -> None:
    """A buffer outside memory is refused before anything is taken from the input."""
    with GuestMemory(4 * MIB) as memory:
        host = Host(memory)
        assert ask(memory, host, lib.HC_CONSOLE_READ, 4 * MIB - 2, 5) == lib.HC_EFAULT
        assert ask(memory, host, lib.HC_CONSOLE_READ, 0x2000, 1 << 40) == lib.HC_EINVAL
        assert ask(memory, host, lib.HC_CONSOLE_READ, 0x2000, 100) == 5
        assert memory.read(0x2000, 6) == b"typed\0"
        assert ask(memory, host, lib.HC_CONSOLE_READ, 0x2000, 100) == lib.HC_EAGAIN


WILD = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 2 * MIB), st.integers(MIB - 20, MIB + 20))
NAMED = st.sampled_from([number for number in CALLS if number != lib.HC_EXIT])


@given(st.one_of(NAMED, st.integers(0, (1 << 32) - 1)), st.lists(WILD, min_size=4, max_size=4))
@settings(deadline=None)
def test_wild_hypercalls_change_only_what_they_may(number: int, args: list[int]) -> None:
    """Any number and arguments: a result, and no byte of memory changed beyond the buffer that was named."""
    with GuestMemory(MIB) as memory:
        host = Host(memory)
        result = ask(memory, host, number, *args, at=CALL_AT)
        assert result < 0 or number in CALLS
        writes = number in (lib.HC_CONSOLE_READ, lib.HC_RANDOM, lib.HC_MEMORY_MAP) and result > 0
        buffer = range(args[0], args[0] + args[1]) if writes else range(0)
        assert buffer.stop <= MIB
        memory.write(CALL_AT, bytes(lib.HC_SIZE))
        if writes:
            memory.write(buffer.start, bytes(len(buffer)))
        assert memory.read(0, MIB).count(0) == MIB


# ---- the command line


def parsed(*words: str) -> dict[str, Any] | str:
    """The options that a command with machine_options gets, or the error."""
    found: dict[str, Any] = {}

    @click.command(cls=MachineCommand)
    @machine_options
    @click.option("-q", is_flag=True)
    def command(**options: Any) -> None:
        found.update(options)

    result = CliRunner().invoke(command, words)
    return found if result.exit_code == 0 else result.output


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--paravirt", "prog", "-q", "--help"], {"image": "prog", "args": ("-q", "--help"), "q": False}),
        (["-q", "--paravirt", "prog", "--"], {"args": ("--",), "q": True}),
        (["--env", "A=1", "--env", "B", "--paravirt", "p"], {"env": ("A=1", "B"), "args": ()}),
        (["--file", "a", "--files", "d", "--paravirt", "p"], {"files": ("a",), "trees": ("d",)}),
        (["image", "-q", "--memory", "4M"], {"image": "image", "q": True, "memory": "4M", "args": ()}),
    ],
)
def test_words_behind_a_program_are_its_own(words: list[str], want: dict[str, Any]) -> None:
    """With --paravirt options end at the program; without it they may stand anywhere."""
    found = parsed(*words)
    assert isinstance(found, dict)
    assert {name: found[name] for name in want} == want


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["image", "word"], "unexpected extra argument (word)"),
        (["prog", "--paravirt"], "--paravirt goes before the program"),
        (["--env", "A=1", "image"], "--env is for programs"),
        (["--file", "a", "image"], "--file is for programs"),
        (["--files", "a", "image"], "--files is for programs"),
        (["--paravirt"], "Missing argument"),
    ],
)
def test_wrong_usage_says_what_was_meant(words: list[str], text: str) -> None:
    """Words and options of programs without --paravirt are not taken for something else."""
    found = parsed(*words)
    assert isinstance(found, str)
    assert text in found
