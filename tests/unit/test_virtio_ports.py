"""Several ports of one console device: names, openings, bytes both ways, and drivers that break the rules."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from virtio_driver import BUFFERS_AT, WRITE, Driver, pump

from pykvm.devices.virtio.mmio import Register
from pykvm.devices.virtio.ports import Control, Ports
from pykvm.errors import ConfigError
from pykvm.linux.initramfs import Job
from pykvm.linux.options import add_devices

if TYPE_CHECKING:
    from pathlib import Path

FEATURES = 1 << 32 | 1 << 1
ROOM = 0x2_0000


def offer(driver: Driver, queue: int, count: int = 8, size: int = 64) -> None:
    """Buffers for what the device has to say."""
    ring = driver.rings[queue]
    for index in range(count):
        ring.descriptor(index, 0x8_0000 + queue * ROOM // 8 + index * 256, size, WRITE)
        ring.offer(index)
    driver.put(Register.QUEUE_NOTIFY, queue)


def received(driver: Driver, queue: int) -> list[bytes]:
    at = 0x8_0000 + queue * ROOM // 8
    return [driver.memory.read(at + head * 256, size) for head, size in driver.rings[queue].returned()]


def say(driver: Driver, port: int, event: int, value: int) -> None:
    driver.request([struct.pack("<IHH", port, event, value)], queue=3)


def told(driver: Driver) -> list[tuple[int, int, int, bytes]]:
    return [(*struct.unpack_from("<IHH", message), message[8:]) for message in received(driver, 2)]


def test_ports_have_names_and_carry_bytes(tmp_path: Path) -> None:
    """The driver learns of each; a program comes, both talk, it goes, another may come; nothing is left."""
    paths = [tmp_path / "first", tmp_path / "second"]
    device = Ports([("one", paths[0]), ("two", paths[1])])
    with Driver(device, features=FEATURES) as driver:
        assert struct.unpack("<HHI", driver.config(0, 8)) == (0, 0, 2)
        offer(driver, 2)
        say(driver, 0xFFFFFFFF, Control.DEVICE_READY, 1)
        assert told(driver) == [(0, Control.DEVICE_ADD, 1, b""), (1, Control.DEVICE_ADD, 1, b"")]
        say(driver, 1, Control.PORT_READY, 1)
        assert told(driver) == [(1, Control.PORT_NAME, 1, b"two\0"), (1, Control.PORT_OPEN, 0, b"")]
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(paths[1]))
            program.settimeout(10)
            pump(driver, device)
            assert told(driver) == [(1, Control.PORT_OPEN, 1, b"")]
            driver.request([b"from ", b"the guest"], queue=5)
            assert program.recv(100) == b"from the guest"
            program.sendall(b"from the host")
            offer(driver, 4, size=8)
            pump(driver, device)
            assert received(driver, 4) == [], "nobody has opened it"
            say(driver, 1, Control.PORT_OPEN, 1)
            pump(driver, device)
            assert received(driver, 4) == [b"from the", b" host"]
        pump(driver, device)
        assert told(driver) == [(1, Control.PORT_OPEN, 0, b"")]
        driver.request([b"to nobody"], queue=5)
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(paths[1]))
            pump(driver, device)
            assert told(driver) == [(1, Control.PORT_OPEN, 1, b"")]
            driver.put(Register.STATUS, 0)
            assert program.recv(1) == b"", "a reset hangs up"
        assert not driver.transport.problem
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_takes_nothing_stops_the_guest_and_nobody_else(tmp_path: Path) -> None:
    """What waits for it has a limit; requests beyond stay in the ring until it reads."""
    device = Ports([("one", tmp_path / "p")])
    with Driver(device, features=FEATURES) as driver, socket.socket(socket.AF_UNIX) as program:
        offer(driver, 2)
        say(driver, 0, Control.PORT_READY, 1)
        program.connect(str(tmp_path / "p"))
        pump(driver, device)
        ring, sent = driver.rings[1], 0
        driver.memory.write(BUFFERS_AT, bytes(0x1_0000))
        ring.descriptor(0, BUFFERS_AT, 0x1_0000)
        while sent < 64:
            ring.offer(0)
            driver.put(Register.QUEUE_NOTIFY, 1)
            sent += 1
            if not ring.returned():
                break
        assert 4 < sent < 64
        program.setblocking(False)
        taken = 0
        for _ in range(1000):
            pump(driver, device)
            try:
                taken += len(program.recv(1 << 20))
            except BlockingIOError:
                break
        assert taken == sent << 16


def test_drivers_that_break_the_rules(tmp_path: Path) -> None:
    """Half a message; questions whose answers nobody takes; ports that are not there are no news."""
    for messages, says in (
        ([b"short"], "message of 5 bytes"),
        ([struct.pack("<IHH", 0, 3, 1)] * 600, "1024"),
    ):
        device = Ports([("one", tmp_path / "p")])
        with Driver(device, features=FEATURES) as driver:
            say(driver, 7, Control.PORT_READY, 1)
            say(driver, 0, 77, 1)
            for message in messages:
                if driver.transport.problem:
                    break
                driver.rings[3].descriptor(0, BUFFERS_AT, len(message))
                driver.memory.write(BUFFERS_AT, message)
                driver.rings[3].offer(0)
                driver.put(Register.QUEUE_NOTIFY, 3)
            assert says in driver.transport.problem


@pytest.mark.parametrize(
    ("ports", "says"),
    [(["x"], "give NAME=PATH"), (["a/b=x"], "give NAME=PATH"), (["a=1", "b="], "give NAME=PATH")],
)
def test_options_that_can_t_be(ports: list[str], says: str, tmp_path: Path) -> None:
    """One line; and no socket is left behind."""
    with pytest.raises(ConfigError, match=says):
        add_devices(None, {"streams": ports}, Job())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a name of its own"):
        Ports([("one", tmp_path / "p"), ("one", tmp_path / "q")])
    with pytest.raises(ConfigError, match="port two"):
        Ports([("one", tmp_path / "p"), ("two", tmp_path / "no" / "p")])
    assert list(tmp_path.iterdir()) == []
