"""Every guest does what its guest.toml says, in each of its CPU modes; and what only a closer look shows."""

from __future__ import annotations

import os
import queue
import re
import threading
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import layout
from pykvm.boot import symbols
from pykvm.exits import DebugExit
from pykvm.guests import Guest, all_guests
from pykvm.machine import Machine
from pykvm.memory import parse_size
from pykvm.report import disassemble, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.pytest_plugin import Boot
    from pykvm.result import RunResult
    from pykvm.vcpu import Vcpu

GUESTS = all_guests()
GIB = 1 << 30
PAGE = 4096
TIMEOUT_S = 20
INT3 = b"\xcc"
CONSOLE, EXIT, COM1 = layout.DEBUG_CONSOLE.start, layout.PLAIN_EXIT.start, layout.COM1.start
MODE_NEEDS = {"user64": "ring3_io", "reset": "real16"}  # a guest in ring 3 ends by OUT, too


def every_guest() -> Iterator[Any]:
    """Each guest in each of its modes, with what it needs; the mode is a need itself."""
    for guest in GUESTS.values():
        for mode in guest.images:
            needs = pytest.mark.needs(MODE_NEEDS.get(mode, mode), *guest.needs)
            yield pytest.param(guest, mode, marks=needs, id=f"{guest.name}-{mode}")


def boot_guest(boot: Boot, name: str, mode: str | None = None, **options: Any) -> RunResult:
    """Run a guest in the machine that it asks for; `options` on top."""
    mode = None if mode == "reset" else mode
    return boot.image(name, mode=mode, **{"timeout": TIMEOUT_S, **GUESTS[name].machine, **options})


@contextmanager
def loaded(name: str, **options: Any) -> Iterator[tuple[Machine, dict[str, int]]]:
    """A machine with a guest in it that has not run yet, and the guest's symbols."""
    guest = GUESTS[name]
    with Machine(**guest.machine, **options) as machine:
        machine.load(name)
        yield machine, {symbol.name: symbol.address for symbol in symbols(guest.image())}


def ports_of(result: RunResult) -> list[tuple[str, int, bytes]]:
    """The exits as ("out" or "in", port or gpa, data), in order."""
    return [("out" if r.is_write else "in", r.address, r.data) for r in result.trace]


def printed(text: bytes) -> list[tuple[str, int, bytes]]:
    """What printing `text` on the debug console looks like."""
    return [("out", CONSOLE, bytes([byte])) for byte in text]


ENDED = ("out", EXIT, bytes(4))

# ---- every guest


@pytest.mark.parametrize(("guest", "mode"), [*every_guest()])
def test_guest_does_what_it_says(boot: Boot, guest: Guest, mode: str) -> None:
    """The end, the exit code, the console and all exits are those of the guest's [expect]."""
    expect = guest.expect | guest.expect.get(mode, {})
    timeout = expect.get("timeout_s", TIMEOUT_S)
    result = boot_guest(boot, guest.name, mode, typed=expect.get("typed", "").encode(), timeout=timeout)
    reason = expect.get("reason", "exit")
    result.check(reason=reason, exit_code=expect.get("exit_code"), console=expect["console"])
    if "exits" in expect:
        others = {
            name: count for name, count in result.exits.items() if name not in expect.get("may_exit", ())
        }
        assert others == expect["exits"]
    assert result.stats.exits == sum(result.exits.values())


# ---- talking to the host


def test_hello_is_one_exit_a_byte(boot: Boot) -> None:
    """Printing is one OUT for each byte, in order, and then one for the exit code."""
    result = boot_guest(boot, "01_hello", trace=True)
    assert ports_of(result) == [*printed(result.console), ENDED]


def test_uart_is_asked_before_each_byte(boot: Boot) -> None:
    """After six writes that set the chip up, a read of LSR precedes each byte."""
    result = boot_guest(boot, "02_uart", trace=True)
    found = ports_of(result)
    setup = [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7)]
    assert found[:6] == [("out", COM1 + offset, bytes([value])) for offset, value in setup]
    pairs = [(("in", COM1 + 5, b"\x60"), ("out", COM1, bytes([byte]))) for byte in result.console]
    assert found[6:] == [*(access for pair in pairs for access in pair), ENDED]


def test_string_io_reads_at_once_and_writes_one_by_one(boot: Boot) -> None:
    """REP INSB of 32 bytes is one exit with a count; REP OUTSB makes an exit for each byte."""
    result = boot_guest(boot, "03_string_io", trace=True)
    scratch, read, *written, _end = result.trace
    assert (scratch.address, scratch.is_write, scratch.data) == (COM1 + 7, True, b"=")
    assert (read.address, read.is_write, read.size, read.count) == (COM1 + 7, False, 1, 32)
    assert [(r.address, r.count) for r in written] == [(CONSOLE, 1)] * 33
    assert b"".join(r.data for r in written) == b"=" * 32 + b"\n"


@pytest.mark.needs("mmio")
def test_mmio_accesses_come_in_their_own_width(boot: Boot) -> None:
    """Loads and stores to the device arrive with the guest's addresses, widths and data."""
    result = boot_guest(boot, "04_mmio", trace=True)
    at = layout.MMIO_CONSOLE.start
    number = 0x1122334455667788
    assert ports_of(result)[:5] == [
        ("in", at, b"pkvm"),
        ("out", at + 8, number.to_bytes(8, "little")),
        ("in", at + 14, b"\x22\x11"),
        ("out", at + 14, b"\xff\xff"),
        ("in", at + 8, (number | 0xFFFF << 48).to_bytes(8, "little")),
    ]
    assert ports_of(result)[5:] == [*(("out", at + 4, bytes([byte])) for byte in result.console), ENDED]


def test_hypercall_leaves_its_mark(boot: Boot) -> None:
    """HC_MARK is in the result; the calls that C knows are answered there."""
    result = boot_guest(boot, "05_hypercall", trace=True)
    assert [mark.value for mark in result.marks] == [42]
    assert {r.address for r in result.trace} == {layout.HYPERCALL.start}
    assert result.stats.fast_exits >= 6  # four lines of text, the time twice


@pytest.mark.parametrize("gpa", [0x20_0000 - 8, 0xD000_0000, 0xFFFF_FFF8])
def test_hypercall_struct_must_be_in_memory(boot: Boot, gpa: int) -> None:
    """A struct that is not wholly in RAM has no place for an answer: the run ends with `bad-request`."""
    result = boot.asm(f"mov $0x510c, %dx; mov ${gpa:#x}, %eax; out %eax, %dx", memory="2M")
    result.check(reason="bad-request", exits={"IO": 1})
    assert f"{gpa:#x}" in result.detail


def test_unclaimed_stops_and_says_where(boot: Boot) -> None:
    """By default the first access to nobody ends the run, and is named with port, value and RIP."""
    result = boot_guest(boot, "06_unclaimed")
    assert re.search(r"wrote 0x42 to port 0x1234 at rip=0x1000\w\w", result.detail)
    assert result.exit_status == 114
    assert result.stats.unclaimed == 1


@pytest.mark.needs("mmio")
def test_unclaimed_floats_by_option(boot: Boot) -> None:
    """By option writes to nobody are lost and reads are all ones, in any width; each is counted."""
    result = boot_guest(boot, "06_unclaimed", unclaimed="float")
    result.check(exit_code=0, console="port: ff ffffffff\naddress: ffffffff\n")
    assert result.stats.unclaimed == 4


# ---- how a run ends


@pytest.mark.needs("irqchip")
def test_halt_in_the_kernel_is_found(boot: Boot) -> None:
    """With an irqchip a HLT with interrupts off causes no exit, and is the end all the same."""
    boot_guest(boot, "07_halt", irqchip=True).check(reason="halt", exits={"HLT": 0})


@pytest.mark.parametrize(
    ("mode", "writes"),
    [
        pytest.param("real16", [(0x64, 0xFE)], marks=pytest.mark.needs("real16")),
        pytest.param("prot32", [(0x92, 0x01)], marks=pytest.mark.needs("prot32")),
        pytest.param("long64", [(0xCF9, 0x02), (0xCF9, 0x06)], marks=pytest.mark.needs("long64")),
    ],
)
def test_reset_three_ways(boot: Boot, mode: str, writes: list[tuple[int, int]]) -> None:
    """The keyboard controller, port 0x92 and port 0xcf9 each end the run with the same word."""
    result = boot_guest(boot, "08_reset", mode, trace=True)
    assert ports_of(result) == [("out", port, bytes([value])) for port, value in writes]
    assert result.exit_status == 111


def test_triple_fault_is_reported(boot: Boot) -> None:
    """The report shows the faulting instruction or, where KVM has reset the vCPU, says so."""
    result = boot_guest(boot, "09_triple_fault")
    assert result.exit_status == 112
    text = render(result)
    assert "ud2" in text or "KVM has reset" in text


def test_panic_asks_then_tells(boot: Boot) -> None:
    """The port tells which events it knows, and takes one of them; the report shows the guest's code."""
    result = boot_guest(boot, "10_panic", trace=True)
    assert ports_of(result) == [("in", layout.PANIC.start, b"\x03"), ("out", layout.PANIC.start, b"\x01")]
    assert "hlt" in render(result)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.needs(mode)) for mode in ("long64", "prot32", "real16")]
)
def test_time_limit_reports_where_the_guest_is(boot: Boot, mode: str) -> None:
    """A guest that never exits is ended from outside; the report has registers and the very loop."""
    result = boot_guest(boot, "11_endless_loop", mode, timeout=0.2)
    assert (str(result.reason), result.exit_status, dict(result.exits)) == ("timeout", 124, {})
    assert result.stats.wall_ns >= 200_000_000
    (cpu,) = result.cpus
    assert cpu.regs["rbx"] == 0xC0FFEE
    code = disassemble(cpu)
    assert any(re.fullmatch(r">.*\bjmp 0x\w+", line) for line in code)
    assert any("mov ebx, 0xc0ffee" in line for line in code)
    assert "0000c0ffee" in render(result) or "00c0ffee" in render(result)


# ---- interrupts and time


@pytest.mark.needs("long64_interrupts", "irqchip")
@pytest.mark.parametrize("name", ["17_pit_timer", "18_lapic_timer"])
def test_timer_takes_its_time(boot: Boot, name: str) -> None:
    """Three ticks of 10 ms come no sooner than that, and only printing causes exits."""
    result = boot_guest(boot, name, trace=True)
    assert ports_of(result) == [*printed(b"tick 1\ntick 2\ntick 3\n"), ENDED]
    third = next(r for r in result.trace if r.data == b"3")
    assert third.exit_ns - result.trace[0].enter_ns > 28_000_000


@pytest.mark.needs("long64_interrupts", "irqchip")
def test_uart_wakes_up_a_sleeping_guest() -> None:
    """Each piece is typed when the one before has come back, so the guest waits in HLT between them."""
    heard: queue.Queue[bytes] = queue.Queue()
    pieces = [b"a ", b"few", b" pieces", b"\r"]

    def type_on() -> None:
        for piece in pieces:
            machine.send(piece)
            left = len(piece)
            while left > 0:
                left -= len(heard.get(timeout=TIMEOUT_S))

    with loaded("16_uart_interrupt", console=heard.put) as (machine, _):
        typist = threading.Thread(target=type_on)
        typist.start()
        result = machine.run(timeout=TIMEOUT_S)
        typist.join()
    result.check(exit_code=0, console="a few pieces\n", exits={"HLT": 0})


# ---- more of a computer


def touches(memory_bytes: int) -> str:
    step = 2 << 20 if memory_bytes > GIB else PAGE
    return f"{memory_bytes // step} touched in steps of {step // 1024} KiB"


def large_memory() -> int:
    """16 GiB or, where the host has less, 4 GiB or 2."""
    host = os.sysconf("SC_PHYS_PAGES") * PAGE
    return next(size for size in (16 * GIB, 4 * GIB, 2 * GIB, GIB) if size <= host)


@pytest.mark.parametrize("memory", ["4M", "64M", "1026M"])
def test_walker_finds_all_of_memory(boot: Boot, memory: str) -> None:
    """Each page is touched once, and none of them is an exit."""
    result = boot_guest(boot, "19_memory_walker", memory=memory)
    result.check(exit_code=0, console=f"{touches(parse_size(memory))}, 0 not empty\n", exits={"MMIO": 0})


def test_walker_in_a_large_memory() -> None:
    """Up to 16 GiB are walked over, marks at both ends of each part found, and the host pays for little."""
    size = large_memory()
    step = 2 << 20
    before = resident_bytes()
    with Machine(memory=size) as machine:
        machine.load("19_memory_walker")
        marks = {gpa for block in machine.memory.ram() for gpa in (max(block.start, step), block.stop - step)}
        for gpa in marks:
            machine.memory.write(gpa, b"\xa5")
        result = machine.run(timeout=TIMEOUT_S)
        cost = resident_bytes() - before
    result.check(exit_code=0, console=f"{touches(size)}, {len(marks)} not empty\n", exits={"MMIO": 0})
    assert cost < 128 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a file of one line, not of a project
        return int(statm.read().split()[1]) * PAGE


@pytest.mark.needs("long64_interrupts", "ring3_exceptions", "ring3_syscall|ring3_syscall_by_pf")
def test_ring3_takes_one_way_into_the_kernel() -> None:
    """Of its three system calls all come through LSTAR, or all through the page fault of kvm_pvm."""
    assert syscalls_by_fault() in (0, 3)


@pytest.mark.needs("long64_interrupts", "ring3_exceptions", "ring3_syscall")
def test_ring3_needs_no_page_fault_on_a_full_kvm() -> None:
    """Where SYSCALL works, the library's other way is never taken."""
    assert syscalls_by_fault() == 0


def syscalls_by_fault() -> int:
    with loaded("21_ring3") as (machine, at):
        machine.run(timeout=TIMEOUT_S).check(exit_code=0)
        return int.from_bytes(machine.memory.read(at["syscalls_by_fault"], 4), "little")


@pytest.mark.needs("long64_interrupts", "ring3_exceptions", "ring3_syscall|ring3_syscall_by_pf")
def test_system_calls_cost_no_exit(boot: Boot) -> None:
    """pykvm sees what the guest's kernel prints and how it ends: of ring 3, faults and SYSCALLs nothing."""
    result = boot_guest(boot, "21_ring3", trace=True)
    assert ports_of(result) == [*printed(result.console), ENDED]
    assert {r.regs["cpl"] for r in result.trace} == {0}


@pytest.mark.needs("irqchip", "smp")
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_smp_wakes_every_cpu(boot: Boot, vcpus: int) -> None:
    """Each CPU says hello once, from its own vCPU, no text is torn, and the first one ends the run."""
    result = boot_guest(boot, "23_smp", vcpus=vcpus, trace=True)
    first, *others, last = result.text.splitlines()
    assert first == "Hello from CPU 0!"
    assert sorted(others) == [f"Hello from CPU {number}!" for number in range(1, vcpus)]
    assert last == f"{vcpus} of {vcpus} CPUs are awake"
    assert {r.vcpu for r in result.trace if r.address == CONSOLE} == set(range(vcpus))
    assert (result.trace[-1].vcpu, result.exit_code) == (0, 0)
    assert [r.exit_ns for r in result.trace] == sorted(r.exit_ns for r in result.trace)


# ---- debugging


def run_debugged(
    prepare: Callable[[Machine, dict[str, int]], None], stop: Callable[[Vcpu, DebugExit], None]
) -> RunResult:
    with loaded("15_breakpoints", handlers={DebugExit: stop}) as (machine, at):
        prepare(machine, at)
        return machine.run(timeout=TIMEOUT_S)


@pytest.mark.needs("hw_breakpoint")
def test_hardware_breakpoint_stops_each_time() -> None:
    """A debug register stops the guest at two places in turn, each of the three times round the loop.

    Moving the breakpoint is the way on that every KVM knows: some stop again at once in spite of RFLAGS.RF.
    """
    stops: list[tuple[int, int]] = []
    target = after = 0

    def prepare(machine: Machine, at: dict[str, int]) -> None:
        nonlocal target, after
        target, after = at["target"], at["after"]
        machine.vcpus[0].guest_debug(breakpoints=[target])

    def stop(vcpu: Vcpu, debug: DebugExit) -> None:
        stops.append((debug.pc, vcpu.get_regs()["rbx"]))
        vcpu.guest_debug(breakpoints=[after if debug.pc == target else target])

    result = run_debugged(prepare, stop)
    result.check(exit_code=0, console="***", exits={"IO": 4, "DEBUG": 6})
    assert stops == [(place, left) for left in (3, 2, 1) for place in (target, after)]


@pytest.mark.needs("sw_breakpoint")
def test_software_breakpoint_stops_and_goes() -> None:
    """INT3 in place of a function's first byte stops the guest; with the byte put back it goes on."""
    stops: list[tuple[int, int]] = []
    where, original, machine_ = 0, b"", None

    def prepare(machine: Machine, at: dict[str, int]) -> None:
        nonlocal where, original, machine_
        where, machine_ = at["target"], machine
        original = machine.memory.read(where, 1)
        machine.memory.write(where, INT3)
        machine.vcpus[0].guest_debug(software=True)

    def stop(_vcpu: Vcpu, debug: DebugExit) -> None:
        stops.append((debug.exception, debug.pc))
        assert machine_ is not None
        machine_.memory.write(where, original)

    result = run_debugged(prepare, stop)
    result.check(exit_code=0, console="***", exits={"IO": 4, "DEBUG": 1})
    assert stops == [(3, where)]


@pytest.mark.needs("single_step")
def test_single_step_sees_each_instruction() -> None:
    """Stepping stops after each instruction: the loop's way is seen three times over, in order."""
    seen: list[int] = []
    places: dict[int, str] = {}

    def prepare(machine: Machine, at: dict[str, int]) -> None:
        places.update({at["target"]: "target", at["after"]: "after"})
        machine.vcpus[0].guest_debug(step=True)

    def stop(_vcpu: Vcpu, debug: DebugExit) -> None:
        seen.append(debug.pc)

    result = run_debugged(prepare, stop)
    result.check(exit_code=0, console="***")
    assert [places[pc] for pc in seen if pc in places] == ["target", "after"] * 3
    assert all(before != after for before, after in pairwise(seen))
