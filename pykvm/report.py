"""What to show of a run that ended badly: registers, the last exits, and the code around RIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm import paging
from pykvm.errors import GuestAddressError
from pykvm.result import CpuSnapshot, EndReason

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory
    from pykvm.result import RunResult
    from pykvm.trace.record import TraceRecord
    from pykvm.vcpu import Vcpu

__all__ = ["cpu_snapshot", "disassemble", "render"]

_BEFORE = 32
_AFTER = 48
_LMA = 1 << 10
_VM = 1 << 17
_RESET_CS, _RESET_IP = 0xF000, 0xFFF0
_ROWS = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)


def cpu_snapshot(vcpu: Vcpu, memory: GuestMemory) -> CpuSnapshot:
    """Registers and surrounding code of a stopped vCPU."""
    vcpu.finish_io()
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    bits = _code_bits(sregs, regs["rflags"])
    linear = regs["rip"] if bits == 64 else (regs["rip"] + sregs.cs.base) & 0xFFFFFFFF
    code_at, code = _code(memory, sregs, linear)
    special = {name: getattr(sregs, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
    special |= {name: getattr(sregs, name).selector for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr")}
    special["cpl"] = sregs.ss.dpl if sregs.cr0 & 1 else 0
    return CpuSnapshot(vcpu.number, regs, special, bits, linear, code_at, code)


def _code_bits(sregs: Any, rflags: int) -> int:
    if sregs.efer & _LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cr0 & 1 and not rflags & _VM and sregs.cs.db else 16


def _code(memory: GuestMemory, sregs: Any, linear: int) -> tuple[int, bytes]:
    """Mapped bytes around `linear`; the part before it may be missing, and then all of it."""
    for start in (max(linear - _BEFORE, 0), linear):
        try:
            data = paging.read_virtual(
                memory.read, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, start, linear + _AFTER - start
            )
        except GuestAddressError:
            continue
        if data:
            return start, data
    return linear, b""


def disassemble(snapshot: CpuSnapshot, most: int = 5) -> list[str]:
    """At most `most` instructions from RIP on, and the ones before it that lead there, as text.

    x86 can't be read backwards: of the starts before RIP, the earliest that arrives at it is taken. Zeros
    are seldom code and would swallow what follows them, so it is looked for behind those at the beginning.
    """
    import capstone  # noqa: PLC0415 - 50 ms that only a failure pays

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[snapshot.bits]
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    offset = snapshot.linear_rip - snapshot.code_at
    if offset < 0 or offset >= len(snapshot.code):
        return []
    lines = []
    zeros = offset - len(snapshot.code[:offset].lstrip(b"\0"))
    for start in range(zeros, offset):
        before = list(engine.disasm(snapshot.code[start:offset], snapshot.code_at + start))
        if sum(i.size for i in before) == offset - start:
            lines += [_line(i, " ") for i in before[-3:]]
            break
    after = list(engine.disasm(snapshot.code[offset:], snapshot.linear_rip, most))
    lines += [_line(i, ">" if n == 0 else " ") for n, i in enumerate(after)]
    if not after:
        lines.append(
            f"> {snapshot.linear_rip:#x}  {snapshot.code[offset : offset + 8].hex(' ')}  (no instruction)"
        )
    return lines


def _line(instruction: Any, arrow: str) -> str:
    code = bytes(instruction.bytes).hex(" ")
    return (
        f"{arrow} {instruction.address:#x}  {code:<24} {instruction.mnemonic} {instruction.op_str}".rstrip()
    )


def _registers(snapshot: CpuSnapshot) -> list[str]:
    width = 16 if snapshot.bits == 64 else 8
    rows = _ROWS if snapshot.bits == 64 else _ROWS[:2]
    mask = (1 << width * 4) - 1
    lines = ["  ".join(f"{name:>3}={snapshot.regs[name] & mask:0{width}x}" for name in row) for row in rows]
    lines.append(
        f"rip={snapshot.regs['rip']:#x}  rflags={snapshot.regs['rflags']:#x}  cpl={snapshot.special['cpl']}"
    )
    control = ("cr0", "cr2", "cr3", "cr4", "efer")
    lines.append("  ".join(f"{name}={snapshot.special[name]:#x}" for name in control))
    selectors = ("cs", "ss", "ds", "es", "fs", "gs", "tr")
    lines.append("  ".join(f"{name}={snapshot.special[name]:#x}" for name in selectors))
    return lines


def _is_reset(snapshot: CpuSnapshot) -> bool:
    """Whether the registers are those of a CPU at its reset vector."""
    return snapshot.regs["rip"] == _RESET_IP and snapshot.special["cs"] == _RESET_CS


def render(result: RunResult, *, exits: int = 8) -> str:
    """The report of an abnormal end, as plain text of several lines; "" for a normal end."""
    if not result.cpus:
        return ""
    lines = []
    for snapshot in result.cpus:
        lines.append(f"vCPU {snapshot.vcpu}, {snapshot.bits}-bit code")
        if result.reason is EndReason.TRIPLE_FAULT and _is_reset(snapshot):
            lines.append("  KVM has reset the vCPU, as it does on AMD's CPUs: where the guest was is lost")
        lines += [f"  {line}" for line in _registers(snapshot)]
        code = disassemble(snapshot)
        lines += [f"  {line}" for line in code] or ["  (the code at rip can't be read)"]
    if result.last_exits:
        shown = result.last_exits[-exits:]
        lines.append(f"last {len(shown)} of {result.stats.exits} exits")
        lines += [f"  {_who(record)}  {record}" for record in shown]
    return "\n".join(lines)


def _who(record: TraceRecord) -> str:
    return "  ring" if record.reason == "RING" else f"vCPU {record.vcpu}"
