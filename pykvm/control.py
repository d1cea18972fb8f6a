"""What a running machine does for others: it listens on the socket of its name, a line of JSON a request.

::

    {"do": "stop"}                           {"ok": true}, and the run ends
    {"do": "trace", "only": [...], ...}      {"about": {...}}, then {"events": [[...], ...]} again and again,
                                             at last {"end": {...}}
    {"do": "console", ...}                   {"ok": true, ...}, then the console's bytes both ways
    {"do": "resize", "columns": N, ...}      {"ok": true}
    anything else                            {"error": "a line of text"}

A request is answered in a thread of its own. Who wants more of any machine adds a row to `_ANSWERS`.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from pykvm.errors import PykvmError
from pykvm.result import EndReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.machine import Machine
    from pykvm.registry import Seat

    Answer = Callable[["Machine", socket.socket, Mapping[str, Any]], None]

__all__ = ["Control", "ask", "read_line", "send_line"]

_LINE_MOST = 1 << 26
_REQUEST_MOST = 1 << 16
_REQUEST_S = 5.0
_JOIN_S = 5.0


class Control:
    """Answers what comes on the socket of a machine's name, while the `with` block lasts."""

    def __init__(self, seat: Seat, machine: Machine, more: Mapping[str, Answer] | None = None) -> None:
        """The machine is loaded and does not run yet. `more` is answered too, or instead."""
        self._machine = machine
        self._answers: Mapping[str, Answer] = {**_ANSWERS, **(more or {})}
        machine.allow_attach()
        self._socket = seat.listen()
        self._links: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Nobody is answered any more. Who traces has heard the end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_JOIN_S)
        self._socket.close()
        with self._lock:
            links = dict(self._links)
            for link in links:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RD)
        until = time.monotonic() + _JOIN_S
        for thread in links.values():  # they still tell what was last
            thread.join(max(until - time.monotonic(), 0))

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(link,), name="control-link", daemon=True)
            with self._lock:
                self._links[link] = thread
                thread.start()

    def _serve(self, link: socket.socket) -> None:
        try:
            link.settimeout(_REQUEST_S)
            request = read_line(link, _REQUEST_MOST)
            if request is not None:
                self._answer(link, request)
        except (OSError, ValueError):
            pass  # who asked has gone, or speaks another language: there is nobody to tell
        finally:
            with self._lock:
                del self._links[link]
            link.close()

    def _answer(self, link: socket.socket, request: Mapping[str, Any]) -> None:
        answer = self._answers.get(str(request.get("do")))
        if answer is None:
            send_line(link, {"error": f"this machine does not know how to {request.get('do')!r}"})
            return
        try:
            answer(self._machine, link, request)
        except PykvmError as error:
            send_line(link, {"error": str(error)})


def _stop(machine: Machine, link: socket.socket, _: Mapping[str, Any]) -> None:
    machine.stop(EndReason.INTERRUPTED, "stopped by `pykvm stop`")
    send_line(link, {"ok": True})


def _trace(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    from pykvm.trace.remote import serve_trace  # noqa: PLC0415 - a machine that nobody traces does not pay

    serve_trace(machine, link, request)


def _console(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    from pykvm.remote_console import serve_console  # noqa: PLC0415 - as above

    serve_console(machine, link, request)


def _resize(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    from pykvm.remote_console import serve_resize  # noqa: PLC0415 - as above

    serve_resize(machine, link, request)


_ANSWERS: dict[str, Answer] = {"stop": _stop, "trace": _trace, "console": _console, "resize": _resize}


def send_line(link: socket.socket, value: Mapping[str, Any]) -> None:
    """One message."""
    link.sendall(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def read_line(link: socket.socket, most: int = _LINE_MOST) -> dict[str, Any] | None:
    """One message, read byte-exactly: for requests and single answers. None at the end.

    Raises ValueError for what is none, OSError as sockets do.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = link.recv(1)
        if not piece:
            return None
        line += piece
        if len(line) > most:
            raise ValueError("a message that is too long")
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("a message that is no object")  # noqa: TRY004 - to the reader it is all the same
    return found


def ask(link: socket.socket, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request and wait for its first answer. Raises PykvmError with what the machine has to say."""
    try:
        send_line(link, request)
        found = read_line(link)
    except (OSError, ValueError) as error:
        raise PykvmError(f"the machine does not answer: {error}") from None
    if found is None:
        raise PykvmError("the machine does not answer: it has just ended")
    if "error" in found:
        raise PykvmError(str(found["error"]))
    return found
