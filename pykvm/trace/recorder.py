"""What a machine that is traced has beyond others: bigger rings, a tracer, and the way between them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from pykvm._native import ffi
from pykvm.boot import symbols
from pykvm.boot.image import nearest_symbol
from pykvm.errors import ImageError, KvmError
from pykvm.stats import StatsCounter
from pykvm.trace.event import TraceAbout
from pykvm.trace.exits import ExitNames, ExitSource
from pykvm.trace.record import RECORD_BYTES, TraceRing
from pykvm.trace.running_clock import RunningClock
from pykvm.trace.tracer import FunctionSink, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.boot.image import Symbol
    from pykvm.machine import Machine
    from pykvm.result import RunResult
    from pykvm.trace.disasm import SourceLines
    from pykvm.trace.event import Sink, Source, TraceEvent
    from pykvm.trace.select import Selection
    from pykvm.vcpu import Vcpu

    _Function = Callable[[TraceEvent], object]

__all__ = ["Recorder"]

_RECORDS = 1 << 14
_NEWEST = 64 * RECORD_BYTES


class Recorder:
    """Turns a machine's exits, and what other sources tell, into events for its sinks.

    The machine makes one when its first sink is added; without one, none of this is imported.
    """

    def __init__(self) -> None:
        self.tracer = Tracer()
        self.result: RunResult | None = None
        self.warnings: tuple[str, ...] = ()
        self.disassemble = False
        self.step = 0
        self._exits: list[ExitSource] = []
        self._loops: list[Any] = []
        self._rings: Sequence[TraceRing] = ()
        self._is_finished = False
        self._finishing = threading.Lock()
        self._lines: SourceLines | None = None
        self._names: ExitNames | None = None
        self._clock = RunningClock()
        self._keeps_all = False
        self._counter: StatsCounter | None = None
        self._counts: dict[str, int] = {}

    def add_sink(self, sink: Sink | _Function, selection: Selection | None) -> None:
        """Send events to a sink or a function."""
        whole = cast("Sink", sink) if hasattr(sink, "write") else FunctionSink(sink)
        self.tracer.add_sink(whole, selection)

    def add_source(self, source: Source) -> None:
        """Take events from another producer."""
        self.tracer.add_source(source)

    def ring(self, vcpu: Vcpu, *, drop: bool) -> TraceRing:
        """A ring that stops the vCPU, or with `drop` drops records, when it is full."""
        vcpu.sync_registers(special=True)
        return TraceRing(ffi.addressof(vcpu.loop, "trace"), _RECORDS, keep_newest=False, drop=drop)

    def start(self, machine: Machine, rings: Sequence[TraceRing], keep: Sequence[list[bytes]]) -> None:
        """The run begins: one source for each vCPU. `keep` gets the raw records of each, if wanted whole."""
        image = machine.image
        self._rings = rings
        names = self._names = ExitNames(machine.ports, machine.mmio, _places(_symbols(machine.source)))
        clock = self._clock = RunningClock()
        self._keeps_all = machine.spec.trace
        describe = self._disassembler(machine) if self.disassemble or self.step else None
        for vcpu, ring, kept in zip(machine.vcpus, rings, keep, strict=True):
            source = ExitSource(
                vcpu.loop,
                ring,
                clock=clock,
                names=names,
                keep=kept.append if machine.spec.trace else _newest(kept),
                describe=describe,
            )
            self._exits.append(source)
            self.tracer.add_source(source)
            if self.step:
                vcpu.loop.step_period = self.step
                vcpu.guest_debug(step=True)
                self._loops.append(vcpu.loop)
        if machine.paravirt:
            from pykvm.paravirt.calls import ProgramCalls  # noqa: PLC0415 - only programs pay

            self.tracer.add_source(ProgramCalls(machine.paravirt, machine.memory, clock))
        self._count(machine)
        about = TraceAbout(
            image=Path(
                machine.paravirt.program.name if machine.paravirt else image.name if image else ""
            ).name,
            vcpus=len(machine.vcpus),
            start_ns=time.monotonic_ns(),
            start_unix_ns=time.time_ns(),
            kvm=machine.kvm.module(),
        )
        self.tracer.start(about)

    def add_loop(self, loop: Any, kept: list[bytes], *, drop: bool) -> TraceRing:
        """Take the records of one more `struct exit_loop`, also while the guest runs: its new ring."""
        assert self._names  # noqa: S101 - for the type checker; start() made them
        ring = TraceRing(ffi.addressof(loop, "trace"), _RECORDS, keep_newest=False, drop=drop)
        keep = kept.append if self._keeps_all else _newest(kept)
        source = ExitSource(loop, ring, clock=self._clock, names=self._names, keep=keep)
        self._exits.append(source)
        self.tracer.add_source(source)
        return ring

    def _count(self, machine: Machine) -> None:
        """Have KVM's own statistics counted from now on."""
        if machine.vm is None:
            return
        try:
            fds = [machine.vm.stats_fd, *(vcpu.stats_fd for vcpu in machine.vcpus)]
            self._counter = StatsCounter(open_fd() for open_fd in fds)
        except (KvmError, OSError) as error:  # kernels before 5.14 have none
            self.tracer.troubles.append(f"KVM's own statistics can't be read: {error}")

    def _disassembler(self, machine: Machine) -> Callable[[memoryview], str]:
        from pykvm.trace.disasm import Disassembler, SourceLines  # noqa: PLC0415 - capstone takes 50 ms

        if isinstance(machine.source, Path):
            self._lines = SourceLines(machine.source)
            return Disassembler(machine.memory.read, self._lines)
        return Disassembler(machine.memory.read)

    def drain(self, number: int, is_over: Callable[[], bool]) -> None:
        """The ring of vCPU `number` is full; called by its thread, which may wait until `is_over`."""
        self._exits[number].collect(is_over)

    def abandon(self) -> None:
        """Let no vCPU wait for a reader any more."""
        for source in self._exits:
            source.abandon()

    def join(self, sink: Sink, selection: Selection | None) -> None:
        """Send events to one more sink from now on."""
        self.tracer.join(sink, selection)

    def leave(self, sink: Sink) -> None:
        """Send nothing more to a sink, and close it."""
        self.tracer.leave(sink)

    def cut(self) -> None:
        """The vCPUs are stopped and get other rings: what these hold are the last exits."""
        for source in self._exits:
            source.cut()

    def finish(self) -> None:
        """The guest has stopped: hand on the last events. A second call does nothing; from any thread."""
        with self._finishing:
            if not self._is_finished:
                self._is_finished = True
                self.tracer.finish()
                if self._counter:
                    self._counts = self._counter.counts()

    def close(self, result: RunResult | None) -> None:
        """After finish(): close all sinks, with the run's `result` if there is one."""
        if self._lines:
            self._lines.close()
        if self._counter:
            self._counter.close()
        self.result = result._replace(kvm_counts=self._counts) if result else None
        self.tracer.close(self.result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Close all sinks, with `result` if there is one; what went wrong stands in `warnings`."""
        self.finish()
        self.close(self.result)
        if self.step and not any(loop.steps for loop in self._loops):
            self.tracer.troubles.append("this KVM did not single-step: no instruction could be sampled")
        if dropped := sum(ring.dropped for ring in self._rings):
            self.tracer.troubles.append(f"{dropped} exits came faster than they were read and have no event")
        self.warnings = tuple(self.tracer.troubles)


def _newest(kept: list[bytes]) -> Callable[[bytes], None]:
    """Keeps the newest records only."""

    def keep(raw: bytes) -> None:
        kept[:] = [(b"".join(kept) + raw)[-_NEWEST:]]

    return keep


def _symbols(source: Path | bytes) -> tuple[Symbol, ...]:
    try:
        return symbols(source)
    except ImageError:  # damaged tables: the guest runs without them, and so does its trace
        return ()


def _places(known: Sequence[Symbol]) -> Callable[[int], str]:
    def place(address: int) -> str:
        found = nearest_symbol(known, address)
        if not found:
            return f"{address:#x}"
        symbol, offset = found
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name

    return place
