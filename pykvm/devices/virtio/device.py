"""What every virtio device has: an id, features, queues, a configuration; and how it learns of work."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.devices.virtio.queue import Queue

__all__ = ["Feature", "VirtioDevice"]


class Feature(IntFlag):
    """Feature bits that do not depend on the device (virtio 1.2, section 6)."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    RING_RESET = 1 << 40


class VirtioDevice:
    """The base of all devices; a transport owns it and calls it with its lock held, from any thread.

    A device that waits for the host names file descriptors in watched(); on_ready() hears of them. What it
    puts into its queues on its own account reaches the driver at the end of the call, in whatever it was.
    """

    device_id = 0
    features = 0
    queue_sizes: Sequence[int] = ()
    name = "virtio"

    def __init__(self) -> None:
        self.queues: Sequence[Queue] = ()
        self.accepted = 0
        self.doorbells: Sequence[int] = ()
        """The eventfds that the driver rings, queue by queue, where there are any."""
        self.config_changed: Callable[[], None] = lambda: None
        self.watch_changed: Callable[[], None] = lambda: None

    # ---- what a device may answer

    def config(self) -> bytes:
        """The configuration space as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space; by default nothing there can be written."""

    def activate(self) -> None:
        """The driver is ready (DRIVER_OK): `accepted` features and `queues` are set."""

    def deactivate(self) -> None:
        """The driver reset the device."""

    def on_notify(self, index: int) -> None:
        """There may be work in queue `index`. Raises QueueError for what breaks the rules."""

    def watched(self) -> Mapping[int, int]:
        """File descriptor -> what is waited for, as poll(2) has it: POLLIN, POLLOUT."""
        return {}

    def on_ready(self, fd: int) -> None:
        """What a watched file descriptor was waited for has come, or its other end has gone."""

    def close(self) -> None:
        """Give back what the device holds of the host."""
