"""Counts the system calls that a process and its threads make, with ptrace(2).

Nobody needs rights to trace what is one's own. A process may say which part of its life is meant: it marks
the beginning and the end of each window with a system call that changes nothing, close() of a number that no
file has. Tracing slows the process down: nobody measures time while it is counted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError
from pykvm.trace.syscalls import syscall_name
from pykvm.trace.syscalls.ioctl_names import ioctl_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NotCountedError", "count_syscalls", "mark_begin", "mark_end"]

_SEIZE, _INTERRUPT, _SYSCALL, _GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
_TRACESYSGOOD, _FORK, _VFORK, _CLONE, _EXEC, _EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x100000
_OPTIONS = _TRACESYSGOOD | _FORK | _VFORK | _CLONE | _EXEC | _EXITKILL
_EVENT_EXEC = 4
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_CLOSE, _IOCTL = 3, 16
_ENTRY = 1
_BEGIN, _END = 0x7F6B_766D, 0x7F6B_766E  # no process has so many files
_MOST_BYTES = 1 << 16
_LAUNCH = (
    "import os, sys; f = int(sys.argv[1]); os.read(f, 1); os.close(f); os.execv(sys.argv[2], sys.argv[2:])"
)


class NotCountedError(PykvmError):
    """The host does not let us count; the text is the reason."""


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info of <linux/ptrace.h>, as far as the entry of a call needs it."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("more", ctypes.c_uint64),
    )


def mark_begin() -> None:
    """From here on, in a process that is traced, system calls count in a new window."""
    with suppress(OSError):
        os.close(_BEGIN)


def mark_end() -> None:
    """The window ends; what follows does not count until the next one."""
    with suppress(OSError):
        os.close(_END)


def count_syscalls(
    argv: Sequence[str], *, marked: bool = False, timeout_s: float = 300
) -> list[Counter[str]]:
    """Run `argv` (an absolute path first) and count by name: one Counter for its life from its exec on.

    With `marked`, one Counter for each window between mark_begin() and mark_end(). An ioctl() counts by its
    request. Its input is empty; its output goes nowhere. Raises NotCountedError if the host forbids tracing,
    if the process fails, or if `timeout_s` is over; then the process is gone.
    """
    receive, send = os.pipe()
    complaints = os.memfd_create("complaints")
    try:
        os.set_inheritable(receive, True)
        pid = _spawn(argv, receive, complaints)
        tracer = _Tracer(pid, marked=marked)
        try:
            tracer.seize()
            os.write(send, b"!")
            status = tracer.run(timeout_s)
        finally:
            tracer.kill()
        if status:
            lines = os.pread(complaints, _MOST_BYTES, 0).decode(errors="replace").split("\n")
            why = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
            raise NotCountedError(f"the process that was counted failed: {why}")
    finally:
        for fd in (receive, send, complaints):
            os.close(fd)
    return tracer.windows


def _spawn(argv: Sequence[str], gate: int, complaints: int) -> int:
    """Start a process that waits for a byte from `gate` and then becomes `argv`."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(gate), *argv]
    nowhere = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
    return os.posix_spawn(
        sys.executable,
        launcher,
        os.environ,
        file_actions=[nowhere, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, complaints, 2)],
        setpgroup=0,
    )


class _Tracer:
    """Follows one process group. All of it in one thread: ptrace belongs to the thread that began."""

    def __init__(self, pid: int, *, marked: bool) -> None:
        self.windows: list[Counter[str]] = []
        self._pid = pid
        self._marked = marked
        self._open: Counter[str] | None = None
        self._alive = True
        self._over_time = False
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.restype = ctypes.c_long
        self._ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._info = _Info()

    def _call(self, request: int, pid: int, address: int = 0, data: int = 0) -> int:
        result: int = self._ptrace(request, pid, address, data)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def seize(self) -> None:
        """Attach, and stop the process once, so that it goes on by PTRACE_SYSCALL."""
        try:
            self._call(_SEIZE, self._pid, 0, _OPTIONS)
            self._call(_INTERRUPT, self._pid)
        except OSError as error:
            raise NotCountedError(
                f"ptrace: {error.strerror}; something on this host forbids tracing"
            ) from None

    def run(self, timeout_s: float) -> int:
        """Until the process has ended: its exit status, or 128 and the signal that ended it."""
        clock = threading.Timer(timeout_s, self._stop)
        clock.start()
        try:
            return self._loop()
        except OSError as error:
            raise NotCountedError(f"ptrace: {error.strerror}") from None
        finally:
            clock.cancel()
            if self._over_time:
                raise NotCountedError(f"counting its system calls took longer than {timeout_s:g} s")

    def _loop(self) -> int:
        while True:
            pid, status = os.waitpid(-self._pid, _WALL)
            if os.WIFSTOPPED(status):
                with suppress(ProcessLookupError):  # it may be killed at any moment
                    self._call(_SYSCALL, pid, 0, self._look(pid, status))
            elif pid == self._pid:
                self._alive = False
                return (
                    os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                )

    def _look(self, pid: int, status: int) -> int:
        """What a stop tells; the signal to go on with."""
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_EXEC and not self._marked and self._open is None:
            self._begin()
        if number == _SYSCALL_STOP:
            self._on_syscall(pid)
        return 0 if event or number == _SYSCALL_STOP else number

    def _on_syscall(self, pid: int) -> None:
        info = self._info
        self._call(_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op != _ENTRY:
            return
        if self._marked and info.number == _CLOSE and info.args[0] in (_BEGIN, _END):
            self._open = None
            if info.args[0] == _BEGIN:
                self._begin()
        elif self._open is not None:
            name = syscall_name(info.number)
            self._open[f"{name}({ioctl_text(info.args[1])})" if info.number == _IOCTL else name] += 1

    def _begin(self) -> None:
        self._open = Counter()
        self.windows.append(self._open)

    def _stop(self) -> None:
        self._over_time = True
        with suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)

    def kill(self) -> None:
        """End what is still there of it, and take its end."""
        if not self._alive:
            return
        with suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        while self._alive:
            try:
                pid, status = os.waitpid(-self._pid, _WALL)
            except ChildProcessError:
                break
            self._alive = not (pid == self._pid and not os.WIFSTOPPED(status))
