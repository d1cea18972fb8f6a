"""Counts the system calls that a process and its threads make, with ptrace(2).

Nobody needs rights to trace what is one's own. A process may say which part of its life is meant: it marks
the beginning and the end of each window by sending itself signals that everybody ignores, and that a tracer
sees all the same. Outside its windows it runs at full speed, inside they cost time: nobody measures it then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
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

_CONT, _SYSCALL, _SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 7, 24, 0x4206, 0x4207, 0x420E
_TRACESYSGOOD, _FORK, _VFORK, _CLONE, _EXEC, _EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x100000
_OPTIONS = _TRACESYSGOOD | _FORK | _VFORK | _CLONE | _EXEC | _EXITKILL
_EVENT_EXEC = 4
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_IOCTL = 16
_ENTRY = 1
_BEGIN, _END = signal.SIGURG, signal.SIGWINCH
_MOST_BYTES = 1 << 16
_LAUNCH = """
import os, sys
gate = int(sys.argv[1])
os.write(gate, b"?")
os.read(gate, 1)
os.close(gate)
os.execv(sys.argv[2], sys.argv[2:])
"""


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
    os.kill(os.getpid(), _BEGIN)


def mark_end() -> None:
    """The window ends; what follows does not count until the next one."""
    os.kill(os.getpid(), _END)


def count_syscalls(
    argv: Sequence[str], *, marked: bool = False, timeout_s: float = 300
) -> list[Counter[str]]:
    """Run `argv` (an absolute path first) and count by name: one Counter for its life from its exec on.

    With `marked`, one Counter for each window between mark_begin() and mark_end(). An ioctl() counts by its
    request. Its input is empty; its output goes nowhere. Raises NotCountedError if the host forbids tracing,
    if the process fails, or if `timeout_s` is over; then the process is gone.
    """
    ours, theirs = socket.socketpair()
    complaints = os.memfd_create("complaints")
    try:
        theirs.set_inheritable(True)
        pid = _spawn(argv, theirs.fileno(), complaints)
        theirs.close()
        tracer = _Tracer(pid, marked=marked)
        try:
            ours.recv(1)  # from here on the next exec is the one that is meant
            tracer.seize()
            with suppress(OSError):
                ours.send(b"!")
            status = tracer.run(timeout_s)
        finally:
            tracer.kill()
        if status:
            lines = os.pread(complaints, _MOST_BYTES, 0).decode(errors="replace").split("\n")
            why = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
            raise NotCountedError(f"the process that was counted failed: {why}")
    finally:
        os.close(complaints)
        ours.close()
        theirs.close()
    return tracer.windows


def _spawn(argv: Sequence[str], gate: int, complaints: int) -> int:
    """Start a process that says by a byte that it is there, waits for one, and then becomes `argv`."""
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
        self._seen = {pid}  # its threads and children, as far as they have stopped once
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
                    number = self._look(pid, status)
                    self._call(_CONT if self._open is None else _SYSCALL, pid, 0, number)
                self._seen.add(pid)
                continue
            self._seen.discard(pid)
            if pid == self._pid:
                self._alive = False
                return (
                    os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                )

    def _look(self, pid: int, status: int) -> int:
        """What a stop tells; the signal to go on with."""
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_EXEC and not self._marked and not self.windows:
            self._begin(pid)
        elif number == _SYSCALL_STOP:
            self._on_syscall(pid)
        elif self._marked and not event and number in (_BEGIN, _END):
            (self._begin if number == _BEGIN else self._end)(pid)
            return 0
        return 0 if event or number == _SYSCALL_STOP else number

    def _on_syscall(self, pid: int) -> None:
        info = self._info
        self._call(_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op == _ENTRY and self._open is not None:
            name = syscall_name(info.number)
            self._open[f"{name}({ioctl_text(info.args[1])})" if info.number == _IOCTL else name] += 1

    def _begin(self, pid: int) -> None:
        self._open = Counter()
        self.windows.append(self._open)
        for other in self._seen - {pid}:  # they run, and are to stop at their next system call
            with suppress(OSError):
                self._call(_INTERRUPT, other)

    def _end(self, _: int) -> None:
        if self._open:
            self._open -= Counter({"kill": 1, "getpid": 1})  # those of the mark
            self.windows[-1] = self._open
        self._open = None

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
