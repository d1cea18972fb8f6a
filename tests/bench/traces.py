"""What a trace costs its reader: a million exits of a real run, from raw records to a file of JSON Lines."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pykvm.machine import Machine
from pykvm.trace.event import TraceAbout
from pykvm.trace.exits import ExitNames, ExitSource
from pykvm.trace.jsonl import JsonLinesSink
from pykvm.trace.output import TraceOutput
from pykvm.trace.record import RECORD_BYTES
from pykvm.trace.running_clock import RunningClock
from pykvm.trace.tracer import Tracer

from .figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["events"]

_GUEST = "02_uart"
_RING = 1 << 14


class _Ring:
    """Gives the same records again and again, as many at once as a vCPU's ring holds."""

    def __init__(self, raw: bytes, count: int) -> None:
        self._raw = raw * (_RING * RECORD_BYTES // len(raw))
        self.left = count

    def take(self) -> bytes:
        piece = self._raw[: self.left * RECORD_BYTES]
        self.left -= len(piece) // RECORD_BYTES
        return piece


def _records() -> tuple[bytes, ExitNames]:
    """The raw records of a guest's run, and what its exits are called."""
    with Machine("2M", trace=True) as machine:
        machine.load(_GUEST)
        machine.run(timeout=60)
        return b"".join(machine._tracing.raw[0]), ExitNames(machine.ports, machine.mmio)


def _write(raw: bytes, names: ExitNames, count: int, path: Path) -> float:
    """The seconds that `count` records take from the ring to the file."""
    loop: Any = SimpleNamespace(outside=0, open=0, pending=0, exit_tsc=0, enter_tsc=0)
    ring: Any = _Ring(raw, count)
    tracer = Tracer()
    tracer.add_sink(JsonLinesSink(TraceOutput.create(path)))
    tracer.add_source(ExitSource(loop, ring, clock=RunningClock(), names=names))
    began = time.perf_counter()
    tracer.start(TraceAbout(_GUEST, 1, time.monotonic_ns(), time.time_ns()))
    while ring.left:
        time.sleep(0.01)
    tracer.finish()
    tracer.close(None)
    seconds = time.perf_counter() - began
    if tracer.events != count or tracer.troubles:
        raise RuntimeError(f"{tracer.events} of {count} events were written; {tracer.troubles}")
    return seconds


def _resident_kib() -> int:
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["VmHWM"].split()[0])


def events(progress: Callable[[str], None], count: int = 1_000_000) -> list[Figure]:
    """How long the events take, and how much more memory the most of them need than the first part."""
    raw, names = _records()
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as folder:
        path = Path(folder, "trace.jsonl")
        progress("events as JSON Lines")
        _write(raw, names, count // 10, path)
        before = _resident_kib()
        seconds = _write(raw, names, count, path)
        more = _resident_kib() - before
        size = path.stat().st_size
    return [
        Figure("a million events as JSON Lines", seconds * 1_000_000 / count, "s", 5),
        Figure("memory more for ten times the events", more / 1024, "MiB", 8),
        Figure("an event's line", size / count, "bytes"),
    ]
