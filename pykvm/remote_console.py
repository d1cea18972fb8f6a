"""A running machine's console for another process: what was printed last, what comes, and what is typed.

::

    {"do": "console", "columns": 80, "rows": 25}   ──►
                                                   ◄──  {"ok": true, "has_tty": true}, then bytes both ways
    {"do": "resize", "columns": 132, "rows": 43}   ──►  on a connection of its own

Several may look and type at once. Who does not read is left behind: a guest never waits for him.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm.control import ask, send_line
from pykvm.errors import ConfigError
from pykvm.output import Stdout
from pykvm.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.machine import Machine
    from pykvm.registry import Room

__all__ = ["attach_console", "serve_console", "serve_resize"]

_RECENT_BYTES = 4096
_BACKLOG_BYTES = 1 << 20
_CHUNK = 1 << 16
_LOOK_MS = 50
_PATIENCE_S = 2.0
_RETRY_S = 0.01


# ---- the machine's side


def serve_console(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    """Answer the request "console" until who asked has gone, or the run is over and he has read all."""
    resize(machine, request)
    send_line(link, {"ok": True, "has_tty": machine.has_tty})
    viewer = _Viewer(machine, link)
    try:
        viewer.serve()
    finally:
        viewer.close()


def serve_resize(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    """Answer the request "resize"."""
    resize(machine, request)
    send_line(link, {"ok": True})


def resize(machine: Machine, request: Mapping[str, Any]) -> None:
    """Give the guest's terminal the size that a request names, if it names one. Raises ConfigError."""
    columns, rows = request.get("columns", 0), request.get("rows", 0)
    if not all(isinstance(size, int) and 0 <= size < 1 << 16 for size in (columns, rows)):
        raise ConfigError(f"a window of {columns!r} columns and {rows!r} rows")
    if machine.terminal and columns and rows:
        machine.terminal.resize(columns, rows)


class _Viewer:
    """One connection: its backlog is filled by whoever prints, and emptied by the connection's own thread."""

    def __init__(self, machine: Machine, link: socket.socket) -> None:
        self._machine = machine
        self._link = link
        link.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_typing = True
        self._backlog = bytearray()
        self._backlog += machine.watch_console(self._show, recent=_RECENT_BYTES)

    def _show(self, data: bytes) -> None:
        """The guest printed; the machine's lock is held."""
        self._backlog += data
        with suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._machine.is_over:
            wanted = select.POLLIN * self._is_typing | select.POLLOUT * bool(self._backlog)
            poll.register(self._link, wanted)
            for fd, event in poll.poll(_LOOK_MS):
                if fd == self._wake:
                    with suppress(BlockingIOError):
                        os.eventfd_read(fd)
                elif event & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._take():
                    return
            self._machine.pump_console()
            self._send()
            if len(self._backlog) > _BACKLOG_BYTES:
                return
        self._finish()

    def _take(self) -> bool:
        """Type what has come; False if nobody is there any more. Who only stops typing goes on looking."""
        try:
            data = self._link.recv(_CHUNK)
        except BlockingIOError:
            return True
        if not data:
            was_typing, self._is_typing = self._is_typing, False
            return was_typing
        while data := data[self._machine.send(data) :]:
            if self._machine.is_over:
                break
            self._send()
            time.sleep(_RETRY_S)
        return True

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._backlog:
                done = self._link.send(self._backlog[:_CHUNK])
                del self._backlog[:done]

    def _finish(self) -> None:
        """The run is over: what it printed last."""
        until = time.monotonic() + _PATIENCE_S
        self._machine.pump_console()
        self._send()
        while self._backlog and (left := until - time.monotonic()) > 0:
            select.select([], [self._link], [], left)
            self._send()

    def close(self) -> None:
        self._machine.unwatch_console(self._show)
        os.close(self._wake)


# ---- the other side


def attach_console(room: Room, name: str) -> bool:
    """Be the console of the machine called `name`, with this process' terminal.

    True when the machine has ended, False when the user has left it (Ctrl-A X). Raises PykvmError if there
    is none of that name.
    """
    given_up = False

    def leave() -> None:
        nonlocal given_up
        given_up = True
        with suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)

    def resized(*_: object) -> None:
        with suppress(Exception), room.connect(name) as other:
            other.settimeout(_PATIENCE_S)
            ask(other, {"do": "resize", **_size()})

    def stop_typing() -> None:
        with suppress(OSError):
            link.shutdown(socket.SHUT_WR)

    with room.connect(name) as link:
        told = ask(link, {"do": "console", **_size()})
        output = Stdout(lambda: given_up)
        before = signal.signal(signal.SIGWINCH, resized)
        try:
            with (
                Terminal(
                    send=lambda data: _typed(link, data),
                    leave=leave,
                    listens=lambda: True,
                    ended=stop_typing,
                    has_tty=bool(told.get("has_tty")),
                ),
                suppress(ConnectionResetError),
            ):
                while data := link.recv(_CHUNK):
                    output.write(data)
        finally:
            signal.signal(signal.SIGWINCH, before)
    return not given_up


def _size() -> dict[str, int]:
    if not (sys.stdout and sys.stdout.isatty()):
        return {}
    size = shutil.get_terminal_size()
    return {"columns": size.columns, "rows": size.lines}


def _typed(link: socket.socket, data: bytes) -> int:
    try:
        return link.send(data)
    except OSError:  # it has ended: what is typed now goes nowhere
        return len(data)
