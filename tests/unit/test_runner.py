"""A vCPU's runner, fed with invented exits: what each exit leads to, and how each run ends."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.bus import Bus
from pykvm.errors import GuestAddressError, KvmError, UnclaimedIoError
from pykvm.exits import DebugExit, Exit, HltExit, IoExit, RunView
from pykvm.result import EndReason
from pykvm.runner import Ending, VcpuRunner
from pykvm.vcpu import LoopResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.vcpu import Vcpu

    Step = Callable[[RunView], None] | LoopResult

RUN_BYTES = ffi.sizeof("struct kvm_run")
DATA = RUN_BYTES
IN, OUT = 0, 1
PORT, GPA = 0x600, 0xD0000000


def port_exit(direction: int, port: int, size: int, data: bytes = b"", count: int = 1) -> Step:
    def step(view: RunView) -> None:
        view.run.exit_reason = lib.KVM_EXIT_IO
        io = view.io
        io.direction, io.port, io.size, io.count, io.data_offset = direction, port, size, count, DATA
        view.bytes[DATA : DATA + len(data)] = data

    return step


def mmio_exit(gpa: int, size: int, data: bytes | None = None) -> Step:
    def step(view: RunView) -> None:
        view.run.exit_reason = lib.KVM_EXIT_MMIO
        view.mmio.phys_addr, view.mmio.len, view.mmio.is_write = gpa, size, data is not None
        if data is not None:
            view.answer_mmio(data)

    return step


def plain_exit(reason: int, member: str = "", **fields: Any) -> Step:
    def step(view: RunView) -> None:
        view.run.exit_reason = reason
        for name, value in fields.items():
            setattr(getattr(view, member), name, value)

    return step


HLT = plain_exit(lib.KVM_EXIT_HLT)


class FakeVcpu:
    """A vCPU whose guest is a list of steps: each is what one enter() brings."""

    number = 3

    def __init__(self, steps: Sequence[Step]) -> None:
        self.view = RunView(bytearray(RUN_BYTES + 4096))
        self.loop = SimpleNamespace(error=0)
        self.steps = list(steps)
        self.answers: list[bytes] = []
        self.is_dead = False
        self.kicks = 0

    def enter(self) -> int:
        self.answers.append(self.view.bytes[DATA : DATA + 16])
        step = self.steps.pop(0)
        if isinstance(step, LoopResult):
            return step
        step(self.view)
        return LoopResult.EXIT

    def is_halted_for_good(self) -> bool:
        return self.is_dead

    def kick(self) -> None:
        self.kicks += 1


class FakeDevice:
    """Remembers what it was asked; answers with counted bytes."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, Any]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.log.append(("read", offset, size))
        return bytes([len(self.log)] * size)

    def write(self, offset: int, data: bytes) -> None:
        self.log.append(("write", offset, data))


class Bench:
    """A runner with one device on each bus, and everything it tells."""

    def __init__(
        self, *steps: Step, handlers: dict[type[Exit], Any] | None = None, device: Any = None
    ) -> None:
        self.vcpu = FakeVcpu(steps)
        self.device = device or FakeDevice()
        self.ending = Ending(lambda: None)
        self.lock = threading.RLock()
        self.unclaimed: list[str] = []
        self.drained: list[int] = []
        ports, mmio = Bus("ports"), Bus("MMIO")
        ports.attach(range(PORT, PORT + 8), self.device)
        mmio.attach(range(GPA, GPA + 0x1000), self.device)
        self.runner = VcpuRunner(
            cast("Vcpu", self.vcpu),
            ports=ports,
            mmio=mmio,
            ending=self.ending,
            lock=self.lock,
            unclaimed=self.unclaimed.append,
            drain=self.drained.append,
            handlers=handlers or {},
        )

    def run(self) -> Bench:
        self.runner.run()
        return self


# ---- devices


def test_a_port_access_reaches_the_device_as_an_offset() -> None:
    """The device hears offset and bytes of a write, and its answer lands where KVM looks."""
    bench = Bench(port_exit(OUT, PORT + 2, 2, b"\x34\x12"), port_exit(IN, PORT + 7, 4), HLT).run()
    assert bench.device.log == [("write", 2, b"\x34\x12"), ("read", 7, 4)]
    assert bench.vcpu.answers[2][:4] == b"\x02" * 4


def test_a_string_access_is_one_access_after_the_other() -> None:
    """REP OUTS and REP INS: the same port, each element in order, each answer behind the last."""
    bench = Bench(port_exit(OUT, PORT, 2, b"aabbcc", 3), port_exit(IN, PORT, 1, count=4), HLT).run()
    assert (
        bench.device.log
        == [("write", 0, b"aa"), ("write", 0, b"bb"), ("write", 0, b"cc")] + [("read", 0, 1)] * 4
    )
    assert bench.vcpu.answers[2][:4] == b"\x04\x05\x06\x07"


def test_an_mmio_access_reaches_the_device_as_an_offset() -> None:
    """Reads and writes of every width."""
    bench = Bench(mmio_exit(GPA + 0x10, 4, b"wxyz"), mmio_exit(GPA + 0xFFF, 8), HLT)
    bench.run()
    assert bench.device.log == [("write", 0x10, b"wxyz"), ("read", 0xFFF, 8)]


def test_the_answer_to_an_mmio_read_is_where_kvm_looks() -> None:
    """The exit's own data field, as many bytes as were asked for."""
    bench = Bench(mmio_exit(GPA, 2), lambda view: answers.append(bytes(view.mmio.data)) or HLT(view))  # type: ignore[operator, func-returns-value]
    answers: list[bytes] = []
    bench.run()
    assert answers[0][:3] == b"\x01\x01\0"


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7), st.sampled_from([1, 2, 4]), st.integers(1, 5)))
)
def test_every_access_reaches_the_device_once_and_in_order(accesses: list[tuple[int, int, int, int]]) -> None:
    """Any mixture of directions, offsets, widths and repetitions."""
    steps, expected = [], []
    for number, (direction, offset, size, count) in enumerate(accesses):
        elements = [bytes([number % 256, i] * 4)[:size] for i in range(count)]
        steps.append(
            port_exit(direction, PORT + offset, size, b"".join(elements) if direction else b"", count)
        )
        expected += [("write", offset, e) if direction else ("read", offset, size) for e in elements]
    bench = Bench(*steps, HLT).run()
    assert bench.device.log == expected


def test_a_device_works_under_the_machine_s_lock_and_the_guest_does_not() -> None:
    """Two vCPUs never meet in a device, and none waits for another's guest."""
    held: list[bool] = []

    class Curious(FakeDevice):
        def write(self, offset: int, data: bytes) -> None:
            held.append(is_held(bench.lock))

    def look(view: RunView) -> None:
        held.append(is_held(bench.lock))
        HLT(view)  # type: ignore[operator]

    bench = Bench(port_exit(OUT, PORT, 1, b"x"), look, device=Curious())
    bench.run()
    assert held == [True, False]


def is_held(lock: Any) -> bool:
    """Whether the calling thread holds an RLock, as seen by another."""
    found: list[bool] = []

    def ask() -> None:
        free = lock.acquire(blocking=False)
        found.append(not free)
        if free:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


# ---- nobody there


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 1), (4, 1), (1, 8), (2, 3)])
def test_a_read_from_nobody_is_all_ones_and_is_told(size: int, count: int) -> None:
    """Floating bus: every byte of every repetition is 0xff, and the machine hears of it once."""
    bench = Bench(port_exit(IN, 0x99, size, b"\0" * 16, count), HLT).run()
    assert bench.vcpu.answers[1] == (b"\xff" * size * count).ljust(16, b"\0")
    assert bench.unclaimed == [f"guest read {size} bytes from port 0x99 at rip=0x0, where no device answers"]


def test_a_write_to_nobody_is_told_with_value_and_place() -> None:
    """What, where, and from which instruction."""

    def step(view: RunView) -> None:
        port_exit(OUT, 0x80, 2, b"\x41\x02")(view)  # type: ignore[operator]
        view.synced.regs.rip = 0x1000C

    bench = Bench(step, mmio_exit(GPA - 4, 4, b"\xef\xbe\xad\xde"), mmio_exit(0, 8), HLT).run()
    assert bench.unclaimed[0] == "guest wrote 0x241 to port 0x80 at rip=0x1000c, where no device answers"
    assert bench.unclaimed[1].startswith(f"guest wrote 0xdeadbeef to address {GPA - 4:#x} at rip=")
    assert bench.unclaimed[2].startswith("guest read 8 bytes from address 0x0 at rip=")


# ---- ends


@pytest.mark.parametrize(
    ("step", "reason", "detail"),
    [
        (HLT, EndReason.HALT, ""),
        (plain_exit(lib.KVM_EXIT_SHUTDOWN), EndReason.TRIPLE_FAULT, ""),
        (
            plain_exit(lib.KVM_EXIT_INTERNAL_ERROR, "internal", suberror=1),
            EndReason.INTERNAL_ERROR,
            "KVM's suberror 1: KVM's emulator lacks this instruction",
        ),
        (
            plain_exit(lib.KVM_EXIT_INTERNAL_ERROR, "internal", suberror=99),
            EndReason.INTERNAL_ERROR,
            "suberror 99",
        ),
        (
            plain_exit(lib.KVM_EXIT_FAIL_ENTRY, "fail_entry", hardware_entry_failure_reason=0x80000021),
            EndReason.ENTRY_FAILURE,
            "hardware reason 0x80000021",
        ),
        (
            plain_exit(lib.KVM_EXIT_SYSTEM_EVENT, "system_event", type=1),
            EndReason.POWER_OFF,
            "system event 1",
        ),
        (plain_exit(lib.KVM_EXIT_SYSTEM_EVENT, "system_event", type=2), EndReason.RESET, "system event 2"),
        (plain_exit(lib.KVM_EXIT_SYSTEM_EVENT, "system_event", type=3), EndReason.PANIC, "system event 3"),
        (
            plain_exit(lib.KVM_EXIT_SYSTEM_EVENT, "system_event", type=77),
            EndReason.UNKNOWN_EXIT,
            "system event 77",
        ),
        (plain_exit(4711), EndReason.UNKNOWN_EXIT, "reason 4711"),
        (plain_exit(lib.KVM_EXIT_TPR_ACCESS), EndReason.UNKNOWN_EXIT, "TPR_ACCESS"),
        (plain_exit(lib.KVM_EXIT_NMI), EndReason.UNKNOWN_EXIT, "no answer to NmiExit()"),
        (
            plain_exit(lib.KVM_EXIT_DEBUG, "debug", pc=0x1000),
            EndReason.UNKNOWN_EXIT,
            "no answer to DebugExit(",
        ),
    ],
)
def test_each_end_has_its_word(step: Step, reason: EndReason, detail: str) -> None:
    """The run is over after the exit, for the reason that it tells, and says more where there is more."""
    bench = Bench(step).run()
    assert bench.ending.is_over
    assert bench.ending.reason is reason
    assert detail in bench.ending.detail
    assert bench.vcpu.steps == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GuestAddressError("guest address 0x99"), EndReason.BAD_REQUEST),
        (UnclaimedIoError("nobody there"), EndReason.UNCLAIMED_IO),
    ],
)
def test_a_guest_s_error_ends_the_run_with_its_own_word(error: Exception, reason: EndReason) -> None:
    """What a device raises because of the guest is an end, not a failure of ours."""
    bench = Bench(port_exit(OUT, PORT, 1, b"x"), device=raising(error)).run()
    assert (bench.ending.reason, bench.ending.detail) == (reason, str(error))
    assert bench.ending.failure is None


def raising(error: BaseException) -> FakeDevice:
    class Broken(FakeDevice):
        def write(self, offset: int, data: bytes) -> None:
            raise error

    return Broken()


def test_a_broken_device_surfaces_in_the_caller_s_thread() -> None:
    """run() raises what the device raised."""
    with pytest.raises(ZeroDivisionError):
        Bench(port_exit(OUT, PORT, 1, b"x"), device=raising(ZeroDivisionError())).run()


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), SystemExit(3)])
def test_a_broken_device_in_another_thread_is_carried_over(error: BaseException) -> None:
    """A vCPU's own thread ends, ends the run, and leaves the exception for run() to raise."""
    bench = Bench(port_exit(OUT, PORT, 1, b"x"), device=raising(error))
    bench.runner.start()
    bench.runner.join(10)
    assert not bench.runner.is_running()
    assert bench.ending.is_over
    assert bench.ending.failure is error


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EFAULT])
def test_no_memory_on_the_host_is_an_end(code: int) -> None:
    """KVM_RUN says so with ENOMEM or EFAULT."""
    bench = Bench(LoopResult.ERROR)
    bench.vcpu.loop.error = code
    bench.run()
    assert bench.ending.reason is EndReason.OUT_OF_MEMORY
    assert "KVM_RUN" in bench.ending.detail


def test_another_error_of_kvm_run_is_ours_to_raise() -> None:
    """It keeps its errno."""
    bench = Bench(LoopResult.ERROR)
    bench.vcpu.loop.error = errno.EINVAL
    with pytest.raises(KvmError) as caught:
        bench.run()
    assert caught.value.errno == errno.EINVAL


# ---- everything else that enter() returns for


@pytest.mark.parametrize("full", [LoopResult.TRACE_FULL, LoopResult.CONSOLE_FULL])
def test_a_full_ring_is_drained_and_the_guest_goes_on(full: LoopResult) -> None:
    """The machine empties the rings of this vCPU."""
    bench = Bench(full, full, HLT).run()
    assert bench.drained == [3, 3]
    assert bench.ending.reason is EndReason.HALT


@pytest.mark.parametrize("result", [LoopResult.SIGNAL, LoopResult.KICKED])
def test_each_interruption_is_a_tick_for_who_wants_it(result: LoopResult) -> None:
    """The supervisor looks around whenever the vCPU has left the guest without an exit."""
    ticks: list[int] = []
    bench = Bench(result, result, HLT)
    bench.runner.run(lambda: ticks.append(1))
    assert ticks == [1, 1]


def test_a_tick_can_end_the_run() -> None:
    """The guest is not entered again."""
    bench = Bench(LoopResult.SIGNAL, HLT)
    bench.runner.run(lambda: bench.ending.finish(EndReason.TIMEOUT))
    assert bench.vcpu.steps == [HLT]
    assert bench.ending.reason is EndReason.TIMEOUT


def test_a_kick_shows_whether_the_vcpu_sleeps_for_good() -> None:
    """Without a tick of its own, each kick takes a look for the supervisor."""
    bench = Bench(LoopResult.KICKED, LoopResult.KICKED, HLT)
    bench.vcpu.is_dead = True
    bench.run()
    assert bench.runner.is_halted_for_good


def test_a_run_that_is_over_enters_no_guest() -> None:
    """Stopped before it began."""
    bench = Bench(HLT)
    bench.ending.finish(EndReason.INTERRUPTED)
    bench.run()
    assert bench.vcpu.steps == [HLT]


def test_handlers_come_before_the_table_and_may_add_to_it() -> None:
    """A tap replaces the machine's answer to a kind, or gives one where there was none."""
    seen: list[tuple[Any, Exit]] = []

    def take(vcpu: Any, exit_: Exit) -> None:
        seen.append((vcpu, exit_))

    def end(_: Any, __: Exit) -> None:
        bench.ending.finish(EndReason.EXIT, code=5)

    debug = plain_exit(lib.KVM_EXIT_DEBUG, "debug", exception=1, pc=7)
    steps = (port_exit(OUT, PORT, 1, b"x"), debug, HLT)
    bench = Bench(*steps, handlers={IoExit: take, DebugExit: take, HltExit: end})
    bench.run()
    assert seen == [(bench.vcpu, IoExit(PORT, 1, 1, True, b"x")), (bench.vcpu, DebugExit(1, 7, 0, 0))]
    assert bench.device.log == []
    assert (bench.ending.reason, bench.ending.code) == (EndReason.EXIT, 5)


# ---- Ending


def test_the_first_word_counts() -> None:
    """Later ones, from whichever thread, change nothing and wake nobody."""
    woken: list[int] = []
    ending = Ending(lambda: woken.append(1))
    ending.finish(EndReason.EXIT, code=3)
    ending.finish(EndReason.TIMEOUT, detail="too late")
    ending.fail(ZeroDivisionError())
    assert (ending.reason, ending.code, ending.detail) == (EndReason.EXIT, 3, "")
    assert woken == [1]


def test_a_word_from_a_signal_s_handler_inside_another_is_no_deadlock() -> None:
    """finish() may be interrupted by itself at its most delicate point."""

    def interrupt() -> None:
        ending.finish(EndReason.INTERRUPTED)

    ending = Ending(interrupt)
    ending.finish(EndReason.TIMEOUT)
    assert ending.reason is EndReason.TIMEOUT


def test_a_second_word_ends_the_run_where_the_first_thread_was_held_up() -> None:
    """Between its word and the rest: the guest is not entered again, and the reason is the first one's."""
    ending = Ending(lambda: None)
    ending._words["first"] = (EndReason.TIMEOUT, None, "late")
    ending.finish(EndReason.EXIT, code=3)
    assert ending.is_over
    assert (ending.reason, ending.code, ending.detail) == (EndReason.TIMEOUT, None, "late")


def test_of_many_words_at_once_exactly_one_wins() -> None:
    """Reason and code belong together."""
    for _ in range(50):
        ending = Ending(lambda: None)
        gate = threading.Barrier(4)

        def say(code: int, ending: Ending = ending, gate: threading.Barrier = gate) -> None:
            gate.wait()
            ending.finish(EndReason.EXIT, code=code, detail=str(code))

        threads = [threading.Thread(target=say, args=(code,)) for code in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ending.detail == str(ending.code)


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    """What breaks because something broke before is not the news."""
    ending = Ending(lambda: None)
    first = ZeroDivisionError()
    ending.fail(first)
    ending.fail(KeyError())
    assert ending.failure is first
    assert ending.is_over
