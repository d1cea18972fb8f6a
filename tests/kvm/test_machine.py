"""The machine: its sizes, the order of its calls, its ends and interruptions, and what fails on our side."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machines import FREE_PORT, HLT, SPIN, TIMEOUT_S, Broken, leave, leaving_nothing, out8, run16

from pykvm import layout
from pykvm.errors import ConfigError, ImageError, KvmError
from pykvm.machine import Machine
from pykvm.result import EndReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


PAGE = 4096
MIB = 1 << 20
HOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    yield from leaving_nothing()


# ---- sizes


@pytest.mark.needs("real16")
def test_one_page_is_a_machine() -> None:
    """A real-mode guest at address 0 of 4096 bytes, and not a byte more."""
    with Machine(memory=PAGE) as machine:
        machine.load(out8(layout.DEBUG_CONSOLE.start, ord("1")) + HLT, mode="real16", address=0)
        result = machine.run(timeout=TIMEOUT_S)
    assert (result.reason, result.console) == (EndReason.HALT, b"1")


@pytest.mark.needs("real16", "mmio")
def test_a_guest_that_runs_off_its_memory_is_stopped_with_the_address() -> None:
    """What lies behind the last page is nobody's."""
    code = b"\xc6\x06\x00\x10\x01" + HLT  # movb $1, 0x1000
    with Machine(memory=PAGE) as machine:
        machine.load(code, mode="real16", address=0)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.reason is EndReason.UNCLAIMED_IO
    assert "wrote 0x1 to address 0x1000 at rip=" in result.detail


@pytest.mark.needs("real16")
def test_large_memory_is_not_touched() -> None:
    """16 GiB, or three quarters of a smaller host: the guest runs, the host gives only what it touched."""
    size = min(16 << 30, HOST_BYTES * 3 // 4) // PAGE * PAGE
    before = resident_bytes()
    with Machine(memory=size) as machine:
        machine.load(out8(layout.DEBUG_CONSOLE.start, ord("L")) + HLT, mode="real16")
        result = machine.run(timeout=TIMEOUT_S)
        machine.memory.write(machine.memory.ram()[-1].stop - 1, b"\xff")
        assert resident_bytes() - before < 64 * MIB
    assert (result.reason, result.console) == (EndReason.HALT, b"L")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 0},
        {"memory": PAGE + 1},
        {"memory": "64Q"},
        {"memory": HOST_BYTES + PAGE},
        {"vcpus": 0},
        {"vcpus": -1},
        {"vcpus": 2, "irqchip": False},
        {"unclaimed": "ignore"},
        {"vendor": "cyrix"},
    ],
)
@pytest.mark.usefixtures("nothing_left")
def test_a_machine_that_can_t_be_is_refused_in_one_line(options: dict[str, Any]) -> None:
    """ConfigError before anything is built, and nothing stays open."""
    with pytest.raises(ConfigError) as caught:
        Machine(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("nothing_left")
def test_more_vcpus_than_this_kvm_allows_are_refused() -> None:
    """KVM itself is asked, and what was built by then is taken apart."""
    with Machine(memory="1M", vcpus=100_000) as machine, pytest.raises(ConfigError, match="this KVM allows"):
        machine.load(HLT, mode="real16")


@pytest.mark.usefixtures("nothing_left")
def test_an_unknown_board_is_refused_with_those_there_are() -> None:
    """When the machine is built."""
    with (
        Machine(board="pdp11") as machine,
        pytest.raises(ConfigError, match="there are pykvm, linux, testdev"),
    ):
        machine.load(HLT, mode="real16")


@pytest.mark.usefixtures("nothing_left")
def test_a_set_up_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second vCPU can't be had: the first is closed with the rest."""

    def no(*_: object) -> None:
        raise KvmError(12, "KVM_SET_CPUID2")

    with Machine(memory="1M", vcpus=2) as machine:
        monkeypatch.setattr("pykvm.vcpu.Vcpu.set_cpuid", no)
        with pytest.raises(KvmError):
            machine.load(HLT, mode="real16")


@pytest.mark.usefixtures("nothing_left")
def test_a_bad_image_leaves_a_machine_that_can_be_closed() -> None:
    """load() fails before anything is built, and may be tried again with another."""
    with Machine(memory="1M") as machine:
        with pytest.raises(ImageError):
            machine.load(b"")
        machine.load(HLT, mode="real16")
        assert machine.run(timeout=TIMEOUT_S).reason is EndReason.HALT


# ---- order


def test_a_machine_is_loaded_once_and_runs_once() -> None:
    """Anything else is a ConfigError that says what to do."""
    with Machine(memory="1M") as machine:
        with pytest.raises(ConfigError, match="after load"):
            machine.run()
        machine.load(HLT, mode="real16")
        with pytest.raises(ConfigError, match="loaded already"):
            machine.load(HLT, mode="real16")
        machine.run(timeout=TIMEOUT_S)
        with pytest.raises(ConfigError, match="runs once"):
            machine.run()


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout: float) -> None:
    """Before the guest runs."""
    with pytest.raises(ConfigError, match="give more than 0"):
        run16(HLT, timeout=timeout)


def test_closing_twice_and_stopping_afterwards_are_no_errors() -> None:
    """A closed machine is closed."""
    machine = Machine(memory="1M")
    machine.load(HLT, mode="real16")
    machine.close()
    machine.close()
    machine.stop()


# ---- ends


@pytest.mark.needs("real16")
@pytest.mark.parametrize("code", [0, 1, 42, 255, 256, 0xFFFFFFFF])
def test_an_exit_code_comes_back_whole(code: int) -> None:
    """The result has all 32 bits; the command's status is at most 255."""
    result = run16(leave(code))
    assert (result.reason, result.exit_code) == (EndReason.EXIT, code)
    assert result.exit_status == min(code, 255)


@pytest.mark.needs("real16")
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_a_guest_that_never_exits_ends_at_its_time_limit(limit: float) -> None:
    """Not before, and soon after."""
    began = time.monotonic()
    result = run16(SPIN, timeout=limit)
    took = time.monotonic() - began
    assert result.reason is EndReason.TIMEOUT
    assert result.detail == f"the guest ran for {limit:g} s"
    assert limit <= took < limit + 10
    assert result.cpus[0].linear_rip == layout.FLAT_REAL


@pytest.mark.needs("long64")
@pytest.mark.usefixtures("nothing_left")
def test_a_guest_that_hangs_in_the_kernel_ends_at_its_time_limit() -> None:
    """VMCALL, which some KVMs never come back from but by a signal, and which others answer."""
    began = time.monotonic()
    with Machine(memory="2M") as machine:
        machine.load("24_vmcall")
        result = machine.run(timeout=1)
    assert result.reason in (EndReason.TIMEOUT, EndReason.EXIT)
    assert time.monotonic() - began < 15


@pytest.mark.needs("real16")
def test_stopped_before_it_runs_a_guest_never_starts() -> None:
    """stop() holds for the run to come."""
    with Machine(memory="1M") as machine:
        machine.load(leave(), mode="real16")
        machine.stop(EndReason.INTERRUPTED, "not today")
        result = machine.run(timeout=TIMEOUT_S)
    assert (result.reason, result.detail, result.stats.entries) == (EndReason.INTERRUPTED, "not today", 0)


@pytest.mark.needs("real16")
def test_stop_from_another_thread_ends_the_run() -> None:
    """Without a time limit, a listener or anything else that would wake the vCPU."""
    with Machine(memory="1M") as machine:
        machine.load(SPIN, mode="real16")

        def stop() -> None:
            if wait_for(lambda: machine.vcpus[0].loop.tid):
                machine.stop()

        thread = threading.Thread(target=stop)
        thread.start()
        result = machine.run()
        thread.join()
    assert result.reason is EndReason.INTERRUPTED


def wait_for(condition: Callable[[], Any], limit_s: float = 10) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


@pytest.mark.needs("real16")
@pytest.mark.usefixtures("nothing_left")
def test_ctrl_c_ends_a_guest_that_spins() -> None:
    """SIGINT takes the main thread out of the guest; the result says so, and no exception comes."""
    with Machine(memory="1M") as machine:
        machine.load(SPIN, mode="real16")

        def press() -> None:
            if wait_for(lambda: machine.vcpus[0].loop.tid):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        result = machine.run()
        thread.join()
    assert result.reason is EndReason.INTERRUPTED


@pytest.mark.needs("real16")
@pytest.mark.usefixtures("nothing_left")
def test_ctrl_c_inside_a_listener_ends_the_run() -> None:
    """Wherever the main thread is at that moment."""

    def press(_: bytes) -> None:
        signal.raise_signal(signal.SIGINT)

    result = run16(out8(layout.DEBUG_CONSOLE.start, ord("x")) + SPIN, console=press)
    assert (result.reason, result.console) == (EndReason.INTERRUPTED, b"x")


# ---- what goes wrong on our side


@pytest.mark.needs("real16")
@pytest.mark.usefixtures("nothing_left")
def test_what_a_device_raises_comes_out_of_run() -> None:
    """And the machine can be closed."""
    with Machine(memory="1M") as machine:
        machine.ports.attach(range(FREE_PORT, FREE_PORT + 1), Broken())
        machine.load(out8(FREE_PORT, 1) + SPIN, mode="real16")
        with pytest.raises(ZeroDivisionError):
            machine.run(timeout=TIMEOUT_S)


@pytest.mark.needs("real16")
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("code", [SPIN, leave()], ids=["at a tick", "at the end"])
def test_what_a_listener_raises_comes_out_of_run(code: bytes) -> None:
    """While the guest runs, or with the last piece of its output."""

    def refuse(_: bytes) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run16(out8(layout.DEBUG_CONSOLE.start, ord("x")) + code, console=refuse)


@pytest.mark.needs("real16")
def test_a_listener_may_type_on_the_console_that_it_listens_to() -> None:
    """An answer to what the guest prints, from inside the device's own call: no lock is in the way."""
    com1 = layout.COM1.start
    status, data = (com1 + 5).to_bytes(2, "little"), com1.to_bytes(2, "little")
    wait = b"\xba" + status + b"\xec\xa8\x01\x74\xfb"  # mov $status, %dx; 1: in; test $1, %al; jz 1b
    echo = b"\xba" + data + b"\xec" + b"\xba" + layout.DEBUG_CONSOLE.start.to_bytes(2, "little") + b"\xee"

    def answer(piece: bytes) -> None:
        if piece == b"?":
            machine.send(b"!")

    with Machine(memory="1M", console=answer) as machine:
        machine.load(out8(com1, ord("?")) + wait + echo + leave(), mode="real16")
        result = machine.run(timeout=TIMEOUT_S)
    assert (result.reason, result.console) == (EndReason.EXIT, b"?!")
