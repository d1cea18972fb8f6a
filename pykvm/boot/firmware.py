"""The host's half of the BIOS in `firmware/`: its image, and the disk that it reads and writes by hypercall.

::

    guest program ─ INT 13h ─> BIOS ─ struct hypercall, one OUT ─> FirmwareDisk.calls() ─> file
                                                                        └─> GuestMemory, checked

The BIOS boots a raw disk image: its first sector goes to layout.BOOT_SECTOR. It needs 1 MiB of RAM, its ROM
at layout.FIRMWARE_LOW and below layout.FIRMWARE_HIGH_END, the irqchip and PIT, and the devices of pykvm's
board; memory sizes reach it through the CMOS. Its calls are the HC_BLOCK_… of guests/include/hypercall_abi.h,
which every guest may make of a machine that has a disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.boot.disk_file import SECTOR_BYTES, DiskFile
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError
from pykvm.guests import built_folder
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO, Self

__all__ = ["FirmwareDisk", "firmware_image", "insert_disk"]

_INFO_SINCE = 2  # the version of the ABI since which HC_BLOCK_INFO fills in a struct


class Memory(Protocol):
    """What a disk asks of guest memory; both raise GuestAddressError for what is not there."""

    def read(self, gpa: int, size: int) -> bytes:
        """Copy of [gpa, gpa + size)."""
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Put `data` at gpa, all or nothing."""
        ...


def firmware_image() -> bytes:
    """The BIOS, layout.FIRMWARE_SIZE_BYTES that end with the reset vector's paragraph.

    Raises ImageNotFoundError if it has not been built, ImageError if it is damaged.
    """
    path = built_folder() / "bios.bin"
    try:
        image = path.read_bytes()
    except OSError:
        raise ImageNotFoundError(
            "the firmware has not been built; run `make guests` in the source tree"
        ) from None
    if len(image) != layout.FIRMWARE_SIZE_BYTES:
        raise ImageError(
            f"{path}: a firmware of {len(image)} bytes, not {layout.FIRMWARE_SIZE_BYTES}; "
            "run `make guests` again"
        )
    return image


def insert_disk(
    source: str | Path | bytes,
    *,
    memory_bytes: int,
    board: str = "pykvm",
    irqchip: bool | None = None,
    read_only: bool = False,
    snapshot: bool = False,
) -> tuple[GuestMemory, FirmwareDisk]:
    """What a machine needs to boot `source`: guest memory with the firmware in it, and the disk.

    The machine gives its hypercall port the disk's calls(), has an irqchip, starts its first vCPU in
    CpuMode.RESET, and closes both. The other options are those of MachineSpec and FirmwareDisk. Raises
    ConfigError for a machine on which the firmware can't run, ImageError for a bad image or firmware.
    """
    if board != "pykvm":
        raise ConfigError(f"a disk on the board {board}: the firmware needs the board pykvm to boot it")
    if irqchip is False:
        raise ConfigError("a disk on a machine without irqchip: the firmware needs it to boot, for its timer")
    if memory_bytes < layout.LEGACY_END:
        raise ConfigError(
            f"{memory_bytes >> 10} KiB of guest memory: the firmware needs 1 MiB to boot a disk"
        )
    rom = firmware_image()
    disk = FirmwareDisk(source, read_only, snapshot=snapshot)
    try:
        return GuestMemory(memory_bytes, rom=rom), disk
    except BaseException:
        disk.close()
        raise


class FirmwareDisk:
    """The one disk of a machine that boots by firmware: sectors of 512 bytes in a raw image.

    `source` is a path, a file that is open in binary mode, or the bytes themselves. A `read_only` disk
    answers writes with "write protected"; a `snapshot` takes them and forgets them at close(), and never
    touches the file. Otherwise writes go into the file. An image that ends inside a sector reads as
    zeros from there, and grows to whole sectors when that last one is written.

    Raises ImageError, or ImageNotFoundError, with one line that says what is wrong with the image.
    """

    def __init__(
        self, source: str | Path | bytes | BinaryIO, read_only: bool = False, *, snapshot: bool = False
    ) -> None:
        self._file = DiskFile(source, writable=not (read_only or snapshot))
        self.read_only = read_only
        self.last_error: OSError | None = None
        self._overlay: dict[int, bytes] | None = {} if snapshot and not read_only else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go. What was written into it is in it; what a snapshot took is gone."""
        self._file.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the host could not do for the guest, in a line."""
        if self.last_error is None:
            return ()
        why = self.last_error.strerror or self.last_error
        return (f"{self._file.name}: {why}; the guest was told of an I/O error",)

    @property
    def sectors(self) -> int:
        """How many sectors the disk has, the last one perhaps only begun in the file."""
        return self._file.sectors

    def calls(self, memory: Memory) -> dict[int, Callable[[Any], int]]:
        """The hypercalls by number, each a function of the request (with `arg`, four u64) to its result.

        They raise GuestAddressError for data that are not, or not all, in guest memory.
        """
        return {
            lib.HC_BLOCK_INFO: lambda request: self._info(memory, request),
            lib.HC_BLOCK_READ: lambda request: self._read(memory, *request.arg[0:3]),
            lib.HC_BLOCK_WRITE: lambda request: self._write(memory, *request.arg[0:3]),
        }

    def _info(self, memory: Memory, request: Any) -> int:
        gpa, size = request.arg[0:2]
        if request.abi >= _INFO_SINCE and gpa:
            found = {
                "sectors": self.sectors,
                "sector_bytes": SECTOR_BYTES,
                "most_sectors": lib.HC_BLOCK_MOST,
                "flags": lib.BLOCK_READ_ONLY if self.read_only else 0,
            }
            info = bytes(ffi.buffer(ffi.new("struct block_info *", found)))
            memory.write(gpa, info[:size])
        return self.sectors

    def _refused(self, first: int, count: int) -> bool:
        return not 1 <= count <= lib.HC_BLOCK_MOST or first + count > self.sectors

    def _read(self, memory: Memory, first: int, count: int, gpa: int) -> int:
        if self._refused(first, count):
            return int(lib.HC_EINVAL)
        try:
            data = self._sectors(first, count)
        except OSError as error:
            self.last_error = error
            return int(lib.HC_EIO)
        memory.write(gpa, data)
        return count

    def _write(self, memory: Memory, first: int, count: int, gpa: int) -> int:
        if self.read_only:
            return int(lib.HC_EROFS)
        if self._refused(first, count):
            return int(lib.HC_EINVAL)
        data = memory.read(gpa, count * SECTOR_BYTES)
        try:
            if self._overlay is None:
                self._file.write(first, data)
            else:
                for at in range(count):
                    self._overlay[first + at] = data[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES]
        except OSError as error:
            self.last_error = error
            return int(lib.HC_EIO)
        return count

    def _sectors(self, first: int, count: int) -> bytes:
        data = self._file.read(first, count)
        if not self._overlay:
            return data
        parts = (data[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES] for at in range(count))
        return b"".join(self._overlay.get(first + at, part) for at, part in enumerate(parts))
