"""Who asked a machine's service for a container, and perhaps is attached to it."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm.containers.calls import AgentError, Data
from pykvm.containers.wire import Decoder, Kind, encode, encode_json
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from pykvm.containers.calls import AgentClient, Call
    from pykvm.containers.records import Record

__all__ = ["Viewer"]


class Viewer:
    """Who asked for the container, and perhaps is attached; his going is no error."""

    def __init__(self, link: socket.socket, *, is_attached: bool) -> None:
        self._link = link
        self.is_attached = is_attached
        self._is_gone = False
        self._lock = threading.Lock()

    def show(self, item: Data | Mapping[str, Any]) -> None:
        """Data or an event, if it is for him."""
        if isinstance(item, Data):
            if self.is_attached:
                self._send(encode(Kind.DATA, 0, item.stream, item.data))
        elif item.get("event") != "exit":
            self.event(item)

    def event(self, about: Mapping[str, Any]) -> None:
        """An event."""
        self._send(encode_json(Kind.EVENT, 0, about))

    def leave(self) -> None:
        """Nothing more is said."""
        with self._lock:
            self._is_gone = True

    def _send(self, frame: bytes) -> None:
        with self._lock:
            if self._is_gone:
                return
            try:
                self._link.sendall(frame)
            except OSError:
                self._is_gone = True

    def types_into(self, client: AgentClient, call: Call, record: Record) -> None:
        """Pass on what he types, his signals and his window's size, in a thread of their own."""
        if not self.is_attached:
            call.end_input()
            return
        thread = threading.Thread(target=self._listen, args=(client, call, record), daemon=True)
        thread.start()

    def _listen(self, client: AgentClient, call: Call, record: Record) -> None:
        decoder = Decoder()
        with suppress(OSError, PykvmError):
            while data := self._link.recv(1 << 16):
                for frame in decoder.feed(data):
                    if frame.kind is Kind.DATA:
                        call.send(frame.body) if frame.body else call.end_input()
                    elif frame.kind is Kind.REQUEST:
                        with suppress(AgentError):
                            client.ask(**frame.json(), name=record.short)
        if not record.tty:
            call.end_input()
