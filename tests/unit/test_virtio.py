"""The virtio transport and queue: what good drivers get, and what hostile ones don't."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import BUFFERS_AT, INDIRECT, MEMORY_BYTES, NEXT, WRITE, Driver

from pykvm.devices.virtio.console import Console
from pykvm.devices.virtio.device import Feature, VirtioDevice
from pykvm.devices.virtio.mmio import PAGE_BYTES, Register, Status
from pykvm.devices.virtio.queue import Queue, QueueError
from pykvm.devices.virtio.rng import Rng

V1 = int(Feature.VERSION_1)
TABLE_AT = 0x8_0000


class Echo(VirtioDevice):
    """Copies what it reads into what it may write; two queues."""

    device_id = 42
    features = 1 << 3
    queue_sizes = (8, 16)
    name = "echo"

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []  # buffers of each chain
        self.is_active = False

    def config(self) -> bytes:
        return b"config"

    def activate(self) -> None:
        self.is_active = True

    def deactivate(self) -> None:
        self.is_active = False

    def on_notify(self, index: int) -> None:
        queue = self.queues[index]
        while True:
            while chain := queue.pop():
                assert all(len(piece) for piece in (*chain.readable, *chain.writable))
                assert len(chain.readable) + len(chain.writable) == len(chain.places)
                self.served.append(len(chain.places))
                queue.push(chain, chain.write(chain.read()))
            if queue.is_idle():
                return


def test_the_way_of_one_request() -> None:
    """Identity, features, set-up, a chain of several buffers there and back, one interrupt; then a reset."""
    device = Echo()
    with Driver(device, features=V1 | 1 << 3) as driver:
        words = [driver.get(register) for register in (0, 4, 8, Register.STATUS)]
        assert words == [0x74726976, 2, 42, 0xF]
        assert device.accepted == V1 | 1 << 3
        assert driver.request([b"abc", b"defgh"], [2, 4, 10]) == (8, b"abcdefgh" + bytes(8))
        assert (driver.interrupts, driver.get(Register.INTERRUPT_STATUS)) == (1, 1)
        driver.put(Register.STATUS, 0)
        assert (device.is_active, driver.get(Register.STATUS), device.accepted) == (False, 0, 0)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert len(device.served) == 1
        driver.rings[0].next = 0
        driver.start(V1)
        assert device.is_active


def test_registers_that_are_not_there() -> None:
    """No queue, no third word of features, no shared memory; odd accesses and reads past the end are 0."""
    with Driver(Echo()) as driver:
        driver.put(Register.QUEUE_SEL, 2)
        driver.put(Register.QUEUE_NUM, 4)
        driver.put(Register.QUEUE_READY, 1)
        assert (driver.get(Register.QUEUE_NUM_MAX), driver.get(Register.QUEUE_READY)) == (0, 0)
        driver.put(Register.DEVICE_FEATURES_SEL, 0xFFFFFFFF)
        assert driver.get(Register.DEVICE_FEATURES) == 0
        assert driver.get(Register.SHM_LEN_LOW) == 0xFFFFFFFF
        driver.put(Register.QUEUE_NOTIFY, 77)
        driver.transport.write(Register.STATUS, b"\0")
        driver.transport.write(Register.STATUS + 1, bytes(4))
        assert driver.get(Register.STATUS) == 0xF
        assert driver.config(0, 8) == b"config\0\0"
        assert driver.transport.read(PAGE_BYTES - 2, 8) == bytes(8)
        assert driver.transport.read(PAGE_BYTES + 5, 4) == bytes(4)
        driver.transport.write(PAGE_BYTES - 1, bytes(8))


@pytest.mark.parametrize("features", [0, V1 | 1 << 5, 1 << 3])
def test_features_that_can_t_be_are_refused(features: int) -> None:
    """Without VERSION_1, or with one that was not offered, FEATURES_OK does not stay."""
    with Driver(Echo(), start=False) as driver:
        driver.start(features)
        assert not driver.get(Register.STATUS) & Status.FEATURES_OK
        assert not driver.get(Register.QUEUE_READY)


def test_an_indirect_table_is_one_descriptor() -> None:
    """Its buffers are the chain's; another inside it, or one without the feature, is refused."""
    with Driver(Echo(), features=V1 | Feature.INDIRECT_DESC) as driver:
        ring = driver.rings[0]
        driver.memory.write(BUFFERS_AT, b"indirect")
        table = struct.pack("<QIHH", BUFFERS_AT, 8, NEXT, 1) + struct.pack(
            "<QIHH", BUFFERS_AT + 64, 8, WRITE, 0
        )
        driver.memory.write(TABLE_AT, table)
        ring.descriptor(3, TABLE_AT, 32, INDIRECT)
        ring.offer(3)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert ring.returned() == [(3, 8)]
        assert driver.memory.read(BUFFERS_AT + 64, 8) == b"indirect"
        driver.memory.write(TABLE_AT, struct.pack("<QIHH", TABLE_AT, 16, INDIRECT, 0))
        ring.offer(3)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert "indirect descriptor that may not be there" in driver.transport.problem


def test_the_event_index_suppresses_interrupts_and_notifications() -> None:
    """An interrupt comes when the used index passes what the driver named; the device names its own."""
    with Driver(Echo(), features=V1 | Feature.EVENT_IDX) as driver:
        ring = driver.rings[0]
        driver.memory.write(ring.available + 4 + 2 * ring.size, struct.pack("<H", 2))
        counts = []
        for _ in range(4):
            driver.request([b"x"], [1])
            counts.append(driver.interrupts)
        assert counts == [0, 0, 1, 1]
        event = driver.memory.read(ring.used + 4 + 8 * ring.size, 2)
        assert event == struct.pack("<H", 4)


def test_without_the_event_index_a_flag_suppresses_interrupts() -> None:
    """VIRTQ_AVAIL_F_NO_INTERRUPT."""
    with Driver(Echo()) as driver:
        driver.memory.write(driver.rings[0].available, struct.pack("<H", 1))
        driver.request([b"x"], [1])
        assert driver.interrupts == 0


def hostile(driver: Driver, kind: str) -> None:
    ring = driver.rings[0]
    outside = {
        "outside": (MEMORY_BYTES, 16),
        "over the end": (MEMORY_BYTES - 8, 16),
        "wraps": (2**64 - 8, 16),
    }
    if kind in outside:
        ring.descriptor(0, *outside[kind])
    elif kind == "huge":
        ring.descriptor(0, 0, 0xFFFFFFFF)
    elif kind == "empty":
        ring.descriptor(0, BUFFERS_AT, 0)
    elif kind == "loop":
        ring.descriptor(0, BUFFERS_AT, 4, NEXT, 0)
    elif kind == "next":
        ring.descriptor(0, BUFFERS_AT, 4, NEXT, 4000)
    elif kind == "order":
        ring.descriptor(0, BUFFERS_AT, 4, NEXT | WRITE, 1)
        ring.descriptor(1, BUFFERS_AT, 4)
    elif kind == "indirect":
        ring.descriptor(0, TABLE_AT, 16, INDIRECT)
    head = 4000 if kind == "head" else 0
    ring.offer(head, count=ring.size + 1 if kind == "jump" else 1)


@pytest.mark.parametrize(
    "kind",
    "outside,over the end,wraps,huge,empty,loop,next,order,indirect,head,jump".split(","),
)
def test_a_broken_rule_stops_the_device_until_it_is_reset(kind: str) -> None:
    """NEEDS_RESET, one interrupt for the configuration, one line that says why; a reset makes it well."""
    device = Echo()
    with Driver(device) as driver:
        hostile(driver, kind)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert driver.get(Register.STATUS) & Status.NEEDS_RESET
        assert driver.get(Register.INTERRUPT_STATUS) & 2
        assert driver.transport.problem.startswith("echo: ")
        assert "\n" not in driver.transport.problem
        driver.put(Register.INTERRUPT_ACK, 3)
        assert not driver.get(Register.INTERRUPT_STATUS) & 2
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert not device.served
        driver.put(Register.STATUS, 0xF)
        assert driver.get(Register.STATUS) & Status.NEEDS_RESET
        driver.put(Register.STATUS, 0)
        ring = driver.rings[0]
        ring.__init__(driver.memory, 0, ring.size)  # type: ignore[misc]
        driver.start(V1)
        assert driver.request([b"well"], [4]) == (4, b"well")


@pytest.mark.parametrize(
    ("size", "descriptors", "available", "used"),
    [
        (3, 0x1000, 0x2000, 0x3000),
        (0, 0x1000, 0x2000, 0x3000),
        (16, 0x1000, 0x2000, 0x3000),
        (8, 0x1008, 0x2000, 0x3000),
        (8, 0x1000, 0x2001, 0x3000),
        (8, 0x1000, 0x2000, 0x3002),
        (8, MEMORY_BYTES - 64, 0x2000, 0x3000),
        (8, 0x1000, 1 << 63, 0x3000),
    ],
)
def test_rings_that_can_t_be_there_are_refused(
    size: int, descriptors: int, available: int, used: int
) -> None:
    """Sizes that are no power of two or too large, bad alignment, addresses outside memory."""
    with Driver(Echo(), start=False) as driver:
        queue = Queue(driver.memory, 8)
        queue.size, queue.descriptors_at = size, descriptors
        queue.available_at, queue.used_at = available, used
        with pytest.raises(QueueError):
            queue.enable(use_indirect=False, use_events=False)
        assert not queue.is_ready
        assert queue.pop() is None


def test_a_queue_reset_in_flight_gives_nothing_back() -> None:
    """RING_RESET: the chain that the device still has leads nowhere afterwards."""
    with Driver(Echo(), features=V1 | Feature.RING_RESET) as driver:
        ring = driver.rings[0]
        ring.descriptor(0, BUFFERS_AT, 4, WRITE)
        ring.offer(0)
        queue = driver.transport.queues[0]
        chain = queue.pop()
        assert chain
        driver.put(Register.QUEUE_SEL, 0)
        driver.put(Register.QUEUE_RESET, 1)
        assert (driver.get(Register.QUEUE_READY), driver.get(Register.QUEUE_RESET)) == (0, 0)
        queue.push(chain, 4)
        assert not queue.wants_interrupt()
        assert ring.returned() == []


_DESCRIPTOR = st.tuples(
    st.one_of(st.integers(0, MEMORY_BYTES + 64), st.sampled_from([BUFFERS_AT, TABLE_AT, 2**64 - 1])),
    st.one_of(st.integers(0, 64), st.sampled_from([4096, MEMORY_BYTES, 2**32 - 1])),
    st.integers(0, 7),
    st.integers(0, 9),
)
_REGISTERS = st.one_of(st.sampled_from([int(r) for r in Register]), st.integers(0, PAGE_BYTES + 8))
_VALUES = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(
    table=st.lists(_DESCRIPTOR, max_size=8),
    inner=st.lists(_DESCRIPTOR, max_size=8),
    heads=st.lists(st.integers(0, 9), max_size=12),
    jump=st.integers(0, 20),
    features=st.sampled_from(
        [V1, V1 | Feature.INDIRECT_DESC, V1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX]
    ),
    writes=st.lists(st.tuples(_REGISTERS, _VALUES, st.sampled_from([1, 2, 4, 8])), max_size=12),
)
def test_no_driver_gets_out_of_its_memory_or_stays_for_ever(
    table: list[Any], inner: list[Any], heads: list[int], jump: int, features: int, writes: list[Any]
) -> None:
    """Whatever is in rings and registers: all buffers lie inside memory, chains end, nothing is raised."""
    device = Echo()
    with Driver(device, features=features) as driver:
        ring = driver.rings[0]
        for index, descriptor in enumerate(table):
            ring.descriptor(index, *descriptor)
        driver.memory.write(TABLE_AT, b"".join(struct.pack("<QIHH", *d) for d in inner))
        for head in heads:
            ring.offer(head, count=1 + (jump if head == 9 else 0))
            driver.put(Register.QUEUE_NOTIFY, 0)
        for register, value, size in writes:
            driver.transport.write(register, value.to_bytes(8, "little")[:size])
            assert len(driver.transport.read(register, size)) == size
        assert all(count <= ring.size for count in device.served)
        driver.put(Register.STATUS, 0)
        assert driver.get(Register.STATUS) == 0


def test_entropy_fills_what_it_gets_and_no_more_than_64_kib() -> None:
    """Each request is answered; one without room breaks the rules."""
    with Driver(Rng(lambda size: b"\xa5" * size)) as driver:
        assert driver.request([], [5, 3]) == (8, b"\xa5" * 8)
        assert driver.request([], [80_000])[0] == 65_536
        ring = driver.rings[0]
        ring.descriptor(0, BUFFERS_AT, 4)
        ring.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert "without room" in driver.transport.problem


def test_the_console_prints_takes_input_and_is_resized() -> None:
    """Output at once; input waits for the driver's buffers; the size is in the configuration."""
    printed: list[bytes] = []
    console = Console(printed.append, columns=80, rows=25, hold=True)
    with Driver(console, features=V1 | 1) as driver:
        driver.request([b"hello ", b"world"], queue=1)
        assert b"".join(printed) == b"hello world"
        assert struct.unpack("<HH", driver.config(0, 4)) == (80, 25)
        before = driver.get(Register.CONFIG_GENERATION)
        console.resize(132, 43)
        (fd,) = console.watched()
        driver.transport.serve(lambda: console.on_ready(fd))
        assert struct.unpack("<HH", driver.config(0, 4)) == (132, 43)
        assert driver.get(Register.CONFIG_GENERATION) != before
        assert driver.get(Register.INTERRUPT_STATUS) & 2
        ring = driver.rings[0]
        ring.descriptor(0, BUFFERS_AT, 3, WRITE)
        ring.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert console.receive(b"typed") == 5
        driver.transport.serve(lambda: console.on_ready(fd))
        assert ring.returned() == []
        console.release()
        driver.transport.serve(lambda: console.on_ready(fd))
        assert (ring.returned(), driver.memory.read(BUFFERS_AT, 3)) == ([(0, 3)], b"typ")
        ring.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 0)
        assert (ring.returned(), driver.memory.read(BUFFERS_AT, 2)) == ([(0, 2)], b"ed")
        assert console.receive(bytes(70_000)) == 65_536
        driver.transport.write(Register.CONFIG + 8, b"!\0\0\0")
        assert printed[-1] == b"!"


def test_what_is_printed_in_pieces_is_gathered_and_none_is_lost() -> None:
    """Pieces that wait come as one, with the doorbell's those that come soon; one of 70 KB comes whole."""
    printed: list[bytes] = []
    console = Console(printed.append)
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    console.doorbells = (doorbell, doorbell)
    with Driver(console, features=V1 | Feature.EVENT_IDX) as driver:
        ring = driver.rings[1]
        for index in range(3):
            driver.memory.write(BUFFERS_AT + index, b"abc"[index : index + 1])
            ring.descriptor(index, BUFFERS_AT + index, 1)
            ring.offer(index)
        os.eventfd_write(doorbell, 1)
        driver.put(Register.QUEUE_NOTIFY, 1)
        assert printed == [b"abc"]
        assert ring.returned() == [(0, 0), (1, 0), (2, 0)]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(doorbell)
        driver.request([b"x" * 70_000], queue=1)
        assert printed[1:] == [b"x" * 70_000]
        ring.descriptor(0, MEMORY_BYTES, 1)
        ring.offer(0)
        driver.put(Register.QUEUE_NOTIFY, 1)
        assert "not guest memory" in driver.transport.problem
        os.close(doorbell)
