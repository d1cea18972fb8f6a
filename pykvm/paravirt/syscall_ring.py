"""The ring in which a guest's kernel tells of its programs' system calls: who reads it, and what is in it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.memory import GuestMemory

__all__ = ["RECORD_BYTES", "SyscallRecord", "SyscallRing", "decode"]

RECORD_BYTES: int = ffi.sizeof("struct syscall_record")
_HEADER_BYTES: int = ffi.sizeof("struct syscall_ring")
_MOST_RECORDS = 1 << 24
_WRAP = 1 << 64


class SyscallRecord(NamedTuple):
    """One system call as the guest's kernel saw it.

    `args` are six, RDI RSI RDX R10 R8 R9; `result` is as in RAX, below 0 an errno. Times are CLOCK_MONOTONIC
    ns. One that never returned (exit, a fatal signal to itself) has `end_ns` 0, `result` 0 and is not
    `is_done`. `is_known` is False where the kernel lacks the call. `rip` is where the program goes on.
    """

    number: int
    args: tuple[int, ...]
    result: int
    start_ns: int
    end_ns: int
    cr3: int
    rip: int
    vcpu: int
    pid: int
    tid: int
    is_done: bool
    is_known: bool


class SyscallRing:
    """A `struct syscall_ring` in guest memory, announced by HC_TRACE_RING; see hypercall_abi.h.

    The guest writes, take() reads; from any thread. Every number in it is the guest's claim: if `head` can't
    be true, `trouble` says so in a line and nothing more is read.
    """

    def __init__(self, memory: GuestMemory, gpa: int, size: int) -> None:
        """Raises GuestAddressError if [gpa, gpa + size) is not in RAM, ValueError for a bad header."""
        self._view = memory.view(gpa, size, writable=True)
        self._hold = ffi.from_buffer(self._view)
        self._ring = ffi.cast("struct syscall_ring *", self._hold)
        self._lock = threading.Lock()
        self._tail = 0
        self.trouble = ""
        self.capacity = capacity = self._ring.capacity if size >= _HEADER_BYTES else 0
        fits = 0 < capacity <= _MOST_RECORDS and _HEADER_BYTES + capacity * RECORD_BYTES <= size
        sizes = (_HEADER_BYTES, RECORD_BYTES)
        if not fits or capacity & capacity - 1 or (self._ring.header_bytes, self._ring.record_bytes) != sizes:
            self.close()
            raise ValueError(f"a syscall ring of {capacity} records in {size} bytes")

    def take(self) -> bytes:
        """The raw `struct syscall_record`s that are there now, in order; it takes them out of the ring."""
        with self._lock:
            if self._ring == ffi.NULL or self.trouble:
                return b""
            head = self._ring.head
            count = (head - self._tail) % _WRAP
            if count > self.capacity:
                self.trouble = f"the guest's syscall ring is damaged: {count} records of {self.capacity}"
                return b""
            raw = self._slice(self._tail % self.capacity, count)
            self._tail = head
            self._ring.tail = head
            return raw

    def _slice(self, first: int, count: int) -> bytes:
        begin = _HEADER_BYTES + first * RECORD_BYTES
        straight = min(count, self.capacity - first)
        end = begin + straight * RECORD_BYTES
        rest = _HEADER_BYTES + (count - straight) * RECORD_BYTES
        return bytes(self._view[begin:end]) + bytes(self._view[_HEADER_BYTES:rest])

    def close(self) -> None:
        """Let the guest's memory go."""
        with self._lock:
            self._ring = ffi.NULL
            ffi.release(self._hold)
            self._view.release()


def decode(raw: bytes, ns: Callable[[int], int]) -> Iterator[SyscallRecord]:
    """The records in `raw`; `ns` turns a time in them into CLOCK_MONOTONIC ns."""
    for record in ffi.from_buffer("struct syscall_record[]", raw):
        yield _decoded(record, ns)


def _decoded(record: Any, ns: Callable[[int], int]) -> SyscallRecord:
    done = bool(record.flags & lib.SYSCALL_DONE)
    return SyscallRecord(
        number=record.number,
        args=tuple(record.arg),
        result=record.result if done else 0,
        start_ns=ns(record.start_time),
        end_ns=ns(record.end_time) if done else 0,
        cr3=record.cr3,
        rip=record.rip,
        vcpu=record.vcpu,
        pid=record.pid,
        tid=record.tid,
        is_done=done,
        is_known=not record.flags & lib.SYSCALL_UNKNOWN,
    )
