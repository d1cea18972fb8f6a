"""A kernel image is recognised, unpacked where that is possible, and matched with its modules."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lab_modules import module_image

from pykvm.errors import ConfigError, LabError
from pykvm.lab.kernel import given_kernel, release_of, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RELEASE = "6.1.0-test"


def vmlinux(*, pvh: bool = True) -> bytes:
    """An ELF file with one note, that of a PVH entry or of another kind, and the banner of a kernel."""
    note = struct.pack("<III", 4, 8, 18 if pvh else 1) + b"Xen\0" + bytes(8)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = struct.pack("<II6Q", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return header + program + note + f"Linux version {RELEASE} (builder)".encode()


def bzimage(payload: bytes, release: str = RELEASE) -> bytes:
    """Two setup sectors with the header's fields that say where all is, and the payload."""
    image = bytearray(1536)
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    struct.pack_into("<II", image, 0x248, 0x40, len(payload))
    version = f"{release} (builder@host) #1\0".encode()
    image[0x300 : 0x300 + len(version)] = version
    return bytes(image) + bytes(0x40) + payload + b"trailer"


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, xz, lzma_alone])
def test_what_the_standard_library_can_unpack_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    """gzip, bzip2, xz and lzma payloads, with the size that the build appends."""
    assert unpack(bzimage(pack(vmlinux()) + struct.pack("<I", len(vmlinux())))) == vmlinux()


def test_what_can_not_be_entered_unpacked_stays_packed() -> None:
    """Another compression, or no PVH entry: the bzImage is booted as it is."""
    assert unpack(bzimage(b"\x02\x21\x4c\x18 lz4")) is None
    assert unpack(bzimage(gzip.compress(vmlinux(pvh=False)))) is None
    assert unpack(vmlinux()) is None
    assert unpack(b"") is None


def test_a_damaged_payload_is_one_line() -> None:
    """A flipped byte in the payload is told, not booted."""
    payload = bytearray(xz(vmlinux() * 50))
    payload[len(payload) // 2] ^= 0xFF
    with pytest.raises(LabError, match="payload is damaged"):
        unpack(bzimage(bytes(payload)))


def test_the_release_is_that_of_uname() -> None:
    """From the header of a bzImage, from the banner of a vmlinux, empty for anything else."""
    assert release_of(bzimage(b"")) == RELEASE
    assert release_of(vmlinux()) == RELEASE
    assert release_of(b"#!/bin/sh") == ""


@given(st.binary(max_size=64), st.integers(0, 2000), st.booleans())
def test_no_image_makes_the_reader_stumble(noise: bytes, at: int, packed: bool) -> None:
    """Whatever a file holds, there is an answer or one line."""
    image = bytearray(bzimage(gzip.compress(vmlinux())) if packed else vmlinux())
    image[at : at + len(noise)] = noise
    with suppress(LabError):
        unpack(bytes(image))
    release_of(bytes(image))
    unpack(bzimage(gzip.compress(bytes(image))))


def test_a_given_kernel_needs_the_modules_of_its_release(tmp_path: Path) -> None:
    """Those of another kernel, none, or no kernel at all are told with the option to correct."""
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(xz(vmlinux())))
    with pytest.raises(ConfigError, match=f"/lib/modules/{RELEASE}: no such directory; .* --modules DIR"):
        given_kernel(image, None)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "kvm.ko").write_bytes(module_image(vermagic="5.0 SMP mod_unload"))
    with pytest.raises(ConfigError, match=f"modules of kernel 5.0, but the kernel is {RELEASE}"):
        given_kernel(image, modules)
    (modules / "kvm.ko").write_bytes(module_image(vermagic=f"{RELEASE} SMP mod_unload"))
    kernel = given_kernel(image, modules)
    assert (kernel.release, kernel.image, kernel.elf, kernel.key) == (RELEASE, image, None, "")
    image.write_bytes(vmlinux())
    assert given_kernel(image, modules).elf == image
    image.write_bytes(b"#!/bin/sh")
    with pytest.raises(ConfigError, match="neither a bzImage nor a vmlinux"):
        given_kernel(image, modules)
    with pytest.raises(ConfigError, match="No such file"):
        given_kernel(tmp_path / "none", modules)
