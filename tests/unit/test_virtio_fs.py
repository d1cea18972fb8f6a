"""The shared folder: what a guest can do in it, and that it can do nothing outside."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import Driver

from pykvm.devices.virtio.device import Feature
from pykvm.devices.virtio.fs import Fs
from pykvm.devices.virtio.fuse import IN_HEADER, OUT_HEADER
from pykvm.devices.virtio.host_folder import ROOT, HostFolder
from pykvm.devices.virtio.mmio import Register, Status
from pykvm.errors import ConfigError
from pykvm.linux.initramfs import Job
from pykvm.linux.options import add_devices

LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR = 1, 3, 4, 5, 6, 8, 9, 10, 11
RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE, INIT, OPENDIR, READDIR = (
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    26,
    27,
    28,
)
CREATE, RENAME2 = 35, 45


class Client:
    """A guest's file system, reduced to its requests."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.device = Fs(HostFolder(folder, read_only=read_only), "tag")
        self.driver = Driver(self.device, features=int(Feature.VERSION_1))

    def __enter__(self) -> Client:  # noqa: PYI034 - nobody derives from it
        return self

    def __exit__(self, *exc: object) -> None:
        self.driver.__exit__(*exc)

    def ask(self, opcode: int, node: int, body: bytes = b"", room: int = 4096) -> tuple[int, bytes]:
        """(errno, the answer)."""
        head = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, 77, node, 0, 0, 0, 0, 0)
        written, data = self.driver.request([head + body], [OUT_HEADER.size, room], queue=1)
        size, error, unique = OUT_HEADER.unpack_from(data)
        assert (size, unique) == (written, 77)
        return -error, data[OUT_HEADER.size : size]

    def node(self, name: bytes, parent: int = ROOT) -> int:
        error, answer = self.ask(LOOKUP, parent, name + b"\0")
        assert error == 0, os.strerror(error)
        return int(struct.unpack_from("<Q", answer)[0])

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        error, answer = self.ask(OPEN, node, struct.pack("<II", flags, 0))
        assert error == 0, os.strerror(error)
        return int(struct.unpack_from("<Q", answer)[0])

    def names(self, node: int = ROOT) -> list[bytes]:
        _, answer = self.ask(OPENDIR, node, bytes(8))
        (handle,) = struct.unpack_from("<Q", answer)
        found: list[bytes] = []
        offset = 0
        while True:
            _, entries = self.ask(READDIR, node, struct.pack("<QQI12x", handle, offset, 128))
            if not entries:
                return found
            at = 0
            while at < len(entries):
                _, offset, size, _ = struct.unpack_from("<QQII", entries, at)
                found.append(entries[at + 24 : at + 24 + size])
                at += (24 + size + 7) & ~7


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "file").write_bytes(b"contents of a file")
    (folder / "out").symlink_to("../secret")
    os.mkfifo(folder / "pipe")
    return folder


def test_a_session_reads_writes_and_renames(share: Path) -> None:
    """What a guest does with files and folders is done on the host."""
    with Client(share) as client:
        assert client.driver.config(0, 40) == b"tag".ljust(36, b"\0") + struct.pack("<I", 1)
        error, answer = client.ask(INIT, 0, struct.pack("<IIII", 7, 36, 1 << 20, 0xFFFFFFFF))
        assert (error, struct.unpack_from("<II", answer), len(answer)) == (0, (7, 31), 64)
        assert sorted(client.names()) == [b".", b"..", b"file", b"out", b"pipe"]
        handle = client.open(client.node(b"file"))
        assert client.ask(READ, 0, struct.pack("<QQI20x", handle, 3, 8)) == (0, b"tents of")
        body = struct.pack("<QQI20x", handle, 9, 3) + b"XYZ"
        assert client.ask(WRITE, 0, body) == (0, struct.pack("<II", 3, 0))
        assert client.ask(RELEASE, 0, struct.pack("<Q16x", handle))[0] == 0
        assert (share / "file").read_bytes() == b"contents XYZa file"
        assert client.ask(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"dir\0")[0] == 0
        error, answer = client.ask(
            CREATE, client.node(b"dir"), struct.pack("<IIII", 2, 0o644, 0, 0) + b"new\0"
        )
        assert (error, len(answer)) == (0, 128 + 16)
        move = struct.pack("<Q", ROOT) + b"new\0moved\0"
        assert client.ask(RENAME, client.node(b"dir"), move)[0] == 0
        move = struct.pack("<QII", ROOT, 1, 0) + b"moved\0file\0"
        assert client.ask(RENAME2, ROOT, move)[0] == errno.EEXIST
        assert client.ask(RMDIR, ROOT, b"dir\0")[0] == 0
        assert client.ask(SYMLINK, ROOT, b"link\0file\0")[0] == 0
        assert client.ask(READLINK, client.node(b"link")) == (0, b"file")
        link = struct.pack("<Q", client.node(b"moved")) + b"hard\0"
        assert client.ask(LINK, ROOT, link)[0] == 0
        assert client.ask(UNLINK, ROOT, b"moved\0")[0] == 0
        size = struct.pack("<IIQQQQQQIIIIIIII", 1 | 8, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)
        assert client.ask(SETATTR, client.node(b"hard"), size)[0] == 0
        assert client.ask(STATFS, ROOT)[0] == 0
    about = (share / "hard").stat()
    assert (about.st_size, about.st_mode & 0o777) == (5, 0o600)
    assert (share / "link").readlink() == Path("file")


@pytest.mark.parametrize("name", [b"..", b".", b"", b"../secret", b"/etc/passwd", b"a/b", b"x" * 256])
def test_no_name_leads_out(share: Path, name: bytes) -> None:
    """Not in a look-up, not where something is made, removed, or moved."""
    with Client(share) as client:
        two = struct.pack("<Q", ROOT)
        assert client.ask(LOOKUP, ROOT, name + b"\0")[0] in (errno.EINVAL, errno.ENAMETOOLONG)
        for opcode, body in (
            (MKDIR, bytes(8) + name + b"\0"),
            (MKNOD, struct.pack("<IIII", 0o100644, 0, 0, 0) + name + b"\0"),
            (CREATE, struct.pack("<IIII", 0o102, 0o644, 0, 0) + name + b"\0"),
            (SYMLINK, name + b"\0target\0"),
            (UNLINK, name + b"\0"),
            (RENAME, two + name + b"\0new\0"),
            (RENAME, two + b"file\0" + name + b"\0"),
            (LINK, struct.pack("<Q", client.node(b"file")) + name + b"\0"),
        ):
            assert client.ask(opcode, ROOT, body)[0] in (errno.EINVAL, errno.ENAMETOOLONG)
    assert sorted(path.name for path in share.iterdir()) == ["file", "out", "pipe"]


def test_links_pipes_and_devices_are_not_opened_on_the_host(share: Path) -> None:
    """A link is the guest's to follow; what is neither file nor folder can't be opened, devices not made."""
    with Client(share) as client:
        assert client.ask(OPEN, client.node(b"out"), bytes(8))[0] == errno.ELOOP
        assert client.ask(OPEN, client.node(b"pipe"), bytes(8))[0] == errno.EPERM
        assert client.ask(LOOKUP, client.node(b"out"), b"x\0")[0] == errno.ENOTDIR
        create = struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"out\0"
        assert client.ask(CREATE, ROOT, create)[0] == errno.ELOOP
        node = struct.pack("<IIII", 0o60644, 0x700, 0, 0) + b"disk\0"
        assert client.ask(MKNOD, ROOT, node)[0] == errno.EPERM
    assert (share.parent / "secret").read_text() == "secret"


def test_a_read_only_share_changes_nothing(share: Path) -> None:
    """Everything that would is EROFS."""
    with Client(share, read_only=True) as client:
        file = client.node(b"file")
        handle = client.open(file, os.O_RDONLY)
        for opcode, node, body in (
            (OPEN, file, struct.pack("<II", os.O_WRONLY, 0)),
            (OPEN, file, struct.pack("<II", os.O_TRUNC, 0)),
            (WRITE, file, struct.pack("<QQI20x", handle, 0, 1) + b"x"),
            (MKDIR, ROOT, bytes(8) + b"dir\0"),
            (UNLINK, ROOT, b"file\0"),
            (SETATTR, file, struct.pack("<IIQQQQQQIIIIIIII", 8, *[0] * 15)),
            (RENAME, ROOT, struct.pack("<Q", ROOT) + b"file\0new\0"),
            (CREATE, ROOT, struct.pack("<IIII", 2, 0o644, 0, 0) + b"new\0"),
            (SYMLINK, ROOT, b"a\0b\0"),
            (LINK, ROOT, struct.pack("<Q", file) + b"b\0"),
        ):
            assert client.ask(opcode, node, body)[0] == errno.EROFS, opcode
        assert client.ask(READ, 0, struct.pack("<QQI20x", handle, 0, 8)) == (0, b"contents")
    assert (share / "file").read_bytes() == b"contents of a file"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 50), st.integers(0, 2**32 - 1)),
            st.integers(0, 6),
            st.one_of(
                st.binary(max_size=100),
                st.tuples(st.integers(0, 4), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)).map(
                    lambda n: struct.pack("<QQI60x", *n)
                ),
            ),
        ),
        max_size=6,
    )
)
def test_no_request_raises_or_gets_out(share: Path, requests: list[Any]) -> None:
    """Any operation with any body is answered, or breaks the rules; what is outside stays as it is."""
    with Client(share) as client:
        for opcode, node, body in requests:
            head = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, 1, node, 0, 0, 0, 0, 0)
            client.driver.request([head, body] if body else [head], [16, 64], queue=1)
        client.driver.put(Register.STATUS, 0)
    assert (share.parent / "secret").read_text() == "secret"
    assert sorted(path.name for path in share.parent.iterdir()) == ["secret", "share"]


def test_a_request_without_a_header_breaks_the_rules(share: Path) -> None:
    """The device needs a reset."""
    with Client(share) as client:
        with pytest.raises(ValueError, match="unpack"):
            client.driver.request([bytes(39)], [16], queue=1)
        assert client.driver.get(Register.STATUS) & Status.NEEDS_RESET


class FakeMachine:
    """As much of a machine as its options need."""

    def __init__(self) -> None:
        self.devices: list[Any] = []
        self.virtio = self

    def add(self, device: Any) -> None:
        self.devices.append(device)


def test_the_option_share(share: Path) -> None:
    """DIR[:/PATH][,ro]: the guest's first process mounts them; what is wrong is one line."""
    machine: Any = FakeMachine()
    job = Job()
    add_devices(machine, {"shares": [f"{share},ro", f"{share}:/other"]}, job)
    assert job.lines[1:] == [
        *("mount virtiofs share0 /share ro", "dir /share", "mount virtiofs share1 /other rw"),
    ]
    for text, words in ((f"{share}/none", "No such file"), (f"{share},rw", "is not ro")):
        with pytest.raises(ConfigError, match=words):
            add_devices(machine, {"shares": [text]})
    with pytest.raises(ConfigError, match="say where"):
        add_devices(machine, {"shares": [str(share), str(share)]})
    for device in machine.devices:
        device.close()
