"""The MMIO transport of virtio 1.2 (section 4.2): one page of registers in front of one device.

What the driver reads has no side effects in this transport, so all of it stands in one page that is kept up
to date: shown to the guest as read-only memory it costs no exit. Two registers are special. A write to
QueueNotify is an eventfd's business where there is KVM. And bit 0 of InterruptStatus stays set from the first
interrupt on: the driver that reads it looks through its queues, which it may do at any time, and
acknowledging it need not leave the kernel either. Bit 1 (the configuration changed) comes and goes as always.
"""

from __future__ import annotations

import struct
import threading
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import Feature
from pykvm.devices.virtio.queue import Queue, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.devices.virtio.device import VirtioDevice
    from pykvm.memory import GuestMemory

__all__ = ["PAGE_BYTES", "Register", "Status", "Transport"]

PAGE_BYTES = 4096
_CONFIG_MOST = PAGE_BYTES - 0x100
_MAGIC = 0x74726976
_VERSION = 2
_VENDOR = 0x4B56594D
USED_BUFFER, CONFIG_CHANGED = 1, 2  # InterruptStatus


class Register(IntEnum):
    """Offsets of the registers, each of 4 bytes."""

    MAGIC = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    QUEUE_RESET = 0x0C0
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class Status(IntFlag):
    """The device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


_ALWAYS = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.RING_RESET


class Transport:
    """The registers of one device, on a bus or, by `page`, as memory of the guest.

    `interrupt` is called to interrupt the guest; `page` is what the guest reads, 4096 bytes. A driver that
    breaks the rules gets NEEDS_RESET, and its device does nothing until it is reset: `problem` says why.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        *,
        interrupt: Callable[[], None],
        page: memoryview | bytearray | None = None,
    ) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.problem = ""
        self.is_active = False
        """Whether the driver has said DRIVER_OK and nothing has gone wrong since."""
        self._raised = 0  # InterruptStatus
        self._page = page if page is not None else bytearray(PAGE_BYTES)
        self._interrupt = interrupt
        self._features = device.features | _ALWAYS
        self.queues = [Queue(memory, most) for most in device.queue_sizes]
        device.queues = self.queues
        device.config_changed = self.config_changed
        self._generation = 0
        self._writers: dict[int, Callable[[int], None]] = {
            Register.DEVICE_FEATURES_SEL: self._select_features,
            Register.DRIVER_FEATURES_SEL: self._select_driver_features,
            Register.DRIVER_FEATURES: self._accept_features,
            Register.QUEUE_SEL: self._select_queue,
            Register.QUEUE_NUM: self._set_queue_size,
            Register.QUEUE_READY: self._set_queue_ready,
            Register.QUEUE_NOTIFY: self.notify,
            Register.QUEUE_RESET: self._reset_queue,
            Register.INTERRUPT_ACK: self._acknowledge,
            Register.STATUS: self._set_status,
        }
        self._reset()

    # ---- the guest's side

    def read(self, offset: int, size: int) -> bytes:
        """What the page has; zeros behind its end."""
        return bytes(self._page[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """A register takes 4 bytes, the configuration any; other accesses do nothing (4.2.2.2)."""
        with self.lock:
            if offset >= Register.CONFIG:
                self._write_config(offset - Register.CONFIG, data)
            elif len(data) == 4 and offset % 4 == 0:
                value = int.from_bytes(data, "little")
                if offset in self._writers:
                    self._writers[offset](value)
                elif Register.QUEUE_DESC_LOW <= offset <= Register.QUEUE_DEVICE_HIGH:
                    self._set_queue_address(offset, value)

    @property
    def status(self) -> Status:
        """The device status now."""
        return Status(self._get(Register.STATUS) & 0xFF)

    # ---- work

    def notify(self, index: int) -> None:
        """The driver has put something into queue `index`; a wrong index is nobody's."""
        if index < len(self.queues):
            self.serve(self.device.on_notify, index)

    def serve(self, work: Callable[..., None], *what: int) -> None:
        """Let the device do `work(*what)`, and interrupt the guest if it wants to hear of what came out."""
        with self.lock:
            if not self.is_active:
                return
            try:
                work(*what)
            except QueueError as error:
                self._fail(str(error))
            wanted = [queue.wants_interrupt() for queue in self.queues]  # each is asked: it remembers
            if True in wanted:
                self._raise(USED_BUFFER)

    def config_changed(self) -> None:
        """The device's configuration is another one now."""
        with self.lock:
            self._generation = (self._generation + 1) & 0xFFFFFFFF
            self._put(Register.CONFIG_GENERATION, self._generation)
            self._show_config()
            if self.status & Status.DRIVER_OK:
                self._raise(CONFIG_CHANGED)

    def _fail(self, why: str) -> None:
        self.problem = self.problem or f"{self.device.name}: {why}"
        self._put_status(self.status | Status.NEEDS_RESET)
        if self.status & Status.DRIVER_OK:
            self._raise(CONFIG_CHANGED)

    def _raise(self, bit: int) -> None:
        if not self._raised & bit:
            self._raised |= bit
            self._put(Register.INTERRUPT_STATUS, self._raised)
        self._interrupt()

    # ---- registers

    def _get(self, register: int) -> int:
        return int.from_bytes(self._page[register : register + 4], "little")

    def _put(self, register: int, value: int) -> None:
        self._page[register : register + 4] = struct.pack("<I", value)

    def _put_status(self, status: Status) -> None:
        self._put(Register.STATUS, status)
        self.is_active = status & (Status.DRIVER_OK | Status.NEEDS_RESET) == Status.DRIVER_OK

    def _reset(self) -> None:
        """All registers as after power-on; requests in flight are over, since the caller holds the lock."""
        self._page[:PAGE_BYTES] = bytes(PAGE_BYTES)
        self._raised = 0
        self.is_active = False
        values: tuple[tuple[int, int], ...] = (
            (Register.MAGIC, _MAGIC),
            (Register.VERSION, _VERSION),
            (Register.DEVICE_ID, self.device.device_id),
            (Register.VENDOR_ID, _VENDOR),
            (Register.CONFIG_GENERATION, self._generation),
        )
        for register, value in values:
            self._put(register, value)
        for shared in range(Register.SHM_LEN_LOW, Register.SHM_BASE_HIGH + 4, 4):
            self._put(shared, 0xFFFFFFFF)  # no shared memory (4.2.2)
        self.device.accepted = 0
        self._driver_sel = 0
        self.problem = ""
        for queue in self.queues:
            queue.reset()
        self._select_features(0)
        self._select_queue(0)
        self._show_config()

    def _show_config(self) -> None:
        config = self.device.config()[:_CONFIG_MOST]
        self._page[Register.CONFIG : Register.CONFIG + len(config)] = config

    def _write_config(self, offset: int, data: bytes) -> None:
        if offset + len(data) <= len(self.device.config()):
            self.device.write_config(offset, data)
            self._show_config()

    def _select_features(self, index: int) -> None:
        word = self._features >> 32 * index & 0xFFFFFFFF if index < 2 else 0
        self._put(Register.DEVICE_FEATURES, word)

    def _select_driver_features(self, index: int) -> None:
        self._driver_sel = index

    def _accept_features(self, value: int) -> None:
        if self._driver_sel < 2 and not self.status & Status.FEATURES_OK:
            shift = 32 * self._driver_sel
            self.device.accepted = self.device.accepted & ~(0xFFFFFFFF << shift) | value << shift

    def _set_status(self, value: int) -> None:
        if not value & 0xFF:
            if self.status:
                self.device.deactivate()
            self._reset()
            return
        before, wanted = self.status, Status(value & 0xFF)
        if wanted & Status.FEATURES_OK and not before & Status.FEATURES_OK:
            accepted = self.device.accepted
            if accepted & ~self._features or not accepted & Feature.VERSION_1:
                wanted &= ~Status.FEATURES_OK  # by reading it the driver learns that we refuse (2.2.2)
        self._put_status(wanted | before & Status.NEEDS_RESET)
        self._show_config()
        if wanted & Status.DRIVER_OK and not before & Status.DRIVER_OK:
            self.device.activate()
            self.device.watch_changed()
            for index in range(len(self.queues)):  # what was put there before is not notified again
                self.notify(index)

    def _acknowledge(self, value: int) -> None:
        self._raised &= ~(value & CONFIG_CHANGED)
        self._put(Register.INTERRUPT_STATUS, self._raised)

    # ---- queues

    @property
    def _queue(self) -> Queue | None:
        return self.queues[self._selected] if self._selected < len(self.queues) else None

    def _select_queue(self, index: int) -> None:
        self._selected = index
        queue = self._queue
        self._put(Register.QUEUE_NUM_MAX, queue.most if queue else 0)
        self._put(Register.QUEUE_READY, queue.is_ready if queue else 0)
        self._put(Register.QUEUE_RESET, 0)

    def _set_queue_size(self, value: int) -> None:
        queue = self._queue
        if queue and not queue.is_ready:
            queue.size = value

    def _set_queue_address(self, offset: int, value: int) -> None:
        queue = self._queue
        if queue is None or queue.is_ready:
            return
        name = {0x80: "descriptors_at", 0x90: "available_at", 0xA0: "used_at"}.get(offset & ~7 & ~0x4)
        if name is None:
            return
        shift = 32 if offset & 4 else 0
        setattr(queue, name, getattr(queue, name) & ~(0xFFFFFFFF << shift) | value << shift)

    def _set_queue_ready(self, value: int) -> None:
        queue = self._queue
        if queue is None:
            return
        if not value & 1:
            queue.disable()
        elif not queue.is_ready and self.status & Status.FEATURES_OK:
            accepted = self.device.accepted
            try:
                queue.enable(
                    use_indirect=bool(accepted & Feature.INDIRECT_DESC),
                    use_events=bool(accepted & Feature.EVENT_IDX),
                )
            except QueueError as error:
                self._fail(str(error))
        self._put(Register.QUEUE_READY, queue.is_ready)

    def _reset_queue(self, value: int) -> None:
        queue = self._queue
        if queue and value & 1 and self.device.accepted & Feature.RING_RESET:
            queue.reset()
            self._put(Register.QUEUE_READY, 0)
