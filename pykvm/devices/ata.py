"""A disk behind the PC's oldest disk interface: ATA with programmed I/O, one drive on one channel.

The guest writes the address into byte-wide registers and a command behind it, then moves every sector through
a 16-bit data port, word by word, and asks the status register before each sector.

Source: T13 1410D, AT Attachment with Packet Interface - 6 (ATA-6): registers 7, PIO protocols 9.5 and 9.6,
commands 8. Addresses are LBA of 28 bits. There is no DMA, no second drive, no cylinders and heads.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.irq import IrqLine

__all__ = ["Ata", "AtaCommand", "AtaControl", "AtaDevice", "AtaError", "AtaRegister", "AtaStatus", "Sectors"]

SECTOR_BYTES = 512
_MOST_SECTORS = (1 << 28) - 1  # what words 60 and 61 of IDENTIFY DEVICE may say


class Sectors(Protocol):
    """What the drive keeps its data in: sectors of 512 bytes. All but `sectors` raise OSError."""

    @property
    def sectors(self) -> int:
        """How many there are."""
        ...

    def read(self, first: int, count: int) -> bytes:
        """The contents of [first, first + count)."""
        ...

    def write(self, first: int, data: bytes) -> None:
        """Put whole sectors at `first`."""
        ...

    def flush(self) -> None:
        """Return when what was written will survive a power cut."""
        ...


class AtaRegister(IntEnum):
    """Offsets in the command block."""

    DATA = 0
    ERROR = 1  # when read; Features when written
    SECTOR_COUNT = 2  # 0 means 256
    LBA_LOW = 3
    LBA_MID = 4
    LBA_HIGH = 5
    DEVICE = 6
    STATUS = 7  # when read; Command when written


class AtaStatus(IntFlag):
    """The Status register."""

    ERR = 1 << 0
    DRQ = 1 << 3  # the data port waits for a word
    DF = 1 << 5  # device fault: the data could not be kept
    DRDY = 1 << 6
    BSY = 1 << 7


class AtaError(IntFlag):
    """The Error register, valid while Status.ERR is set."""

    ABRT = 1 << 2  # no such command, or not in this state
    IDNF = 1 << 4  # there is no such sector
    UNC = 1 << 6  # the sector can't be read


class AtaDevice(IntFlag):
    """The Device register; its low four bits are bits 27 to 24 of the address."""

    DEV = 1 << 4  # the second drive
    LBA = 1 << 6


class AtaControl(IntFlag):
    """The Device Control register."""

    NIEN = 1 << 1  # no interrupts
    SRST = 1 << 2  # software reset, as long as it is set


class AtaCommand(IntEnum):
    """The commands there are; all others end with ABRT."""

    READ_SECTORS = 0x20
    WRITE_SECTORS = 0x30
    READ_VERIFY_SECTORS = 0x40
    EXECUTE_DEVICE_DIAGNOSTIC = 0x90
    FLUSH_CACHE = 0xE7
    IDENTIFY_DEVICE = 0xEC


_PASSED = 0x01  # diagnostic code: device 0 is well, device 1 is well or absent
# Plain numbers: arithmetic on flags takes microseconds, and a sector takes 256 accesses.
_ERR, _DRQ, _DF, _DRDY, _BSY = (
    int(bit) for bit in (AtaStatus.ERR, AtaStatus.DRQ, AtaStatus.DF, AtaStatus.DRDY, AtaStatus.BSY)
)
_DEV, _LBA = int(AtaDevice.DEV), int(AtaDevice.LBA)
_NIEN, _SRST = int(AtaControl.NIEN), int(AtaControl.SRST)
_DEVICE_ALWAYS = 0xA0  # obsolete bits, which old drives read as ones
_REGISTERS = len(AtaRegister)


class _ControlBlock:
    """Alternate Status and Device Control: one register of its own, a few ports away from the others."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> bytes:
        """Answer the status, which does not acknowledge the interrupt; all ones elsewhere."""
        return bytes(self._read() if at == 0 else 0xFF for at in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        """Take Device Control."""
        if offset == 0:
            self._write(data[0])


class Ata:
    """One ATA drive: the object is its command block (8 ports), `control_block` a Device of its own (1 port).

    Commands are over when the write to the Command register is, so BSY is seen during a software reset alone.
    A transfer that the guest leaves unfinished ends with the next command. Without `writable` the drive
    answers WRITE SECTORS with ABRT.
    """

    def __init__(self, store: Sectors, *, irq: IrqLine | None = None, writable: bool = True) -> None:
        self._store = store
        self._irq = irq
        self._level = False
        self._writable = writable
        self._control = 0
        self.control_block = _ControlBlock(self._read_status, self._write_control)
        self._commands: dict[int, Callable[[], None]] = {
            AtaCommand.READ_SECTORS: self._read_sectors,
            AtaCommand.WRITE_SECTORS: self._write_sectors,
            AtaCommand.READ_VERIFY_SECTORS: self._verify_sectors,
            AtaCommand.EXECUTE_DEVICE_DIAGNOSTIC: self._diagnose,
            AtaCommand.FLUSH_CACHE: self._flush,
            AtaCommand.IDENTIFY_DEVICE: self._identify,
        }
        self._reset()

    @property
    def sectors(self) -> int:
        """How many sectors the guest can reach."""
        return min(self._store.sectors, _MOST_SECTORS)

    # ---- the bus's side

    def read(self, offset: int, size: int) -> bytes:
        """Answer the data port, in any width, or one register a byte; all ones behind the last one."""
        if offset == AtaRegister.DATA:
            return self._read_data(size)
        return bytes(self._read_register(at) for at in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        """Take data, in any width, or one register a byte."""
        if offset == AtaRegister.DATA:
            self._write_data(data)
            return
        for at, value in enumerate(data, start=offset):
            if at == AtaRegister.STATUS:
                self._start(value)
            elif at < _REGISTERS and not self._control & _SRST:
                self._registers[at] = value | (_DEVICE_ALWAYS if at == AtaRegister.DEVICE else 0)

    def _read_register(self, at: int) -> int:
        if at == AtaRegister.STATUS:
            if not self._registers[AtaRegister.DEVICE] & _DEV:
                self._drive(level=False)
            return self._read_status()
        if at == AtaRegister.ERROR:
            return self._error
        return self._registers[at] if at < _REGISTERS else 0xFF

    def _read_status(self) -> int:
        """The drive answers for the absent second one, which is never ready."""
        return 0 if self._registers[AtaRegister.DEVICE] & _DEV else self._status

    def _write_control(self, value: int) -> None:
        was_reset, self._control = self._control & _SRST, value
        if value & _SRST:
            self._reset()
            self._status = _BSY
        elif was_reset:
            self._status = _DRDY
        if value & _NIEN:
            self._drive(level=False)

    def _drive(self, *, level: bool) -> None:
        """The interrupt is wanted (unless NIEN says no), or acknowledged."""
        level = level and not self._control & _NIEN
        if self._irq is not None and level != self._level:
            self._irq.set_level(level)
        self._level = level

    # ---- commands

    def _reset(self) -> None:
        """Power-on and software reset: the signature of a drive that is no ATAPI one (9.12)."""
        self._registers = bytearray(_REGISTERS)
        self._registers[AtaRegister.SECTOR_COUNT] = self._registers[AtaRegister.LBA_LOW] = 1
        self._error = _PASSED
        self._status = _DRDY
        self._buffer = bytearray()  # the sector that is moved now
        self._at = 0  # how much of it was moved
        self._left = 0  # sectors of the command that are still to be moved, this one among them
        self._next = 0  # its address
        self._is_write = False
        self._drive(level=False)

    def _start(self, command: int) -> None:
        is_diagnostic = command == AtaCommand.EXECUTE_DEVICE_DIAGNOSTIC  # the one that both drives obey
        if self._control & _SRST or (self._registers[AtaRegister.DEVICE] & _DEV and not is_diagnostic):
            return
        self._drive(level=False)
        self._status, self._error = _DRDY, 0
        self._buffer, self._at, self._left = bytearray(), 0, 0
        self._commands.get(command, self._abort)()

    def _abort(self) -> None:
        self._fail(AtaError.ABRT)

    def _fail(self, error: AtaError, *, fault: bool = False) -> None:
        """End the command with an error; where it was about a sector, the registers hold its address."""
        self._error = int(error)
        self._status = _DRDY | _ERR | (_DF if fault else 0)
        self._buffer, self._at, self._left = bytearray(), 0, 0
        self._drive(level=True)

    def _finish(self) -> None:
        self._status = _DRDY
        self._buffer, self._at, self._left = bytearray(), 0, 0
        self._drive(level=True)

    def _begin_transfer(self) -> bool:
        """Take the address and the count out of the registers; without LBA there is no address."""
        registers = self._registers
        if not registers[AtaRegister.DEVICE] & _LBA:
            self._abort()
            return False
        low, mid, high = registers[AtaRegister.LBA_LOW : AtaRegister.LBA_HIGH + 1]
        self._next = low | mid << 8 | high << 16 | (registers[AtaRegister.DEVICE] & 0xF) << 24
        self._left = registers[AtaRegister.SECTOR_COUNT] or 256
        return True

    def _is_there(self) -> bool:
        """Whether the next sector exists; if not, the command is over."""
        if self._next < self.sectors:
            return True
        self._fail_at(AtaError.IDNF)
        return False

    def _fail_at(self, error: AtaError, *, fault: bool = False) -> None:
        registers, at = self._registers, self._next
        registers[AtaRegister.LBA_LOW : AtaRegister.LBA_HIGH + 1] = (at & 0xFFFFFF).to_bytes(3, "little")
        registers[AtaRegister.DEVICE] = registers[AtaRegister.DEVICE] & 0xF0 | at >> 24 & 0xF
        self._fail(error, fault=fault)

    def _read_sectors(self) -> None:
        self._is_write = False
        if self._begin_transfer():
            self._fetch()

    def _fetch(self) -> None:
        """Offer the next sector."""
        if not self._is_there():
            return
        try:
            data = self._store.read(self._next, 1)
        except OSError:
            self._fail_at(AtaError.UNC)
            return
        self._offer(data)

    def _offer(self, data: bytes) -> None:
        self._buffer, self._at = bytearray(data), 0
        self._status = _DRDY | _DRQ
        self._drive(level=True)

    def _write_sectors(self) -> None:
        if not self._writable:
            self._abort()
            return
        self._is_write = True
        if self._begin_transfer() and self._is_there():
            self._buffer, self._at = bytearray(SECTOR_BYTES), 0
            self._status = _DRDY | _DRQ  # for the first sector without an interrupt (9.6)

    def _keep(self) -> None:
        """A sector has come whole."""
        try:
            self._store.write(self._next, bytes(self._buffer))
        except OSError:
            self._fail_at(AtaError.ABRT, fault=True)
            return
        self._next, self._left = self._next + 1, self._left - 1
        if not self._left:
            self._finish()
        elif self._is_there():
            self._buffer, self._at = bytearray(SECTOR_BYTES), 0
            self._drive(level=True)

    def _verify_sectors(self) -> None:
        if not self._begin_transfer():
            return
        while self._left:
            if not self._is_there():
                return
            try:
                self._store.read(self._next, 1)
            except OSError:
                self._fail_at(AtaError.UNC)
                return
            self._next, self._left = self._next + 1, self._left - 1
        self._finish()

    def _flush(self) -> None:
        try:
            self._store.flush()
        except OSError:
            self._fail(AtaError.ABRT, fault=True)
            return
        self._finish()

    def _diagnose(self) -> None:
        self._reset()
        self._drive(level=True)

    def _identify(self) -> None:
        self._is_write, self._left = False, 1
        self._offer(_identity(self.sectors))

    # ---- the data port

    def _read_data(self, size: int) -> bytes:
        if not self._status & _DRQ or self._is_write or self._registers[AtaRegister.DEVICE] & _DEV:
            return b"\xff" * size
        part = bytes(self._buffer[self._at : self._at + size])
        self._at += size
        if self._at >= len(self._buffer):
            self._next, self._left = self._next + 1, self._left - 1
            if self._left:
                self._fetch()
            else:  # the end of a read is no news: its last interrupt came with the data
                self._status, self._buffer, self._at = _DRDY, bytearray(), 0
        return part.ljust(size, b"\xff")

    def _write_data(self, data: bytes) -> None:
        if not self._status & _DRQ or not self._is_write or self._registers[AtaRegister.DEVICE] & _DEV:
            return
        part = data[: len(self._buffer) - self._at]
        self._buffer[self._at : self._at + len(part)] = part
        self._at += len(part)
        if self._at >= len(self._buffer):
            self._keep()


def _text(text: str, size: int) -> bytes:
    """ASCII, padded with spaces, the first character of each word in its upper byte (8.15.8)."""
    raw = text.encode("ascii").ljust(size)[:size]
    return bytes(raw[at ^ 1] for at in range(size))


def _identity(sectors: int) -> bytes:
    """What IDENTIFY DEVICE answers: 256 words (8.15)."""
    words = [0] * 256
    words[0] = 0x0040  # not removable
    words[47] = 0x8000  # no READ MULTIPLE
    words[49] = 0x0200  # LBA; no DMA
    words[50] = 0x4000
    words[60], words[61] = sectors & 0xFFFF, sectors >> 16
    words[80] = 0x0070  # ATA-4 to ATA-6
    words[83] = words[86] = 0x1000  # FLUSH CACHE is there, and on
    words[83] |= 0x4000
    words[84] = words[87] = 0x4000
    data = bytearray(b"".join(word.to_bytes(2, "little") for word in words))
    data[20:40] = _text("PYKVM0001", 20)
    data[46:54] = _text("1", 8)
    data[54:94] = _text("pykvm disk", 40)
    data[510] = 0xA5  # word 255: its upper byte makes the sum of all bytes 0
    data[511] = -sum(data) & 0xFF
    return bytes(data)
