"""Recognises what an image is from its bytes and hands it to the format that knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import layout
from pykvm.boot import elf, flat, linux, multiboot, vmlinux
from pykvm.boot.image import Image
from pykvm.boot.source import opened
from pykvm.errors import ConfigError
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.boot.image import Symbol
    from pykvm.boot.source import Source

__all__ = ["load", "symbols"]

_SECTOR_BYTES = 512
_FOREIGN_MAGIC_AT = 56  # the kernel's Documentation/arch/{arm64/booting,riscv/boot-image-header}.rst
_MODES = ", ".join(mode.value for mode in CpuMode)
_OTHERS = (
    (b"\x1f\x8b\x08", "it is compressed with gzip; unpack it first (gunzip)"),
    (b"\xfd7zXZ\0", "it is compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first (unzstd)"),
    (b"BZh", "it is compressed with bzip2; unpack it first (bunzip2)"),
    (b"\x04\x22\x4d\x18", "it is compressed with lz4; unpack it first (unlz4)"),
    (b"\x02\x21\x4c\x18", "it is compressed with lz4; unpack it first (unlz4)"),
    (b"070701", "it is a cpio archive, as initial RAM disks are; a kernel goes before it (--initrd)"),
    (b"\x27\x05\x19\x56", "it is a U-Boot image, for other machines; pykvm runs x86 guests"),
    (b"QFI\xfb", "it is a QCOW2 disk; make it raw first (qemu-img convert -O raw)"),
    (b"!<arch>\n", "it is an archive of object files; link them first"),
    (b"#!", "it is a script; a guest is machine code"),
)


def load(
    source: bytes | Path,
    *,
    name: str = "",
    mode: CpuMode | None = None,
    address: int | None = None,
    entry: int | None = None,
    limit_bytes: int = 1 << 30,
    ignore_video: bool = False,
    boot: str = "elf",
) -> Image:
    """The Image in a file or in bytes, whatever its format.

    `mode`, `address` and `entry` (gpas) override what the image and its name say; `address` is for flat
    binaries alone. `limit_bytes` is the most that is loaded, sensibly the size of guest memory.
    `ignore_video` starts a multiboot kernel that requires graphics, `boot` says how a Linux kernel is entered
    (linux.BOOTS). Raises ImageError, or
    ImageNotFoundError, with one line that says what is wrong; ConfigError for an option that can't be.
    """
    with opened(source, name) as image:
        head = image.head(4)
        _check_options(image, mode, address, entry)
        found = _load_linux(
            image, boot, is_plain=(mode, address, entry) == (None, None, None), limit_bytes=limit_bytes
        )
        if found:
            return found
        if head == elf.MAGIC:
            if address is not None:
                raise ConfigError(f"{image.name}: it is ELF and has its addresses; give none by option")
            return _load_elf(image, mode, entry, limit_bytes=limit_bytes, ignore_video=ignore_video)
        named_mode, named_address = flat.mode_and_address(image)
        mode = mode or named_mode
        address = named_address if address is None else address
        if mode is None and address is None and entry is None and _is_disk(image):
            return Image("bootsector", CpuMode.RESET, layout.RESET_VECTOR, (), image.name)
        if mode in (None, CpuMode.PROT32) and address is None:
            header = multiboot.find_header(image)
            if header and (header.addresses or mode is None):
                return multiboot.load_multiboot(
                    image, header, entry, is_elf=False, limit_bytes=limit_bytes, ignore_video=ignore_video
                )
        if mode is None:
            raise image.error(_guess(image.head(_SECTOR_BYTES)))
        return flat.load_flat(image, mode, address, entry, limit_bytes=limit_bytes)


def symbols(source: bytes | Path, *, name: str = "") -> tuple[Symbol, ...]:
    """The symbols of an ELF image in order of address, for disassembly; none for other formats.

    Raises ImageError if the image or its tables are damaged.
    """
    with opened(source, name) as image:
        return elf.read_symbols(image) if image.head(4) == elf.MAGIC else ()


def _load_linux(source: Source, boot: str, *, is_plain: bool, limit_bytes: int) -> Image | None:
    """The Image if it is a Linux kernel; a vmlinux is one unless the options say otherwise."""
    if header := linux.read_header(source):
        return linux.load_bzimage(source, header, limit_bytes=limit_bytes, boot=boot)
    if source.head(4) == elf.MAGIC and is_plain:
        named = vmlinux.release(source)
        if named is not None:
            return vmlinux.load_vmlinux(source, named, limit_bytes=limit_bytes, boot=boot)
    if boot != "elf":
        raise ConfigError(f"{source.name}: it is no Linux kernel, and --boot {boot} is for those")
    return None


def _load_elf(
    source: Source, mode: CpuMode | None, entry: int | None, *, limit_bytes: int, ignore_video: bool
) -> Image:
    if mode is CpuMode.RESET:
        entry = layout.RESET_VECTOR
    if mode in (None, CpuMode.PROT32):
        header = multiboot.find_header(source)
        if header:
            return multiboot.load_multiboot(
                source, header, entry, is_elf=True, limit_bytes=limit_bytes, ignore_video=ignore_video
            )
    if mode is None and multiboot.has_multiboot2(source):
        raise source.error(
            "it is a multiboot 2 kernel, and pykvm speaks multiboot 1; give it that header too, "
            "or say the CPU mode to enter it as a plain ELF file"
        )
    return elf.load_elf(source, mode, entry, limit_bytes=limit_bytes)


def _check_options(source: Source, mode: CpuMode | None, address: int | None, entry: int | None) -> None:
    if mode is CpuMode.RESET and entry is not None:
        raise ConfigError(f"{source.name}: out of reset a CPU starts at {layout.RESET_VECTOR:#x} alone")
    for what, value in (("address", address), ("entry", entry)):
        if value is not None and not 0 <= value < 1 << 64:
            raise ConfigError(f"{source.name}: the {what} {value:#x} is not an address of 64 bits")


def _is_disk(source: Source) -> bool:
    """A boot sector's mark. Asked before multiboot: GRUB's own sectors on a disk carry that header."""
    return source.head(_SECTOR_BYTES)[_SECTOR_BYTES - 2 :] == b"\x55\xaa"


def _guess(head: bytes) -> str:
    for magic, text in _OTHERS:
        if head.startswith(magic):
            return text
    for magic, machine in ((b"ARM\x64", "64-bit ARM"), (b"RSC\x05", "RISC-V")):
        if head[_FOREIGN_MAGIC_AT:].startswith(magic):
            return f"it is a Linux kernel for {machine}; pykvm runs x86 guests"
    return (
        "it is neither ELF nor multiboot, and no disk with a boot sector; if it is plain machine code, say "
        f"the CPU mode by option or as NAME.MODE.bin ({_MODES})"
    )
