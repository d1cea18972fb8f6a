"""Virtio devices on a machine: pages of registers, doorbells in, interrupts out, a worker thread each.

::

    guest reads a register        the page is read-only memory of the guest: no exit
    guest writes QueueNotify      ioeventfd ──► worker: the device serves its queue       no exit
    device has used a buffer      irqfd     ──► KVM interrupts the guest                  no exit
    guest acknowledges that       ioeventfd (the value 1): nobody need know               no exit
    guest writes anything else    an exit ──► bus ──► Transport.write()

Where this KVM has no read-only memory, reads come by the bus as well.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm._native import ffi
from pykvm.boot.acpi import VirtioSlot
from pykvm.devices.virtio.mmio import PAGE_BYTES, USED_BUFFER, Register, Transport
from pykvm.errors import ConfigError
from pykvm.memory import MemorySlot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.bus import Bus
    from pykvm.devices.virtio.device import VirtioDevice
    from pykvm.memory import GuestMemory
    from pykvm.vm import Vm

__all__ = ["VirtioBoard"]


class VirtioBoard:
    """The virtio-mmio devices of one machine, in the order in which they were added."""

    def __init__(self) -> None:
        self._devices: list[VirtioDevice] = []
        self._entries: list[_Entry] = []
        self._pages: mmap.mmap | None = None
        self._hold: Any = None

    def add(self, device: VirtioDevice) -> None:
        """Put one more on the board, which closes it; before load(). Raises ConfigError if it is full."""
        most = len(layout.VIRTIO_GSIS)
        if len(self._devices) >= most:
            device.close()
            raise ConfigError(f"more than {most} virtio devices; leave one out")
        self._devices.append(device)

    def slots(self) -> list[VirtioSlot]:
        """Where each device sits, for the guest's tables."""
        starts = layout.VIRTIO_MMIO[:: layout.VIRTIO_MMIO_BYTES]
        return [
            VirtioSlot(range(start, start + PAGE_BYTES), gsi)
            for start, gsi, _ in zip(starts, layout.VIRTIO_GSIS, self._devices, strict=False)
        ]

    def build(self, vm: Vm, mmio: Bus, memory: GuestMemory, lock: threading.RLock, slot: int) -> None:
        """Give the devices their places; `lock` is the machine's, `slot` a free memory slot of the VM."""
        if not self._devices:
            return
        if not vm.has_irqchip:
            raise ConfigError("virtio devices need the irqchip")
        size = PAGE_BYTES * len(self._devices)
        self._pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._hold = ffi.from_buffer(self._pages)
        view = memoryview(self._pages)
        places = self.slots()
        for number, (device, place) in enumerate(zip(self._devices, places, strict=True)):
            page = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            entry = _Entry(device, place, memory, page, vm)
            self._entries.append(entry)
            mmio.attach(place.where, _Unlocked(entry.transport, lock))
        if vm.check_extension("KVM_CAP_READONLY_MEM"):
            hva = int(ffi.cast("uintptr_t", self._hold))
            vm.set_memory_slot(slot, MemorySlot(places[0].where.start, size, hva, read_only=True, view=view))

    def start(self, fail: Callable[[BaseException], None]) -> None:
        """Let the workers work; `fail` is called with what one of them raised."""
        for entry in self._entries:
            entry.start(fail)

    def stop(self) -> list[str]:
        """Stop the workers; what the guest's drivers did wrong, one line a device."""
        for entry in self._entries:
            entry.stop()
        return [entry.transport.problem for entry in self._entries if entry.transport.problem]

    def close(self) -> None:
        """Close the devices and give everything back; after the VM's vCPUs."""
        self.stop()
        for entry in self._entries:
            entry.close()
        for device in self._devices:
            device.close()
        self._entries, self._devices = [], []
        if self._pages:
            ffi.release(self._hold)
            with suppress(BufferError):  # the last holder of a view frees it
                self._pages.close()
            self._pages = None


class _Unlocked:
    """A transport on the bus: the machine's lock, which the vCPU's thread holds, is let go meanwhile.

    A worker holds its transport's lock and may want the machine's, to print.
    """

    def __init__(self, transport: Transport, lock: threading.RLock) -> None:
        self._transport = transport
        self._lock = lock
        self.read = transport.read

    def write(self, offset: int, data: bytes) -> None:
        self._lock.release()
        try:
            self._transport.write(offset, data)
        finally:
            self._lock.acquire()


class _Entry:
    """One device with its eventfds and its worker."""

    def __init__(
        self, device: VirtioDevice, place: VirtioSlot, memory: GuestMemory, page: memoryview, vm: Vm
    ) -> None:
        self._device = device
        self._fds: list[int] = []
        self._irq = self._eventfd()
        self._stop = self._eventfd()
        self._wake = self._eventfd()
        self._thread: threading.Thread | None = None
        self.transport = Transport(
            device, memory, interrupt=lambda: os.eventfd_write(self._irq, 1), page=page
        )
        device.watch_changed = lambda: os.eventfd_write(self._wake, 1)
        vm.irqfd(self._irq, place.gsi)
        self._doorbells: dict[int, int] = {}
        for index in range(len(self.transport.queues)):
            fd = self._eventfd()
            self._doorbells[fd] = index
            vm.ioeventfd(fd, place.where.start + Register.QUEUE_NOTIFY, 4, match=index)
        device.doorbells = tuple(self._doorbells)
        vm.ioeventfd(self._eventfd(), place.where.start + Register.INTERRUPT_ACK, 4, match=USED_BUFFER)

    def _eventfd(self) -> int:
        self._fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self._fds[-1]

    def start(self, fail: Callable[[BaseException], None]) -> None:
        def work() -> None:
            try:
                self._work()
            except BaseException as error:  # noqa: BLE001 - carried to the thread in run(), which raises it
                fail(error)

        self._thread = threading.Thread(target=work, name=self._device.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        poll = select.poll()
        own = {self._stop, self._wake, *self._doorbells}
        for fd in own:
            poll.register(fd, select.POLLIN)
        watched: dict[int, int] = {}
        while True:
            with self.transport.lock:
                wanted = self._device.watched() if self.transport.is_active else {}
            if wanted != watched:
                _watch(poll, watched, wanted)
                watched = dict(wanted)
            for fd, _ in poll.poll():
                if fd == self._stop:
                    return
                if fd in watched:
                    self.transport.serve(self._device.on_ready, fd)
                    continue
                with suppress(BlockingIOError):
                    os.eventfd_read(fd)
                if fd in self._doorbells:
                    self.transport.notify(self._doorbells[fd])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def _watch(poll: select.poll, before: Mapping[int, int], wanted: Mapping[int, int]) -> None:
    """Let `poll` wait for `wanted` in place of `before`."""
    for fd in before.keys() - wanted.keys():
        poll.unregister(fd)
    for fd, mask in wanted.items():
        if before.get(fd) != mask:
            poll.register(fd, mask)
