"""An invented driver: it sets a device up over its registers, and fills the rings as it likes."""

from __future__ import annotations

import select
import struct
from typing import TYPE_CHECKING, Self

from pykvm.devices.virtio.mmio import Register, Status, Transport
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.devices.virtio.device import VirtioDevice

__all__ = ["INDIRECT", "NEXT", "WRITE", "Driver", "Ring", "pump"]

NEXT, WRITE, INDIRECT = 1, 2, 4
MEMORY_BYTES = 1 << 20
BUFFERS_AT = 0x4_0000
RINGS_AT = 0x1_0000
RING_BYTES = 0x4000


class Ring:
    """A queue's rings in guest memory, at fixed places; a driver's half."""

    def __init__(self, memory: GuestMemory, number: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.descriptors = RINGS_AT + number * RING_BYTES
        self.available = self.descriptors + 0x1000
        self.used = self.descriptors + 0x2000
        self.next = 0
        self.seen = 0
        memory.write(self.descriptors, bytes(RING_BYTES))

    def descriptor(self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.descriptors + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, head: int, *, count: int = 1) -> None:
        at = self.available + 4 + 2 * (self.next % self.size)
        self.memory.write(at, struct.pack("<H", head))
        self.next = (self.next + count) & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.next))

    def returned(self) -> list[tuple[int, int]]:
        """(head, written) of what the device has used since this was asked last."""
        (index,) = struct.unpack("<H", self.memory.read(self.used + 2, 2))
        found = []
        while self.seen != index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack("<II", self.memory.read(at, 8)))
            self.seen = (self.seen + 1) & 0xFFFF
        return found


class Driver:
    """A device with its driver: initialised as section 3.1.1 of virtio 1.2 has it, unless told otherwise."""

    def __init__(
        self, device: VirtioDevice, *, features: int = 1 << 32, size: int = 8, start: bool = True
    ) -> None:
        self.memory = GuestMemory(MEMORY_BYTES)
        self.interrupts = 0
        self.device = device
        self.transport = Transport(device, self.memory, interrupt=self._interrupted)
        self.rings = [Ring(self.memory, n, min(size, most)) for n, most in enumerate(device.queue_sizes)]
        if start:
            self.start(features)

    def _interrupted(self) -> None:
        self.interrupts += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.device.close()
        self.memory.close()

    def get(self, register: int) -> int:
        return int.from_bytes(self.transport.read(register, 4), "little")

    def put(self, register: int, value: int) -> None:
        self.transport.write(register, struct.pack("<I", value))

    def config(self, offset: int, size: int) -> bytes:
        return self.transport.read(Register.CONFIG + offset, size)

    def start(self, features: int) -> None:
        self.put(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER)
        for word in (0, 1):
            self.put(Register.DRIVER_FEATURES_SEL, word)
            self.put(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFFFFFF)
        self.put(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        for number, ring in enumerate(self.rings):
            self.set_up(number, ring)
        self.put(Register.STATUS, 0xF)

    def set_up(self, number: int, ring: Ring) -> None:
        self.put(Register.QUEUE_SEL, number)
        self.put(Register.QUEUE_NUM, ring.size)
        for register, gpa in ((0x80, ring.descriptors), (0x90, ring.available), (0xA0, ring.used)):
            self.put(register, gpa & 0xFFFFFFFF)
            self.put(register + 4, gpa >> 32)
        self.put(Register.QUEUE_READY, 1)

    def request(
        self, out: Sequence[bytes] = (), room: Sequence[int] = (), *, queue: int = 0
    ) -> tuple[int, bytes]:
        """Send `out`, with room for answers behind it: how much was written, and the room as it is then."""
        ring, at, places = self.rings[queue], BUFFERS_AT, []
        pieces = [(part, 0) for part in out] + [(bytes(size), WRITE) for size in room]
        for index, (data, flags) in enumerate(pieces):
            more = NEXT if index + 1 < len(pieces) else 0
            self.memory.write(at, data)
            ring.descriptor(index, at, len(data), flags | more, index + 1)
            places.append((at, len(data), flags))
            at += len(data)
        ring.offer(0)
        self.put(Register.QUEUE_NOTIFY, queue)
        ((head, written),) = ring.returned()
        assert head == 0
        return written, b"".join(self.memory.read(gpa, size) for gpa, size, flags in places if flags & WRITE)


def pump(driver: Driver, device: VirtioDevice) -> None:
    """What a worker does until nothing is ready."""
    for _ in range(200):
        poll = select.poll()
        for fd, mask in device.watched().items():
            poll.register(fd, mask)
        ready = poll.poll(0)
        if not ready:
            return
        for fd, _ in ready:
            driver.transport.serve(lambda fd=fd: device.on_ready(fd))
    raise AssertionError("it never rests")
