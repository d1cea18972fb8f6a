"""A split virtqueue, device side: every index, address and length of the driver is checked before use.

::

    descriptors   {gpa, length, flags, next} x size    chains, or one descriptor that names a table of them
    available     flags, index, head x size, used_event
    used          flags, index, {head, written} x size, avail_event

Source: virtio 1.2, section 2.7 (split virtqueues), 2.7.5.3 (indirect descriptors), 2.7.7 and 2.7.10
(notification suppression and the event index).
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.memory import GuestMemory

__all__ = ["Chain", "Queue", "QueueError"]

_NEXT, _WRITE, _INDIRECT = 1, 2, 4  # flags of a descriptor
_NO_INTERRUPT = 1  # flag of the available ring
_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_INDEX = struct.Struct("<H")
_MOST_BYTES = 1 << 32  # of one chain, by 2.7.4


class QueueError(Exception):
    """The driver broke the rules of the queue: the device needs a reset. The text says how."""


class Chain(NamedTuple):
    """One request: what the device may read, and behind it what it may write, piece by piece.

    `places` has the gpa and the size of each piece, for who asks where they are.
    """

    head: int
    readable: tuple[memoryview, ...]
    writable: tuple[memoryview, ...]
    places: tuple[tuple[int, int], ...] = ()

    @property
    def readable_bytes(self) -> int:
        """How much there is to read."""
        return sum(map(len, self.readable))

    @property
    def writable_bytes(self) -> int:
        """How much may be written."""
        return sum(map(len, self.writable))

    def read(self, size: int | None = None) -> bytes:
        """The first `size` bytes of what can be read, copied once; fewer if there are not as many."""
        if size is None:
            return b"".join(self.readable)
        out = bytearray()
        for piece in self.readable:
            if len(out) >= size:
                break
            out += piece[: size - len(out)]
        return bytes(out)

    def write(self, data: bytes | bytearray | memoryview, at: int = 0) -> int:
        """Put `data` at offset `at` of what can be written: how many bytes had room."""
        done = 0
        for piece in self.writable:
            if at >= len(piece):
                at -= len(piece)
                continue
            step = min(len(piece) - at, len(data) - done)
            piece[at : at + step] = data[done : done + step]
            done, at = done + step, 0
            if done == len(data):
                break
        return done


def split(pieces: tuple[memoryview, ...], at: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `at` bytes of `pieces`, and the rest."""
    head: list[memoryview] = []
    tail: list[memoryview] = []
    for piece in pieces:
        if at >= len(piece):
            head.append(piece)
        else:
            if at > 0:
                head.append(piece[:at])
            tail.append(piece[max(at, 0) :])
        at -= len(piece)
    return head, tail


class Queue:
    """One virtqueue. The transport sets it up; the device takes chains with pop() and gives them back.

    `most` is the largest size the driver may choose, a power of two. Not safe for several threads: the device
    holds its transport's lock.
    """

    def __init__(self, memory: GuestMemory, most: int) -> None:
        self.most = most
        self._memory = memory
        self._fence = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """As it was made: not ready, its views of guest memory given back."""
        self.size = self.most
        self.is_ready = False
        self.descriptors_at = self.available_at = self.used_at = 0
        self.use_indirect = self.use_events = False
        self._next = 0  # of the available ring, the driver's
        self._used = 0  # of the used ring, ours
        self._signalled = 0  # the used index at the last interrupt that was asked about
        self._table = self._available = self._ring = memoryview(b"")

    def enable(self, *, use_indirect: bool, use_events: bool) -> None:
        """Take the rings where the driver put them. Raises QueueError if they can't be there."""
        size = self.size
        if not 0 < size <= self.most or size & (size - 1):
            raise QueueError(f"a queue of {size}: the size is a power of two up to {self.most}")
        for what, at, align in (
            ("descriptor table", self.descriptors_at, 16),
            ("available ring", self.available_at, 2),
            ("used ring", self.used_at, 4),
        ):
            if at % align:
                raise QueueError(f"the {what} at {at:#x} is not aligned to {align} bytes")
        try:
            self._table = self._memory.view(self.descriptors_at, 16 * size)
            self._available = self._memory.view(self.available_at, 6 + 2 * size)
            self._ring = self._memory.view(self.used_at, 6 + 8 * size, writable=True)
        except GuestAddressError as error:
            raise QueueError(str(error)) from None
        self.use_indirect, self.use_events = use_indirect, use_events
        self._next = self._used = self._signalled = 0
        self.is_ready = True

    # ---- the driver's requests

    def _waiting(self) -> int:
        """How many heads the driver has made available. Raises QueueError if the index jumped."""
        (index,) = _INDEX.unpack_from(self._available, 2)
        count: int = (index - self._next) & 0xFFFF
        if count > self.size:
            raise QueueError(
                f"the available index jumped from {self._next} to {index}, queue size {self.size}"
            )
        return count

    def pop(self) -> Chain | None:
        """The next chain, None if there is none. Raises QueueError for one that breaks the rules."""
        if not self.is_ready or not self._waiting():
            return None
        (head,) = _INDEX.unpack_from(self._available, 4 + 2 * (self._next % self.size))
        chain = self._chain(head)
        self._next = (self._next + 1) & 0xFFFF
        return chain

    def take_back(self) -> None:
        """The chain that pop() gave last was not touched: it comes again next time."""
        if self.is_ready:
            self._next = (self._next - 1) & 0xFFFF

    def is_idle(self) -> bool:
        """Ask to be notified of the next request; whether there is none yet.

        Called when pop() gave None: what came before the driver could know is found here.
        """
        if not self.is_ready:
            return True
        if self.use_events:
            _INDEX.pack_into(self._ring, 4 + 8 * self.size, self._next)
            self._full_fence()
        return not self._waiting()

    def _chain(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        places: list[tuple[int, int]] = []
        total = 0
        for gpa, length, flags in self._descriptors(head):
            total += length
            places.append((gpa, length))
            if not length or total > _MOST_BYTES:
                raise QueueError(f"chain {head}: a buffer of {length} bytes, {total} so far")
            try:
                if flags & _WRITE:
                    writable.append(self._memory.view(gpa, length, writable=True))
                elif writable:
                    raise QueueError(f"chain {head}: a buffer to read behind one to write")
                else:
                    readable.append(self._memory.view(gpa, length))
            except GuestAddressError as error:
                raise QueueError(f"chain {head}: {error}") from None
        return Chain(head, tuple(readable), tuple(writable), tuple(places))

    def _descriptors(self, head: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, length, flags) of each buffer; at most as many as the queue is large: no loop lasts."""
        table, entries, at, is_inner = self._table, self.size, head, False
        for _ in range(self.size + 1):
            if at >= entries:
                raise QueueError(f"chain {head}: descriptor {at} of {entries}")
            gpa, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * at)
            if flags & _INDIRECT:
                if is_inner or not self.use_indirect or flags & _NEXT:
                    raise QueueError(f"chain {head}: an indirect descriptor that may not be there")
                table, entries = self._inner(head, gpa, length)
                at, is_inner = 0, True
                continue
            yield gpa, length, flags
            if not flags & _NEXT:
                return
            at = following
        raise QueueError(f"chain {head}: more than {self.size} buffers, or a loop")

    def _inner(self, head: int, gpa: int, length: int) -> tuple[memoryview, int]:
        """An indirect table, copied: the driver can't change it while we look."""
        if not length or length % 16 or length // 16 > self.size:
            raise QueueError(f"chain {head}: an indirect table of {length} bytes, queue size {self.size}")
        try:
            return memoryview(self._memory.read(gpa, length)), length // 16
        except GuestAddressError as error:
            raise QueueError(f"chain {head}: {error}") from None

    # ---- our answers

    def push(self, chain: Chain, written: int) -> None:
        """Give `chain` back with `written` bytes in its writable part."""
        if not self.is_ready:
            return
        _USED.pack_into(self._ring, 4 + 8 * (self._used % self.size), chain.head, written)
        self._used = (self._used + 1) & 0xFFFF
        _INDEX.pack_into(self._ring, 2, self._used)

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since this was asked last."""
        before, self._signalled = self._signalled, self._used
        if not self.is_ready or before == self._used:
            return False
        self._full_fence()
        if not self.use_events:
            return not _INDEX.unpack_from(self._available, 0)[0] & _NO_INTERRUPT
        event: int = _INDEX.unpack_from(self._available, 4 + 2 * self.size)[0]
        return ((self._used - event - 1) & 0xFFFF) < ((self._used - before) & 0xFFFF)

    def _full_fence(self) -> None:
        """What we wrote is seen before what we read next: taking a lock is a locked instruction on x86."""
        with self._fence:
            pass
