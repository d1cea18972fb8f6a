"""The rings of a guest's hypercalls: who opens them, the thread that serves them, and how it ends.

::

    guest: calls into the ring, head += n, one OUT ──ioeventfd──> call_ring.c, in a thread of its own
                                                                     │ console write, time, mark: done there
    guest: looks at tail, or sleeps <──irqfd── results, tail <───────┤
                                                                     └ all others: Hypercalls.answer()

The vCPU does not leave the kernel for any of it. The ring's layout is that of struct call_ring in
guests/include/hypercall_abi.h; every number in it is the guest's claim.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.errors import KvmError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pykvm.hypercall import Hypercalls
    from pykvm.memory import GuestMemory
    from pykvm.vm import Vm

__all__ = ["CallRings", "Doorbell"]

_HEADER_BYTES: int = ffi.sizeof("struct call_ring")
_CALL_BYTES: int = ffi.sizeof("struct hypercall")
_LOOK_TICKS = 100_000  # some 40 µs: a thread that sleeps takes about as long to wake up
_NO_LOOK_CPUS = 1  # where the guest's own thread needs the CPU
_DOORBELL_BYTES = 4


class CallRings:
    """All rings of one machine. Nothing is made, and no thread runs, before a guest asks for its first.

    `worker` is the `struct call_worker`; its `loop` takes the trace records.
    """

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        shared: Any,
        *,
        lock: AbstractContextManager[Any],
        drain: Callable[[], None],
        on_start: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`lock` is held while Python does a call; `drain` empties full rings of records and console bytes.

        `on_start` is called before the thread starts, `on_failure` with what ended it.
        """
        self._vm = vm
        self._memory = memory
        self._lock = lock
        self._drain = drain
        self._on_start = on_start
        self._on_failure = on_failure
        self._calls: Hypercalls | None = None
        self._thread: threading.Thread | None = None
        self._holds: list[tuple[Any, memoryview]] = []
        self.worker = ffi.new("struct call_worker *", {"shared": shared})
        self.worker.look_ticks = _LOOK_TICKS if len(os.sched_getaffinity(0)) > _NO_LOOK_CPUS else 0
        self.worker.doorbell_fd = self.worker.interrupt_fd = -1
        self.worker.loop.fd = -1

    def loop_of(self, thread: int) -> Any:
        """The `struct exit_loop` with our thread's records, if `thread` is its get_ident(); else None."""
        is_ours = self._thread is not None and self._thread.ident == thread
        return ffi.addressof(self.worker, "loop") if is_ours else None

    def open(self, request: Any, calls: Hypercalls) -> int:
        """HC_CALL_RING: the number of a new ring, or an error; `calls` do what C does not.

        Raises GuestAddressError if the ring is not wholly in RAM.
        """
        gpa, size, flags = request.arg[0:3]
        worker = self.worker
        view = self._memory.view(gpa, size, writable=True)
        header = ffi.new("struct call_ring *")
        ffi.memmove(header, bytes(view[:_HEADER_BYTES]), min(size, _HEADER_BYTES))
        if not _is_sound(gpa, size, header) or flags & ~lib.CALL_RING_INTERRUPT:
            view.release()
            return int(lib.HC_EINVAL)
        if worker.ring_count >= lib.CALL_RINGS_MAX:
            view.release()
            return int(lib.HC_EBUSY)
        try:
            self._prepare(interrupts=bool(flags & lib.CALL_RING_INTERRUPT))
        except KvmError as error:
            view.release()
            return int(lib.HC_EINVAL if error.errno == errno.ENXIO else lib.HC_EIO)
        number = self._announce(gpa, flags, header.capacity, view)
        self._start(calls)
        return number

    def _announce(self, gpa: int, flags: int, capacity: int, view: memoryview) -> int:
        """Enter a ring that has been found sound; its number."""
        worker = self.worker
        hold = ffi.from_buffer(view, require_writable=True)
        self._holds.append((hold, view))
        ring = worker.rings[worker.ring_count]
        ring.header = ffi.cast("struct call_ring *", hold)
        ring.calls = ffi.cast("struct hypercall *", ffi.cast("char *", hold) + _HEADER_BYTES)
        ring.capacity, ring.gpa, ring.flags = capacity, gpa, flags
        ring.header.tail, ring.header.error, ring.header.wants_doorbell = 0, 0, 1
        worker.ring_count += 1
        return int(worker.ring_count - 1)

    def _prepare(self, *, interrupts: bool) -> None:
        """Doorbell and interrupt line, the first time. Raises KvmError; ENXIO: there is no irqchip."""
        worker, vm = self.worker, self._vm
        if interrupts and not vm.has_irqchip:
            raise KvmError(errno.ENXIO, "KVM_IRQFD")
        if worker.doorbell_fd < 0:
            doorbell = os.eventfd(0, os.EFD_CLOEXEC)
            try:
                vm.ioeventfd(doorbell, layout.HYPERCALL_DOORBELL.start, _DOORBELL_BYTES, pio=True)
            except KvmError:
                os.close(doorbell)
                raise
            worker.doorbell_fd = doorbell
        if interrupts and worker.interrupt_fd < 0:
            line = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                vm.irqfd(line, lib.CALL_RING_GSI)
            except KvmError:
                os.close(line)
                raise
            worker.interrupt_fd = line

    def ring_doorbell(self) -> None:
        """Wake the thread: a doorbell that came out as an exit."""
        if self.worker.doorbell_fd >= 0:
            os.eventfd_write(self.worker.doorbell_fd, 1)

    # ---- the thread

    def _start(self, calls: Hypercalls) -> None:
        if self._thread is None:
            self._calls = calls
            self._on_start()
            self._thread = threading.Thread(target=self._main, name="call rings", daemon=True)
            self._thread.start()

    def _main(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - carried to the thread in run(), which raises it
            self._on_failure(error)

    def _serve(self) -> None:
        worker, calls = self.worker, self._calls
        while calls and (what := lib.call_worker_run(worker)) != lib.WORKER_STOPPED:
            if what == lib.WORKER_CALL:
                with self._lock:
                    result = calls.answer(ffi.addressof(worker, "call"))
                lib.call_worker_answer(worker, result)
            elif what == lib.WORKER_ERROR:
                raise KvmError(worker.loop.error, "read of the rings' doorbell")
            else:
                self._drain()

    def stop(self) -> None:
        """No vCPU runs any more: let the thread do what is in the rings, and end."""
        if self._thread and self._thread.is_alive():
            lib.call_worker_stop(self.worker)
            self._thread.join()

    def close(self) -> None:
        """Let go of guest memory and fds; after stop()."""
        self.worker.ring_count = 0
        for hold, view in self._holds:
            ffi.release(hold)
            view.release()
        self._holds = []
        for name in ("doorbell_fd", "interrupt_fd"):
            if (fd := getattr(self.worker, name)) >= 0:
                os.close(fd)
                setattr(self.worker, name, -1)


def _is_sound(gpa: int, size: int, header: Any) -> bool:
    """Whether a ring's header, of which we have a copy, fits its `size` bytes."""
    capacity = header.capacity
    fits = 0 < capacity <= lib.CALL_RING_CALLS_MAX and _HEADER_BYTES + capacity * _CALL_BYTES <= size
    sizes = (header.header_bytes, header.call_bytes)
    return fits and not capacity & capacity - 1 and gpa % 8 == 0 and sizes == (_HEADER_BYTES, _CALL_BYTES)


class Doorbell:
    """The device at the doorbell's port: for those that KVM does not turn into a signal."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is nothing to be read
        """Zeros."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - any write rings
        """Have the rings looked at."""
        self._ring()
