"""The host's half of the BIOS in `firmware/`: its image, and the disk that it reads and writes by hypercall.

::

    guest program ─ INT 13h ─> BIOS ─ struct hypercall, one OUT ─> FirmwareDisk.calls() ─> file
                                                                        └─> GuestMemory, checked

The BIOS boots a raw disk image: its first sector goes to layout.BOOT_SECTOR. It needs 1 MiB of RAM, its ROM
at layout.FIRMWARE_LOW and below layout.FIRMWARE_HIGH_END, the irqchip and PIT, and the devices of pykvm's
board; memory sizes reach it through the CMOS. The numbers of the calls stand in firmware/disk_request.inc.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pykvm import layout
from pykvm.boot.disk_file import SECTOR_BYTES, DiskFile
from pykvm.errors import ConfigError, GuestAddressError, ImageError, ImageNotFoundError
from pykvm.guests import built_folder
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO, Self

__all__ = ["DiskCall", "DiskError", "FirmwareDisk", "firmware_image", "insert_disk"]

REQUEST_MOST_SECTORS = 65535
_REQUEST = struct.Struct("<IIq4Q")  # struct hypercall of guests/include/hypercall_abi.h
_RESULT_AT = 8


class DiskCall(IntEnum):
    """The disk's hypercalls; arg0 = first sector, arg1 = how many, arg2 = gpa of the data."""

    INFO = 0x10
    READ = 0x11
    WRITE = 0x12


class DiskError(IntEnum):
    """What a call answers instead of a number of sectors."""

    EIO = -5  # the host could not read or write its file
    EFAULT = -14  # the data are not, or not all, in guest memory
    EINVAL = -22  # no such sectors, none at all, or more than REQUEST_MOST_SECTORS
    EROFS = -30  # the disk can't be written
    ENOSYS = -38  # no such call


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
    def sectors(self) -> int:
        """How many sectors the disk has, the last one perhaps only begun in the file."""
        return self._file.sectors

    def calls(self, memory: Memory) -> dict[int, Callable[[Any], int]]:
        """The hypercalls by number, each a function of the request (with `arg`, four u64) to its result."""
        return {
            DiskCall.INFO: lambda _: self.sectors,
            DiskCall.READ: lambda request: self._read(memory, *request.arg[0:3]),
            DiskCall.WRITE: lambda request: self._write(memory, *request.arg[0:3]),
        }

    def handle(self, memory: Memory, gpa: int) -> None:
        """Do the request whose struct hypercall is at `gpa` and write its result there.

        Raises GuestAddressError if the struct itself is not in guest memory.
        """
        number, _abi, _result, *args = _REQUEST.unpack(memory.read(gpa, _REQUEST.size))
        call = self.calls(memory).get(number)
        result = call(_Request(tuple(args))) if call else int(DiskError.ENOSYS)
        memory.write(gpa + _RESULT_AT, result.to_bytes(8, "little", signed=True))

    def _refused(self, first: int, count: int) -> bool:
        return not 1 <= count <= REQUEST_MOST_SECTORS or first + count > self.sectors

    def _read(self, memory: Memory, first: int, count: int, gpa: int) -> int:
        if self._refused(first, count):
            return DiskError.EINVAL
        try:
            memory.write(gpa, self._sectors(first, count))
        except GuestAddressError:
            return DiskError.EFAULT
        except OSError as error:
            self.last_error = error
            return DiskError.EIO
        return count

    def _write(self, memory: Memory, first: int, count: int, gpa: int) -> int:
        if self.read_only:
            return DiskError.EROFS
        if self._refused(first, count):
            return DiskError.EINVAL
        try:
            data = memory.read(gpa, count * SECTOR_BYTES)
            if self._overlay is None:
                self._file.write(first, data)
            else:
                for at in range(count):
                    self._overlay[first + at] = data[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES]
        except GuestAddressError:
            return DiskError.EFAULT
        except OSError as error:
            self.last_error = error
            return DiskError.EIO
        return count

    def _sectors(self, first: int, count: int) -> bytes:
        data = self._file.read(first, count)
        if not self._overlay:
            return data
        parts = (data[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES] for at in range(count))
        return b"".join(self._overlay.get(first + at, part) for at, part in enumerate(parts))


class _Request(NamedTuple):
    """A request as `calls` wants it."""

    arg: tuple[int, ...]
