"""Tracers that come to a running machine and leave it again. The guest notices nothing but the time.

As long as nobody is attached the machine keeps its flight recorder, a small ring that overwrites itself. The
first tracer that comes has all vCPUs stopped for a moment and given rings that lose nothing; the last that
leaves has them taken away again.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.tap.pause import Gate
from pykvm.trace.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pykvm.machine import Machine
    from pykvm.result import RunResult
    from pykvm.tap import SyscallTap
    from pykvm.trace.event import Sink
    from pykvm.trace.record import TraceRing
    from pykvm.trace.select import Selection

__all__ = ["Attachment"]

_TRY_S = 0.05


class Attachment:
    """Lets sinks join and leave the run of one machine, from any thread; Machine.allow_attach() makes it.

    `lock` is the machine's, which is held while an exit is answered. `rings` are its rings, which are
    exchanged in place; `show` is told which Recorder the machine has now.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        lock: threading.RLock,
        rings: list[TraceRing],
        keep: Sequence[list[bytes]],
        show: Callable[[Recorder | None], None],
    ) -> None:
        self._machine, self._machine_lock, self._rings, self._keep = machine, lock, rings, keep
        self._show = show
        self._gate = Gate(machine.vcpus)
        self._lock = threading.Lock()
        self._flight: list[TraceRing] = []
        self._large: list[TraceRing] = []
        self._recorder: Recorder | None = None
        self._is_shared = False
        self._sinks: list[Sink] = []
        self._tap: SyscallTap | None = None
        self._is_tapped = False
        self._is_over = False

    def join(self, sink: Sink, selection: Selection | None = None, recorder: Recorder | None = None) -> None:
        """Send what happens from now on to `sink`; `recorder` is that of a run that is traced anyhow.

        Raises ConfigError if the run is over.
        """
        with self._lock:
            if self._is_over or self._machine.is_over:
                raise ConfigError("the machine's run is over: there is nothing left to trace")
            self._is_shared = self._is_shared or (recorder is not None and recorder is not self._recorder)
            current = recorder or self._recorder
            if current is None:
                current = self._recorder = Recorder()
                current.add_sink(sink, selection)
                self._begin(current)
            else:
                current.join(sink, selection)
                self._recorder = current
            self._sinks.append(sink)
            if selection is None or selection.may_want("syscall"):
                self._tap_in(current)

    def leave(self, sink: Sink) -> None:
        """Nothing more goes to `sink`, which is closed. It may have left before; so may the guest."""
        with self._lock:
            if self._is_over or sink not in self._sinks or self._recorder is None:
                return
            self._sinks.remove(sink)
            if self._sinks or self._is_shared:
                self._recorder.leave(sink)
                return
            recorder, self._recorder = self._recorder, None
            self._tap_out()
            with self._stopped():
                recorder.cut()
                self._exchange(self._flight, special=False)
                self._show(None)
            recorder.finish()
            recorder.close(None)

    def freeze(self) -> None:
        """The guest has stopped: nobody comes or leaves any more."""
        with self._lock:
            self._is_over = True

    def end(self, result: RunResult | None) -> None:
        """After freeze(): close the sinks that are still there."""
        if self._recorder and not self._is_shared:
            self._recorder.finish()
            self._recorder.close(result)

    def close(self) -> None:
        """Give back the rings that are not in use now; no vCPU runs."""
        for ring in (*self._flight, *self._large):
            if ring not in self._rings:
                ring.close()

    # ---- the system calls of a Linux guest

    def _tap_in(self, recorder: Recorder) -> None:
        """Have them in the trace, too; why not, is said in it."""
        image = self._machine.image
        if self._is_tapped or self._is_shared or image is None or image.kind != "linux":
            return
        from pykvm.tap import SyscallTap, TapError  # noqa: PLC0415 - only Linux guests pay
        from pykvm.trace.layers import Remark  # noqa: PLC0415 - as above

        try:
            with self._stopped():
                self._tap = self._tap or SyscallTap(self._machine, gate=self._gate)
                recorder.add_source(self._tap.listen())
            self._tap.attach()
            self._is_tapped = True
        except (ConfigError, TapError) as error:
            recorder.add_source(Remark(f"no syscalls in this trace: {error}"))

    def _tap_out(self) -> None:
        if self._tap and self._is_tapped:
            self._tap.detach()
            self._is_tapped = False

    # ---- the exchange

    def _begin(self, recorder: Recorder) -> None:
        with self._stopped():
            for _, kept, ring in zip(self._machine.vcpus, self._keep, self._rings, strict=False):
                kept.append(ring.take())
            if not self._large:
                self._flight = self._rings[: len(self._machine.vcpus)]
                self._large = [recorder.ring(vcpu, drop=False) for vcpu in self._machine.vcpus]
            self._exchange(self._large, special=True)
            self._show(recorder)
        recorder.start(self._machine, self._large, self._keep[: len(self._large)])

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """No vCPU is in the guest and none is answered. Who answers an exit may itself want the gate."""
        while True:
            with self._gate.closed():
                if self._machine_lock.acquire(timeout=_TRY_S):
                    try:
                        yield
                    finally:
                        self._machine_lock.release()
                    return

    def _exchange(self, rings: Sequence[TraceRing], *, special: bool) -> None:
        """The exit that a vCPU is at now keeps its place in the old ring, and has no record in the new."""
        for vcpu, ring in zip(self._machine.vcpus, rings, strict=True):
            vcpu.loop.open = 0
            vcpu.sync_registers(special=special)
            ring.install()
        self._rings[: len(rings)] = rings  # behind them may be those of other loops
