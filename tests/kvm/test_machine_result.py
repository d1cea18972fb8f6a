"""What a run leaves: all of the output, the trace, counts that add up, a plain value; and nothing else."""

from __future__ import annotations

import os
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest
from machines import FREE_PORT, HLT, SPIN, TIMEOUT_S, held, leave, loop, out8, run16

from pykvm import layout
from pykvm._native import lib
from pykvm.errors import ConfigError
from pykvm.exits import HltExit
from pykvm.machine import Machine, MachineSpec
from pykvm.result import EndReason, RunResult

if TYPE_CHECKING:
    from pykvm.vcpu import Vcpu

MIB = 1 << 20
CALL, TEXT = 0x600, 0x1_0000  # where the flooding guest has its request and its text


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
