"""A trace across a socket: the machine's process sends events, another process has the sinks.

Events travel as JSON lists in the order of TraceEvent's fields, many in a line. The machine waits for a
reader who is slow, so that nothing is lost; one who takes nothing for two seconds is left behind.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pykvm.control import send_line
from pykvm.errors import ConfigError, PykvmError
from pykvm.exits import reason_names
from pykvm.result import EndReason, RunResult, RunStats
from pykvm.trace.clock import TscClock
from pykvm.trace.event import TraceAbout, TraceEvent
from pykvm.trace.select import Selection, check_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pykvm.machine import Machine
    from pykvm.trace.event import Sink

__all__ = ["RemoteTrace", "serve_trace"]

_PATIENCE_S = 2.0
_DATA = TraceEvent._fields.index("data")
_ARGS = TraceEvent._fields.index("args")
_WORDS = ("only", "without", "syscalls", "hypercalls", "containers")
_PIECE = 1 << 16
_TICKS = {
    "guest_ns": "guest_ticks",
    "own_ns": "own_ticks",
    "answer_ns": "answer_ticks",
    "wait_ns": "wait_ticks",
}
_COUNTS = ("entries", "exits", "fast_exits")


class _Meanwhile:
    """What a run cost since this was made."""

    def __init__(self, machine: Machine) -> None:
        self._loops = [vcpu.loop for vcpu in machine.vcpus]
        self._clock, self._start_ns = TscClock(), time.monotonic_ns()
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        names = (*_TICKS.values(), *_COUNTS)
        return {name: sum(getattr(loop, name) for loop in self._loops) for name in names}

    def stats(self) -> RunStats:
        self._clock.settle()
        more = {name: value - self._before[name] for name, value in self._now().items()}
        times = {name: self._clock.duration_ns(more[ticks]) for name, ticks in _TICKS.items()}
        counts = {name: more[name] for name in _COUNTS}
        wall_ns = time.monotonic_ns() - self._start_ns
        return RunStats(wall_ns=wall_ns, unclaimed=0, dropped_records=0, **times, **counts)


class _LinkSink:
    """A connection as a sink."""

    def __init__(self, link: socket.socket, meanwhile: _Meanwhile) -> None:
        self._link, self._meanwhile = link, meanwhile

    def __repr__(self) -> str:
        return "an attached tracer"

    def open(self, about: TraceAbout) -> None:
        """Say which run it is."""
        self._link.settimeout(_PATIENCE_S)
        send_line(self._link, {"about": about._asdict()})

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Send the events."""
        try:
            send_line(self._link, {"events": [_packed(event) for event in events]})
        except OSError:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)  # what was sent in part can't be gone on with
            raise

    def close(self, result: RunResult | None) -> None:
        """Say how it ended: the run, or only its trace."""
        end: dict[str, Any] = {"reason": str(EndReason.INTERRUPTED), "exit_code": None}
        end["detail"] = "the tracer has left, the guest runs on"
        if result:
            end = {"reason": str(result.reason), "exit_code": result.exit_code, "detail": result.detail}
            end["kvm_counts"] = dict(result.kvm_counts)
        with suppress(OSError):
            send_line(self._link, {"end": end | {"stats": self._meanwhile.stats()._asdict()}})
            self._link.shutdown(socket.SHUT_WR)


def _packed(event: TraceEvent) -> list[Any]:
    values = list(event)
    values[_DATA] = event.data.hex()
    return values


def serve_trace(machine: Machine, link: socket.socket, request: Mapping[str, Any]) -> None:
    """Answer a request to trace: until the run ends, or who asked closes his side of `link`.

    Raises ConfigError for a selection that makes no sense.
    """
    sink = _LinkSink(link, _Meanwhile(machine))
    attached = machine.attach(sink, _selection(request))
    link.settimeout(None)
    try:
        while link.recv(_PIECE):
            pass
    except OSError:
        pass
    finally:
        machine.detach(attached)


def _selection(request: Mapping[str, Any]) -> Selection:
    words = {name: [str(word) for word in request.get(name) or ()] for name in _WORDS}
    check_words((*words["only"], *words["without"]), reason_names())
    try:
        ports = [range(int(first), int(last)) for first, last in request.get("ports") or ()]
    except (TypeError, ValueError):
        raise ConfigError("ports are pairs of numbers") from None
    return Selection(
        only=words["only"],
        without=words["without"],
        ports=ports,
        syscalls=words["syscalls"],
        hypercalls=words["hypercalls"],
        containers=words["containers"],
    )


class RemoteTrace:
    """The other side: what a machine sends, handed to sinks."""

    def __init__(self, link: socket.socket, sinks: Sequence[Sink]) -> None:
        self._link, self._sinks = link, sinks

    def run(self, request: Mapping[str, Any]) -> RunResult | None:
        """Ask, and take events until the end; how it ended, None if the connection broke.

        Raises PykvmError with what the machine says against it, and what a sink raises.
        """
        send_line(self._link, {"do": "trace", **request})
        result = None
        try:
            for message in self._messages():
                result = self._take(message) or result
        finally:
            for sink in self._sinks:
                sink.close(result)
        return result

    def leave(self) -> None:
        """Ask for the end; what was on its way still comes. From a signal's handler, too."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def _messages(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while piece := self._link.recv(_PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, lines)

    def _take(self, message: Mapping[str, Any]) -> RunResult | None:
        if "error" in message:
            raise PykvmError(str(message["error"]))
        if "about" in message:
            for sink in self._sinks:
                sink.open(TraceAbout(**message["about"]))
        if "events" in message:
            events = [_unpacked(values) for values in message["events"]]
            for sink in self._sinks:
                sink.write(events)
        return _result(message["end"]) if "end" in message else None


def _unpacked(values: list[Any]) -> TraceEvent:
    values[_DATA] = bytes.fromhex(values[_DATA])
    values[_ARGS] = tuple(map(tuple, values[_ARGS]))
    return TraceEvent._make(values)


def _result(end: Mapping[str, Any]) -> RunResult:
    return RunResult(
        reason=EndReason(end["reason"]),
        exit_code=end["exit_code"],
        console=b"",
        exits={},
        stats=RunStats(**end["stats"]),
        detail=end["detail"],
        kvm_counts=end.get("kvm_counts", {}),
    )
