"""What the tests of tracing share: events, runs, and places to write to, all made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from pykvm.result import EndReason, RunResult, RunStats
from pykvm.trace.event import KINDS, LAYERS, TraceAbout, TraceEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

ABOUT = TraceAbout("guest.elf", 2, 1_000_000, 1_700_000_000_000_000_000, "kvm_test")
OUT_H = (("way", "out"), ("port", 0xE9), ("device", "DebugConsole"), ("offset", 0), ("size", 1))


def event(time_ns: int = 0, **fields: Any) -> TraceEvent:
    """An exit of vCPU 0, a byte to the debug console; `fields` differ."""
    usual: dict[str, Any] = {
        "kind": "exit",
        "layer": "pykvm",
        "name": "IO",
        "duration_ns": 100,
        "vcpu": 0,
        "via": "IO",
        "args": OUT_H,
        "guest_ns": 1000,
        "cpl": 0,
        "rip": 0x10_0020,
        "where": "_start+0x20",
        "cr3": 0x9_2000,
        "data": b"H",
    }
    return TraceEvent(time_ns, **{**usual, **fields})


def stats(**figures: int) -> RunStats:
    """What a run cost: nothing but `figures`."""
    zero = dict.fromkeys(RunStats._fields, 0)
    return RunStats(**(zero | figures))


def result(**figures: int) -> RunResult:
    """A run that ended well."""
    return RunResult(EndReason.EXIT, 0, b"", {}, stats(**figures))


class Memory:
    """An output that keeps what is written."""

    def __init__(self, *, is_terminal: bool = False, full_at: int | None = None) -> None:
        """From `full_at` bytes on there is no room."""
        self.name = "memory"
        self.is_terminal = is_terminal
        self.is_closed = False
        self.pieces: list[bytes] = []
        self._full_at = full_at

    @property
    def contents(self) -> bytes:
        return b"".join(self.pieces)

    def write(self, piece: bytes) -> None:
        if self._full_at is not None and len(self.contents) + len(piece) > self._full_at:
            raise OSError(28, "No space left on device")
        self.pieces.append(piece)

    def close(self) -> None:
        self.is_closed = True


def written(sink: Any, events: Sequence[TraceEvent], run: RunResult | None = None) -> None:
    """Everything a sink hears of a run."""
    sink.open(ABOUT)
    if events:
        sink.write(events)
    sink.close(run)


names = st.text(min_size=1, max_size=20)
numbers = st.integers(0, 2**64 - 1)


@st.composite
def events(draw: st.DrawFn) -> TraceEvent:
    """Any event there can be, also one that no producer makes."""
    return TraceEvent(
        time_ns=draw(st.integers(0, 2**62)),
        kind=draw(st.sampled_from(sorted(KINDS))),
        layer=draw(st.sampled_from(LAYERS)),
        name=draw(names),
        duration_ns=draw(st.none() | st.integers(0, 2**62)),
        vcpu=draw(st.none() | st.integers(0, 255)),
        via=draw(st.sampled_from(["", "IO", "MMIO", "HYPERCALL"])),
        args=tuple(draw(st.lists(st.tuples(names, numbers | st.text(max_size=20)), max_size=4))),
        result=draw(st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)),
        guest_ns=draw(st.none() | st.integers(0, 2**40)),
        cpl=draw(st.none() | st.integers(0, 3)),
        rip=draw(st.none() | numbers),
        where=draw(st.text(max_size=20)),
        cr3=draw(st.none() | numbers),
        data=draw(st.binary(max_size=32)),
        task=draw(st.text(max_size=16)),
        container=draw(st.text(max_size=16)),
        code=draw(st.text(max_size=40)),
        thread=draw(st.text(max_size=16)),
    )
