"""A connection to the agent in a guest: requests at the same time, each with its answer, events and streams.

One thread reads what the agent sends and sorts it; what belongs to a request waits at its Call until somebody
takes it. The agent gets new credit for a stream only when its data has been taken, so who is slow holds up
his own container and no other.
"""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pykvm.containers.wire import (
    DATA_MOST,
    OUT_WINDOW,
    PROTOCOL,
    STREAM_IN,
    WINDOW,
    AgentFrame,
    AgentWireError,
    Decoder,
    Kind,
    encode,
    encode_credit,
    encode_json,
)
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AgentClient", "AgentError", "AgentGoneError", "Call", "Data"]

_HELLO_S = 60.0
_RECEIVE = 1 << 18


class AgentError(PykvmError):
    """The agent could not do it: `errno` and the `step` that failed."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(str(said.get("text") or "the agent does not say why"))
        self.errno = int(said.get("errno") or 0)
        self.step = str(said.get("step") or "")


class AgentGoneError(PykvmError):
    """The connection to the agent has ended, perhaps with the guest."""


class Data(NamedTuple):
    """Bytes of a stream; none at all is its end."""

    stream: int
    data: bytes


class Call:
    """One request: `answer()` it, then iterate over its Data and events, until the connection ends."""

    def __init__(self, client: AgentClient, number: int) -> None:
        self.id = number
        self._client = client
        self._answer: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._items: queue.SimpleQueue[Data | dict[str, Any] | None] = queue.SimpleQueue()
        self._credit = WINDOW
        self._owed = [0, 0, 0]  # bytes of each stream that were taken, and the agent does not know
        self._room = threading.Condition()
        self._is_closed = False

    def answer(self, timeout_s: float | None = None) -> dict[str, Any]:
        """What the agent answers. Raises AgentError, AgentGoneError, TimeoutError."""
        try:
            found = self._answer.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if found is None:
            self._answer.put(None)
            raise AgentGoneError(self._client.why)
        if isinstance(error := found.get("error"), dict):
            self.forget()
            raise AgentError(error)
        return found

    def __iter__(self) -> Iterator[Data | dict[str, Any]]:
        """Data and events as they come; a stream's credit is renewed as they are taken, in large pieces."""
        while (item := self._items.get()) is not None:
            yield item
            if isinstance(item, Data) and item.data:
                self._took(item)
        self._items.put(None)

    def _took(self, item: Data) -> None:
        owed = self._owed[item.stream] + len(item.data)
        if owed >= OUT_WINDOW // 4:  # a frame for each would cost as much as the data
            self._client.send(encode_credit(self.id, item.stream, owed))
            owed = 0
        self._owed[item.stream] = owed

    def so_far(self) -> list[Data | dict[str, Any]]:
        """What has come and nobody has taken, without waiting."""
        found = []
        with suppress(queue.Empty):
            while (item := self._items.get_nowait()) is not None:
                found.append(item)
            self._items.put(None)  # the end, which who comes next waits for
        return found

    def send(self, data: bytes) -> None:
        """Type `data`; waits for the agent to have room. What nobody reads any more is dropped."""
        view = memoryview(data)
        while view:
            with self._room:
                self._room.wait_for(lambda: self._credit or self._is_closed)
                if self._is_closed:
                    return
                step = min(self._credit, len(view), DATA_MOST)
                self._credit -= step
            self._client.send(encode(Kind.DATA, self.id, STREAM_IN, bytes(view[:step])))
            view = view[step:]

    def end_input(self) -> None:
        """Nothing more is typed."""
        if not self._is_closed:
            self._client.send(encode(Kind.DATA, self.id, STREAM_IN))

    def refuse(self, stream: int) -> None:
        """Take no more of a stream: its writer gets SIGPIPE."""
        self._client.send(encode(Kind.CLOSE, self.id, stream))

    def forget(self) -> None:
        """The last of it has been seen."""
        self._client.forget(self.id)

    # ---- the reader's side

    def take(self, frame: AgentFrame) -> None:
        """A frame of this request."""
        if frame.kind is Kind.ANSWER:
            self._answer.put(frame.json())
        elif frame.kind is Kind.EVENT:
            self._items.put(frame.json())
        elif frame.kind is Kind.DATA:
            self._items.put(Data(frame.stream, frame.body))
        elif frame.kind is Kind.CREDIT:
            with self._room:
                self._credit += frame.credit()
                self._room.notify_all()
        elif frame.kind is Kind.CLOSE:
            self._close()

    def _close(self) -> None:
        with self._room:
            self._is_closed = True
            self._room.notify_all()

    def lose(self) -> None:
        """The connection has ended."""
        self._close()
        self._answer.put(None)
        self._items.put(None)


class AgentClient:
    """A connection; close() ends it, and with it the guest's own processes of it, but no container."""

    def __init__(self, link: socket.socket, hello_s: float = _HELLO_S) -> None:
        """`link` is connected, and the client's from now on. Raises AgentGoneError if nobody greets."""
        self._link = link
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._last = 0
        self._is_over = False
        self.why = "the agent does not answer: its machine has ended"
        self._decoder = Decoder()
        try:
            link.settimeout(hello_s)
            self.hello, early = self._greeting()
            link.settimeout(None)
        except (OSError, PykvmError) as error:
            link.close()
            raise AgentGoneError(f"the agent in the guest does not greet: {error}") from None
        self._thread = threading.Thread(target=self._read, args=(early,), name="agent", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; every Call hears of it."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._link.close()

    def open(self, op: str, **words: Any) -> Call:
        """Send a request. Raises AgentGoneError."""
        with self._lock:
            if self._is_over:
                raise AgentGoneError(self.why)
            self._last += 1
            call = self._calls[self._last] = Call(self, self._last)
        self.send(encode_json(Kind.REQUEST, call.id, {"op": op, **words}))
        return call

    def ask(self, op: str, timeout_s: float | None = None, **words: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises AgentError, AgentGoneError, TimeoutError."""
        call = self.open(op, **words)
        found = call.answer(timeout_s)
        call.forget()
        return found

    def send(self, frame: bytes) -> None:
        """A frame; that the connection has ended, its reader tells."""
        with suppress(OSError), self._lock:
            self._link.sendall(frame)

    def forget(self, number: int) -> None:
        """Frames of that request are nobody's from now on."""
        with self._lock:
            self._calls.pop(number, None)

    def _greeting(self) -> tuple[dict[str, Any], list[AgentFrame]]:
        while True:
            data = self._link.recv(_RECEIVE)
            if not data:
                raise AgentGoneError("the connection ended")
            if frames := self._decoder.feed(data):
                break
        hello = frames[0].json()
        if frames[0].kind is not Kind.HELLO or hello.get("protocol") != PROTOCOL:
            raise AgentWireError(f"it speaks protocol {hello.get('protocol')!r} and not {PROTOCOL}")
        return hello, frames[1:]

    def _read(self, frames: list[AgentFrame]) -> None:
        try:
            while True:
                for frame in frames:
                    if call := self._calls.get(frame.id):
                        call.take(frame)
                data = self._link.recv(_RECEIVE)
                if not data:
                    break
                frames = self._decoder.feed(data)
        except AgentWireError as error:
            self.why = str(error)
        except OSError:
            pass
        with self._lock:
            self._is_over = True
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.lose()
