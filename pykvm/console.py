"""The guest's console: bytes from the C loop's ring and from Python's devices, in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Console"]

_RING_BYTES = 1 << 16
_KEPT_BYTES = 64 << 20


class Console:
    """Collects what the guest prints, and hands it on at once where somebody listens.

    The first 64 MiB are kept for RunResult.console; what comes beyond is still handed to `listener`, and
    counted in `cut_bytes`.
    """

    def __init__(
        self, ring: Any, listener: Callable[[bytes], None] | None, lock: AbstractContextManager[Any]
    ) -> None:
        """`ring` is the machine's `struct byte_ring`; `listener` gets each piece, from any thread.

        `lock` is the machine's, which a device's thread holds already: with one of our own a listener
        that types on the guest's console could be held up by a device that prints, and that by it.
        """
        self._bytes = ffi.new("uint8_t[]", _RING_BYTES)
        self._scratch = ffi.new("uint8_t[]", _RING_BYTES)
        self._ring = ring
        ring.bytes, ring.capacity = self._bytes, _RING_BYTES
        self._listener = listener
        self._lock = lock
        self._kept = bytearray()
        self._viewers: list[Callable[[bytes], None]] = []
        self.cut_bytes = 0

    def write(self, data: bytes) -> None:
        """A device's output, behind everything the C loop has taken so far."""
        with self._lock:
            self._drain()
            self._put(data)

    def pump(self) -> None:
        """Hand on what the C loop has taken."""
        with self._lock:
            self._drain()

    def watch(self, viewer: Callable[[bytes], None], *, recent: int) -> bytes:
        """Have `viewer` called with each piece from now on; up to `recent` bytes of what came before."""
        with self._lock:
            self._drain()
            self._viewers.append(viewer)
            return bytes(self._kept[-recent:])

    def unwatch(self, viewer: Callable[[bytes], None]) -> None:
        """The end of watch()."""
        with self._lock:
            self._viewers.remove(viewer)

    def contents(self) -> bytes:
        """Everything kept so far."""
        with self._lock:
            return bytes(self._kept)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the output the result does not hold, in a line."""
        if not self.cut_bytes:
            return ()
        kept = f"the result keeps {_KEPT_BYTES >> 20} MiB of the console"
        return (f"{kept}; {self.cut_bytes} bytes more were printed",)

    def _drain(self) -> None:
        while size := lib.byte_ring_read(self._ring, self._scratch, _RING_BYTES):
            self._put(bytes(ffi.buffer(self._scratch, size)))

    def _put(self, data: bytes) -> None:
        room = _KEPT_BYTES - len(self._kept)
        self._kept += data[:room]
        self.cut_bytes += max(len(data) - room, 0)
        if self._listener:
            self._listener(data)
        for viewer in self._viewers:
            viewer(data)
