"""Entropy for the guest (virtio 1.2, section 5.4), from the host's random number generator."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import QueueError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Rng"]

_MOST_BYTES = 1 << 16  # of one request: the driver may ask for more and takes what it gets


class Rng(VirtioDevice):
    """Fills whatever the driver gives it."""

    device_id = 4
    queue_sizes = (8,)
    name = "entropy"

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        """`source` gives so many random bytes."""
        super().__init__()
        self._source = source

    def on_notify(self, index: int) -> None:
        """Fill all buffers that wait."""
        queue = self.queues[index]
        while True:
            while chain := queue.pop():
                if not chain.writable:
                    raise QueueError("a request for entropy without room for any")
                size = min(chain.writable_bytes, _MOST_BYTES)
                queue.push(chain, chain.write(self._source(size)))
            if queue.is_idle():
                return
