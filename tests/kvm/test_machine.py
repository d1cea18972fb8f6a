"""The machine as a whole: sizes, ends, interruptions, floods, leaks; a run leaves a result, nothing else."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import layout
from pykvm._native import lib
from pykvm.errors import ConfigError, ImageError, KvmError
from pykvm.exits import HltExit, IoExit
from pykvm.machine import Machine, MachineSpec
from pykvm.result import EndReason, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.vcpu import Vcpu

PAGE = 4096
MIB = 1 << 20
HOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
FREE_PORT = 0x600
TIMEOUT_S = 20
CALL, TEXT = 0x600, 0x1_0000  # where the flooding guest has its request and its text

HLT = b"\xf4"
SPIN = b"\xeb\xfe"


def out8(port: int, value: int) -> bytes:
    """mov $port, %dx; mov $value, %al; out %al, %dx"""
    return b"\xba" + port.to_bytes(2, "little") + bytes([0xB0, value, 0xEE])


def loop(count: int, body: bytes) -> bytes:
    """mov $count, %ecx; 1: body; dec %ecx; jnz 1b"""
    back = -(len(body) + 2 + 2) & 0xFF
    return b"\x66\xb9" + count.to_bytes(4, "little") + body + b"\x66\x49\x75" + bytes([back])


def leave(code: int = 0) -> bytes:
    """mov $PLAIN_EXIT, %dx; mov $code, %eax; out %eax, %dx"""
    port = layout.PLAIN_EXIT.start.to_bytes(2, "little")
    return b"\xba" + port + b"\x66\xb8" + code.to_bytes(4, "little") + b"\x66\xef"


def run16(code: bytes, *, timeout: float = TIMEOUT_S, **options: Any) -> RunResult:
    """Run a few bytes of 16-bit code, loaded at 0x8000."""
    with Machine(**{"memory": "1M", **options}) as machine:
        machine.load(code, mode="real16")
        return machine.run(timeout=timeout)


def held() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    return {
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
    }


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no fd and no thread behind."""
    before = held()
    yield
    after = held()
    assert (after["fds"], after["threads"]) == (before["fds"], before["threads"])


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
    with Machine(board="pdp11") as machine, pytest.raises(ConfigError, match="there are pykvm, testdev"):
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


class Broken:
    """A device that fails."""

    def read(self, offset: int, size: int) -> bytes:
        raise ZeroDivisionError

    def write(self, offset: int, data: bytes) -> None:
        raise ZeroDivisionError


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


# ---- several vCPUs


def smp(first: bytes, second: bytes) -> bytes:
    """32-bit code that starts the second CPU by INIT and SIPI; its 16-bit code begins the image."""
    init = b"\xc7\x05\x00\x03\xe0\xfe\x00\x45\x0c\x00"  # movl $0xc4500, 0xfee00300: INIT to all but self
    sipi = b"\xc7\x05\x00\x03\xe0\xfe\x02\x46\x0c\x00"  # movl $0xc4602, 0xfee00300: SIPI to 0x2000
    return second.ljust(0x100, HLT) + init + sipi + first


def run_smp(first: bytes, second: bytes, *, timeout: float = TIMEOUT_S, **options: Any) -> RunResult:
    with Machine(memory="1M", vcpus=2, **options) as machine:
        machine.ports.attach(range(FREE_PORT, FREE_PORT + 1), Broken())
        machine.load(smp(first, second), mode="prot32", address=0x2000, entry=0x2100)
        return machine.run(timeout=timeout)


LEAVE32 = b"\x66\xba" + layout.PLAIN_EXIT.start.to_bytes(2, "little") + b"\x31\xc0\xb0\x07\xef"  # exit code 7


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_first_cpu_s_end_stops_a_second_that_spins() -> None:
    """Its thread leaves the guest and ends."""
    wait = b"\x66\xba\xe9\x00\xb9\x00\x10\x00\x00\x49\x75\xfd"  # some 4096 steps for the second to get going
    result = run_smp(wait + LEAVE32, SPIN)
    assert (result.reason, result.exit_code) == (EndReason.EXIT, 7)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_second_cpu_s_end_stops_a_first_that_spins() -> None:
    """Whoever ends the run, ends it for all."""
    result = run_smp(SPIN, leave(9))
    assert (result.reason, result.exit_code) == (EndReason.EXIT, 9)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_second_cpu_s_end_stops_a_first_that_sleeps() -> None:
    """The first is in HLT inside the kernel."""
    assert run_smp(HLT + b"\xeb\xfd", leave(9)).exit_code == 9


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_what_a_device_raises_on_the_second_cpu_comes_out_of_run() -> None:
    """Carried from its thread to the caller's."""
    with pytest.raises(ZeroDivisionError):
        run_smp(SPIN, out8(FREE_PORT, 1) + SPIN)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_a_time_limit_stops_all_cpus() -> None:
    """Two that spin."""
    assert run_smp(SPIN, SPIN, timeout=0.2).reason is EndReason.TIMEOUT


@pytest.mark.needs("smp", "prot32")
def test_two_cpus_print_without_losing_a_byte() -> None:
    """Both write to the fast port at once."""
    count = 300
    console = layout.DEBUG_CONSOLE.start
    first = b"\x66\xba" + console.to_bytes(2, "little") + b"\xb0a\xb9" + count.to_bytes(4, "little")
    first += b"\xee\x49\x75\xfc" + SPIN  # 1: out %al, %dx; dec %ecx; jnz 1b
    second = out8(console, ord("b")) + loop(count - 1, b"\xee") + SPIN
    heard = bytearray()

    def listen(piece: bytes) -> None:
        heard.extend(piece)
        if len(heard) >= 2 * count:
            machine.stop(EndReason.POWER_OFF)

    with Machine(memory="1M", vcpus=2, console=listen) as machine:
        machine.load(smp(first, second), mode="prot32", address=0x2000, entry=0x2100)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.reason is EndReason.POWER_OFF
    assert (heard.count(b"a"), heard.count(b"b"), len(heard)) == (count, count, 2 * count)
    assert heard == result.console


# ---- output


def put_request(machine: Machine, text: bytes) -> None:
    """Put the request of HC_CONSOLE_WRITE and its text into memory, where call_loop() finds it."""
    request = struct.pack(
        "<IIqQQQQ", lib.HC_CONSOLE_WRITE, lib.HYPERCALL_ABI_VERSION, 0, TEXT, len(text), 0, 0
    )
    machine.memory.write(CALL, request)
    machine.memory.write(TEXT, text)


def call_loop(calls: int) -> bytes:
    body = b"\x66\xb8" + CALL.to_bytes(4, "little")  # mov $CALL, %eax
    body += b"\xba" + layout.HYPERCALL.start.to_bytes(2, "little") + b"\x66\xef"  # mov …, %dx; out %eax, %dx
    return loop(calls, body) + leave()


@pytest.mark.needs("real16")
def test_a_flood_of_50_mb_is_kept_and_heard_whole() -> None:
    """Through the fast port, far beyond the ring: nothing lost, nothing doubled, in order."""
    text = bytes(range(251)) * 160  # 40,160 bytes, so that pieces and ring never line up
    calls = 50_000_000 // len(text)
    heard = bytearray()
    with Machine(memory="1M", console=heard.extend) as machine:
        machine.load(call_loop(calls), mode="real16")
        put_request(machine, text)
        result = machine.run(timeout=60)
    assert result.reason is EndReason.EXIT
    assert result.stats.fast_exits == calls
    assert result.console == text * calls
    assert heard == result.console


@pytest.mark.needs("real16")
def test_bytes_of_a_flood_stay_in_order() -> None:
    """Each OUT one byte, more of them than the ring has room for."""
    count = 70_000
    body = b"\xee\xfe\xc0"  # out %al, %dx; inc %al
    result = run16(
        out8(layout.DEBUG_CONSOLE.start, 0) + b"\xfe\xc0" + loop(count - 1, body) + leave(), timeout=60
    )
    assert result.console == bytes(i & 0xFF for i in range(count))


@pytest.mark.needs("real16")
def test_a_listener_hears_while_the_guest_still_runs() -> None:
    """Without an end, a full ring or a device to push it."""
    heard = threading.Event()
    with Machine(memory="1M", console=lambda _: heard.set() or machine.stop()) as machine:  # type: ignore[func-returns-value]
        machine.load(out8(layout.DEBUG_CONSOLE.start, ord("x")) + SPIN, mode="real16")
        result = machine.run(timeout=TIMEOUT_S)
    assert heard.is_set()
    assert result.reason is EndReason.INTERRUPTED


# ---- fast ports and handlers


@pytest.mark.needs("real16")
def test_a_doorbell_counts_every_write() -> None:
    """The eventfd's sum is the number of OUTs; none of them comes to Python."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    with Machine(memory="1M") as machine:
        machine.load(out8(FREE_PORT, 1) + loop(99, b"\xee") + leave(), mode="real16")
        machine.fast_port(range(FREE_PORT, FREE_PORT + 1), lib.VERB_DOORBELL, doorbell_fd=bell)
        result = machine.run(timeout=TIMEOUT_S)
    assert os.eventfd_read(bell) == 100
    assert result.stats.fast_exits == 100
    os.close(bell)


def test_fast_ports_do_not_overlap_and_are_finite() -> None:
    """A port that is fast already, and one more than the table holds."""
    with Machine(memory="1M") as machine:
        machine.load(HLT, mode="real16")
        with pytest.raises(ConfigError, match="taken"):
            machine.fast_port(layout.DEBUG_CONSOLE, lib.VERB_DISCARD)
        free = range(FREE_PORT, FREE_PORT + lib.FAST_PORTS_MAX - 3)  # index 0 is none, two are the board's
        for port in free:
            machine.fast_port(range(port, port + 1), lib.VERB_DISCARD)
        with pytest.raises(ConfigError, match="the table is full"):
            machine.fast_port(range(free.stop, free.stop + 1), lib.VERB_DISCARD)


@pytest.mark.needs("real16")
def test_a_handler_replaces_the_machine_s_answer() -> None:
    """HLT no longer ends the run; the handler sees vCPU and exit."""
    seen: list[tuple[int, object]] = []

    def on_hlt(vcpu: Vcpu, exit_: HltExit) -> None:
        seen.append((vcpu.number, exit_))

    result = run16(HLT + HLT + leave(3), handlers={HltExit: on_hlt})
    assert seen == [(0, HltExit())] * 2
    assert result.exit_code == 3


# ---- the trace, the counts, the result


@pytest.mark.needs("real16", "sync_regs")
def test_a_trace_has_every_exit_in_order() -> None:
    """More than the ring holds, answered in C and by Python: each once, with data, in order of time."""
    fast, slow = 17_000, 50
    body = b"\xee\xfe\xc0"  # out %al, %dx; inc %al
    code = out8(layout.DEBUG_CONSOLE.start, 0) + b"\xfe\xc0" + loop(fast - 1, body)
    code += out8(FREE_PORT, 0) + b"\xfe\xc0" + loop(slow - 1, body) + leave(5)
    result = run16(code, trace=True, unclaimed="float", timeout=60)
    trace = list(result.trace)
    assert len(trace) == result.stats.exits == sum(result.exits.values()) == fast + slow + 1
    assert (result.stats.dropped_records, result.stats.fast_exits, result.stats.unclaimed) == (0, fast, slow)
    printed, unclaimed, last = trace[:fast], trace[fast:-1], trace[-1]
    assert (
        bytes(record.data[0] for record in printed) == bytes(i & 0xFF for i in range(fast)) == result.console
    )
    assert bytes(record.data[0] for record in unclaimed) == bytes(range(slow))
    assert {(r.address, r.verb) for r in printed} == {(layout.DEBUG_CONSOLE.start, "append")}
    assert {(r.address, r.verb) for r in unclaimed} == {(FREE_PORT, "")}
    assert (last.address, last.data, last.is_done) == (layout.PLAIN_EXIT.start, b"\x05\0\0\0", False)
    times = [time for r in trace for time in (r.enter_ns, r.exit_ns, r.resume_ns)]
    assert times == sorted(times)
    assert {"cr3", "cpl", "rip"} <= set(trace[0].regs)


@pytest.mark.needs("real16")
def test_the_last_exits_are_kept_without_a_trace() -> None:
    """The flight recorder has the newest, and the trace is empty."""
    result = run16(out8(layout.DEBUG_CONSOLE.start, 0) + loop(200, b"\xee\xfe\xc0") + leave())
    assert len(result.trace) == 0
    assert 0 < len(result.last_exits) <= 64
    assert result.last_exits[-1].address == layout.PLAIN_EXIT.start
    assert [r.data[0] for r in result.last_exits[-4:-1]] == [197, 198, 199]


@pytest.mark.needs("real16")
def test_the_statistics_add_up() -> None:
    """Exits by reason, answered in C, unclaimed; and the times fit into the wall's."""
    code = out8(layout.DEBUG_CONSOLE.start, 1) + out8(0x99, 1) + out8(0x99, 2) + leave()
    result = run16(code, unclaimed="float")
    stats = result.stats
    assert result.exits == {"IO": 4}
    assert (stats.exits, stats.fast_exits, stats.unclaimed) == (4, 1, 2)
    assert stats.entries >= stats.exits
    assert 0 < stats.own_ns < stats.guest_ns + stats.own_ns < stats.wall_ns


@pytest.mark.needs("real16")
def test_a_result_and_a_specification_survive_pickling() -> None:
    """They can be sent to another process and compared there."""
    result = run16(out8(layout.DEBUG_CONSOLE.start, ord("p")) + b"\xe6\x99", trace=True)
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own bytes
    assert again == result
    assert (again.reason, again.console, len(again.trace), len(again.cpus)) == (
        EndReason.UNCLAIMED_IO,
        b"p",
        2,
        1,
    )
    spec = MachineSpec(memory_bytes=MIB, unclaimed="float", trace=True)
    with Machine.from_spec(pickle.loads(pickle.dumps(spec))) as machine:  # noqa: S301
        assert machine.spec == spec


@pytest.mark.needs("real16")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_floating_read_is_all_ones(size: int) -> None:
    """Reads from nobody, in each width, as the guest sees them."""
    read = {1: b"\xe4\x99", 2: b"\xe5\x99", 4: b"\x66\xe5\x99"}[size]
    tell = {1: b"\xe6\x9a", 2: b"\xe7\x9a", 4: b"\x66\xe7\x9a"}[size]
    seen: list[bytes] = []

    class Listener:
        def read(self, offset: int, size: int) -> bytes:
            return bytes(size)

        def write(self, offset: int, data: bytes) -> None:
            seen.append(data)

    with Machine(memory="1M", unclaimed="float") as machine:
        machine.ports.attach(range(0x9A, 0x9B), Listener())
        machine.load(b"\x66\x31\xc0" + read + tell + leave(), mode="real16")
        machine.run(timeout=TIMEOUT_S)
    assert seen == [b"\xff" * size]


# ---- leaks


def test_many_machines_leave_nothing() -> None:
    """Run to an end or not at all, with one CPU or two, traced or not: no fd, mapping or thread stays."""
    kinds: list[dict[str, Any]] = [{}, {"trace": True}, {"irqchip": True}, {}, {"vcpus": 2}]

    def use(number: int) -> None:
        with Machine(memory="1M", **kinds[number % len(kinds)]) as machine:
            if number % 3:
                machine.load(leave(), mode="real16")
            if number % 3 == 1:
                machine.run(timeout=TIMEOUT_S)

    for number in range(15):
        use(number)
    before = held()
    for number in range(45):
        use(number)
    after = held()
    assert (after["fds"], after["threads"]) == (before["fds"], before["threads"])
    assert after["mappings"] <= before["mappings"] + 4


@pytest.mark.needs("real16")
def test_machines_in_several_threads_do_not_disturb_each_other() -> None:
    """Each its own console, its own end, its own time limit."""
    results: dict[int, RunResult] = {}

    def run(number: int) -> None:
        text = bytes([65 + number])
        code = out8(layout.DEBUG_CONSOLE.start, text[0]) + loop(200, b"\xee") + leave(number)
        results[number] = run16(code)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    for number, result in results.items():
        assert (result.exit_code, result.console) == (number, bytes([65 + number]) * 201)
    assert len(results) == 4


def test_an_exit_kind_is_what_handlers_are_keyed_by() -> None:
    """The kinds of pykvm.exits are the keys, not numbers."""
    with Machine(memory="1M", handlers={IoExit: lambda _vcpu, _exit: None}) as machine:
        assert set(machine.handlers) == {IoExit}
