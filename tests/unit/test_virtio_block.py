"""The virtio disk: raw files and overlays, driven without a KVM."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import Driver

from pykvm.devices.virtio.block import Block, BlockFeature, Request
from pykvm.devices.virtio.device import Feature
from pykvm.devices.virtio.disk_files import Overlay, RawFile
from pykvm.devices.virtio.mmio import Register, Status
from pykvm.errors import ConfigError, ImageError
from pykvm.linux.options import add_devices

V1 = int(Feature.VERSION_1)
SECTORS = 64
OK, IO_ERROR, UNSUPPORTED = b"\0", b"\1", b"\2"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk whose sector n is full of the byte n."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
    return path


def head(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


def test_reads_and_writes_go_to_the_image(image: Path) -> None:
    """Data in several buffers, the header alone or with the data; size, flush and serial number."""
    with Driver(Block(RawFile(image), serial="pykvm-1")) as driver:
        assert struct.unpack("<Q", driver.config(0, 8)) == (SECTORS,)
        assert driver.request([head(Request.IN, 3)], [512, 512, 1]) == (
            1025,
            b"\3" * 512 + b"\4" * 512 + OK,
        )
        assert driver.request([head(Request.OUT, 5) + b"a" * 200, b"b" * 312], [1]) == (1, OK)
        assert driver.request([head(Request.FLUSH)], [1]) == (1, OK)
        assert driver.request([head(Request.GET_ID)], [20, 1])[1] == b"pykvm-1".ljust(20, b"\0") + OK
        assert image.read_bytes()[5 * 512 : 6 * 512] == b"a" * 200 + b"b" * 312
        assert len(image.read_bytes()) == SECTORS * 512


def test_discard_and_write_zeroes(image: Path) -> None:
    """Zeros are written or become a hole; the neighbours stay."""
    with Driver(Block(RawFile(image))) as driver:
        assert driver.request([head(Request.WRITE_ZEROES), segment(8, 8, 1) + segment(20, 1)], [1])[1] == OK
        assert driver.request([head(Request.DISCARD), segment(32, 8)], [1])[1] == OK
    data = image.read_bytes()
    assert data[8 * 512 : 16 * 512] == bytes(8 * 512)
    assert data[20 * 512 : 21 * 512] == bytes(512)
    assert [data[n * 512] for n in (7, 16, 19, 21, 31, 40)] == [7, 16, 19, 21, 31, 40]


@pytest.mark.parametrize(
    ("out", "room", "status"),
    [
        ([head(Request.IN, SECTORS)], [512, 1], IO_ERROR),
        ([head(Request.IN, SECTORS - 1)], [1024, 1], IO_ERROR),
        ([head(Request.IN, (1 << 64) - 1)], [512, 1], IO_ERROR),
        ([head(Request.IN)], [100, 1], IO_ERROR),
        ([head(Request.OUT, SECTORS), bytes(512)], [1], IO_ERROR),
        ([head(99)], [1], UNSUPPORTED),
        ([head(Request.DISCARD), segment(0, 1, 1)], [1], UNSUPPORTED),
        ([head(Request.DISCARD), segment(SECTORS, 1)], [1], IO_ERROR),
        ([head(Request.DISCARD), segment(0, 1)[:-1]], [1], IO_ERROR),
        ([head(Request.WRITE_ZEROES), segment(0, 0xFFFFFFFF)], [1], IO_ERROR),
        ([head(Request.WRITE_ZEROES), segment(0, 1, 2)], [1], UNSUPPORTED),
    ],
)
def test_what_can_t_be_done_is_an_error_of_the_request(
    image: Path, out: list[bytes], room: list[int], status: bytes
) -> None:
    """Beyond the end, no whole sectors, unknown types and flags: the image stays, the device works on."""
    before = image.read_bytes()
    with Driver(Block(RawFile(image))) as driver:
        assert driver.request(out, room)[1][-1:] == status
        assert driver.request([head(Request.IN, 1)], [512, 1])[1] == b"\1" * 512 + OK
    assert image.read_bytes() == before


@pytest.mark.parametrize(("out", "room"), [([head(0)[:15]], [1]), ([head(0)], []), ([], [512, 1])])
def test_a_request_without_header_or_status_breaks_the_rules(
    image: Path, out: list[bytes], room: list[int]
) -> None:
    """The device needs a reset."""
    with Driver(Block(RawFile(image))) as driver:
        with pytest.raises(ValueError, match="unpack"):
            driver.request(out, room)
        assert driver.get(Register.STATUS) & Status.NEEDS_RESET


def test_a_read_only_disk_refuses_all_that_changes_it(image: Path) -> None:
    """And says so by its feature bit; two machines may have it."""
    before = image.read_bytes()
    with (
        Driver(Block(RawFile(image, read_only=True))) as driver,
        Driver(Block(RawFile(image, read_only=True))),
    ):
        assert driver.get(Register.DEVICE_FEATURES) & BlockFeature.RO
        for request in (
            [head(Request.OUT), bytes(512)],
            [head(Request.DISCARD), segment(0, 1)],
            [head(Request.WRITE_ZEROES), segment(0, 1)],
        ):
            assert driver.request(request, [1])[1] == IO_ERROR
    assert image.read_bytes() == before


def test_the_hosts_errors_reach_the_guest_and_once_the_user(image: Path) -> None:
    """A full disk, and an image that has become shorter."""
    told: list[str] = []

    class Full(RawFile):
        """A file on a full file system."""

        def write(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for kind in (RawFile, Full):
        raw = kind(image)
        raw.fd = raw.fd if kind is RawFile else -1
        with Driver(Block(raw, on_error=told.append)) as driver:
            if kind is Full:
                assert driver.request([head(Request.OUT), bytes(512)], [1])[1] == IO_ERROR
            os.truncate(image, 1024)
            for _ in range(2 if kind is RawFile else 0):
                assert driver.request([head(Request.IN, 2)], [512, 1])[1][-1:] == IO_ERROR
            assert driver.request([head(Request.IN)], [512, 1])[1][-1:] == OK
    assert [line.split(":")[1].split(";")[0].strip() for line in told] == [
        "the image has become shorter than it was",
        os.strerror(errno.ENOSPC),
    ]


_STEP = st.tuples(
    st.sampled_from(["read", "write", "zero", "discard"]),
    st.integers(0, SECTORS - 1),
    st.integers(0, SECTORS),
)


@settings(max_examples=40)
@given(steps=st.lists(_STEP, max_size=12), cuts=st.lists(st.integers(1, 3000), max_size=3))
def test_an_overlay_reads_as_written_and_leaves_its_base_alone(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], cuts: list[int]
) -> None:
    """Against a plain array of bytes, whatever is written where, however it is cut."""
    path = tmp_path_factory.mktemp("overlay") / "base.img"
    base = bytes(n % 251 for n in range(SECTORS * 512))
    path.write_bytes(base)
    model, overlay = bytearray(base), Overlay(RawFile(path, read_only=True))
    for number, (what, sector, sectors) in enumerate(steps):
        at, size = sector * 512, min(sectors, SECTORS - sector) * 512
        if what == "write" and size:
            data = bytes([number + 1]) * size
            overlay.write(pieces(memoryview(data), cuts), at)
            model[at : at + size] = data
        elif what == "zero":
            overlay.zero(at, size, may_unmap=True)
            model[at : at + size] = bytes(size)
        elif what == "discard":
            overlay.discard(at, size)
    out = bytearray(SECTORS * 512)
    overlay.read(pieces(memoryview(out), cuts), 0)
    overlay.close()
    assert out == model
    assert path.read_bytes() == base


def pieces(whole: memoryview, cuts: list[int]) -> list[memoryview]:
    out = []
    for cut in cuts:
        out.append(whole[:cut])
        whole = whole[cut:]
    return [piece for piece in (*out, whole) if len(piece)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class FakeMachine:
    """As much of a machine as its options need."""

    def __init__(self) -> None:
        self.devices: list[Any] = []
        self.virtio = self

    def add(self, device: Any) -> None:
        self.devices.append(device)


def test_the_option_disk(image: Path, tmp_path: Path) -> None:
    """FILE with its words; what is wrong with it is one line, and nothing stays open."""
    machine: Any = FakeMachine()
    other = tmp_path / "with,comma"
    other.write_bytes(bytes(512))
    options = {"disks": [f"{image},snapshot,serial=x", str(other).replace(",", ",,")], "rng": True}
    assert add_devices(machine, options) == ["virtio_mmio", "virtio_blk", "virtio_blk", "virtio_rng"]
    assert isinstance(machine.devices[0].backend, Overlay)
    short = tmp_path / "short"
    short.write_bytes(bytes(700))
    count = open_files()
    for text, error, words in (
        (f"{image},ro,snapshot", ConfigError, "not both"),
        (f"{image},what", ConfigError, "none of ro, snapshot"),
        (f"{short}", ConfigError, "no whole sectors"),
        (f"{image},ro,serial={'x' * 21}", ConfigError, "at most 20"),
        (f"{other},ro".replace(",comma", ",,comma"), ImageError, "another machine uses"),
        (f"{tmp_path}", ImageError, "disk image"),
        (f"{tmp_path}/none", ImageError, "no such file"),
    ):
        with pytest.raises(error, match=words) as raised:
            add_devices(machine, {"disks": [text]})
        assert "\n" not in str(raised.value)
    assert open_files() == count
    for device in machine.devices:
        device.close()
