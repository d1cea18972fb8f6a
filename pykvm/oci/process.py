"""A process of our own that outlives the command which starts it; its caller's reaper gets its exit status.

podman's and containerd's monitors are subreapers: what the runtime leaves behind becomes their child, and the
status it ends with counts as the container's.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from pykvm.containers.blobs import write_whole
from pykvm.errors import PykvmError
from pykvm.oci.state import OciError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Told", "leave_behind", "take_terminal", "write_pid"]

_READY = "ready"


class Told:
    """How the process tells the command that waits for it; once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> None:
        """The command may end well."""
        self.line(_READY)

    def line(self, text: str) -> None:
        """What the command is to say, unless it has been told before."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):  # who started it has gone
                os.write(fd, f"{' '.join(text.split())}\n".encode())
            os.close(fd)


def leave_behind(work: Callable[[Told], int], log: Path) -> int:
    """Run `work` in a new process until it says ready: its number. It ends with what `work` returns.

    It keeps stdin, stdout and stderr; what pykvm itself has to say there goes to `log`. Raises OciError with
    what it said instead.
    """
    receive, send = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(receive)
        _child(work, Told(send), log)
    os.close(send)
    with os.fdopen(receive, "rb") as said:
        line = said.readline().decode(errors="replace").strip()
    if line != _READY:
        os.waitpid(pid, 0)
        raise OciError(line or f"the container's process ended at once; see {log}")
    return pid


def _child(work: Callable[[Told], int], told: Told, log: Path) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # signals for the container come by `kill`
        sys.stdin = None
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        status = work(told)
    except PykvmError as error:
        told.line(str(error))
        print(f"pykvm-oci: {error}", file=sys.stderr)  # noqa: T201 - to the log
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        told.line(f"{type(error).__name__}: {error}; see {log}")
        traceback.print_exc()
    finally:
        os._exit(status)


def take_terminal(fd: int) -> None:
    """Make a terminal this session's own: the kernel tells then by SIGWINCH when its window changes."""
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def write_pid(path: Path | None) -> None:
    """Write this process' number where the caller wants it. Raises OciError."""
    if path:
        try:
            with write_whole(path) as file:
                file.write(str(os.getpid()).encode())
        except OSError as error:
            raise OciError(f"{path}: {error.strerror}; give another file with --pid-file") from None
