"""Watches a running machine from the caller's thread: output, the time limit, halts for good."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from pykvm.result import EndReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.console import Console
    from pykvm.runner import Ending, VcpuRunner

__all__ = ["Supervisor"]

_PUMP_MS = 5
_LOOK_MS = 300
_LOOKS = 3
_KICK_AGAIN_S = 0.02


class Supervisor:
    """What run() does while the vCPUs' threads run.

    With an in-kernel irqchip a HLT waits inside KVM. If every vCPU halts with interrupts off, nothing can
    wake the guest again: that is the end `halt`, not a hang. Three looks in a row, 300 ms apart, must agree.
    """

    def __init__(
        self,
        runners: Sequence[VcpuRunner],
        *,
        ending: Ending,
        console: Console,
        drain: Callable[[], None],
        irqchip: bool,
    ) -> None:
        """`drain` empties the trace rings; `irqchip` says whether a HLT stays in the kernel."""
        self._runners = runners
        self._ending = ending
        self._console = console
        self._drain = drain
        self._looks_for_halts = irqchip
        self._dead_looks = 0
        self._over, self._both = select.poll(), select.poll()
        for poll in (self._over, self._both):
            poll.register(ending.fd, select.POLLIN)
        self._both.register(console.wake_fd, select.POLLIN)

    def watch(self, timeout: float | None) -> None:
        """Hand output on as it comes, until the run is over, or `timeout` seconds are.

        After each wake-up the console rests for a few ms, so that a guest that prints pays for a signal
        to us now and then and not with every byte.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ending.is_over:
            self._over.poll(_PUMP_MS)
            self._console.pump_before_sleep()
            self._drain()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._ending.finish(EndReason.TIMEOUT, detail=f"the guest ran for {timeout:g} s")
                return
            if not self._both.poll(self._patience_ms(left)) and self._looks_for_halts:
                self._look_for_dead_halt()

    def _patience_ms(self, left_s: float | None) -> float | None:
        waits = [left_s * 1000] if left_s is not None else []
        return min([*waits, _LOOK_MS]) if self._looks_for_halts else min(waits, default=None)

    def _look_for_dead_halt(self) -> None:
        """Judge what the last kick found, then kick again for the next look."""
        dead = all(runner.is_halted_for_good for runner in self._runners)
        self._dead_looks = self._dead_looks + 1 if dead else 0
        if self._dead_looks >= _LOOKS:
            self._ending.finish(EndReason.HALT, detail="every vCPU has halted with interrupts off")
            return
        for runner in self._runners:
            runner.vcpu.kick()

    def stop(self) -> None:
        """Kick every vCPU until its thread has ended; full rings are drained meanwhile."""
        self._ending.finish(EndReason.INTERRUPTED)
        for runner in self._runners:
            while runner.thread.is_alive():
                runner.vcpu.kick()
                self._console.pump()
                self._drain()
                runner.thread.join(_KICK_AGAIN_S)
        self._console.pump()
