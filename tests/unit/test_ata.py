"""The ATA drive, as a guest sees it through its registers."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot.disk_file import DiskFile
from pykvm.devices.ata import (
    SECTOR_BYTES,
    Ata,
    AtaCommand,
    AtaControl,
    AtaDevice,
    AtaError,
    AtaRegister,
    AtaStatus,
)

SECTORS = 600
READY, ASKS = AtaStatus.DRDY, AtaStatus.DRDY | AtaStatus.DRQ


def content(sector: int) -> bytes:
    """What is in a sector at first: each is different."""
    return struct.pack("<II", sector, ~sector & 0xFFFFFFFF) * (SECTOR_BYTES // 8)


class Store:
    """Sectors in memory, some of which are bad."""

    def __init__(self, sectors: int = SECTORS) -> None:
        self.data = {at: content(at) for at in range(sectors)}
        self.sectors = sectors
        self.bad: set[int] = set()
        self.flushes = 0

    def _check(self, at: int) -> None:
        assert 0 <= at < self.sectors, "the drive has let a sector through that is not there"
        if at in self.bad:
            raise OSError(errno.EIO, "bad sector")

    def read(self, first: int, count: int) -> bytes:
        assert count == 1
        self._check(first)
        return self.data[first]

    def write(self, first: int, data: bytes) -> None:
        assert len(data) == SECTOR_BYTES
        self._check(first)
        self.data[first] = data

    def flush(self) -> None:
        self._check(next(iter(self.bad), 0))
        self.flushes += 1


class Line:
    """An interrupt line that counts its rises."""

    level, rises = False, 0

    def set_level(self, level: bool) -> None:
        assert level != self.level
        self.level, self.rises = level, self.rises + level


class Driver:
    """A guest's driver: byte-wide registers, 16-bit data."""

    def __init__(self, store: Store | None = None, *, writable: bool = True) -> None:
        self.store, self.line = store or Store(), Line()
        self.ata = Ata(self.store, irq=self.line, writable=writable)

    def get(self, register: AtaRegister) -> int:
        return self.ata.read(register, 1)[0]

    def put(self, register: AtaRegister, value: int) -> None:
        self.ata.write(register, bytes([value]))

    def control(self, value: int) -> None:
        self.ata.control_block.write(0, bytes([value]))

    @property
    def status(self) -> AtaStatus:
        """Alternate Status: looking changes nothing."""
        return AtaStatus(self.ata.control_block.read(0, 1)[0])

    def command(self, command: int, lba: int = 0, count: int = 1, device: int = AtaDevice.LBA) -> AtaStatus:
        self.put(AtaRegister.DEVICE, device | lba >> 24)
        self.put(AtaRegister.SECTOR_COUNT, count & 0xFF)
        for at, register in enumerate((AtaRegister.LBA_LOW, AtaRegister.LBA_MID, AtaRegister.LBA_HIGH)):
            self.put(register, lba >> 8 * at & 0xFF)
        self.put(AtaRegister.STATUS, command)
        return self.status

    def words(self, count: int = 256) -> bytes:
        return b"".join(self.ata.read(AtaRegister.DATA, 2) for _ in range(count))

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 2):
            self.ata.write(AtaRegister.DATA, data[at : at + 2])

    def error_at(self) -> tuple[AtaError, int]:
        """The error of a command that failed, and its sector."""
        assert self.status & AtaStatus.ERR
        low, mid, high, device = (self.get(AtaRegister(at)) for at in range(3, 7))
        return AtaError(self.get(AtaRegister.ERROR)), low | mid << 8 | high << 16 | (device & 15) << 24


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_identify_tells_what_the_drive_is(driver: Driver) -> None:
    """256 words with size, LBA, names in ATA's order of bytes, and a checksum over all."""
    assert driver.command(AtaCommand.IDENTIFY_DEVICE) == ASKS
    data = driver.words()
    words = struct.unpack("<256H", data)
    assert words[60] | words[61] << 16 == SECTORS
    assert words[49] & 1 << 9, "LBA"
    assert not words[49] & 1 << 8, "no DMA"
    model = b"".join(word.to_bytes(2, "big") for word in words[27:47])
    assert model.strip() == b"pykvm disk"
    assert data[510] == 0xA5
    assert sum(data) % 256 == 0
    assert driver.status == READY


@pytest.mark.parametrize(("lba", "count"), [(0, 1), (7, 3), (SECTORS - 1, 1), (300, 256), (0x101, 2)])
def test_reading(driver: Driver, lba: int, count: int) -> None:
    """READ SECTORS gives the sectors in order, one DRQ and one interrupt each; count 0 is 256."""
    assert driver.command(AtaCommand.READ_SECTORS, lba, count) == ASKS
    for at in range(lba, lba + count):
        assert driver.status == ASKS
        assert driver.get(AtaRegister.STATUS) == ASKS  # acknowledges the interrupt
        assert not driver.line.level
        assert driver.words() == content(at)
    assert driver.status == READY
    assert driver.line.rises == count
    assert driver.words(1) == b"\xff\xff", "there is nothing left"


@pytest.mark.parametrize("width", [1, 2, 4])
def test_data_port_has_any_width(driver: Driver, width: int) -> None:
    """A 32-bit access is two words."""
    driver.command(AtaCommand.READ_SECTORS, 5, 1)
    assert b"".join(driver.ata.read(0, width) for _ in range(SECTOR_BYTES // width)) == content(5)
    assert driver.status == READY


def test_writing(driver: Driver) -> None:
    """WRITE SECTORS takes them in order; the interrupts come behind each sector; FLUSH CACHE flushes."""
    data = bytes(range(256)) * 6
    assert driver.command(AtaCommand.WRITE_SECTORS, 8, 3) == ASKS
    assert driver.line.rises == 0
    driver.send(data)
    assert driver.status == READY
    assert driver.line.level
    assert b"".join(driver.store.data[at] for at in (8, 9, 10)) == data
    assert (driver.store.data[7], driver.store.data[11]) == (content(7), content(11))
    assert driver.command(AtaCommand.FLUSH_CACHE) == READY
    assert driver.store.flushes == 1


def test_a_sector_is_written_whole_or_not_at_all(driver: Driver) -> None:
    """A transfer that is given up leaves the sector as it was, and the next command works."""
    driver.command(AtaCommand.WRITE_SECTORS, 4, 1)
    driver.send(b"x" * (SECTOR_BYTES - 2))
    assert driver.command(AtaCommand.READ_SECTORS, 4, 1) == ASKS
    assert driver.words() == content(4)


@pytest.mark.parametrize("command", [AtaCommand.READ_SECTORS, AtaCommand.READ_VERIFY_SECTORS])
@pytest.mark.parametrize("lba", [SECTORS, SECTORS + 1, (1 << 28) - 1])
def test_no_such_sector(driver: Driver, command: AtaCommand, lba: int) -> None:
    """IDNF, with the address in the registers; nothing is transferred."""
    assert driver.command(command, lba) == READY | AtaStatus.ERR
    assert driver.error_at() == (AtaError.IDNF, lba)


def test_a_transfer_over_the_end_stops_there(driver: Driver) -> None:
    """The sectors before the end are read and written; the first behind it is IDNF."""
    driver.command(AtaCommand.READ_SECTORS, SECTORS - 2, 5)
    assert driver.words(512) == content(SECTORS - 2) + content(SECTORS - 1)
    assert driver.error_at() == (AtaError.IDNF, SECTORS)
    driver.command(AtaCommand.WRITE_SECTORS, SECTORS - 1, 2)
    driver.send(b"y" * 1024)
    assert driver.error_at() == (AtaError.IDNF, SECTORS)
    assert driver.store.data[SECTORS - 1] == b"y" * SECTOR_BYTES


def test_bad_sectors(driver: Driver) -> None:
    """The host's errors reach the guest: UNC for a read, a device fault for a write and a flush."""
    driver.store.bad = {0x103}
    driver.command(AtaCommand.READ_SECTORS, 0x102, 2)
    assert driver.words() == content(0x102)
    assert driver.error_at() == (AtaError.UNC, 0x103)
    driver.command(AtaCommand.READ_VERIFY_SECTORS, 0x100, 8)
    assert driver.error_at() == (AtaError.UNC, 0x103)
    driver.command(AtaCommand.WRITE_SECTORS, 0x103, 1)
    driver.send(bytes(SECTOR_BYTES))
    assert driver.status & AtaStatus.DF
    assert driver.error_at() == (AtaError.ABRT, 0x103)
    assert driver.command(AtaCommand.FLUSH_CACHE) & AtaStatus.DF
    assert driver.command(AtaCommand.READ_SECTORS, 0) == ASKS, "an error is over with the next command"


def test_other_commands_abort(driver: Driver) -> None:
    """What the drive does not know it says so: ABRT, and an interrupt."""
    for number, command in enumerate(sorted({*range(256)} - {*AtaCommand}), start=1):
        assert driver.command(command) == READY | AtaStatus.ERR
        assert driver.get(AtaRegister.ERROR) == AtaError.ABRT
        assert driver.line.rises == number


def test_no_cylinders_and_no_writes_where_there_are_none() -> None:
    """An address without LBA, and a write to a read-only drive, are ABRT."""
    driver = Driver(writable=False)
    for command, device in ((AtaCommand.READ_SECTORS, 0), (AtaCommand.WRITE_SECTORS, AtaDevice.LBA)):
        driver.command(command, device=device)
        assert driver.error_at()[0] == AtaError.ABRT


def test_the_second_drive_is_absent(driver: Driver) -> None:
    """Status reads 0 while it is selected, and its commands come to nobody."""
    second = AtaDevice.LBA | AtaDevice.DEV
    assert driver.command(AtaCommand.READ_SECTORS, device=second) == AtaStatus(0)
    assert driver.get(AtaRegister.STATUS) == 0
    assert driver.words(1) == b"\xff\xff"
    driver.put(AtaRegister.DEVICE, AtaDevice.LBA)
    assert driver.status == READY


def test_software_reset(driver: Driver) -> None:
    """SRST ends what was going on; while it is set the drive is busy; then it shows its signature."""
    driver.command(AtaCommand.READ_SECTORS, 3, 9)
    driver.control(AtaControl.SRST)
    seen = [driver.status]
    driver.put(AtaRegister.STATUS, AtaCommand.IDENTIFY_DEVICE)  # which is not taken
    seen.append(driver.status)
    driver.control(0)
    assert [*seen, driver.status] == [AtaStatus.BSY, AtaStatus.BSY, READY]
    assert [driver.get(AtaRegister(at)) for at in range(1, 7)] == [1, 1, 1, 0, 0, 0]
    assert not driver.line.level


def test_interrupts_can_be_switched_off(driver: Driver) -> None:
    """NIEN holds the line low; Alternate Status, unlike Status, acknowledges nothing."""
    assert driver.command(AtaCommand.READ_SECTORS) == ASKS
    levels = [driver.line.level]
    driver.control(AtaControl.NIEN)
    assert [*levels, driver.line.level] == [True, False]
    driver.command(AtaCommand.READ_SECTORS)
    assert driver.line.rises == 1


_STEPS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 7), st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("write"), st.integers(0, 7), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("command"), st.just(0), st.sampled_from(sorted(AtaCommand))),
    st.tuples(st.just("control"), st.integers(0, 3), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("words"), st.just(0), st.integers(1, 600)),
)


@settings(max_examples=60)
@given(st.lists(_STEPS, max_size=40), st.integers(1, 3))
def test_any_guest_gets_an_answer_of_the_right_size(
    steps: list[tuple[str, int, bytes | int]], sectors: int
) -> None:
    """Whatever is written in whatever order: no exception, no sector beyond the end, all bytes."""
    driver = Driver(Store(sectors))
    for what, offset, value in steps:
        if isinstance(value, bytes):
            (driver.ata if what == "write" else driver.ata.control_block).write(offset, value)
        elif what == "read":
            assert len(driver.ata.read(offset, value)) == value
            assert len(driver.ata.control_block.read(offset, value)) == value
        elif what == "command":
            driver.put(AtaRegister.STATUS, value)
        else:
            assert len(driver.words(value)) == 2 * value
    driver.control(AtaControl.SRST)
    driver.control(0)
    assert driver.command(AtaCommand.READ_SECTORS, 0) == ASKS


def test_a_real_file_is_a_store() -> None:
    """DiskFile is what the drive asks for."""
    disk = DiskFile(b"".join(map(content, range(3))), writable=True)
    ata = Ata(disk)
    ata.write(AtaRegister.DEVICE, bytes([AtaDevice.LBA, AtaCommand.FLUSH_CACHE]))
    assert ata.read(AtaRegister.STATUS, 1)[0] == READY
    disk.close()
