"""Why a program was killed, as the guest's kernel reports it: from raw bytes to lines for a person."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from pykvm._native import ffi, lib
from pykvm.boot.image import nearest_symbol
from pykvm.result import ProgramFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.boot.image import Symbol
    from pykvm.paravirt.program import Program

__all__ = ["FAULT_BYTES", "fault_of", "fault_report"]

FAULT_BYTES: int = ffi.sizeof("struct program_fault")
_REGISTERS = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"  # as in the struct
).split()
_PAGE_FAULT, _PROTECTION = 14, 13
_WRITE, _FETCH = 1 << 1, 1 << 4
_RIP_BEHIND = frozenset({1, 3, 4})  # exceptions after the instruction: RIP is that of the next
_EXCEPTIONS = {
    0: "division by zero, or a quotient that is too large",
    1: "a debug exception",
    3: "a breakpoint instruction",
    4: "an overflow",
    5: "a bound exceeded",
    6: "an instruction that does not exist",
    11: "a segment that is not there",
    12: "an address beyond the stack segment",
    13: "a privileged instruction, or an address that can't be",
    16: "an x87 floating-point error",
    17: "an unaligned address",
    19: "an SSE floating-point error",
}


def fault_of(raw: bytes, program: Program, symbols: Sequence[Symbol]) -> ProgramFault:
    """The fault in a `struct program_fault`, all of which is the guest's claim.

    `symbols` are those of the program's file, in order of address.
    """
    fault = ffi.from_buffer("struct program_fault *", raw)
    code = bytes(fault.code)[: min(fault.code_bytes, len(fault.code))]
    at = (fault.rip - fault.load_base) % (1 << 64)
    found = nearest_symbol(symbols, at) if any(at in segment for segment in program.segments) else None
    where = f"{found[0].name}+{found[1]:#x}" if found else ""
    has_all_regs = fault.kind != lib.FAULT_RAISED
    is_behind = not has_all_regs or fault.vector in _RIP_BEHIND
    return ProgramFault(
        program=program.name,
        signal=fault.signal,
        signal_name=_signal_name(fault.signal),
        cause=_cause(fault),
        address=fault.address if _is_page_fault(fault) else None,
        where=where,
        regs={name: getattr(fault, name) for name in _REGISTERS},
        has_all_regs=has_all_regs,
        code=b"" if is_behind else code,
        instruction="" if is_behind else _instruction(code, fault.rip),
    )


def _is_page_fault(fault: Any) -> bool:
    return bool(fault.kind != lib.FAULT_RAISED and fault.vector == _PAGE_FAULT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cause(fault: Any) -> str:
    if fault.kind == lib.FAULT_RAISED:
        return "it sent itself the signal"
    if not _is_page_fault(fault):
        return _EXCEPTIONS.get(fault.vector, f"exception {fault.vector}, error code {fault.error:#x}")
    did = "jumped to" if fault.error & _FETCH else "wrote to" if fault.error & _WRITE else "read from"
    why = {
        lib.FAULT_STACK: ", which its stack has outgrown",
        lib.FAULT_FILE_END: ", behind the end of the mapped file",
        lib.FAULT_NO_MEMORY: ", and the guest has no memory left (--memory gives it more)",
    }.get(fault.kind, ", which it may not" if fault.error & 1 else ", where nothing is")
    return f"it {did} {fault.address:#x}{why}"


def _instruction(code: bytes, rip: int) -> str:
    """The instruction at the start of `code`, "" if it is none or not known."""
    if not code:
        return ""
    import capstone  # noqa: PLC0415 - 50 ms that only a fault pays

    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found = next(engine.disasm(code, rip, 1), None)
    return f"{found.mnemonic} {found.op_str}".rstrip() if found else ""


def fault_report(fault: ProgramFault) -> str:
    """Registers and code bytes, in lines."""
    rip, rsp = fault.regs["rip"], fault.regs["rsp"]
    if fault.has_all_regs:
        names = _REGISTERS[:16]
        rows = [names[i : i + 4] for i in range(0, 16, 4)]
        lines = ["  " + "  ".join(f"{name:>3}={fault.regs[name]:016x}" for name in row) for row in rows]
        lines.append(f"  rip={rip:#x}  rflags={fault.regs['rflags']:#x}")
    else:
        lines = [f"  rip={rip:#x}  rsp={rsp:#x}"]
    if fault.code:
        lines.append(f"  > {rip:#x}  {fault.code.hex(' ')}  {fault.instruction or '(no instruction)'}")
    return "\n".join(lines)
