"""Runs a machine: vCPU 0 in the caller's thread, the others beside it, and at each tick a look around."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.result import EndReason
from pykvm.vcpu import Ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.runner import Ending, VcpuRunner

__all__ = ["Supervisor"]

_OUTPUT_S = 0.01
_LOOK_S = 0.3
_LOOKS = 3
_KICK_AGAIN_S = 0.02


class Supervisor:
    """What run() does: one thread per vCPU, of which the caller's is that of vCPU 0.

    Ticks take vCPU 0 out of KVM_RUN, as often as there is something to do: hand output on to a listener,
    end the run at its time limit, look for halts. With an in-kernel irqchip a HLT waits inside KVM. If every
    vCPU halts with interrupts off, nothing can wake the guest again: that is the end `halt`, not a hang.
    Three looks in a row, 300 ms apart, must agree. Where a look may wake a guest that only idles, each that
    sees life doubles the time to the next, up to `longest_look_s`.
    """

    def __init__(
        self,
        runners: Sequence[VcpuRunner],
        *,
        ending: Ending,
        drain: Callable[[], None],
        irqchip: bool,
        listens: bool,
        timeout: float | None,
        longest_look_s: float = _LOOK_S,
    ) -> None:
        """`drain` empties all rings; `irqchip`: a HLT stays in the kernel; `listens`: output is awaited.

        Raises ConfigError for a time limit that is not above 0.
        """
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"a time limit of {timeout:g} s: give more than 0")
        self._runners = runners
        self._ending = ending
        self._drain = drain
        self._looks_for_halts = irqchip
        self._listens = listens
        self._look_s = _LOOK_S
        self._longest_look_s = longest_look_s
        self._ticks: Ticks | None = None
        self._timeout = timeout
        self._deadline = self._next_look = time.monotonic()
        self._dead_looks = 0

    def run(self) -> None:
        """Run the guest until its end is known and every thread has stopped.

        Ctrl-C ends the run. Raises what a device or a listener raised.
        """
        first, *others = self._runners
        now = time.monotonic()
        self._deadline = now + self._timeout if self._timeout is not None else float("inf")
        self._next_look = now + self._look_s
        try:
            for runner in others:
                runner.start()
            with Ticks(*self._ticks_s(now)) as self._ticks:
                first.run(self.tick)
        except KeyboardInterrupt:
            self._ending.finish(EndReason.INTERRUPTED)
        finally:
            self.stop()

    def _ticks_s(self, now: float) -> tuple[float | None, float]:
        """When the first tick is due for one of them to fall on the time limit, and how often they are."""
        interval_s = min([_OUTPUT_S] * self._listens + [self._look_s] * self._looks_for_halts, default=0.0)
        if self._timeout is None:
            return None, interval_s
        left_s = max(self._deadline - now, 0.0)
        return (left_s % interval_s or interval_s) if interval_s else left_s, interval_s

    def is_over(self) -> bool:
        """Whether the run is to end; the time limit is looked at. From any thread."""
        if time.monotonic() >= self._deadline:
            self._ending.finish(EndReason.TIMEOUT, detail=f"the guest ran for {self._timeout:g} s")
        return self._ending.is_over

    def tick(self) -> None:
        """Look around, in the thread of vCPU 0, which has just left KVM_RUN for it or rests."""
        self._drain()
        now = time.monotonic()
        if not self.is_over() and self._looks_for_halts and now >= self._next_look:
            self._look_for_dead_halt()
            self._next_look = now + self._look_s

    def _look_for_dead_halt(self) -> None:
        """Judge vCPU 0 now and the others by what the last kick found, then kick those for the next look."""
        first, *others = self._runners
        dead = first.vcpu.is_halted_for_good() and all(runner.is_halted_for_good for runner in others)
        self._dead_looks = self._dead_looks + 1 if dead else 0
        if self._dead_looks >= _LOOKS:
            self._ending.finish(EndReason.HALT, detail="every vCPU has halted with interrupts off")
            return
        for runner in others:
            runner.vcpu.kick()
        self._look_again_in(_LOOK_S if dead else min(2 * self._look_s, self._longest_look_s))

    def _look_again_in(self, look_s: float) -> None:
        if look_s != self._look_s and self._ticks:
            self._look_s = look_s
            self._ticks.restart(*self._ticks_s(time.monotonic()))

    def stop(self) -> None:
        """Kick every vCPU until its thread has ended; full rings are drained meanwhile.

        Whatever is raised on the way (a second Ctrl-C, a listener's error) waits until all have: nobody
        may free what a thread still uses.
        """
        self._ending.finish(EndReason.INTERRUPTED)
        failure: BaseException | None = None
        while alive := [runner for runner in self._runners if runner.is_running()]:
            try:
                for runner in alive:
                    runner.vcpu.kick()
                self._drain()
                alive[0].join(_KICK_AGAIN_S)
            except BaseException as error:  # noqa: BLE001 - raised below, when the threads have ended
                failure = failure or error
        if failure:
            raise failure
        self._drain()
