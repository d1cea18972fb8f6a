"""The supervisor: one thread per vCPU, a time limit, halts for good, and an end that waits for everybody."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from pykvm import supervisor as supervisor_module
from pykvm.errors import ConfigError
from pykvm.result import EndReason
from pykvm.runner import Ending, VcpuRunner
from pykvm.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeRunner:
    """A runner whose loop is a function of the tick; its own thread runs until it is kicked."""

    def __init__(self, loop: Callable[[Callable[[], None]], None] = lambda _: None, kicks: int = 1) -> None:
        self.loop = loop
        self.is_dead = False
        self.is_halted_for_good = False
        self.kicks_left = kicks
        self.vcpu = SimpleNamespace(kick=self._kick, is_halted_for_good=lambda: self.is_dead)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._over.wait, args=(20,))

    def _kick(self) -> None:
        self.kicks_left -= 1
        if self.kicks_left <= 0:
            self._over.set()

    def run(self, tick: Callable[[], None]) -> None:
        self.loop(tick)

    def start(self) -> None:
        self._thread.start()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)


class FakeClock:
    """time.monotonic() as the test wants it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(supervisor_module, "time", clock)
    return clock


def make(
    *runners: FakeRunner,
    drain: Callable[[], None] = lambda: None,
    irqchip: bool = False,
    timeout: float | None = None,
    **more: float,
) -> tuple[Supervisor, Ending]:
    ending = Ending(lambda: None)
    found = Supervisor(
        cast("list[VcpuRunner]", runners),
        ending=ending,
        drain=drain,
        irqchip=irqchip,
        listens=False,
        timeout=timeout,
        **more,
    )
    return found, ending


@pytest.mark.parametrize("timeout", [0, -1, -0.0, float("nan"), float("-inf")])
def test_a_time_limit_is_above_0(timeout: float) -> None:
    """Anything else is refused before the guest runs."""
    with pytest.raises(ConfigError, match="give more than 0"):
        make(FakeRunner(), timeout=timeout)


@pytest.mark.parametrize("timeout", [5.0, 1e300, float("inf"), None])
def test_the_run_ends_at_its_time_limit_and_not_before(clock: FakeClock, timeout: float | None) -> None:
    """A tick before the limit does nothing; one at the limit ends the run with `timeout`."""

    def loop(tick: Callable[[], None]) -> None:
        clock.now += 4.9
        tick()
        assert not ending.is_over
        clock.now += 0.1
        tick()
        ending.finish(EndReason.EXIT, code=0)

    supervisor, ending = make(FakeRunner(loop), timeout=timeout)
    supervisor.run()
    assert ending.reason is (EndReason.TIMEOUT if timeout == 5.0 else EndReason.EXIT)
    if timeout == 5.0:
        assert ending.detail == "the guest ran for 5 s"


def test_the_limit_counts_from_run_and_not_from_the_making(clock: FakeClock) -> None:
    """Time that a debugger or a user took before is not the guest's."""

    def loop(tick: Callable[[], None]) -> None:
        tick()
        assert not ending.is_over

    supervisor, ending = make(FakeRunner(loop), timeout=5)
    clock.now += 100
    supervisor.run()


def test_every_tick_drains_and_so_does_the_end(clock: FakeClock) -> None:
    """Output goes on while the guest runs, and the last of it when it has ended."""
    drained: list[float] = []

    def loop(tick: Callable[[], None]) -> None:
        tick()
        clock.now += 1
        tick()
        clock.now += 1

    supervisor, _ = make(FakeRunner(loop), drain=lambda: drained.append(clock.now))
    supervisor.run()
    assert drained == [1000.0, 1001.0, 1002.0]


def halting(
    clock: FakeClock, looks: list[tuple[bool, bool]], pair: list[FakeRunner]
) -> Callable[[Any], None]:
    """A loop in which, look after look, the two vCPUs are dead or not."""

    def loop(tick: Callable[[], None]) -> None:
        for dead in looks:
            clock.now += 0.31
            pair[0].is_dead, pair[1].is_halted_for_good = dead
            tick()

    return loop


@pytest.mark.parametrize(
    ("looks", "is_halt"),
    [
        ([(True, True)] * 3, True),
        ([(True, True)] * 2, False),
        ([(True, True), (True, True), (False, True), (True, True)], False),
        ([(True, False)] * 5, False),
        ([(False, True)] * 5, False),
        ([(False, False), *[(True, True)] * 3], True),
    ],
)
def test_a_halt_for_good_needs_every_vcpu_and_three_looks_in_a_row(
    clock: FakeClock, looks: list[tuple[bool, bool]], is_halt: bool
) -> None:
    """One that may still be woken, or one look that sees life, and the run goes on."""
    pair = [FakeRunner(), FakeRunner()]
    pair[0].loop = halting(clock, looks, pair)
    supervisor, ending = make(*pair, irqchip=True)
    pair[1].kicks_left = len(looks) + 1  # one of each look, and the last
    supervisor.run()
    assert (ending.reason is EndReason.HALT) == is_halt


class FakeTicks:
    """The times that the supervisor asked for."""

    def __init__(self) -> None:
        self.times_s: list[tuple[float | None, float]] = []

    def starting_with(self, first_s: float | None, interval_s: float) -> Self:
        self.restart(first_s, interval_s)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def restart(self, first_s: float | None, interval_s: float) -> None:
        self.times_s.append((first_s, interval_s))


def test_who_lives_is_looked_at_ever_more_seldom(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the time after each look up to the longest, 0.3 s once it seems dead; a limit is kept to."""
    ticks = FakeTicks()
    monkeypatch.setattr(supervisor_module, "Ticks", ticks.starting_with)

    def loop(tick: Callable[[], None]) -> None:
        for is_dead in (False, False, False, True, False):
            clock.now += ticks.times_s[-1][1]
            runner.is_dead = is_dead
            tick()

    runner = FakeRunner(loop)
    supervisor, _ = make(runner, irqchip=True, longest_look_s=1.0, timeout=100.05)
    supervisor.run()
    assert [interval for _, interval in ticks.times_s] == [0.3, 0.6, 1.0, 0.3, 0.6]
    assert [round(first or 0, 2) for first, _ in ticks.times_s] == [0.15, 0.15, 0.15, 0.25, 0.25]


def test_without_an_irqchip_nobody_looks_for_halts(clock: FakeClock) -> None:
    """There a HLT is an exit, and the runner ends the run by itself."""
    pair = [FakeRunner(), FakeRunner()]
    pair[0].loop = halting(clock, [(True, True)] * 9, pair)
    supervisor, ending = make(*pair)
    supervisor.run()
    assert ending.reason is not EndReason.HALT


def test_a_vcpu_that_misses_kicks_is_kicked_again() -> None:
    """The end waits until each thread has ended, however many kicks that takes."""
    runners = [FakeRunner(), FakeRunner(kicks=1), FakeRunner(kicks=4)]
    supervisor, ending = make(*runners)
    supervisor.run()
    assert not any(runner.is_running() for runner in runners)
    assert ending.is_over


def test_what_the_first_vcpu_raises_comes_out_when_all_have_stopped() -> None:
    """No thread is left running behind an exception."""

    def broken(_: Callable[[], None]) -> None:
        raise ZeroDivisionError

    other = FakeRunner(kicks=3)
    supervisor, _ = make(FakeRunner(broken), other)
    with pytest.raises(ZeroDivisionError):
        supervisor.run()
    assert not other.is_running()


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt])
def test_a_listener_that_raises_does_not_keep_a_thread_alive(error: type[BaseException]) -> None:
    """Not even if it raises again and again while the threads are being stopped."""

    def drain() -> None:
        raise error

    other = FakeRunner(kicks=3)
    supervisor, _ = make(FakeRunner(), other, drain=drain)
    with pytest.raises(error):
        supervisor.run()
    assert not other.is_running()


def test_ctrl_c_ends_the_run_and_is_no_error() -> None:
    """KeyboardInterrupt in the guest's thread is the end `interrupted`."""

    def interrupted(_: Callable[[], None]) -> None:
        raise KeyboardInterrupt

    other = FakeRunner()
    supervisor, ending = make(FakeRunner(interrupted), other)
    supervisor.run()
    assert ending.reason is EndReason.INTERRUPTED
    assert not other.is_running()
