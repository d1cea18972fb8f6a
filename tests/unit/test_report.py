"""The report of an abnormal end: the code that leads to RIP, and what the registers can't tell."""

from __future__ import annotations

import pytest

from pykvm.report import disassemble, render
from pykvm.result import CpuSnapshot, EndReason, RunResult, RunStats

STATS = RunStats(0, 0, 0, 0, 0, 0, 0, 0)
REGISTERS = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
SPECIAL = "cr0 cr2 cr3 cr4 efer cs ss ds es fs gs tr cpl".split()


def snapshot(before: bytes, after: bytes, *, rip: int = 0x100020, cs: int = 8) -> CpuSnapshot:
    regs = dict.fromkeys(REGISTERS, 0) | {"rip": rip}
    special = dict.fromkeys(SPECIAL, 0) | {"cs": cs}
    return CpuSnapshot(0, regs, special, 64, rip, rip - len(before), before + after)


def result(reason: EndReason, cpu: CpuSnapshot) -> RunResult:
    return RunResult(reason, None, b"", {}, STATS, cpus=(cpu,))


@pytest.mark.parametrize("zeros", range(32))
def test_zeros_before_the_code_do_not_swallow_it(zeros: int) -> None:
    """However many zeros lie before a guest's first instruction, it is shown as it is."""
    code = disassemble(snapshot(bytes(zeros) + b"\xbb\xee\xff\xc0\x00", b"\xeb\xfe"))
    assert [line.split()[-2:] for line in code] == [["ebx,", "0xc0ffee"], ["jmp", "0x100020"]]
    assert [line[0] for line in code] == [" ", ">"]


def test_zeros_alone_are_no_code() -> None:
    """Of a guest that starts at RIP nothing is shown before it."""
    assert [line[0] for line in disassemble(snapshot(bytes(32), b"\x90\x90"))] == [">", " "]


def test_triple_fault_says_when_the_state_is_lost() -> None:
    """Where KVM has reset a vCPU that shut down, the report says that its registers are those of a reset."""
    reset = snapshot(b"", b"", rip=0xFFF0, cs=0xF000)
    here = snapshot(b"", b"\x0f\x0b")
    note = "KVM has reset the vCPU"
    assert note in render(result(EndReason.TRIPLE_FAULT, reset))
    assert note not in render(result(EndReason.TRIPLE_FAULT, here))
    assert note not in render(result(EndReason.TIMEOUT, reset))
