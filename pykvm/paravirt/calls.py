"""The second producer: the system calls of a program, as the paravirtual kernel tells of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm import paging
from pykvm.boot.image import nearest_symbol
from pykvm.paravirt.syscall_ring import RECORD_BYTES, SyscallRecord, decode
from pykvm.trace.event import TraceEvent
from pykvm.trace.syscalls import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.memory import GuestMemory
    from pykvm.paravirt.guest import Paravirt
    from pykvm.trace.running_clock import RunningClock

__all__ = ["ProgramCalls"]

_BACKLOG_BYTES = (1 << 15) * RECORD_BYTES
_WAIT_S = 0.05
_LONGEST_S = 2.0
_CONTROL = paging.CR0_PG, paging.CR4_PAE, paging.EFER_LME | paging.EFER_LMA | paging.EFER_NXE


class ProgramCalls:
    """The program's system calls as a Source; see pykvm.trace.event.

    The records are read some time after the calls. So an argument is put into words only where the program
    can't have changed it since: on pages that it may not write, as most literals. Others stay addresses.
    """

    def __init__(self, paravirt: Paravirt, memory: GuestMemory, clock: RunningClock) -> None:
        """`clock` is that of the exits, ticked by the thread that calls take()."""
        self._paravirt, self._memory, self._clock = paravirt, memory, clock
        self._symbols = paravirt.symbols()
        self._task = Path(paravirt.program.name).name
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._is_over = False
        self._until_ns = 0
        paravirt.on_drain = self._on_full

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """See Source. The kernel serves one call at a time: the next begins when the last one has ended."""
        with self._changed:
            self._collect()
            raw, self._waiting = b"".join(self._waiting), []
            self._changed.notify_all()
        self._clock.tick()
        records = decode(raw, lambda stamp: self._paravirt.ns(stamp, self._clock.ns))
        events = [self._event(record) for record in records]
        return events, self._until_ns

    def finish(self) -> Sequence[TraceEvent]:
        """See Source."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        events = list(self.take()[0])
        if trouble := self._paravirt.trouble:
            events.append(TraceEvent(time.monotonic_ns(), "note", "pykvm", trouble))
        return events

    def _collect(self) -> None:
        if raw := self._paravirt.take_syscalls():
            self._waiting.append(raw)

    def _on_full(self) -> None:
        """The ring is full; called by the vCPU's thread, which waits for a reader that is slow.

        Not for ever: it holds the machine's lock, and a sink may want that.
        """
        end = time.monotonic() + _LONGEST_S
        with self._changed:
            self._collect()
            while sum(map(len, self._waiting)) > _BACKLOG_BYTES and not self._is_over:
                if time.monotonic() > end:
                    return
                self._changed.wait(_WAIT_S)

    def _event(self, record: SyscallRecord) -> TraceEvent:
        self._until_ns = max(record.end_ns, record.start_ns)

        def read(gva: int, size: int) -> bytes:
            return self._constant(record.cr3, gva, size)

        words = describe(record.number, record.args, read=read)
        if record.is_done:
            words = words.returned(record.result, read=read)
        return TraceEvent(
            record.start_ns,
            "syscall",
            "guest kernel",
            words.name,
            duration_ns=record.end_ns - record.start_ns if record.is_done else None,
            vcpu=record.vcpu,
            args=tuple((f"arg{number}", text) for number, text in enumerate(words.arguments)),
            result=_result(record.result) if record.is_done else None,
            cpl=3,
            rip=record.rip,
            where=self._place(record.rip),
            cr3=record.cr3,
            task=f"{self._task}[{record.pid}]",
        )

    def _constant(self, cr3: int, gva: int, size: int) -> bytes:
        """Up to `size` bytes of the program's, as far as it may not write to them."""
        cr0, cr4, efer = _CONTROL
        read, found = self._memory.read, bytearray()
        while len(found) < size:
            page = paging.walk(read, cr0, cr3, cr4, efer, gva + len(found))
            if page is None or page.writable or not page.user:
                break
            wanted = min(size - len(found), paging.PAGE_BYTES - page.gpa % paging.PAGE_BYTES)
            found += paging.read_virtual(read, cr0, cr3, cr4, efer, gva + len(found), wanted)
        return bytes(found)

    def _place(self, rip: int) -> str:
        """Where in the program, if it lies where its file says."""
        if not any(rip in segment for segment in self._paravirt.program.segments):
            return ""
        found = nearest_symbol(self._symbols, rip)
        return f"{found[0].name}+{found[1]:#x}" if found else ""


def _result(value: int) -> int | str:
    """A number; an address in hexadecimal."""
    return value if -4096 < value < 1 << 20 else f"{value & (1 << 64) - 1:#x}"
