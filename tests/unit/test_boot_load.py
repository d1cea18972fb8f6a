"""What an image is, is recognised from its bytes; what can't run gets one clear line."""

from __future__ import annotations

import gzip
import os
import socket
from functools import partial
from pathlib import Path

import pytest
from boot_images import Name, Part, build_elf, multiboot_header, result_or_line
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot import Image, check_fits, load, symbols
from pykvm.boot.source import Source, opened
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError
from pykvm.regs import CpuMode

MIB = 1 << 20
SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"


def test_each_kind() -> None:
    """ELF of both classes, multiboot, a disk and a flat binary are told apart."""
    kinds = {
        "elf32": load(build_elf(32)),
        "elf64": load(build_elf(64)),
        "multiboot": load(build_elf(32, (Part(MIB, multiboot_header() + b"\xf4"),))),
        "bootsector": load(SECTOR + bytes(512)),
        "flat": load(b"\xf4", mode=CpuMode.REAL16),
    }
    assert {kind: image.kind for kind, image in kinds.items()} == {kind: kind for kind in kinds}


def test_disk_starts_at_the_reset_vector() -> None:
    """A disk with a boot sector has nothing to load: the firmware does that."""
    image = load(SECTOR)
    assert (image.mode, image.entry, image.segments) == (CpuMode.RESET, layout.RESET_VECTOR, ())


def test_disk_goes_before_multiboot() -> None:
    """A disk whose further sectors hold a multiboot header (GRUB's do) is a disk."""
    assert load(SECTOR + multiboot_header(1 << 16, 0x8000, 0x8000, 0, 0, 0x8000)).kind == "bootsector"


def test_boot_sector_as_flat_binary() -> None:
    """With a mode given a boot sector is plain code."""
    assert load(SECTOR, mode=CpuMode.REAL16, address=layout.BOOT_SECTOR).kind == "flat"


@pytest.mark.parametrize(("address", "entry"), [(0x7C00, None), (None, 0x7C00)])
def test_address_without_a_mode(address: int | None, entry: int | None) -> None:
    """An address says "flat" and lacks the mode; it is not silently dropped."""
    with pytest.raises(ImageError, match="CPU mode"):
        load(SECTOR, address=address, entry=entry)


def test_sector_without_its_mark() -> None:
    """One wrong byte, or one byte too few, and it is no boot sector."""
    for data in (SECTOR[:511], SECTOR[:510] + b"\xaa\x55"):
        with pytest.raises(ImageError, match="no disk with a boot sector"):
            load(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\xfd7zXZ\0data", "xz"),
        (b"\x28\xb5\x2f\xfddata", "zstd"),
        (b"QFI\xfbdata", "qemu-img"),
        (b"!<arch>\ndata", "archive"),
        (b"#!/bin/sh\n", "script"),
        (b"hello, world\n", "neither ELF nor multiboot"),
        (b"\x7fEL", "neither ELF nor multiboot"),
        (b"\x7fELF", "ELF identification"),
        (b"", "empty"),
    ],
)
def test_what_is_no_image(data: bytes, says: str) -> None:
    """Other files are named for what they are, with the next step."""
    with pytest.raises(ImageError, match=says):
        load(data, name="x")


def test_elf_takes_no_address() -> None:
    """An address by option contradicts a file that has its own."""
    with pytest.raises(ConfigError, match="addresses"):
        load(build_elf(), address=0x10_0000)


def test_from_a_file(tmp_path: Path) -> None:
    """A file gives what its bytes give, and its path is its name."""
    data = build_elf(names=(Name("_start", MIB),))
    path = tmp_path / "guest.elf"
    path.write_bytes(data)
    image = load(path)
    assert image.name == str(path)
    assert image.segments == load(data).segments
    assert symbols(path) == symbols(data) != ()


def test_flat_file_by_its_name(tmp_path: Path) -> None:
    """A file's own name gives mode and address."""
    path = tmp_path / "a.real16@0x700.bin"
    path.write_bytes(b"\xf4")
    assert load(path).entry == 0x700


@pytest.mark.parametrize("name", ["absent", "plain/file", "with\nline", "\ud800"])
def test_absent_files(tmp_path: Path, name: str) -> None:
    """A file that is not there has an error and an exit status of its own, in one printable line."""
    (tmp_path / "plain").touch()
    with pytest.raises(ImageError) as caught:
        load(tmp_path / name)
    assert str(caught.value).isprintable()
    assert type(caught.value) is ImageNotFoundError
    assert caught.value.exit_status == 127


def test_nul_in_a_path(tmp_path: Path) -> None:
    """A path that no file can have is an absent file."""
    with pytest.raises(ImageNotFoundError):
        load(tmp_path / "a\0b")


def test_what_is_no_file(tmp_path: Path) -> None:
    """Directories, FIFOs, sockets and devices are refused, and none is waited for."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="a directory"):
        load(tmp_path)
    for path in (tmp_path / "fifo", tmp_path / ".." / ".." / ".." / "dev" / "zero"):
        with pytest.raises(ImageError):
            load(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(ImageError, match="can't open"):
            load(tmp_path / "socket")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's word is kept when a file may not be opened."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret").touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        load(tmp_path / "secret")


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is refused, and closed."""
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="empty"):
        load(tmp_path / "empty")


def open_files() -> int:
    """How many file descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Neither success nor failure leaves a file descriptor behind."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(build_elf())
    bad.write_bytes(build_elf()[:70])
    before = open_files()
    for path in (good, bad, tmp_path):
        result_or_line(partial(load, path))
    assert open_files() == before


def test_huge_sparse_files(tmp_path: Path) -> None:
    """A file of a terabyte is recognised as a disk, or refused, without being read."""
    disk, junk = tmp_path / "disk.img", tmp_path / "junk.real16.bin"
    for path, head in ((disk, SECTOR), (junk, b"\0")):
        path.write_bytes(head)
        os.truncate(path, 1 << 40)
    assert load(disk).kind == "bootsector"
    with pytest.raises(ImageError, match="room for"):
        load(junk)


def test_file_that_shrinks() -> None:
    """A file that ends before its own size says so."""
    source = Source("x", 100, lambda size, at: bytes(60)[at : at + size])
    assert source.read(0, 60, "it") == bytes(60)
    with pytest.raises(ImageError, match="shorter"):
        source.read(0, 61, "it")


def test_name_in_the_message(tmp_path: Path) -> None:
    """An error begins with the name that was given, the path, or what it was: an image."""
    (tmp_path / "x").write_bytes(b"junk")
    for error, name in (
        (result_or_line(lambda: load(b"junk")), "image"),
        (result_or_line(lambda: load(b"junk", name="hello")), "hello"),
        (result_or_line(lambda: load(tmp_path / "x")), f"{tmp_path}/x"),
        (result_or_line(lambda: load(tmp_path / "x", name="hello")), "hello"),
    ):
        assert isinstance(error, str)
        assert error.startswith(f"{name}: it is neither")


def test_reads_of_nothing() -> None:
    """No bytes are there anywhere in the source, its end included."""
    with opened(b"0123456789") as source:
        assert source.read(0, 0, "it") == source.read(10, 0, "it") == b""


def test_reads_in_pieces() -> None:
    """Short reads are continued until all is there."""
    source = Source("x", 10, lambda size, at: b"0123456789"[at : at + min(size, 3)])
    assert source.read(1, 8, "it") == b"12345678"


def test_failing_disk() -> None:
    """A read error of the disk is one line, with the kernel's word."""

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(ImageError, match="Input/output error"):
        Source("x", 10, fail).read(0, 1, "it")


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (0, 11), (10, 1), (11, 0), (5, -1), (1 << 70, 1)])
def test_reads_outside(offset: int, size: int) -> None:
    """No offset and size lead out of the source."""
    with opened(b"0123456789") as source, pytest.raises(ImageError, match="the thing"):
        source.read(offset, size, "the thing")


def flat(size: int = 0x1000, gpa: int = MIB) -> Image:
    """An image of one segment."""
    return load(bytes(size), mode=CpuMode.LONG64, address=gpa)


def test_fits() -> None:
    """An image fits to the last byte, also where two ranges of memory meet."""
    check_fits(flat(), [range(MIB + 0x1000)])
    check_fits(flat(), [range(MIB, MIB + 0x1000)])
    check_fits(flat(), [range(MIB + 0x800, MIB + 0x1000), range(MIB + 0x800)])
    check_fits(flat(), [range(2 * MIB)], [range(MIB), range(MIB + 0x1000, MIB + 0x2000)])
    check_fits(load(SECTOR), [])


@pytest.mark.parametrize(
    "memory",
    [
        [],
        [range(MIB)],
        [range(MIB + 0xFFF)],
        [range(MIB + 1, 2 * MIB)],
        [range(MIB + 8), range(MIB + 9, 2 * MIB)],
    ],
)
def test_does_not_fit(memory: list[range]) -> None:
    """One byte outside of memory, or in a hole of it, is one too many."""
    with pytest.raises(ImageError, match="does not fit"):
        check_fits(flat(), memory)


def test_zeros_count() -> None:
    """The zero part of a segment needs memory like the rest."""
    image = load(build_elf(parts=(Part(MIB, memsz=1 << 40),)))
    with pytest.raises(ImageError, match="does not fit"):
        check_fits(image, [range(64 * MIB)])


@pytest.mark.parametrize("taken", [range(MIB, MIB + 1), range(MIB + 0xFFF, 2 * MIB), range(4 * MIB)])
def test_reserved(taken: range) -> None:
    """An image may not lie where its mode needs tables of ours."""
    with pytest.raises(ImageError, match="long64 needs"):
        check_fits(flat(), [range(8 * MIB)], [taken])


def check_any(data: bytes) -> None:
    """Whatever `data` is, it loads or gets one line."""
    image = result_or_line(lambda: load(data))
    if isinstance(image, Image) and image.segments:
        assert any(s.gpa <= image.entry < s.where.stop for s in image.segments)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_never_surprise(data: bytes) -> None:
    """Any bytes load or get one line."""
    check_any(data)


@given(
    st.sampled_from([b"\x7fELF", multiboot_header(), b"\x1f\x8b\x08", SECTOR]),
    st.binary(max_size=64),
    st.integers(0, 600),
)
def test_magic_numbers_never_surprise(magic: bytes, tail: bytes, cut: int) -> None:
    """Any bytes after, and any cut through, a magic number load or get one line."""
    check_any((magic + tail)[:cut])
