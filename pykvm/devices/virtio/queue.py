"""A split virtqueue, device side: every index, address and length of the driver is checked before use.

::

    descriptors   {gpa, length, flags, next} x size    chains, or one descriptor that names a table of them
    available     flags, index, head x size, used_event
    used          flags, index, {head, written} x size, avail_event

The rings are walked in C (pykvm/virtqueue.c), as are the bytes of a chain: a disk's request of 1 MiB has 256
pieces. Source: virtio 1.2, section 2.7 (split virtqueues), 2.7.5.3 (indirect descriptors), 2.7.7 and 2.7.10
(notification suppression and the event index).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from pykvm._native import ffi, lib
from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory

__all__ = ["ByteStream", "Chain", "Queue", "QueueError", "split"]

_STREAM_BYTES = 1 << 16
_PATIENCE_US, _MOST_US = 3_000, 50_000


class QueueError(Exception):
    """The driver broke the rules of the queue: the device needs a reset. The text says how."""


class Chain:
    """One request: what the device may read, and behind it what it may write, piece by piece.

    It is the device's from Queue.pop() to Queue.push() or Queue.take_back(), and empty afterwards.
    """

    __slots__ = ("_memory", "_store", "head", "readable_bytes", "writable_bytes")

    def __init__(self, memory: GuestMemory, store: Any) -> None:
        """`store` is a `struct vq_chain` that vq_pop() filled."""
        self._memory = memory
        self._store = store
        self.head: int = store.head
        self.readable_bytes: int = store.readable_bytes
        """How much there is to read."""
        self.writable_bytes: int = store.writable_bytes
        """How much may be written."""

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The gpa and the size of each piece, for who asks where they are."""
        store = self._store
        count = store.readable + store.writable if store else 0
        return tuple((piece.gpa, piece.size) for piece in store.pieces[0:count]) if count else ()

    @property
    def readable(self) -> tuple[memoryview, ...]:
        """Windows on what there is to read."""
        count = self._store.readable if self._store else 0
        return tuple(self._memory.view(gpa, size) for gpa, size in self.places[:count])

    @property
    def writable(self) -> tuple[memoryview, ...]:
        """Windows on what may be written."""
        count = self._store.readable if self._store else 0
        return tuple(self._memory.view(gpa, size, writable=True) for gpa, size in self.places[count:])

    def read(self, size: int | None = None, at: int = 0) -> bytes:
        """`size` bytes, or all, from offset `at` of what can be read, copied once; fewer where it ends."""
        room = max(self.readable_bytes - at, 0)
        size = room if size is None else min(size, room)
        store = self._store
        if not at and size <= store.first_bytes:
            first: bytes = ffi.buffer(store.first, size)[:]
            return first
        out = bytearray(size)
        done = lib.chain_read(store, at, ffi.from_buffer(out), size) if size else 0
        return bytes(out[:done])

    def write(self, data: bytes | bytearray | memoryview, at: int = 0) -> int:
        """Put `data` at offset `at` of what can be written: how many bytes had room."""
        done: int = lib.chain_write(self._store, at, ffi.from_buffer(data), len(data)) if len(data) else 0
        return done

    def fill(self, fd: int, offset: int, size: int, at: int = 0) -> None:
        """Read `size` bytes at `offset` of a file straight to offset `at` of what can be written.

        Raises OSError; EIO if the file ends before that, or there is less room.
        """
        if (done := lib.chain_from_file(self._store, at, size, fd, offset)) < 0:
            raise _error(-done)

    def empty(self, fd: int, offset: int, size: int, at: int = 0) -> None:
        """Write `size` bytes from offset `at` of what can be read straight to `offset` of a file.

        Raises OSError; EIO if there are not as many.
        """
        if (done := lib.chain_to_file(self._store, at, size, fd, offset)) < 0:
            raise _error(-done)

    def receive(self, fd: int, at: int) -> int:
        """Read one frame to offset `at` of what can be written: its size, 0 at the end. Raises OSError.

        A size above `writable_bytes - at` had no room, and its rest is lost.
        """
        done: int = lib.chain_receive(self._store, at, fd)
        if done < 0:
            raise _error(-done)
        return done

    def send(self, fd: int, at: int) -> int:
        """Write what can be read, from `at` on, as one frame: how much a stream took. Raises OSError."""
        done: int = lib.chain_send(self._store, at, fd)
        if done < 0:
            raise _error(-done)
        return done

    def take_store(self) -> Any:
        """Leave the chain empty: Queue uses what it stood in again."""
        store, self._store = self._store, None
        return store


def _error(number: int) -> OSError:
    if number == errno.ENODATA:
        return OSError(errno.EIO, "the image has become shorter than it was")
    return OSError(number, os.strerror(number))


class ByteStream:
    """Room for what Queue.gather() gathers; `doorbell` is the eventfd that tells of more, -1 for none."""

    def __init__(self, doorbell: int = -1) -> None:
        self._bytes = ffi.new("uint8_t[]", _STREAM_BYTES)
        times = {"patience_us": _PATIENCE_US, "most_us": _MOST_US}
        room = {"bytes": self._bytes, "capacity": _STREAM_BYTES, "doorbell": doorbell}
        self.stream = ffi.new("struct vq_stream *", room | times)

    def take(self) -> bytes:
        """What was gathered."""
        gathered: bytes = ffi.buffer(self._bytes, self.stream.used)[:]
        self.stream.used = 0
        return gathered


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

    `most` is the largest size the driver may choose, a power of two up to 1024. Not safe for several threads:
    the device holds its transport's lock.
    """

    def __init__(self, memory: GuestMemory, most: int) -> None:
        self.most = most
        self._memory = memory
        self._queue = ffi.new("struct virtqueue *")
        self._pop, self._push = lib.vq_pop, lib.vq_push
        self.reset()

    def reset(self) -> None:
        """As it was made: not ready, its views of guest memory given back."""
        self.size = self.most
        self.is_ready = False
        self.descriptors_at = self.available_at = self.used_at = 0
        self._queue.size = 0
        self._stores: list[Any] = []
        self._slots: Any = None
        self._rings: list[Any] = []  # they keep the whole of RAM where it is

    def disable(self) -> None:
        """The driver takes its rings back; what the device still has leads nowhere."""
        self.is_ready = False
        self._queue.size = 0

    def enable(self, *, use_indirect: bool, use_events: bool) -> None:
        """Take the rings where the driver put them. Raises QueueError if they can't be there."""
        size = self.size
        if not 0 < size <= self.most or size & (size - 1):
            raise QueueError(f"a queue of {size}: the size is a power of two up to {self.most}")
        rings = []
        for what, at, align, size_bytes in (
            ("descriptor table", self.descriptors_at, 16, 16 * size),
            ("available ring", self.available_at, 2, 6 + 2 * size),
            ("used ring", self.used_at, 4, 6 + 8 * size),
        ):
            if at % align:
                raise QueueError(f"the {what} at {at:#x} is not aligned to {align} bytes")
            try:
                view = self._memory.view(at, size_bytes, writable=True)
            except GuestAddressError as error:
                raise QueueError(str(error)) from None
            rings.append(ffi.from_buffer("uint8_t[]", view))
        slots = self._memory.slots
        table = ffi.new("struct guest_slot[]", len(slots))
        for row, slot in zip(table, slots, strict=True):
            row.gpa, row.size, row.read_only = slot.gpa, slot.size_bytes, slot.read_only
            row.host = ffi.cast("uint8_t *", slot.hva)
        queue = self._queue
        queue.slots, queue.slot_count = table, len(slots)
        queue.table, queue.available, queue.used = rings
        queue.use_indirect, queue.use_events = use_indirect, use_events
        queue.next = queue.done = queue.signalled = 0
        self._slots, self._rings = table, rings
        queue.size = size
        self.is_ready = True

    # ---- the driver's requests

    def pop(self) -> Chain | None:
        """The next chain, None if there is none. Raises QueueError for one that breaks the rules."""
        store = self._store()
        return self._taken(self._pop(self._queue, store), store)

    def gather(self, stream: ByteStream) -> Chain | None:
        """Put what the driver sends into `stream`, used at once, for as long as more comes soon.

        The next chain if it has more than `stream` has room for. Raises QueueError as pop() does.
        """
        store = self._store()
        return self._taken(lib.vq_gather(self._queue, store, stream.stream), store)

    def _taken(self, found: int, store: Any) -> Chain | None:
        """The chain that C has put into `store`, if it has. Raises QueueError for what it found wrong."""
        if found == lib.VQ_CHAIN:
            return Chain(self._memory, store)
        self._stores.append(store)
        if found != lib.VQ_NONE:
            raise QueueError(self._problem(found, store))
        return None

    def _store(self) -> Any:
        """Where C may put a chain; one that is free, or a new one."""
        if self._stores:
            return self._stores.pop()
        store = ffi.new("struct vq_chain *", {"pieces": self.most})
        store.capacity = self.most
        return store

    def _problem(self, found: int, store: Any) -> str:
        """The rule that was broken, in a line."""
        where, what = store.where, store.what
        if found == lib.VQ_JUMP:
            return f"the available index jumped from {where} to {what}, queue size {self.size}"
        return f"chain {store.head}: " + {
            lib.VQ_NO_ENTRY: f"descriptor {where} of {what}",
            lib.VQ_INDIRECT: "an indirect descriptor that may not be there",
            lib.VQ_TABLE_BYTES: f"an indirect table of {what} bytes, queue size {self.size}",
            lib.VQ_PLACE: f"{what} bytes at {where:#x}, which are not guest memory, or not to be written",
            lib.VQ_LENGTH: f"a buffer of {where} bytes, {what} so far",
            lib.VQ_ORDER: "a buffer to read behind one to write",
            lib.VQ_LOOP: f"more than {self.size} buffers, or a loop",
        }.get(found, f"rule {found} is broken")

    def take_back(self, chain: Chain) -> None:
        """`chain`, which pop() gave last, was not touched: it comes again next time."""
        self._stores.append(chain.take_store())
        if self.is_ready:
            self._queue.next = (self._queue.next - 1) & 0xFFFF

    def is_idle(self) -> bool:
        """Ask to be notified of the next request; whether there is none yet.

        Called when pop() gave None: what came before the driver could know is found here.
        """
        return bool(lib.vq_is_idle(self._queue))

    # ---- our answers

    def push(self, chain: Chain, written: int) -> None:
        """Give `chain` back with `written` bytes in its writable part."""
        self._push(self._queue, chain.head, written)
        self._stores.append(chain.take_store())

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since this was asked last."""
        return bool(lib.vq_wants_interrupt(self._queue))
