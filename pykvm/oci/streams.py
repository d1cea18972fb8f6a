"""A container's streams on this process' own descriptors, or on a terminal that a caller takes."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm.containers.calls import Data
from pykvm.containers.wire import STREAM_ERR
from pykvm.errors import PykvmError
from pykvm.oci.state import OciError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.calls import Call

__all__ = ["Streams", "open_console"]

_PIECE = 1 << 15
_KILLED = 128 + signal.SIGKILL


def open_console(path: str) -> int:
    """A new terminal, whose controlling end goes to the Unix socket `path`; the other end, raw and ours.

    As OCI runtimes do it: one message with one descriptor. Raises OciError.
    """
    master, slave = os.openpty()
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            rights = array.array("i", [master])
            link.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        os.close(slave)
        raise OciError(f"{path}: {error.strerror or error}; nobody takes the terminal there") from None
    finally:
        os.close(master)
    tty.setraw(slave)
    return slave


class Streams:
    """Carries the streams of an agent's Call; `fds` are stdin, stdout and stderr, the same for a terminal."""

    def __init__(self, call: Call, fds: tuple[int, int, int], *, is_tty: bool) -> None:
        self._call = call
        self._fds = fds
        self._is_tty = is_tty

    def begin(self) -> None:
        """Read input in a thread of its own."""
        threading.Thread(target=self._type, name="input", daemon=True).start()

    def _type(self) -> None:
        with suppress(OSError, PykvmError):
            while data := os.read(self._fds[0], _PIECE):
                self._call.send(data)
        if not self._is_tty:
            with suppress(PykvmError):
                self._call.end_input()

    def follow(self, exited: Callable[[int], object] = lambda _: None) -> int:
        """Write what comes until process and streams have ended: the process' status.

        `exited` hears of it as soon as it is known. 137 if the machine ended before.
        """
        ending: int | None = None
        open_streams = {1} if self._is_tty else {1, 2}
        for item in self._call:
            if isinstance(item, Data):
                self._write(item)
                if not item.data:
                    open_streams.discard(item.stream)
            elif item.get("event") == "exit":
                ending = int(item.get("status") or 0)
                exited(ending)
            if ending is not None and not open_streams:
                return ending
        return _KILLED if ending is None else ending

    def _write(self, item: Data) -> None:
        """All of it; what nobody reads any more is not wanted any more."""
        fd, view = self._fds[2 if item.stream == STREAM_ERR else 1], memoryview(item.data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            with suppress(PykvmError):
                self._call.refuse(item.stream)

    def window(self) -> dict[str, Any]:
        """Rows and columns of the terminal, as the agent is told them."""
        rows, columns = struct.unpack("HH4x", fcntl.ioctl(self._fds[0], termios.TIOCGWINSZ, bytes(8)))
        return {"rows": rows, "columns": columns}
