"""Linux images: the setup header, the payload's codecs, boot_params; damage of any kind is one clear line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block
import pytest
import zstandard
from boot_images import Part, build_elf
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm.boot import codecs, linux, load
from pykvm.boot.placement import place
from pykvm.boot.pvh import start_info
from pykvm.boot.source import opened
from pykvm.errors import ConfigError, ImageError, PykvmError
from pykvm.memory import GuestMemory
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = b"\xf4" * 64


def _lz4(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": _lz4,
    "zstd": zstandard.ZstdCompressor().compress,
    "elf": bytes,
}


def bzimage(payload: bytes, *, version: int = 0x020F, xloadflags: int = 0x7F, code: bytes = b"") -> bytes:
    """A bzImage as the kernel's build makes it: boot sector, header, one sector of setup code, payload."""
    image = bytearray(1024)
    image[0x1F1] = 1
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x202] = b"\xeb\x6a"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<HIH", image, 0x206, version, 0, 0)
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", image, 0x236, xloadflags)
    struct.pack_into("<I", image, 0x238, 2047)
    trailer = struct.pack("<I", len(payload))  # the kernel appends the unpacked size
    struct.pack_into("<II", image, 0x248, len(code), len(payload) + len(trailer))
    image[0x300:0x30C] = b"6.1.0-x (me)"
    return bytes(image) + code + payload + trailer


VMLINUX = build_elf(64, (Part(0x1000000, CODE, memsz=4096),), entry=0x1000000)


@pytest.mark.parametrize("codec", PACKERS)
def test_every_codec_is_unpacked_to_the_elf_inside(codec: str) -> None:
    """gzip, xz, lzma, bzip2, lz4 legacy, zstd and no codec at all give the same image."""
    image = load(bzimage(PACKERS[codec](VMLINUX)), name="vmlinuz")
    assert (image.kind, image.mode, image.entry) == ("linux", CpuMode.LONG64, 0x1000000)
    assert image.segments[0].data == CODE
    assert image.linux is not None
    assert image.linux.release == "6.1.0-x"


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (bzimage(VMLINUX)[:0x280], "ends inside its setup header"),
        (bzimage(VMLINUX, version=0x0208), "protocol is 2.08; pykvm needs 2.12"),
        (bzimage(VMLINUX, xloadflags=0), "32-bit Linux kernel"),
        (bzimage(gzip.compress(VMLINUX))[:-40], "its payload"),
        (bzimage(b"????" + VMLINUX), "no codec of Linux"),
        (bzimage(gzip.compress(VMLINUX)[:20] + bytes(400)), "damaged"),
        (bzimage(_lz4(VMLINUX)[:12] + b"\xff" * 300), "damaged|ELF|neither"),
        (bzimage(lzma.compress(b"no kernel at all")), "ELF"),
    ],
)
def test_a_damaged_kernel_is_one_clear_line(image: bytes, says: str) -> None:
    """Each kind of damage names the image and what is wrong."""
    with pytest.raises(ImageError, match=says) as caught:
        load(image, name="vmlinuz")
    assert "vmlinuz" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=2048), st.integers(0, 0x3FF), st.sampled_from(sorted(PACKERS)))
def test_no_damage_raises_anything_else(junk: bytes, at: int, codec: str) -> None:
    """A kernel with bytes overwritten anywhere is loaded or refused, nothing else."""
    good = bzimage(PACKERS[codec](VMLINUX))
    try:
        load(
            good[:at] + junk + good[at + len(junk) :],
            name="vmlinuz",
            mode=CpuMode.LONG64,
            limit_bytes=1 << 24,
        )
    except PykvmError as error:
        assert "\n" not in str(error)


def test_boot_params_are_zero_but_for_what_a_loader_fills_in() -> None:
    """The header is copied to its place; loader type, heap flag, command line, initrd and e820 are set."""
    with opened(bzimage(VMLINUX)) as source:
        header = linux.read_header(source)
    assert header is not None
    page = linux.boot_params(
        header, cmdline_gpa=0x9C000, initrd=(0x2000000, 512), memory_map=[(0, 0xA0000, 1), (1 << 32, 4096, 1)]
    )
    assert len(page) == linux.BOOT_PARAMS_BYTES
    assert page[: linux.BOOT_PARAMS_BYTES][0x202:0x206] == b"HdrS"
    assert page[:0x1E8] == bytes(0x1E8)
    assert (page[0x210], page[0x211] & 0x81, page[0x1E8]) == (0xFF, 0x81, 2)
    assert struct.unpack_from("<III", page, 0x218)[:2] == (0x2000000, 512)
    assert struct.unpack_from("<I", page, 0x228) == (0x9C000,)
    assert struct.unpack_from("<QQIQQI", page, 0x2D0) == (0, 0xA0000, 1, 1 << 32, 4096, 1)


def test_an_initrd_goes_high_and_must_fit() -> None:
    """It ends at the top of low RAM, page-aligned, and never reaches into the kernel."""
    with opened(bzimage(VMLINUX)) as source:
        header = linux.read_header(source)
    assert header is not None
    ram = [range(0x8000000)]
    assert linux.place_initrd(header, 5000, 0x2000000, ram) == 0x8000000 - 2 * 4096
    with pytest.raises(ConfigError, match="more memory"):
        linux.place_initrd(header, 0x7000000, 0x2000000, ram)
    with pytest.raises(ConfigError, match="more memory"):
        linux.place_initrd(header, 1, 0x2000000, [range(layout.LOW_END)])


def test_several_initrds_are_padded_to_words(tmp_path: Path) -> None:
    """Each starts on a multiple of 4; a missing one is named."""
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"6789")
    assert linux.read_initrds([tmp_path / "a", tmp_path / "b"]) == b"12345\0\0\x006789"
    with pytest.raises(ImageError, match="nothing: No such file"):
        linux.read_initrds([tmp_path / "nothing"])
    with pytest.raises(ImageError, match="more than the guest's 1 MiB"):
        linux.read_initrds([tmp_path / "a", Path("/dev/zero")], limit_bytes=1 << 20)


def test_an_unpacked_payload_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload that grows without end is refused at the limit."""
    monkeypatch.setattr(codecs, "_MOST_BYTES", 1000)
    for pack in PACKERS.values():
        with pytest.raises(ValueError, match="more than"):
            codecs.unpack(pack(bytes(5000) if pack is not bytes else VMLINUX + bytes(5000)))


def vmlinux_image(name: bytes = b"Linux", *, kind: int = 0x100, more: bytes = b"") -> bytes:
    """An ELF file with one segment at 16 MiB and one note, or `more` behind it."""
    note = struct.pack("<III", len(name) + 1, 8, kind) + (name + b"\0").ljust(8, b"\0") + b"6.1.0-x\0"
    note += more
    code = b"\xf4" * 64
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x100_0000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    at = 64 + 2 * 56
    load_ = struct.pack("<IIQQQQQQ", 1, 5, at, 0x100_0000, 0x100_0000, len(code), len(code), 4096)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    return head + load_ + notes + code + note


def test_a_vmlinux_is_known_by_its_note() -> None:
    """It gets a setup header; another ELF file stays one, and an explicit mode makes it one."""
    image = load(vmlinux_image())
    assert (image.kind, image.entry) == ("linux", 0x100_0000)
    assert image.linux
    assert image.linux.release == "6.1.0-x"
    page = linux.boot_params(
        image.linux, cmdline_gpa=0x9000, initrd=(0, 0), memory_map=[(0, 4096, 1)], rsdp=0xE0000
    )
    assert page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert load(vmlinux_image(b"Other")).kind != "linux"
    assert load(vmlinux_image(), mode=CpuMode.LONG64).kind != "linux"
    with pytest.raises(ImageError, match="its notes should be"):
        load(vmlinux_image()[:-8])


def test_a_vmlinux_goes_from_its_file_to_guest_memory(tmp_path: Path) -> None:
    """Its segments are read where they belong; a file that changed meanwhile is refused."""
    file = tmp_path / "vmlinux"
    file.write_bytes(vmlinux_image())
    with GuestMemory(64 << 20) as memory:
        image = load(file)
        (segment,) = image.segments
        assert bytes(segment.data) == CODE
        place(image, memory, cmdline="")
        assert memory.read(0x100_0000, 65) == CODE + b"\0"
        file.write_bytes(vmlinux_image() + b"more")
        with pytest.raises(ImageError, match="it changed while it was loaded"):
            place(image, memory, cmdline="")
        file.unlink()
        with pytest.raises(ImageError, match="no such file"):
            place(image, memory, cmdline="")


def test_a_bzimage_can_unpack_itself() -> None:
    """Its own code goes where it prefers to be, with the room it says it needs, and is entered at 0x200."""
    image = bytearray(bzimage(PACKERS["gzip"](VMLINUX), code=bytes(1024)))
    struct.pack_into("<QI", image, 0x258, 0x100_0000, 0x20_0000)
    found = load(bytes(image), boot="packed")
    assert (found.kind, found.mode, found.entry) == ("linux", CpuMode.LONG64, 0x100_0200)
    (segment,) = found.segments
    assert (segment.gpa, segment.data, segment.size_bytes) == (0x100_0000, bytes(image[1024:]), 0x20_0000)
    with pytest.raises(ImageError, match="more memory"):
        load(bytes(image), boot="packed", limit_bytes=1 << 20)
    for cut in (-8, 1030 - len(image)):
        with pytest.raises(ImageError, match="ends inside its payload"):
            load(bytes(image[:cut]), boot="packed")
    with pytest.raises(ImageError, match="nothing to unpack"):
        load(vmlinux_image(), boot="packed")


def test_the_pvh_entry_is_an_elf_note() -> None:
    """32-bit code with EBX at a struct that has all else; a kernel without the note is refused."""
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x100_0010)
    for image in (vmlinux_image(more=note), bzimage(PACKERS["xz"](vmlinux_image(more=note)))):
        found = load(image, boot="pvh")
        assert (found.kind, found.mode, found.entry) == ("linux", CpuMode.PROT32, 0x100_0010)
    with pytest.raises(ImageError, match="no PVH entry"):
        load(vmlinux_image(), boot="pvh")
    with pytest.raises(ConfigError, match="no Linux kernel"):
        load(build_elf(64, (Part(0x1000000, CODE, memsz=4096),), entry=0x1000000), boot="pvh")
    told = {"cmdline_gpa": 0x9C000, "memory_map": [(0, 4096, 1), (8192, 4096, 2)], "rsdp": 0xE0000}
    info = start_info(0x9B000, initrd=(0x200_0000, 512), **told)  # type: ignore[arg-type]
    head = struct.unpack_from("<IIIIQQQQII", info)
    assert head == (0x336EC578, 1, 0, 1, 0x9B038, 0x9C000, 0xE0000, 0x9B058, 2, 0)
    assert struct.unpack_from("<QQ", info, 0x38) == (0x200_0000, 512)
    assert struct.unpack_from("<QQIIQQII", info, 0x58) == (0, 4096, 1, 0, 8192, 4096, 2, 0)
    assert struct.unpack_from("<IQ", start_info(0, initrd=(0, 0), **told), 12) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"MZ".ljust(56, b"\0") + b"ARM\x64", "64-bit ARM"),
        (b"MZ".ljust(56, b"\0") + b"RSC\x05", "RISC-V"),
        (b"\x27\x05\x19\x56", "U-Boot"),
        (b"070701", "--initrd"),
        (b"\x04\x22\x4d\x18", "unlz4"),
    ],
)
def test_what_others_boot_is_named(head: bytes, says: str) -> None:
    """A kernel of another machine, or a file that is no kernel, says what it is."""
    with pytest.raises(ImageError, match=says):
        load(head.ljust(600, b"\1"))
