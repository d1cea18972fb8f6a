"""What only the host's kernel sees: exits that KVM answers by itself, and the system calls pykvm makes.

Both come from tracepoints, read in binary from a trace instance of our own: nothing of the host's tracing
changes, and the instance goes when the source does. Times are those of the clock `mono`, CLOCK_MONOTONIC.
Source: the kernel's Documentation/trace/ftrace.rst, "Instances"; the events are those of
arch/x86/kvm/trace.h.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pykvm._native import lib
from pykvm.errors import PykvmError
from pykvm.trace.event import TraceEvent
from pykvm.trace.ring_buffer import EventFormat, RawEvent, decode_page, parse_format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["KernelSource", "Tracefs", "TracefsError"]

_FOLDERS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_BUFFER_KIB = 4096
_PAGE_BYTES = 65536
_NEVER = 1 << 63
_PAGES_MOST = 64  # at once, of one CPU: others want to be asked, and the reader of it all may have gone
_WINDOW_NS = 2_000_000
_SYSCALLS = ("sys_enter", "sys_exit")
# what tells more of an exit, and the fields worth showing
_DETAILS: Mapping[str, tuple[str, ...]] = {
    "kvm_cpuid": ("function", "index"),
    "kvm_msr": ("write", "ecx", "data"),
    "kvm_page_fault": ("fault_address", "error_code"),
    "kvm_hypercall": ("nr", "a0", "a1", "a2", "a3"),
    "kvm_cr": ("rw", "cr", "val"),
    "kvm_pio": ("rw", "port", "size", "val"),
    "kvm_fast_mmio": ("gpa",),
    "kvm_inj_virq": ("vec",),
    "kvm_inj_exception": ("exception", "error_code"),
    "kvm_apic": ("rw", "reg", "val"),
    "kvm_eoi": ("vector",),
}
_FRAME = ("kvm_exit", "kvm_entry", "kvm_userspace_exit")


class TracefsError(PykvmError):
    """The host's tracepoints can't be read; a trace goes on without them."""


class Tracefs:
    """tracefs at `folder`: where it is mounted or, for root, a mount that only a descriptor of ours holds.

    Raises TracefsError with the reason and the next step where neither is possible.
    """

    def __init__(self) -> None:
        self._fd = -1
        mounted = next((folder for folder in _FOLDERS if (folder / "events").is_dir()), None)
        if mounted and not os.access(mounted / "instances", os.W_OK):
            raise TracefsError(f"{mounted}: not permitted; run as root, or `sudo chmod` it for your group")
        if not mounted:
            self._fd = lib.detached_mount(b"tracefs")
            if self._fd < 0:
                raise TracefsError(
                    "tracefs is not mounted; as root: mount -t tracefs tracefs /sys/kernel/tracing"
                )
        self.folder = mounted or Path(f"/proc/self/fd/{self._fd}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of a mount that is ours alone; `folder` is gone then."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class KernelSource:
    """A trace Source: events of kind "kvm" and "host" for this process' threads, until finish().

    `kvm` asks for KVM's answers, `host_calls` for the system calls; those of the thread that calls take() are
    left out: it would go round in a circle. `syscall_name` and `ioctl_name` turn numbers into names.
    Raises TracefsError where tracepoints can't be read.
    """

    def __init__(
        self,
        *,
        kvm: bool = True,
        host_calls: bool = True,
        syscall_name: Callable[[int], str] = str,
        ioctl_name: Callable[[int], str] = hex,
    ) -> None:
        self._tracefs = Tracefs()
        root = self._tracefs.folder
        self._names = (syscall_name, ioctl_name)
        self._formats: dict[int, EventFormat] = {}
        self._open: dict[int, tuple[RawEvent, TraceEvent, bool]] = {}
        self._calls: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        self.lost = 0
        self._reader = self._skipped = 0
        self._heard = dict.fromkeys(_FRAME, False)
        self._fds: list[int] = []
        self._instance = root / "instances" / f"pykvm-{os.getpid()}-{threading.get_native_id()}"
        try:
            self._instance.mkdir()
            self._switch_on(root, kvm=kvm, host_calls=host_calls)
        except OSError as error:
            self.close()
            raise TracefsError(f"{error.filename or self._instance}: {error.strerror}") from None
        except TracefsError:
            self.close()
            raise

    def _switch_on(self, root: Path, *, kvm: bool, host_calls: bool) -> None:
        self._write("trace_clock", "mono")
        self._write("buffer_size_kb", str(_BUFFER_KIB))
        self._write("options/event-fork", "1")
        self._write("set_event_pid", str(os.getpid()))
        wanted = [("kvm", name) for name in (*_FRAME, *_DETAILS) if kvm]
        wanted += [("raw_syscalls", name) for name in _SYSCALLS if host_calls]
        for system, name in wanted:
            try:
                known = parse_format((root / "events" / system / name / "format").read_text())
                self._write(f"events/{system}/{name}/enable", "1")
            except (OSError, ValueError):
                continue  # this kernel has no such tracepoint
            self._formats[known.number] = known
        if kvm and not any(known.name in _FRAME for known in self._formats.values()):
            raise TracefsError("this kernel has no tracepoints of KVM")
        for cpu in sorted((self._instance / "per_cpu").iterdir()):
            self._fds.append(os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def _write(self, name: str, text: str) -> None:
        (self._instance / name).write_text(text)

    def close(self) -> None:
        """Take the trace instance away."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        with contextlib.suppress(OSError):  # it was never made, or is gone already
            self._instance.rmdir()
        self._tracefs.close()

    # ---- the Source

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """New events in order of time, and the time before which no more will come."""
        until = time.monotonic_ns() - _WINDOW_NS
        self._leave_out(threading.get_native_id())
        events, unread = self._collect(_PAGES_MOST)
        until = min(until, unread)
        oldest = [event.time_ns for _, event, _ in self._open.values()]
        oldest += [start for start, _, _ in self._calls.values()]
        return events, min([until, *oldest])

    def _leave_out(self, thread: int) -> None:
        """Have nothing traced of the thread that reads: every read would make more to read, for ever."""
        if thread == self._reader:
            return
        self._reader = thread
        try:
            self._write("set_event_notrace_pid", str(thread))
        except OSError:  # kernels before 5.7 can't; there _PAGES_MOST ends it
            self._skipped = self._skipped or thread

    def finish(self) -> Sequence[TraceEvent]:
        """What is left; then the instance is gone."""
        with contextlib.suppress(OSError):
            self._write("tracing_on", "0")
        events, unread = self._collect(_PAGES_MOST)
        while unread < _NEVER and self._fds:
            more, unread = self._collect(_PAGES_MOST)
            events += more
        self.close()
        events += [TraceEvent(time.monotonic_ns(), "note", "pykvm", text) for text in self._remarks()]
        return events

    def _remarks(self) -> list[str]:
        remarks = []
        if self.lost:
            remarks.append(
                f"{self.lost} events of the host's kernel came faster than they were read, and are lost"
            )
        if self._heard["kvm_userspace_exit"] and not self._heard["kvm_exit"]:
            remarks.append(
                "this KVM tells nobody of the exits that it answers itself; its statistics count them"
            )
        return remarks

    def _collect(self, most: int) -> tuple[list[TraceEvent], int]:
        """The events in at most so many pages of each CPU, and the time after which some are left unread."""
        read = [self._pages(fd, most) for fd in self._fds]
        raw = sorted((event for events, _ in read for event in events), key=lambda event: event.time_ns)
        found = [event for one in raw for event in self._digest(one)]
        unread = min((events[-1].time_ns for events, is_all in read if events and not is_all), default=_NEVER)
        return sorted(found, key=lambda event: event.time_ns), unread

    def _pages(self, fd: int, most: int) -> tuple[list[RawEvent], bool]:
        """Events of one CPU, and whether these were all."""
        events: list[RawEvent] = []
        for _ in range(most):
            try:
                page = os.read(fd, _PAGE_BYTES)
            except BlockingIOError:
                return events, True
            if not page:
                return events, True
            for item in decode_page(page):
                if isinstance(item, int):
                    self.lost += max(item, 1)
                else:
                    events.append(item)
        return events, False

    def _digest(self, raw: RawEvent) -> list[TraceEvent]:
        """The events that are complete with this one."""
        known = self._formats.get(raw.number)
        if known is None:
            return []
        fields = known.decode(raw.data)
        if known.name in _SYSCALLS:
            return self._call(raw, known.name, fields)
        if known.name in _FRAME:
            self._heard[known.name] = True
        if known.name == "kvm_exit":
            self._open[raw.tid] = (raw, _exit_event(raw, known, fields), False)
        elif known.name == "kvm_entry":
            start, event, is_ours = self._open.pop(raw.tid, (raw, None, True))
            if event is not None and not is_ours:
                return [event._replace(duration_ns=raw.time_ns - start.time_ns)]
        elif raw.tid in self._open:
            start, event, is_ours = self._open[raw.tid]
            if known.name == "kvm_userspace_exit":  # not KVM's own answer: our exit source has it
                self._open[raw.tid] = (start, event, True)
            else:
                shown = tuple((key, fields[key]) for key in _DETAILS[known.name] if key in fields)
                more = tuple((key, value) for key, value in shown if isinstance(value, int))
                self._open[raw.tid] = (start, event._replace(args=event.args + more), is_ours)
        return []

    def _call(
        self, raw: RawEvent, name: str, fields: Mapping[str, int | tuple[int, ...]]
    ) -> list[TraceEvent]:
        number, args = fields.get("id"), fields.get("args", ())
        if name == "sys_enter":
            if (
                isinstance(number, int)
                and isinstance(args, tuple)
                and raw.tid != self._skipped
                and args[:1] not in [(fd,) for fd in self._fds]
            ):
                self._calls[raw.tid] = (raw.time_ns, number, args)
            return []
        start = self._calls.pop(raw.tid, None)
        result = fields.get("ret")
        if start is None or not isinstance(result, int):
            return []
        return [self._host_event(raw, start, result)]

    def _host_event(self, raw: RawEvent, start: tuple[int, int, tuple[int, ...]], result: int) -> TraceEvent:
        began, number, args = start
        syscall_name, ioctl_name = self._names
        name = syscall_name(number)
        shown: list[tuple[str, int | str]] = [(f"arg{i}", value) for i, value in enumerate(args[:3])]
        if name == "ioctl":
            shown = [("fd", args[0]), ("request", ioctl_name(args[1]))]
        return TraceEvent(
            time_ns=began,
            kind="host",
            layer="host kernel",
            name=name,
            duration_ns=raw.time_ns - began,
            args=tuple(shown),
            result=result,
            thread=str(raw.tid),
        )


def _exit_event(raw: RawEvent, known: EventFormat, fields: Mapping[str, int | tuple[int, ...]]) -> TraceEvent:
    reason, isa, vcpu, rip = (fields.get(key) for key in ("exit_reason", "isa", "vcpu_id", "guest_rip"))
    table = known.symbols[0 if isa == 1 else -1] if known.symbols else {}
    number = reason if isinstance(reason, int) else -1
    word = table.get(number & 0xFFFF if isa == 1 else number, f"reason {number:#x}")
    return TraceEvent(
        time_ns=raw.time_ns,
        kind="kvm",
        layer="KVM",
        name=word.lower(),
        vcpu=vcpu if isinstance(vcpu, int) else None,
        rip=rip if isinstance(rip, int) else None,
        thread=str(raw.tid),
    )
