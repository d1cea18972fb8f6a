"""Probes of the CPU: the modes a guest may run in, instructions of ring 0, and the ways between the rings."""

from __future__ import annotations

import time

from pykvm import layout
from pykvm.doctor.outcome import Figure, Outcome, differs, fails, needless, works
from pykvm.doctor.rig import Rig
from pykvm.exits import IoExit

__all__ = [
    "cpl0_steps",
    "instruction",
    "interrupts",
    "mode",
    "ring3_code",
    "ring3_exceptions",
    "ring3_int_n",
    "ring3_io",
    "ring3_syscall",
    "ring3_syscall_by_pf",
]

_SYSCALLS = 1000
_ENOUGH_NS = 4_000_000
_FIRST_STEPS = 1000
_MOST_STEPS = 1 << 27
_SYSCALL_WRONG = {
    2: "SYSCALL leaves a wrong return address in RCX",
    3: "SYSCALL does not leave the flags in R11",
    4: "SYSCALL raises #UD or #GP",
    5: "SYSCALL ends in an unexpected #PF",
}


def mode(name: str) -> Outcome:
    """Code of ring 0 runs in the CPU mode `name`."""
    with Rig("start", name) as rig:
        return rig.finish(
            {1: "a sum is wrong", 2: "a copy is wrong", 3: "the upper halves of registers are lost"}
        )


def instruction(guest: str) -> Outcome:
    """The instruction that `guest` is about works in ring 0."""
    with Rig(guest) as rig:
        value = rig.verdict()
    if value == 2:
        return fails("CPUID does not show it")
    wrong = {1: "its result is wrong", 6: "#UD", 13: "#GP"}
    return differs(wrong.get(value, f"verdict {value:#x}")) if value else works()


def interrupts(guest: str, name: str) -> Outcome:
    """An exception or INT n is delivered in the CPU mode `name`, and IRET returns."""
    with Rig(guest, name) as rig:
        return rig.finish({1: "the handler was not called"})


def cpl0_steps() -> Outcome:
    """A loop step of ring 0 takes so long."""
    with Rig("loop") as rig:
        step_ns, _ = _time_steps(rig)
    return works("", Figure("a loop step in ring 0", step_ns, "ns"))


def ring3_code() -> Outcome:
    """Ring 3 is entered by IRETQ, and code runs there."""
    with Rig("ring3_loop") as rig:
        step_ns, level = _time_steps(rig)
    figure = Figure("a loop step in ring 3", step_ns, "ns")
    return works("", figure) if level == 3 else differs(f"the code runs in ring {level}", figure)


def _time_steps(rig: Rig) -> tuple[float, int]:
    """ns per step of a loop guest, and what it answers; enough steps to drown the exit's own time."""
    steps = _FIRST_STEPS
    while True:
        took_ns, answer = min(_time_loop(rig, steps) for _ in range(3))
        if took_ns > _ENOUGH_NS or steps >= _MOST_STEPS:
            return took_ns / steps, answer
        steps = min(steps * 8, _MOST_STEPS)


def _time_loop(rig: Rig, steps: int) -> tuple[int, int]:
    _expect_io(rig, is_write=False)
    rig.vcpu.view.answer_io(steps.to_bytes(4, "little"))
    start_ns = time.perf_counter_ns()
    answer = int.from_bytes(_expect_io(rig, is_write=True).data, "little")
    return rig.end_ns - start_ns, answer


def _expect_io(rig: Rig, *, is_write: bool) -> IoExit:
    exit_ = rig.enter()
    if isinstance(exit_, IoExit) and exit_.port == layout.PLAIN_EXIT.start and exit_.is_write == is_write:
        return exit_
    raise rig.unexpected(exit_)


def ring3_io() -> Outcome:
    """OUT works in ring 3 where IOPL is 3."""
    with Rig("ring3_io") as rig:
        return rig.finish({1: "#GP"})


def ring3_syscall() -> Outcome:
    """SYSCALL in ring 3 reaches LSTAR in ring 0, with RCX and R11, and SYSRETQ returns."""
    value, figure = _syscall()
    if value == 1:
        return differs("it reaches LSTAR still in ring 3, which is a #PF where the kernel's pages are closed")
    return works("", figure) if value == 0 else differs(_SYSCALL_WRONG.get(value, f"verdict {value:#x}"))


def ring3_syscall_by_pf() -> Outcome:
    """The #PF of a SYSCALL that arrives in ring 3 can be served as the syscall's entry."""
    value, figure = _syscall()
    if value == 0:
        return needless("SYSCALL reaches ring 0 by itself")
    return works("", figure) if value == 1 else differs(_SYSCALL_WRONG.get(value, f"verdict {value:#x}"))


def _syscall() -> tuple[int, Figure]:
    with Rig("ring3_syscall") as rig:
        value = rig.verdict()
        return value, Figure("SYSCALL and SYSRETQ", rig.elapsed_us / _SYSCALLS, "µs")


def ring3_int_n() -> Outcome:
    """INT n in ring 3 reaches the handler in ring 0, and IRETQ returns."""
    with Rig("ring3_int_n") as rig:
        return rig.finish({1: "#UD", 2: "#GP", 3: "CS on the kernel's stack is wrong"})


def ring3_exceptions() -> Outcome:
    """#UD, #GP, #PF and #BP of ring 3 reach ring 0 with their error codes, and IRETQ returns."""
    with Rig("ring3_exceptions") as rig:
        value = rig.verdict()
    if value == 0:
        return works()
    return differs(f"vector {value & 0xFF} came when another was due, or with a wrong error code or CS")
