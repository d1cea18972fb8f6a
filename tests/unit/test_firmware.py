"""The BIOS's image and its constants, and the host's half of its disk, with guest memory in a bytearray."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.boot import firmware
from pykvm.boot.disk_file import DiskFile
from pykvm.boot.firmware import FirmwareDisk, firmware_image, insert_disk
from pykvm.errors import ConfigError, GuestAddressError, ImageError, ImageNotFoundError
from pykvm.toolchain import build_firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.boot.firmware import Memory


SOURCES = Path(__file__).parents[2] / "firmware"
ABI = SOURCES.parent / "guests" / "include" / "hypercall_abi.h"
BUFFER_AT = 0x1000
MEMORY_BYTES = 0x8000
PATTERN = bytes(range(256)) * 2


class FakeMemory:
    """Guest memory as a bytearray from gpa 0 on."""

    def __init__(self) -> None:
        self.bytes = bytearray(MEMORY_BYTES)

    def read(self, gpa: int, size: int) -> bytes:
        self._check(gpa, size)
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.bytes[gpa : gpa + len(data)] = data

    def _check(self, gpa: int, size: int) -> None:
        if gpa + size > len(self.bytes):
            raise GuestAddressError(f"guest address {gpa:#x} with {size} bytes")


def request_of(number: int, first: int, count: int, gpa: int, abi: int = 1) -> Any:
    """A call's struct as the BIOS fills it in."""
    return ffi.new("struct hypercall *", {"number": number, "abi": abi, "arg": [first, count, gpa, 0]})


def ask(
    disk: FirmwareDisk, memory: Memory, number: int, first: int = 0, count: int = 1, gpa: int = BUFFER_AT
) -> int:
    """One request through calls(); what a table of hypercalls makes of an address outside memory."""
    call = disk.calls(memory)[number]
    try:
        return call(request_of(number, first, count, gpa))
    except GuestAddressError:
        return int(lib.HC_EFAULT)


def defines(*paths: Path) -> dict[str, int]:
    """The #defines of those files whose value is a number."""
    found = {}
    for path in paths:
        for name, value in re.findall(
            r"^#define (\w+) \(?(-?\w+)\)?(?:\s|$)", path.read_text(), re.MULTILINE
        ):
            try:
                found[name] = int(value, 0)
            except ValueError:
                continue
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 16 sectors, each filled with its own number."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(16)))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[FirmwareDisk]:
    with FirmwareDisk(image) as disk:
        yield disk


@pytest.fixture(scope="module")
def rom(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The BIOS, built from the source."""
    out = tmp_path_factory.mktemp("firmware")
    build_firmware(SOURCES, out, root=SOURCES.parent / "guests")
    return (out / "bios.bin").read_bytes()


# ---- the ROM


def test_rom_ends_with_the_reset_vector(rom: bytes) -> None:
    """The ROM is 64 KiB and ends with a far jump into segment F000h, a date, and the AT's model byte."""
    assert len(rom) == layout.FIRMWARE_SIZE_BYTES
    vector = rom[layout.RESET_VECTOR - layout.FIRMWARE_HIGH_END :]
    opcode, offset, segment = struct.unpack_from("<BHH", vector)
    assert (opcode, segment << 4) == (0xEA, layout.FIRMWARE_LOW)
    assert rom[offset] == 0xFA  # CLI: there are no vectors yet
    assert re.fullmatch(rb"\d\d/\d\d/\d\d", vector[5:13])
    assert vector[14] == 0xFC


def test_rom_leaves_room(rom: bytes) -> None:
    """At least half of the ROM is empty."""
    assert rom.count(0xFF) > len(rom) // 2


def test_ports_are_those_of_the_layout() -> None:
    """The BIOS speaks to the ports where the layout has its devices."""
    ours = defines(SOURCES / "ports.inc", SOURCES / "bios.inc", ABI)
    for name, where in {
        "PORT_CMOS": layout.CMOS,
        "PORT_POST": layout.POST,
        "PORT_SYSTEM_CONTROL": layout.SYSTEM_CONTROL_A,
        "PORT_DEBUG_CONSOLE": layout.DEBUG_CONSOLE,
        "PORT_COM1": layout.COM1,
        "PORT_PANIC": layout.PANIC,
        "HYPERCALL_PORT": layout.HYPERCALL,
    }.items():
        assert ours[name] == where.start, name
    assert ours["BOOT_SECTOR"] == layout.BOOT_SECTOR
    assert ours["SEG_BIOS"] << 4 == layout.FIRMWARE_LOW


def test_data_area_holds_the_map() -> None:
    """Eight entries of the memory map fit into the extended BIOS data area behind everything else in it."""
    area = {name: at for name, at in defines(SOURCES / "bios.inc").items() if name.startswith("EBDA_")}
    size = area.pop("EBDA_KIB") * 1024
    assert max(area, key=area.__getitem__) == "EBDA_MAP"
    assert area["EBDA_MAP"] + 8 * 20 <= size
    assert area["EBDA_REQUEST"] % 8 == 0
    assert area["EBDA_REQUEST"] + 48 <= area["EBDA_SECTORS"]


def test_missing_firmware_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a built BIOS the error names `make guests`."""
    monkeypatch.setattr(firmware, "built_folder", lambda: tmp_path)
    with pytest.raises(ImageNotFoundError, match="make guests"):
        firmware_image()


def test_damaged_firmware_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BIOS of another size is an ImageError that says both sizes."""
    (tmp_path / "bios.bin").write_bytes(b"\xff" * 100)
    monkeypatch.setattr(firmware, "built_folder", lambda: tmp_path)
    with pytest.raises(ImageError, match="100 bytes, not 65536"):
        firmware_image()


def test_built_firmware_is_given(rom: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built is what a machine gets."""
    (tmp_path / "bios.bin").write_bytes(rom)
    monkeypatch.setattr(firmware, "built_folder", lambda: tmp_path)
    assert firmware_image() == rom


def test_insert_disk_gives_memory_and_disk(
    rom: bytes, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine gets memory with the ROM at both places, read-only, and the disk."""
    (tmp_path / "bios.bin").write_bytes(rom)
    monkeypatch.setattr(firmware, "built_folder", lambda: tmp_path)
    memory, disk = insert_disk(image, memory_bytes=1 << 20)
    with memory, disk:
        assert disk.sectors == 16
        assert memory.read(layout.FIRMWARE_LOW, len(rom)) == rom
        assert memory.read(layout.FIRMWARE_HIGH_END - len(rom), len(rom)) == rom
        assert ask(disk, memory, lib.HC_BLOCK_READ, gpa=layout.FIRMWARE_LOW) == lib.HC_EFAULT
        assert ask(disk, memory, lib.HC_BLOCK_READ, gpa=layout.FIRMWARE_LOW - 512) == 1


@pytest.mark.parametrize("options", [{"board": "testdev"}, {"irqchip": False}, {"memory_bytes": 0x80000}])
def test_insert_disk_refuses_other_machines(image: Path, options: dict[str, Any]) -> None:
    """Where the firmware can't run, a ConfigError says what it needs, and the image stays free."""
    with pytest.raises(ConfigError, match="the firmware needs"):
        insert_disk(image, **{"memory_bytes": 1 << 20} | options)
    FirmwareDisk(image).close()


# ---- the disk


def test_info_answers_the_sectors(disk: FirmwareDisk) -> None:
    """HC_DISK_INFO answers how many sectors there are."""
    assert ask(disk, FakeMemory(), lib.HC_BLOCK_INFO) == 16


def test_read_moves_sectors_to_memory(disk: FirmwareDisk) -> None:
    """A read answers the count and puts the sectors at the gpa and nowhere else."""
    memory = FakeMemory()
    assert ask(disk, memory, lib.HC_BLOCK_READ, first=3, count=2, gpa=BUFFER_AT + 1) == 2
    assert memory.read(BUFFER_AT, 1026) == b"\0" + b"\3" * 512 + b"\4" * 512 + b"\0"


def test_write_goes_into_the_file(image: Path) -> None:
    """A write answers the count and is in the file, at its sector and nowhere else."""
    before = image.read_bytes()
    memory = FakeMemory()
    memory.write(BUFFER_AT, PATTERN)
    with FirmwareDisk(str(image)) as disk:
        assert ask(disk, memory, lib.HC_BLOCK_WRITE, first=5) == 1
    assert image.read_bytes() == before[: 5 * 512] + PATTERN + before[6 * 512 :]


def test_read_only_disk_refuses_writes(image: Path) -> None:
    """A read-only disk answers EROFS, does not even open the file for writing, and leaves it alone."""
    before = image.read_bytes()
    with FirmwareDisk(image, read_only=True) as disk:
        assert fcntl.fcntl(disk._file._fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert ask(disk, FakeMemory(), lib.HC_BLOCK_WRITE) == lib.HC_EROFS
        assert ask(disk, FakeMemory(), lib.HC_BLOCK_READ) == 1
    assert image.read_bytes() == before


def test_snapshot_keeps_writes_to_itself(image: Path) -> None:
    """A snapshot reads back what was written to it and leaves the file alone."""
    before = image.read_bytes()
    memory = FakeMemory()
    memory.write(BUFFER_AT, PATTERN)
    with FirmwareDisk(image, snapshot=True) as disk:
        assert ask(disk, memory, lib.HC_BLOCK_WRITE, first=1) == 1
        assert ask(disk, memory, lib.HC_BLOCK_READ, first=0, count=3) == 3
        assert memory.read(BUFFER_AT, 3 * 512) == b"\0" * 512 + PATTERN + b"\2" * 512
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "count", "gpa", "error"),
    [
        (16, 1, BUFFER_AT, lib.HC_EINVAL),
        (15, 2, BUFFER_AT, lib.HC_EINVAL),
        (0, 0, BUFFER_AT, lib.HC_EINVAL),
        (2**64 - 1, 1, BUFFER_AT, lib.HC_EINVAL),
        (1, 2**64 - 1, BUFFER_AT, lib.HC_EINVAL),
        (0, 1, MEMORY_BYTES - 511, lib.HC_EFAULT),
        (0, 1, 2**64 - 1, lib.HC_EFAULT),
    ],
)
@pytest.mark.parametrize("call", [lib.HC_BLOCK_READ, lib.HC_BLOCK_WRITE])
def test_bad_request_changes_nothing(
    image: Path, call: int, first: int, count: int, gpa: int, error: int
) -> None:
    """Sectors or memory that are not there get an error, and neither memory nor file changes."""
    before = image.read_bytes()
    memory = FakeMemory()
    with FirmwareDisk(image) as disk:
        assert ask(disk, memory, call, first, count, gpa) == error
    assert not any(memory.bytes)
    assert image.read_bytes() == before


def test_request_has_a_limit(tmp_path: Path) -> None:
    """One request moves at most lib.HC_BLOCK_MOST, however large the disk is."""
    path = tmp_path / "large.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with FirmwareDisk(path) as disk:
        assert disk.sectors == 1 << 31
        assert ask(disk, FakeMemory(), lib.HC_BLOCK_READ, count=lib.HC_BLOCK_MOST + 1) == lib.HC_EINVAL


def test_info_fills_in_what_the_guest_has_room_for(image: Path) -> None:
    """Since version 2 of the ABI: as much of struct block_info as fits; before, arguments mean nothing."""
    memory = FakeMemory()
    with FirmwareDisk(image, read_only=True) as disk:
        info = disk.calls(memory)[lib.HC_BLOCK_INFO]
        assert info(request_of(lib.HC_BLOCK_INFO, BUFFER_AT, 24, 0, abi=1)) == 16
        assert not any(memory.bytes)
        assert info(request_of(lib.HC_BLOCK_INFO, BUFFER_AT, 12, 0, abi=2)) == 16
        assert memory.read(BUFFER_AT, 24) == struct.pack("<QI", 16, 512) + bytes(12)
        assert info(request_of(lib.HC_BLOCK_INFO, BUFFER_AT, 1 << 60, 0, abi=3)) == 16
        assert memory.read(BUFFER_AT, 24) == struct.pack("<QIIII", 16, 512, 65535, lib.BLOCK_READ_ONLY, 0)


@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([lib.HC_BLOCK_INFO, lib.HC_BLOCK_READ, lib.HC_BLOCK_WRITE]),
            st.integers(0, 17) | st.integers(0, 2**64 - 1),
            st.integers(0, 4) | st.integers(0, 2**64 - 1),
            st.integers(0x100, MEMORY_BYTES + 600)
            | st.integers(0, 2**64 - 1).filter(lambda gpa: gpa > 0x100),
        ),
        max_size=12,
    ),
    snapshot=st.booleans(),
)
def test_disk_behaves_as_an_array_of_sectors(
    requests: list[tuple[int, int, int, int]], snapshot: bool
) -> None:
    """Whatever a guest asks, the answers, the memory and the disk are those of a plain array of bytes."""
    model = bytearray(os.urandom(16 * 512))
    memory, expected = FakeMemory(), FakeMemory()
    expected.bytes[0x2000:0x4000] = memory.bytes[0x2000:0x4000] = os.urandom(0x2000)
    with FirmwareDisk(bytes(model), snapshot=snapshot) as disk:
        for number, first, count, gpa in requests:
            result = ask(disk, memory, number, first, count, gpa)
            good = count >= 1 and first + count <= 16 and gpa + count * 512 <= MEMORY_BYTES
            if number in (lib.HC_BLOCK_READ, lib.HC_BLOCK_WRITE):
                assert result == count if good else result in (lib.HC_EINVAL, lib.HC_EFAULT)
                span = slice(first * 512, (first + count) * 512)
                if good and number == lib.HC_BLOCK_READ:
                    expected.write(gpa, bytes(model[span]))
                elif good:
                    model[span] = expected.read(gpa, count * 512)
            assert memory.bytes == expected.bytes


def test_last_sector_may_be_incomplete(tmp_path: Path) -> None:
    """An image that ends inside a sector reads as zeros from there; writing that sector completes it."""
    path = tmp_path / "short.img"
    path.write_bytes(b"x" * 700)
    memory = FakeMemory()
    with FirmwareDisk(path) as disk:
        assert disk.sectors == 2
        assert ask(disk, memory, lib.HC_BLOCK_READ, first=1) == 1
        assert memory.read(BUFFER_AT, 512) == b"x" * 188 + bytes(324)
        assert ask(disk, memory, lib.HC_BLOCK_WRITE, first=1) == 1
    assert path.read_bytes() == b"x" * 700 + bytes(324)


def test_image_that_shrinks_reads_as_zeros(image: Path, disk: FirmwareDisk) -> None:
    """Sectors that somebody cut off the file meanwhile read as zeros."""
    os.truncate(image, 512)
    memory = FakeMemory()
    memory.write(BUFFER_AT, PATTERN)
    assert ask(disk, memory, lib.HC_BLOCK_READ, first=2) == 1
    assert not any(memory.read(BUFFER_AT, 512))


def test_host_errors_reach_the_guest(disk: FirmwareDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host can't write its file the guest gets EIO, and the error is kept for the report."""

    def full(self: DiskFile, first: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DiskFile, "write", full)
    assert ask(disk, FakeMemory(), lib.HC_BLOCK_WRITE) == lib.HC_EIO
    assert disk.last_error is not None
    assert disk.last_error.errno == errno.ENOSPC


# ---- the file


def test_one_writer_or_many_readers(image: Path) -> None:
    """An image that a machine writes can't be opened again; one that is only read can."""
    with FirmwareDisk(image), pytest.raises(ImageError, match="another machine uses"):
        FirmwareDisk(image, snapshot=True)
    with FirmwareDisk(image, read_only=True), FirmwareDisk(image, snapshot=True) as disk:
        assert disk.sectors == 16
        with pytest.raises(ImageError, match="another machine uses"):
            FirmwareDisk(image)


def test_lock_goes_with_the_disk(image: Path) -> None:
    """After close() the image is free, also if its disk could not be made."""
    FirmwareDisk(image).close()
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_open_file_is_left_open(image: Path) -> None:
    """A file object as source stays its owner's: it is usable after the disk has gone."""
    with image.open("r+b") as file:
        with FirmwareDisk(file) as disk:
            assert ask(disk, FakeMemory(), lib.HC_BLOCK_WRITE, first=1) == 1
        file.seek(512)
        assert file.read(512) == bytes(512)


def test_bad_images_have_one_clear_line(tmp_path: Path) -> None:
    """Absent, empty, a directory, a FIFO, a device, a name with a NUL: an ImageError of one line, at once."""
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    cases: list[tuple[str | Path | bytes, type[ImageError], str]] = [
        (tmp_path / "absent", ImageNotFoundError, "no such file"),
        (tmp_path / "empty", ImageError, "it is empty"),
        (tmp_path, ImageError, "directory"),
        (tmp_path / "fifo", ImageError, "regular file or a block device"),
        (Path("/dev/null"), ImageError, "regular file or a block device"),
        ("nul\0byte", ImageNotFoundError, "such a name"),
        (b"", ImageError, "it is empty"),
    ]
    for source, error, words in cases:
        with pytest.raises(error, match=words) as raised:
            FirmwareDisk(source)
        assert "\n" not in str(raised.value)


def test_nothing_stays_open(image: Path) -> None:
    """Disks that were made, refused and closed leave no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    sources: list[Path | bytes] = [image, bytes(512), image.parent, b""]
    for source in sources:
        try:
            FirmwareDisk(source).close()
        except ImageError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
