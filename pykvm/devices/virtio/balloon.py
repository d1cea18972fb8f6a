"""A memory balloon (virtio 1.2, section 5.5): the guest gives pages back, also on its own when free.

What it gives back costs the host nothing until the guest touches it again.
"""

from __future__ import annotations

import errno
import struct
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.devices.virtio.queue import Chain, Queue

__all__ = ["Balloon", "BalloonFeature", "Statistic"]

_INFLATE, _DEFLATE = 0, 1
_PAGE_BYTES = 4096
_STATISTIC = struct.Struct("<HQ")
_MOST_FRAMES = 1 << 16  # of one request
_ACTUAL_AT = 4


class BalloonFeature(IntFlag):
    """Feature bits (5.5.3)."""

    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    REPORTING = 1 << 5


class Statistic(StrEnum):
    """What a guest tells of its memory (5.5.6.3), in the order of the tags; bytes but for the counts."""

    SWAP_IN = "swap_in"
    SWAP_OUT = "swap_out"
    MAJOR_FAULTS = "major_faults"
    MINOR_FAULTS = "minor_faults"
    FREE = "free"
    TOTAL = "total"
    AVAILABLE = "available"
    CACHES = "caches"
    HUGE_PAGES = "huge_pages"
    HUGE_PAGES_FAILED = "huge_pages_failed"


_TAGS = tuple(Statistic)


class Balloon(VirtioDevice):
    """Inflated to `target_bytes` by the guest as far as it can; `free(gpa, size)` lets host memory go.

    `free` raises OSError, and GuestAddressError for what is not memory: both are the guest's loss alone.
    `statistics` is what the guest told last, `given_back_bytes` counts what was freed.
    """

    device_id = 5
    features = BalloonFeature.STATS_VQ | BalloonFeature.DEFLATE_ON_OOM | BalloonFeature.REPORTING
    queue_sizes = (128, 128, 64, 64)
    name = "balloon"

    def __init__(self, free: Callable[[int, int], None], *, target_bytes: int = 0) -> None:
        super().__init__()
        self._free = free
        self._target = target_bytes // _PAGE_BYTES
        self._actual = 0
        self._statistics_chain: Chain | None = None
        self.statistics: Mapping[Statistic, int] = {}
        self.given_back_bytes = 0

    @property
    def actual_bytes(self) -> int:
        """How large the balloon is, as the guest says."""
        return self._actual * _PAGE_BYTES

    def set_target(self, target_bytes: int) -> None:
        """Ask the guest to give back, or to take again, until the balloon has this size."""
        self._target = target_bytes // _PAGE_BYTES
        self.config_changed()

    def config(self) -> bytes:
        """struct virtio_balloon_config (5.5.4)."""
        return struct.pack("<II", self._target & 0xFFFFFFFF, self._actual)

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver says how large the balloon is."""
        if offset == _ACTUAL_AT and len(data) == 4:
            self._actual = int.from_bytes(data, "little")

    def deactivate(self) -> None:
        """The driver has gone, with all that it told."""
        self._statistics_chain = None
        self._actual = 0

    # ---- queues

    def _queue_of(self, index: int) -> str:
        """Which queue has this number: those that were not negotiated are left out (5.5.2)."""
        names = ["inflate", "deflate"]
        names += ["statistics"] * bool(self.accepted & BalloonFeature.STATS_VQ)
        names += ["reporting"] * bool(self.accepted & BalloonFeature.REPORTING)
        return names[index] if index < len(names) else ""

    def on_notify(self, index: int) -> None:
        """Pages given back, taken again, or reported as free; or statistics."""
        queue, name = self.queues[index], self._queue_of(index)
        while name:
            while chain := queue.pop():
                if name == "statistics":
                    self._hear(queue, chain)
                    continue
                if name == "inflate":
                    self._inflate(chain)
                elif name == "reporting":
                    self._report(chain)
                queue.push(chain, 0)
            if queue.is_idle():
                return

    def _inflate(self, chain: Chain) -> None:
        frames = chain.read(4 * _MOST_FRAMES)
        numbers = sorted(frame for (frame,) in struct.iter_unpack("<I", frames[: len(frames) // 4 * 4]))
        start = 0
        for index, frame in enumerate(numbers):  # neighbours go together: each call costs the guest a pause
            if index + 1 == len(numbers) or numbers[index + 1] != frame + 1:
                self._give_back(numbers[start] * _PAGE_BYTES, (index + 1 - start) * _PAGE_BYTES)
                start = index + 1

    def _report(self, chain: Chain) -> None:
        """The buffers themselves are the free pages; which they are, the queue has kept."""
        for gpa, size in chain.places:
            start = -(-gpa // _PAGE_BYTES) * _PAGE_BYTES
            end = (gpa + size) // _PAGE_BYTES * _PAGE_BYTES
            if end > start:
                self._give_back(start, end - start)

    def _give_back(self, gpa: int, size: int) -> None:
        try:
            self._free(gpa, size)
        except GuestAddressError:
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOMEM):
                raise
            return
        self.given_back_bytes += size

    def _hear(self, queue: Queue, chain: Chain) -> None:
        """Keep the buffer: giving it back asks for newer statistics."""
        text = chain.read(_STATISTIC.size * 64)
        pairs = _STATISTIC.iter_unpack(text[: len(text) // _STATISTIC.size * _STATISTIC.size])
        self.statistics = {_TAGS[tag]: value for tag, value in pairs if tag < len(_TAGS)}
        if self._statistics_chain:
            queue.push(self._statistics_chain, 0)
        self._statistics_chain = chain

    def ask(self) -> None:
        """Ask for newer statistics; from the device's own thread, as everything that touches queues."""
        if self._statistics_chain:
            self.queues[2].push(self._statistics_chain, 0)
            self._statistics_chain = None
