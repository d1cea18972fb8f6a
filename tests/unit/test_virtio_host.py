"""Network card, vsock and balloon, driven without a KVM, with the host's side as it is."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import BUFFERS_AT, MEMORY_BYTES, WRITE, Driver, pump

from pykvm.devices.virtio.balloon import Balloon, BalloonFeature, Statistic
from pykvm.devices.virtio.device import Feature
from pykvm.devices.virtio.mmio import Register
from pykvm.devices.virtio.net import Net, NetFeature, parse_mac
from pykvm.devices.virtio.vsock import HEADER, Op, Vsock
from pykvm.errors import ConfigError
from pykvm.linux.options import add_devices
from pykvm.memory import GuestMemory

V1 = int(Feature.VERSION_1)
MAC = bytes.fromhex("525400123456")
ROOM = 0x2000


def offer_room(driver: Driver, count: int = 8, size: int = 1024, queue: int = 0) -> None:
    """Buffers for what the device receives."""
    ring = driver.rings[queue]
    for index in range(count):
        ring.descriptor(index, 0x8_0000 + index * ROOM, size, WRITE)
        ring.offer(index)
    driver.put(Register.QUEUE_NOTIFY, queue)


def received(driver: Driver, queue: int = 0) -> list[bytes]:
    found = driver.rings[queue].returned()
    return [driver.memory.read(0x8_0000 + head * ROOM, written) for head, written in found]


# ---- network card


def test_frames_pass_both_ways() -> None:
    """Each with the header of its direction; without buffers they wait on the wire."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs, Driver(Net(ours.detach(), MAC)) as driver:
        assert driver.config(0, 12) == MAC + struct.pack("<HHH", 1, 1, 1500)
        driver.request([bytes(12) + b"frame", b" to the host"], queue=1)
        assert theirs.recv(100) == b"frame to the host"
        theirs.send(b"first")
        pump(driver, driver.device)
        assert received(driver) == []
        offer_room(driver)
        theirs.send(b"second")
        pump(driver, driver.device)
        head = struct.pack("<10xH", 1)
        assert received(driver) == [head + b"first", head + b"second"]


def test_a_tap_has_the_driver_s_header_along() -> None:
    """Both ways as it is, but for the number of buffers, which is 1; such a card offers checksums and TSO."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    offloads = NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO6
    with theirs, Driver(Net(ours.detach(), MAC, has_headers=True), features=V1 | offloads) as driver:
        header = bytes([1, 3, 54, 0, 220, 5, 34, 0, 16, 0])
        driver.request([header + b"\0\0", b"segment"], queue=1)
        assert theirs.recv(100) == header + b"\0\0segment"
        offer_room(driver)
        theirs.send(header + b"\0\0from the host")
        pump(driver, driver.device)
        assert received(driver) == [header + b"\1\0from the host"]


def test_frames_that_do_not_fit_are_lost_and_counted() -> None:
    """Into a small buffer, or onto a full wire; a frame without its header breaks the rules."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    device = Net(ours.detach(), MAC)
    with theirs, Driver(device) as driver:
        offer_room(driver, size=64)
        theirs.send(bytes(100))
        theirs.send(b"small")
        pump(driver, device)
        assert [frame[12:] for frame in received(driver)] == [b"small"]
        assert device.dropped == 1
        sent = 0
        while device.dropped == 1 and sent < 10_000:
            driver.request([bytes(12) + bytes(1000)], queue=1)
            sent += 1
        assert device.dropped == 2
        with pytest.raises(ValueError, match="unpack"):
            driver.request([bytes(11)], queue=1)
        assert "less than its header" in driver.transport.problem


def test_the_cable_is_out_when_the_other_end_has_gone() -> None:
    """The link's status says so, and nothing is waited for any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Driver(Net(ours.detach(), MAC), features=V1 | 1 << 16) as driver:
        offer_room(driver)
        theirs.close()
        pump(driver, driver.device)
        assert driver.config(6, 2) == b"\0\0"
        assert driver.device.watched() == {}
        assert driver.get(Register.INTERRUPT_STATUS) & 2


# ---- balloon


def test_a_balloon_gives_pages_back_and_hears_of_the_guests_memory() -> None:
    """Inflated pages and reported ranges go, wrong ones do not; statistics by their names."""
    freed: list[tuple[int, int]] = []

    def free(gpa: int, size: int) -> None:
        if gpa >= MEMORY_BYTES:
            raise OSError(errno.EINVAL, "")
        freed.append((gpa, size))

    features = V1 | BalloonFeature.STATS_VQ | BalloonFeature.REPORTING
    device = Balloon(free, target_bytes=8 << 20)
    with Driver(device, features=features) as driver:
        assert driver.config(0, 8) == struct.pack("<II", 2048, 0)
        driver.request([struct.pack("<4I", 5, 3, 0xFFFFFFFF, 6)])
        assert freed == [(0x3000, 4096), (0x5000, 8192)]
        driver.transport.write(Register.CONFIG + 4, struct.pack("<I", 2))
        assert device.actual_bytes == 8192
        ring = driver.rings[3]
        ring.descriptor(0, 0x8_0800, 0x2800, WRITE)
        ring.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 3)
        assert freed[2:] == [(0x8_1000, 0x2000)]
        assert device.given_back_bytes == 20480
        driver.memory.write(BUFFERS_AT, struct.pack("<HQHQHQ", 4, 1000, 5, 2000, 99, 1))
        stats = driver.rings[2]
        stats.descriptor(0, BUFFERS_AT, 30)
        stats.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 2)
        assert device.statistics == {Statistic.FREE: 1000, Statistic.TOTAL: 2000}
        assert stats.returned() == []
        driver.transport.serve(device.ask)
        assert stats.returned() == [(0, 0)]
        device.set_target(0)
        assert driver.config(0, 4) == bytes(4)


def test_memory_that_is_given_back_reads_as_zeros() -> None:
    """Whole pages; the neighbours stay."""
    with GuestMemory(16 * 4096) as memory:
        memory.write(0, b"\xff" * (16 * 4096))
        memory.discard(4096, 8192)
        assert memory.read(0, 4096) == b"\xff" * 4096
        assert memory.read(4096, 8192) == bytes(8192)
        assert memory.read(12288, 1) == b"\xff"
        with pytest.raises(OSError, match="Invalid"):
            memory.discard(100, 4096)


# ---- vsock


class Guest:
    """A guest's half of the protocol."""

    def __init__(self, path: Path, cid: int = 5) -> None:
        self.device = Vsock(cid, path)
        self.driver = Driver(self.device)
        self.forwarded = 0
        offer_room(self.driver, size=2048)

    def __enter__(self) -> Guest:  # noqa: PYI034 - nobody derives from it
        return self

    def __exit__(self, *exc: object) -> None:
        self.driver.__exit__(*exc)

    def send(self, op: int, host_port: int, data: bytes = b"", *, flags: int = 0, **more: int) -> None:
        given = {"source": 5, "target": 2, "guest_port": 1000, "size": len(data), "room": 65536} | more
        ports = (given["guest_port"], host_port)
        rest = (given["size"], 1, op, flags, given["room"], self.forwarded)
        head = HEADER.pack(given["source"], given["target"], *ports, *rest)
        self.driver.request([head, data] if data else [head], queue=1)

    def heard(self) -> list[tuple[int, int, bytes]]:
        """(operation, host port, data) of each packet; its buffer is offered again."""
        pump(self.driver, self.device)
        found = []
        ring = self.driver.rings[0]
        for head, written in ring.returned():
            packet = self.driver.memory.read(0x8_0000 + head * ROOM, written)
            fields = HEADER.unpack_from(packet)
            assert fields[:2] == (2, 5)
            assert fields[4] == len(packet) - HEADER.size
            found.append((fields[6], fields[2], packet[HEADER.size :]))
            ring.offer(head)
        self.driver.put(Register.QUEUE_NOTIFY, 0)
        return found


def test_the_guest_connects_to_a_program_of_the_host(tmp_path: Path) -> None:
    """Data both ways, the end of each; a port where nobody listens is refused."""
    with socket.socket(socket.AF_UNIX) as listener, Guest(tmp_path / "v") as guest:
        listener.bind(str(tmp_path / "v_80"))
        listener.listen()
        guest.send(Op.REQUEST, 81)
        assert guest.heard() == [(Op.RST, 81, b"")]
        guest.send(Op.REQUEST, 80)
        assert guest.heard() == [(Op.RESPONSE, 80, b"")]
        program, _ = listener.accept()
        with program:
            guest.send(Op.RW, 80, b"hello")
            assert program.recv(100) == b"hello"
            program.send(b"answer")
            assert guest.heard() == [(Op.RW, 80, b"answer")]
            program.shutdown(socket.SHUT_WR)
            assert guest.heard() == [(Op.SHUTDOWN, 80, b"")]
            guest.send(Op.SHUTDOWN, 80, flags=3)
            assert guest.heard() == [(Op.RST, 80, b"")]
            assert program.recv(1) == b""
    assert not (tmp_path / "v").exists()


def test_a_program_of_the_host_connects_to_the_guest(tmp_path: Path) -> None:
    """By its line; the guest's answer; and a line that says something else ends it."""
    with Guest(tmp_path / "v") as guest:
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(tmp_path / "v"))
            program.send(b"CONNECT 1000\nearly")
            ((op, port, _),) = guest.heard()
            assert op == Op.REQUEST
            guest.send(Op.RESPONSE, port)
            assert program.recv(100) == f"OK {port}\n".encode()
            assert guest.heard() == [(Op.RW, port, b"early")]
        for line in (b"CONNECT x\n", b"GET / HTTP/1.0\n", b"CONNECT 4294967296\n", b"x" * 40):
            with socket.socket(socket.AF_UNIX) as program:
                program.connect(str(tmp_path / "v"))
                program.send(line)
                pump(guest.driver, guest.device)
                program.settimeout(5)
                with pytest.raises(ConnectionResetError) if len(line) > 32 else no_error():
                    assert program.recv(1) == b""


class no_error:  # noqa: N801 - as contextlib's
    """A block that raises nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


def test_nobody_sends_more_than_the_other_has_room_for(tmp_path: Path) -> None:
    """The guest's credit is kept; a guest that does not keep ours loses its stream, and it alone."""
    with socket.socket(socket.AF_UNIX) as listener, Guest(tmp_path / "v") as guest:
        listener.bind(str(tmp_path / "v_80"))
        listener.listen()
        guest.send(Op.REQUEST, 80, room=10)
        guest.send(Op.REQUEST, 80, guest_port=1001)
        assert len(guest.heard()) == 2
        program, other = listener.accept()[0], listener.accept()[0]
        with program, other:
            program.send(b"x" * 25)
            assert guest.heard() == [(Op.RW, 80, b"x" * 10)]
            guest.forwarded = 10
            guest.send(Op.CREDIT_UPDATE, 80, room=10)
            assert guest.heard() == [(Op.RW, 80, b"x" * 10)]
            guest.send(Op.CREDIT_REQUEST, 80, room=10)
            assert guest.heard() == [(Op.CREDIT_UPDATE, 80, b"")]
            heard: list[Any] = []
            for _ in range(40):
                guest.send(Op.RW, 80, b"y" * 30_000, room=10)
                heard += guest.heard()
            assert (Op.RST, 80, b"") in heard
            guest.send(Op.RW, 80, b"fine", guest_port=1001)
            assert other.recv(10) == b"fine"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packets=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([80, 81, 0xFFFFFFFF]),
            st.binary(max_size=40),
            st.integers(0, 3),
            st.fixed_dictionaries(
                {},
                optional={
                    "source": st.sampled_from([0, 2, 6]),
                    "target": st.sampled_from([0, 1, 5]),
                    "size": st.sampled_from([0, 41, 0xFFFFFFFF]),
                    "room": st.sampled_from([0, 1, 0xFFFFFFFF]),
                    "guest_port": st.integers(1000, 1002),
                },
            ),
        ),
        max_size=10,
    )
)
def test_no_packet_raises_or_keeps_it_from_resting(tmp_path: Path, packets: list[Any]) -> None:
    """Whatever operations, ports, lengths and credits come in whatever order."""
    path = Path(f"{tmp_path}/v{os.urandom(4).hex()}")
    with socket.socket(socket.AF_UNIX) as listener, Guest(path) as guest:
        listener.bind(f"{path}_80")
        listener.listen()
        for op, port, data, flags, more in packets:
            guest.send(op, port, data, flags=flags, **more)
            guest.heard()
        pump(guest.driver, guest.device)
        guest.driver.put(Register.STATUS, 0)


# ---- options


class FakeMachine:
    """As much of a machine as its options need."""

    def __init__(self) -> None:
        self.devices: list[Any] = []
        self.virtio = self
        self.memory = self

    def add(self, device: Any) -> None:
        self.devices.append(device)

    def discard(self, gpa: int, size: int) -> None:
        """Nothing is there to be freed."""


def test_the_options_of_these_devices(tmp_path: Path) -> None:
    """What is wrong with one is one line."""
    machine: Any = FakeMachine()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        net = f"fd={ours.fileno()},mac=52:54:00:00:00:01"
        wanted = {"nets": [net], "vsock": f"3:{tmp_path}/v", "balloon": "4M"}
        modules = ["virtio_mmio", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon"]
        assert add_devices(machine, wanted) == modules
        assert machine.devices[0].config()[:6] == bytes.fromhex("525400000001")
    folder = os.open(tmp_path, os.O_RDONLY)
    for options, words in (
        ({"nets": ["what"]}, "give user, tap"),
        ({"nets": ["fd=9999"]}, "Bad file"),
        ({"nets": [f"fd={folder}"]}, "no socket"),
        ({"nets": ["tap,mtu=9"]}, "not mac="),
        ({"nets": ["tap,mac=01:00:00:00:00:00"]}, "no address"),
        ({"nets": ["tap=" + "x" * 16]}, "16 bytes"),
        ({"vsock": "x"}, "give CID:PATH"),
        ({"vsock": f"2:{tmp_path}/w"}, "none of a guest"),
        ({"vsock": f"3:{tmp_path}/none/w"}, "No such file"),
        ({"vsock": f"3:{tmp_path}/v"}, "in use"),
        ({"balloon": "x"}, "no size"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            add_devices(machine, options)
        assert "\n" not in str(raised.value)
    os.close(folder)
    for device in machine.devices:
        device.close()
    with pytest.raises(ConfigError):
        parse_mac("52:54:00:12:34")
