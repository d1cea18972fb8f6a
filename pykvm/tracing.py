"""Tracing: who hears of a machine's exits, from the rings that C fills to sinks and to the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pykvm._native import ffi
from pykvm.errors import ConfigError
from pykvm.trace.record import TraceRecords, TraceRing

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from pykvm.machine import Machine
    from pykvm.result import RunResult
    from pykvm.trace.attach import Attachment
    from pykvm.trace.clock import TscClock
    from pykvm.trace.event import Sink, TraceEvent
    from pykvm.trace.iterate import TraceIterator
    from pykvm.trace.recorder import Recorder
    from pykvm.trace.select import Selection
    from pykvm.vcpu import Vcpu

__all__ = ["FLIGHT_RECORDS", "Tracing"]

FLIGHT_RECORDS = 64
_TRACE_RECORDS = 1 << 14


class Tracing:
    """The rings of one machine's exit loops, a lane each, and everybody who reads them.

    ::

        nobody            rings of the last 64 records, read once, for the result
        spec.trace        larger rings, emptied into `raw` when full: all records are in the result
        sinks             a Recorder, which empties its own rings from a thread beside the vCPUs
        attach()          a Recorder that comes and goes while the guest runs
    """

    def __init__(self, machine: Machine, lock: threading.RLock) -> None:
        """`lock` is the machine's, which the threads of vCPUs hold while they answer an exit."""
        self._machine = machine
        self._lock = lock
        self._rings: list[TraceRing] = []
        self.raw: list[list[bytes]] = []
        self._recorder: Recorder | None = None
        self._iterator: TraceIterator | None = None
        self._attachment: Attachment | None = None
        self._attached: Recorder | None = None
        self._has_begun = False

    def abandon(self) -> None:
        """The machine is taken apart: nobody waits for a reader any more."""
        if self._iterator:
            self._iterator.close()
        if self._recorder:
            self._recorder.abandon()

    def close(self) -> None:
        """Let go of the rings, after the loops that fill them."""
        for ring in self._rings:
            ring.close()
        if self._attachment:
            self._attachment.close()

    # ---- lanes

    def add_vcpu(self, loop: Any) -> None:
        """Make room for the records of a vCPU's struct exit_loop; in the order of their numbers."""
        self._rings.append(self._ring(loop))
        self.raw.append([])

    def add_loop(self, loop: Any) -> None:
        """The same for a loop that is no vCPU's, while the guest runs too."""
        kept: list[bytes] = []
        if self._recorder:
            ring = self._recorder.add_loop(loop, kept, drop=self._machine.spec.drop_records)
        else:
            ring = self._ring(loop)
        self._rings.append(ring)
        self.raw.append(kept)

    def _ring(self, loop: Any) -> TraceRing:
        spec = self._machine.spec
        return TraceRing(
            ffi.addressof(loop, "trace"),
            _TRACE_RECORDS if spec.trace else FLIGHT_RECORDS,
            keep_newest=not spec.trace,
            drop=spec.drop_records,
        )

    # ---- who listens

    @property
    def is_on(self) -> bool:
        """Whether somebody wants every record."""
        return self._machine.spec.trace or self._recorder is not None

    @property
    def recorder(self) -> Recorder:
        """What sinks and sources are given to, before run(). Raises ConfigError when it is too late."""
        from pykvm.trace.recorder import Recorder  # noqa: PLC0415 - who does not trace does not pay

        if self._has_begun:
            raise ConfigError("this machine has run; add sinks and sources before run()")
        self._recorder = self._recorder or Recorder()
        return self._recorder

    def iterate(self, timeout: float | None, selection: Selection | None) -> TraceIterator:
        """See Machine.trace()."""
        from pykvm.trace.iterate import TraceIterator  # noqa: PLC0415 - as above

        self._iterator = TraceIterator(self._machine, timeout, selection)
        return self._iterator

    def allow_attach(self) -> None:
        """See Machine.allow_attach()."""
        from pykvm.trace.attach import Attachment  # noqa: PLC0415 - as above

        if self._machine.vm is None or self._has_begun or self._machine.spec.trace:
            raise ConfigError("allow_attach() comes after load() and before run(), and not with trace=True")
        self._attachment = Attachment(
            self._machine, lock=self._lock, rings=self._rings, keep=self.raw, show=self._show_attached
        )

    def attach(self, sink: Sink | Callable[[TraceEvent], object], selection: Selection | None) -> Sink:
        """See Machine.attach()."""
        from pykvm.trace.tracer import FunctionSink  # noqa: PLC0415 - as above

        if self._attachment is None or not self._has_begun:
            raise ConfigError("attach() comes after allow_attach() and while run() runs")
        whole = cast("Sink", sink) if hasattr(sink, "write") else FunctionSink(sink)
        self._attachment.join(whole, selection, self._recorder)
        return whole

    def detach(self, sink: Sink) -> None:
        """See Machine.detach()."""
        if self._attachment:
            self._attachment.leave(sink)

    def _show_attached(self, recorder: Recorder | None) -> None:
        self._attached = recorder

    # ---- the run

    def begin(self) -> None:
        """The run begins: who wants to listen to all of it has come."""
        self._has_begun = True

    def around(self, run: Callable[[], RunResult], vcpus: list[Vcpu]) -> RunResult:
        """The result of `run`, of which everybody who listens hears from its start to its end."""
        if not self._recorder:
            result = None
            try:
                result = run()
                return result
            finally:
                if self._attachment:
                    self._attachment.end(result)
        with self._recorder as recorder:
            for number, vcpu in enumerate(vcpus):
                self._rings[number].close()
                self._rings[number] = recorder.ring(vcpu, drop=self._machine.spec.drop_records)
            recorder.start(self._machine, self._rings, self.raw)
            recorder.result = run()
        result = recorder.result
        return result._replace(warnings=result.warnings + recorder.warnings)

    def freeze(self) -> None:
        """The vCPUs have stopped: nobody comes any more."""
        if self._attachment:
            self._attachment.freeze()

    def drain(self, number: int, is_over: Callable[[], bool]) -> None:
        """Empty the ring that stopped vCPU `number`; called by its thread."""
        if recorder := self._recorder or self._attached:  # who is attached may leave at any moment
            recorder.drain(number, is_over)
            return
        with self._lock:
            self.raw[number].append(self._rings[number].take())

    def drain_all(self) -> None:
        """Empty all rings, where all records are kept."""
        if self._machine.spec.trace and not self._recorder:
            with self._lock:
                for raw, ring in zip(self.raw, self._rings, strict=True):
                    raw.append(ring.take())

    # ---- the result

    @property
    def dropped(self) -> int:
        """How many records found no room."""
        return sum(ring.dropped for ring in self._rings)

    def records(self, clock: TscClock) -> TraceRecords:
        """All records that were kept, in order of time; every listener has been served."""
        for recorder in (self._recorder, self._attached):
            if recorder:
                recorder.finish()
        for raw, ring in zip(self.raw, self._rings, strict=True):
            raw.append(ring.take())
        return TraceRecords.merged((b"".join(raw) for raw in self.raw), clock)
