"""Carries a container's streams to and from this terminal: for `container run` and `container exec`."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import termios
import threading
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from pykvm.containers.calls import AgentClient, Call, Data
from pykvm.containers.wire import STREAM_ERR, Decoder, Kind, encode, encode_json
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["AgentPeer", "DetachedError", "Peer", "ServicePeer", "converse"]

_PIECE = 1 << 15
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_INSISTS = 3
_DETACH = b"\x10\x11"  # Ctrl-P Ctrl-Q


class DetachedError(PykvmError):
    """The user has left; the container goes on."""

    exit_status = 0


class Peer(Protocol):
    """The other side: a container that is attached to, or a process in one."""

    def items(self) -> Iterator[Data | dict[str, Any]]:
        """What comes, until the end."""

    def type(self, data: bytes) -> None:
        """Send input; none is its end."""

    def tell(self, op: str, **words: Any) -> None:
        """Send a signal, or the size of the window."""


class ServicePeer:
    """A container, by the connection to its machine's service."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()

    def items(self) -> Iterator[Data | dict[str, Any]]:
        """Data and events."""
        decoder = Decoder()
        with suppress(ConnectionError):
            while data := self._link.recv(1 << 16):
                for frame in decoder.feed(data):
                    if frame.kind is Kind.DATA:
                        yield Data(frame.stream, frame.body)
                    elif frame.kind is Kind.EVENT:
                        yield frame.json()

    def type(self, data: bytes) -> None:
        """Input, or its end."""
        self._send(encode(Kind.DATA, body=data))

    def tell(self, op: str, **words: Any) -> None:
        """As the agent has it; the service says of which container."""
        self._send(encode_json(Kind.REQUEST, 0, {"op": op, **words}))

    def _send(self, frame: bytes) -> None:
        with suppress(OSError), self._lock:
            self._link.sendall(frame)


class AgentPeer:
    """A process in a container, by its Call; `about` says to the agent which process it is."""

    def __init__(self, client: AgentClient, call: Call, about: Mapping[str, Any]) -> None:
        self._client = client
        self._call = call
        self._about = about

    def items(self) -> Iterator[Data | dict[str, Any]]:
        """Data and events."""
        return iter(self._call)

    def type(self, data: bytes) -> None:
        """Input, or its end."""
        if data:
            self._call.send(data)
        else:
            self._call.end_input()

    def tell(self, op: str, **words: Any) -> None:
        """A signal or a size."""
        with suppress(PykvmError):
            self._client.ask(op, **words, **self._about)


def converse(
    peer: Peer,
    *,
    reads: bool,
    is_tty: bool,
    forwards: bool = True,
    on_event: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Carry everything until the container's (or process') end; its exit event, or the `failed` one.

    `reads`: stdin goes to it. `is_tty`: the terminal becomes raw. `forwards`: signals go to it, too. Raises
    DetachedError when the user leaves, PykvmError if the machine has gone.
    """
    told: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
    state = _State(told, is_tty=is_tty)
    threading.Thread(target=_tell_all, args=(peer, told), daemon=True).start()
    ending: dict[str, Any] | None = None
    open_streams = {1} if is_tty else {1, 2}
    with _raw(is_raw=is_tty and reads), _signals(state, forwards=forwards):
        if is_tty:
            state.resize()
        if reads:
            threading.Thread(target=_type_all, args=(peer, state), daemon=True).start()
        for item in peer.items():
            if isinstance(item, Data):
                state.write(item)
                if not item.data:
                    open_streams.discard(item.stream)
            elif item.get("event") == "failed":
                return item
            elif item.get("event") == "exit":
                ending = item
            else:
                on_event(item)
            state.raise_if_left()
            if ending and not open_streams:
                break
    if ending is None:
        raise PykvmError("the machine has gone; `pykvm container ps -a` says what became of its containers")
    return ending


class _State:
    """What threads and signal handlers tell each other."""

    def __init__(self, told: queue.SimpleQueue[Any], *, is_tty: bool) -> None:
        self.told = told
        self.is_tty = is_tty
        self._interrupts = 0
        self._lost = False
        self.has_left = False
        self._fds = {1: _fd(sys.stdout, 1), 2: _fd(sys.stderr, 2)}

    def resize(self, *_: object) -> None:
        """The window has this size, or the user has left."""
        if self.has_left:
            raise DetachedError("")
        size = shutil.get_terminal_size()
        self.told.put(("resize", {"rows": size.lines, "columns": size.columns}))

    def forward(self, number: int, _: object) -> None:
        """A signal of ours is one of the container's; who insists gets away from it."""
        self._interrupts += number in {signal.SIGINT, signal.SIGTERM}
        if self._interrupts >= _INSISTS:
            raise DetachedError("")
        self.told.put(("signal", {"signal": int(number)}))

    def raise_if_left(self) -> None:
        """Raises BrokenPipeError if nobody reads our output any more."""
        if self._lost:
            raise BrokenPipeError

    def write(self, item: Data) -> None:
        """Bytes of the container's to our own streams."""
        fd = self._fds[STREAM_ERR if item.stream == STREAM_ERR else 1]
        view = memoryview(item.data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            self._lost = True


def _fd(stream: Any, otherwise: int) -> int:
    try:
        stream.flush()
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return otherwise


def _tell_all(peer: Peer, told: queue.SimpleQueue[Any]) -> None:
    while (words := told.get()) is not None:
        peer.tell(words[0], **words[1])


def _type_all(peer: Peer, state: _State) -> None:
    fd = _fd(sys.stdin, 0) if sys.stdin else 0
    held = b""
    with suppress(OSError):
        while data := os.read(fd, _PIECE):
            if state.is_tty:
                held = (held + data)[-2:]
                if held == _DETACH:
                    state.has_left = True
                    os.kill(
                        os.getpid(), signal.SIGWINCH
                    )  # whose handler raises it where the main thread waits
                    return
            peer.type(data)
    peer.type(b"")


@contextmanager
def _raw(*, is_raw: bool) -> Iterator[None]:
    """The terminal hands on each key at once, and is as it was afterwards."""
    if not is_raw or not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _signals(state: _State, *, forwards: bool) -> Iterator[None]:
    before: dict[int, Any] = {}
    if forwards:
        before = {number: signal.signal(number, state.forward) for number in _FORWARDED}
    if state.is_tty:
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, state.resize)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
