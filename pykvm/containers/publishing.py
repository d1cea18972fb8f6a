"""Ports of the host that lead to containers: whoever connects is connected on by the agent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from pykvm.containers.calls import AgentClient, Call, Data
from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Publisher"]

_PIECE = 1 << 15
_DIAL_S = 30.0


class Publisher:
    """Listens while the `with` block lasts. `ports` are those it has: [address, port of the host, inside]."""

    def __init__(self, client: AgentClient, address: str, ports: Sequence[Sequence[object]]) -> None:
        """Raises ConfigError for a port that another program has."""
        self._client = client
        self._address = address
        self._sockets: list[socket.socket] = []
        self.ports: list[list[object]] = []
        try:
            for where, number, inside in ports:
                self._listen(str(where), int(str(number)), int(str(inside)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more; what is connected stays so until an end closes."""
        for listener in self._sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(self, where: str, number: int, inside: int) -> None:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        listener = socket.socket(family)
        self._sockets.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((where, number))
            listener.listen(64)
        except OSError as error:
            raise ConfigError(f"Bind for {where}:{number} failed: {error.strerror}") from None
        self.ports.append([where, listener.getsockname()[1], inside])
        threading.Thread(target=self._accept, args=(listener, inside), daemon=True).start()

    def _accept(self, listener: socket.socket, inside: int) -> None:
        with suppress(OSError):
            while True:
                link, _ = listener.accept()
                threading.Thread(target=self._connect, args=(link, inside), daemon=True).start()

    def _connect(self, link: socket.socket, inside: int) -> None:
        with link, suppress(OSError, PykvmError, TimeoutError):
            call = self._client.open("dial", address=self._address, port=inside)
            call.answer(_DIAL_S)
            sender = threading.Thread(target=_send, args=(link, call), daemon=True)
            sender.start()
            try:
                if _receive(link, call):
                    sender.join()  # who connected may still have something to say
            finally:
                with suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
                call.forget()


def _send(link: socket.socket, call: Call) -> None:
    with suppress(OSError):
        while data := link.recv(_PIECE):
            call.send(data)
    call.end_input()


def _receive(link: socket.socket, call: Call) -> bool:
    """Hand on what the container says, to its end; False if that does not come."""
    for item in call:
        if not isinstance(item, Data):
            continue
        if not item.data:
            link.shutdown(socket.SHUT_WR)
            return True
        link.sendall(item.data)
    return False
