"""An agent without a guest: it speaks the protocol; its containers' programs are Python functions."""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm.containers.wire import AgentFrame, Decoder, Kind, encode, encode_json

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FakeAgent", "FakeProcess"]

HELLO = {"protocol": 1, "agent": "0", "kernel": "6.1.0-fake", "window": 65536}


class FakeProcess:
    """What a program sees: its input as a queue, and ways to print and to end."""

    def __init__(self, agent: FakeAgent, number: int, request: dict[str, Any]) -> None:
        self.agent = agent
        self.number = number
        self.request = request
        self.stdin: queue.Queue[bytes] = queue.Queue()
        self.signals: queue.Queue[int] = queue.Queue()

    def write(self, stream: int, data: bytes) -> None:
        """Print."""
        self.agent.send(encode(Kind.DATA, self.number, stream, data))

    def event(self, **about: Any) -> None:
        """Tell something."""
        self.agent.send(encode_json(Kind.EVENT, self.number, about))

    def end(self, status: int, **more: Any) -> None:
        """End, with all streams."""
        for stream in (1, 2):
            self.write(stream, b"")
        self.event(event="exit", status=status, **more)


class FakeAgent:
    """One connection; `programs` are what args[0] may be, `asked` is all that was requested."""

    def __init__(self, programs: dict[str, Callable[[FakeProcess], None]]) -> None:
        self.host, self._link = socket.socketpair()
        self._programs = programs
        self._lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.credit: dict[int, int] = {}
        self.containers: dict[str, FakeProcess] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self._running: dict[int, FakeProcess] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, frame: bytes) -> None:
        """A frame for the host."""
        with suppress(OSError), self._lock:
            self._link.sendall(frame)

    def die(self) -> None:
        """The guest is gone."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _serve(self) -> None:
        self.send(encode_json(Kind.HELLO, 0, HELLO))
        decoder = Decoder()
        with suppress(OSError):
            while data := self._link.recv(1 << 16):
                for frame in decoder.feed(data):
                    self._take(frame)
        self._link.close()

    def _take(self, frame: AgentFrame) -> None:
        if frame.kind is Kind.DATA:
            self.send(encode(Kind.CREDIT, frame.id, 0, len(frame.body).to_bytes(4, "little")))
            if frame.id in self._running:
                self._running[frame.id].stdin.put(frame.body)
        elif frame.kind is Kind.CREDIT:
            self.credit[frame.id] = self.credit.get(frame.id, 0) + frame.credit()
        elif frame.kind is Kind.REQUEST:
            request = frame.json()
            self.asked.append(request)
            getattr(self, f"_{request['op']}", self._plain)(frame.id, request)

    def _answer(self, number: int, **about: Any) -> None:
        self.send(encode_json(Kind.ANSWER, number, about))

    def _plain(self, number: int, request: dict[str, Any]) -> None:
        self._answer(number, **self.answers.get(request["op"], {}))

    def _create(self, number: int, request: dict[str, Any]) -> None:
        process = FakeProcess(self, number, request)
        name = request["config"]["process"]["args"][0]
        if name not in self._programs:
            process.event(event="step", n=1, who="container", call="execve", ns=5, result=-2)
            text = f"execve {name}: no such file or directory (errno 2)"
            self._answer(number, error={"errno": 2, "step": "execve", "text": text})
            return
        self.containers[request["name"]] = self._running[number] = process
        self._answer(number, pid=42, cgroup=f"/pykvm/{request['name']}")
        threading.Thread(target=self._programs[name], args=(process,), daemon=True).start()

    def _signal(self, number: int, request: dict[str, Any]) -> None:
        process = self.containers.get(request["name"])
        if process is None:
            self._answer(number, error={"errno": 3, "step": "signal", "text": "no such process"})
            return
        process.signals.put(request["signal"])
        self._answer(number)

    def _diff(self, number: int, _: dict[str, Any]) -> None:
        self._answer(number)
        self.send(encode(Kind.DATA, number, 1, b"a "))
        self.send(encode_json(Kind.EVENT, number, {"event": "end"}))  # its bytes may come behind
        self.send(encode(Kind.DATA, number, 1, b"tar"))
        self.send(encode(Kind.DATA, number, 1, b""))
