"""A trace across a socket, without a machine: what is sent arrives, and nobody waits for ever."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_parts import ABOUT, Memory, event, events, result, stats

from pykvm import control
from pykvm.control import ask, read_line, send_line
from pykvm.errors import ConfigError, PykvmError
from pykvm.trace import remote
from pykvm.trace.remote import RemoteTrace, serve_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.trace.event import TraceEvent


class Keeper:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []
        self.about: Any = None
        self.result: Any = "open"

    def open(self, about: Any) -> None:
        self.about = about

    def write(self, found: Sequence[TraceEvent]) -> None:
        self.events += found

    def close(self, result: Any) -> None:
        self.result = result


class FakeMachine:
    """As much of a machine as is traced: it does `work` with the sink as soon as that is attached."""

    def __init__(self, work: Any) -> None:
        self._work = work
        self.vcpus: list[Any] = [SimpleNamespace(loop=SimpleNamespace(**_LOOP))]
        self.selection: Any = None
        self.left = threading.Event()

    def attach(self, sink: Any, selection: Any) -> Any:
        self.selection = selection
        sink.open(ABOUT)
        self._work(sink)
        return sink

    def detach(self, sink: Any) -> None:
        self.left.set()
        sink.close(None)


_LOOP = dict.fromkeys("guest_ticks own_ticks answer_ticks wait_ticks entries exits fast_exits".split(), 0)


def traced(work: Any, request: dict[str, Any] | None = None) -> tuple[Keeper, Any, FakeMachine]:
    """A whole trace: what the other side's sink has got."""
    here, there = socket.socketpair()
    machine, keeper = FakeMachine(work), Keeper()

    def serve() -> None:
        with there:
            asked = read_line(there)
            assert asked is not None
            try:
                serve_trace(machine, there, asked)  # type: ignore[arg-type]
            except PykvmError as error:
                send_line(there, {"error": str(error)})

    thread = threading.Thread(target=serve)
    thread.start()
    with here:
        try:
            found = RemoteTrace(here, [keeper]).run(request or {})
        finally:
            here.close()
            thread.join()
    return keeper, found, machine


@settings(max_examples=25)
@given(st.lists(events(), min_size=1, max_size=8))
def test_every_event_arrives_as_it_was(sent: list[TraceEvent]) -> None:
    """Whatever is in it; with the run it is of, and how that ended."""

    def work(sink: Any) -> None:
        sink.write(sent)
        sink.close(result())

    keeper, found, _ = traced(work)
    assert keeper.events == sent
    assert keeper.about == ABOUT
    assert keeper.result == found
    assert (str(found.reason), found.exit_code) == ("exit", 0)


def test_who_has_enough_says_so_and_gets_the_rest() -> None:
    """The end says that the guest runs on."""
    here, there = socket.socketpair()
    machine = FakeMachine(lambda sink: sink.write([event()]))
    server = threading.Thread(target=lambda: serve_trace(machine, there, {}))  # type: ignore[arg-type]
    server.start()
    keeper = Keeper()
    trace = RemoteTrace(here, [keeper])
    trace.leave()
    with pytest.raises(OSError, match="pipe"):
        send_line(here, {})
    for message in trace._messages():
        found = trace._take(message)
    server.join()
    assert machine.left.is_set()
    assert len(keeper.events) == 1
    assert found is not None
    assert found.detail == "the tracer has left, the guest runs on"
    for link in (here, there):
        link.close()


def test_a_process_that_dies_leaves_what_was_sent() -> None:
    """No result; the sinks are closed all the same."""
    here, there = socket.socketpair()
    send_line(there, {"about": ABOUT._asdict()})
    there.sendall(b'{"events": [[1')
    there.shutdown(socket.SHUT_WR)
    keeper = Keeper()
    assert RemoteTrace(here, [keeper]).run({}) is None
    assert keeper.result is None
    for link in (here, there):
        link.close()


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"only": ["nonsense"]}, "no kind of event"), ({"ports": [["a"]]}, "pairs of numbers")],
)
def test_what_makes_no_sense_is_told(asked: dict[str, Any], words: str) -> None:
    """By the machine, in one line."""
    with pytest.raises(PykvmError, match=words):
        traced(lambda sink: sink.close(None), asked)


def test_the_selection_travels() -> None:
    """And is applied by the machine."""
    asked = {"only": ["exit"], "ports": [[1, 3]], "without": [], "syscalls": [], "hypercalls": []}
    machine = traced(lambda sink: sink.close(None), asked)[2]
    assert machine.selection.wants(event(args=(("way", "out"), ("port", 2))))
    assert not machine.selection.wants(event(kind="mark"))


def test_a_reader_who_takes_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sink fails, which switches it off; the guest does not wait for him any more."""
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.05)
    here, there = socket.socketpair()
    sink = remote._LinkSink(here, SimpleNamespace(stats=stats))  # type: ignore[arg-type]
    sink.open(ABOUT)
    with pytest.raises(TimeoutError):
        sink.write([event()] * 100_000)
    sink.close(None)
    for link in (here, there):
        link.close()


def test_a_full_disk_here_ends_the_trace_alone() -> None:
    """The error is the command's; the connection goes, and with it the machine's part."""

    class Full(Keeper):
        def write(self, found: Sequence[TraceEvent]) -> None:
            Memory(full_at=0).write(b"x")

    here, there = socket.socketpair()
    send_line(there, {"about": ABOUT._asdict()})
    send_line(there, {"events": [remote._packed(event())]})
    full = Full()
    with pytest.raises(OSError, match="No space left"):
        RemoteTrace(here, [full]).run({})
    assert full.result is None
    for link in (here, there):
        link.close()


# ---- the line protocol


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "has just ended"),
        (b"nonsense\n", "does not answer"),
        (b"[]\n", "no object"),
        (b'{"error":"no"}\n', "^no$"),
    ],
)
def test_an_answer_that_is_none_is_one_line(sent: bytes, words: str) -> None:
    """Whatever a machine's process may say or not say."""
    here, there = socket.socketpair()
    there.sendall(sent)
    there.shutdown(socket.SHUT_WR)
    with pytest.raises(PykvmError, match=words):
        ask(here, {"do": "stop"})
    for link in (here, there):
        link.close()


def test_requests_are_bounded() -> None:
    """A line without an end is not read for ever."""
    here, there = socket.socketpair()
    there.sendall(b"x" * 100)
    with pytest.raises(ValueError, match="too long"):
        read_line(here, 50)
    for link in (here, there):
        link.close()


class FakeSeat:
    """A seat whose socket has no name in the file system."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")  # Linux chooses an abstract name
        self.socket.listen()
        self.address = self.socket.getsockname()

    def listen(self) -> socket.socket:
        return self.socket


def test_a_machine_answers_what_it_knows_and_says_what_it_does_not() -> None:
    """stop ends the run; others are told; a client that says nothing or nonsense holds nothing up."""
    stopped: list[Any] = []
    seat: Any = FakeSeat()
    machine: Any = SimpleNamespace(allow_attach=lambda: None, stop=lambda *words: stopped.append(words))
    with control.Control(seat, machine):
        for request, answer in (
            ({"do": "stop"}, "{'ok': True"),
            ({"do": "dance"}, "{'error': 'this machine"),
        ):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(seat.address)
                send_line(link, request)
                found = read_line(link)
            assert found is not None
            assert str(found).replace('"', "'").startswith(answer)
        with socket.socket(socket.AF_UNIX) as rude, socket.socket(socket.AF_UNIX) as silent:
            silent.connect(seat.address)
            rude.connect(seat.address)
            rude.sendall(b"\xff\n")
            assert rude.recv(10) == b""
    assert [str(words[0]) for words in stopped] == ["interrupted"]
    with pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as late:
        late.connect(seat.address)


def test_traces_of_the_machine_are_config_errors_for_the_client() -> None:
    """What the machine refuses travels as one line."""

    def refuse(_: Any) -> None:
        raise ConfigError("the machine's run is over")

    with pytest.raises(PykvmError, match="run is over"):
        traced(refuse)
