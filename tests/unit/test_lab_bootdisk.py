"""The disk that boots the Intel lab: what lies where, and what the boot sector is told."""

from __future__ import annotations

import lzma
import struct
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigError, ImageError, ToolchainError
from pykvm.lab.bootdisk import make_boot_disk, make_low_block
from pykvm.lab.ext4 import CYLINDER_BYTES

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = 0x100_0000
SEGMENTS = ((ENTRY, b"text" * 300, 0x1000), (ENTRY + 0x1000, b"data" * 100, 0x9000))


def vmlinux() -> bytes:
    """An ELF file with two segments at physical addresses, entered at the first."""
    table, body, at = b"", b"", 0x200
    for gpa, data, size in SEGMENTS:
        table += struct.pack("<IIQQQQQQ", 1, 7, at, gpa, gpa, len(data), size, 0x1000)
        body += data
        at += len(data)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, len(SEGMENTS), 0, 0, 0)
    return (head + table).ljust(0x200, b"\0") + body


def bzimage() -> bytes:
    """A boot sector and one of setup code, then the packed vmlinux."""
    payload = lzma.compress(vmlinux())
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x201] = 0x6A
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<H", image, 0x236, 1)
    struct.pack_into("<I", image, 0x238, 2047)
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    return tmp_path / "vmlinuz"


@pytest.fixture
def initramfs(tmp_path: Path) -> Path:
    (tmp_path / "initramfs").write_bytes(b"cpio" * 1000)
    return tmp_path / "initramfs"


def loaded(disk: bytes) -> dict[int, bytes]:
    """What the boot sector's list puts at which address."""
    low = disk[512 : 73 * 512]
    found: dict[int, bytes] = {}
    for at in range(0x2008, 0x3000, 12):
        sector, count, address = struct.unpack_from("<III", low, at)
        if not count:
            return found
        found[address] = disk[sector * 512 : (sector + count) * 512]
    raise AssertionError("the list has no end")


def test_the_kernel_lies_where_it_will_run(kernel: Path, initramfs: Path, tmp_path: Path) -> None:
    """Each segment and the initramfs at its address; the entry, the command line, a signature."""
    make_boot_disk(tmp_path / "disk", kernel, initramfs, "console=ttyS0 quiet", 64)
    disk = (tmp_path / "disk").read_bytes()
    assert len(disk) % CYLINDER_BYTES == 0
    assert disk[510:512] == b"\x55\xaa"
    parts = loaded(disk)
    for gpa, data, _ in SEGMENTS:
        assert parts.pop(gpa).rstrip(b"\0") == data
    ((address, data),) = parts.items()
    assert data.rstrip(b"\0") == b"cpio" * 1000
    params = disk[512 : 512 + 4096]
    assert struct.unpack_from("<II", params, 0x218) == (address, 4000)
    assert struct.unpack_from("<I", params, 0x228) == (0x11000,)
    assert params[0x202:0x206] == b"HdrS"
    assert disk[512 + 0x1000 :].partition(b"\0")[0] == b"console=ttyS0 quiet"
    assert struct.unpack_from("<Q", disk, 512 + 0x2000) == (ENTRY,)
    assert 32 << 20 < address < 63 << 20


def test_nothing_but_the_disk_is_left(kernel: Path, initramfs: Path, tmp_path: Path) -> None:
    """No assembler's output."""
    make_boot_disk(tmp_path / "boot.img", kernel, initramfs, "", 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot.img", "initramfs", "vmlinuz"]


def test_a_part_s_filling_does_not_spoil_the_next() -> None:
    """Parts are read in the order of their addresses: the next one overwrites what fills up a sector."""
    low = make_low_block(bytes(4096), "", 0, [(0x1000, 700), (0x12BC, 10)])
    assert struct.unpack_from("<IIIIII", low, 0x2008) == (73, 2, 0x1000, 75, 1, 0x12BC)


def test_the_page_tables_map_4_gib_as_it_is() -> None:
    """Walked as the CPU does: PML4, PDPT, directory, a page of 2 MiB."""
    low = make_low_block(bytes(4096), "", 0, [])

    def entry(table: int, index: int) -> int:
        (value,) = struct.unpack_from("<Q", low, table - 0x10000 + 8 * index)
        assert value & 3 == 3
        return int(value)

    for address in (0, 0x1000000, 0xC0000000, 0xFFFFFFFF):
        pdpt = entry(0x13000, 0) & ~0xFFF
        directory = entry(pdpt, address >> 30) & ~0xFFF
        page = entry(directory, address >> 21 & 511)
        assert page & 0x80
        assert page & ~0x1FFFFF == address & ~0x1FFFFF


@pytest.mark.parametrize(
    ("arguments", "mem_mib", "says"),
    [("x" * 3000, 64, "command line"), ("", 16, "memory"), ("", 17, "does not fit")],
)
def test_what_does_not_fit_is_told(
    kernel: Path, initramfs: Path, tmp_path: Path, arguments: str, mem_mib: int, says: str
) -> None:
    """A command line, a kernel, an initramfs."""
    if says == "does not fit":
        initramfs.write_bytes(bytes(1 << 20))
        mem_mib = 18
    with pytest.raises(ConfigError, match=says):
        make_boot_disk(tmp_path / "disk", kernel, initramfs, arguments, mem_mib)


def test_only_a_bzimage_boots(initramfs: Path, tmp_path: Path) -> None:
    """A vmlinux is no bzImage; a damaged one is an error of the image."""
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    with pytest.raises(ConfigError, match="boots a bzImage"):
        make_boot_disk(tmp_path / "disk", tmp_path / "vmlinux", initramfs, "", 64)
    (tmp_path / "damaged").write_bytes(bzimage()[:-100])
    with pytest.raises(ImageError):
        make_boot_disk(tmp_path / "disk", tmp_path / "damaged", initramfs, "", 64)


def test_without_an_assembler_it_says_what_to_install(
    kernel: Path, initramfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the package's name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get install gcc"):
        make_boot_disk(tmp_path / "disk", kernel, initramfs, "", 64)
