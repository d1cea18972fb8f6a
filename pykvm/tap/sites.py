"""Finds, in the code of Linux's syscall entries, the two instructions where a tap can stand.

::

    swapgs                            entry_SYSCALL_64, where MSR_LSTAR leads
    mov  %rsp, %gs:…                  the kernel's stack, and on it all registers of the program: pt_regs
    …  push, push, push  …
    mov  %rsp, %rdi         ◄── call  argument 1 of do_syscall_64 is that struct
    …  mitigations  …
    call do_syscall_64
    mov  0x58(%rsp), %rcx   ◄── back  RSP is the same again, and RAX in the struct is the result
    …  SYSRET if it can be, else IRET

Every call passes both sites, and nothing else does. That is why they are not the two SWAPGS, at the first
and before the last instruction: the returns by IRET share theirs with all interrupts, a SWAPGS in software
costs two ioctls, and RSP as it is here tells which call it is that returns, on whatever CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm._native import lib
from pykvm.errors import PykvmError
from pykvm.paging import read_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capstone import CsInsn

__all__ = ["ENTRY_BYTES", "Site", "TapError", "find_sites", "gate_address", "stack_offset"]

ENTRY_BYTES = 1024
"""How much code of an entry is looked at."""
_REGISTERS = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15".split()  # struct kvm_regs
_RSP = _REGISTERS.index("rsp")
_SAVE_STACK = {b"\x48\x89\xe7": "rdi", b"\x48\x89\xe6": "rsi"}  # mov %rsp, …
_LOAD_RCX = b"\x48\x8b\x4c\x24\x58"  # mov 0x58(%rsp), %rcx: pt_regs.cx
_LOAD_RIP = b"\x4c\x8b\x9c\x24\x80\x00\x00\x00"  # mov 0x80(%rsp), %r11: pt_regs.ip
_TESTS = {b"\x84\xc0": 1, b"\x85\xc0": 4}  # test %al, %al; test %eax, %eax
_LOAD_STACK = b"\x65\x48\x8b\x24\x25"  # mov %gs:…, %rsp
_GATE_BYTES = 16
_PRESENT = 1 << 47
_ENDBR = b"\xf3\x0f\x1e\xfa"
_SWAPGS = b"\x0f\x01\xf8"
_ENDS = frozenset({"ret", "sysret", "sysretq", "sysexit", "iretq", "iret", "hlt", "ud2", "int3"})


class TapError(PykvmError):
    """The tap can't be put into this guest."""


class Site(NamedTuple):
    """An instruction to tap: where, its bytes, and what is done in its place (see syscall_tap.h)."""

    address: int
    code: bytes
    kind: int
    abi: int
    step: int
    next: int
    source: int = 0
    target: int = 0
    offset: int = 0
    bytes: int = 0


def find_sites(address: int, code: bytes, abi: int) -> tuple[Site, Site]:
    """The sites of call and return in the `code` of an entry at `address`; `abi` is lib.TAP_64 or TAP_32.

    Raises TapError with what is there instead for code that is not Linux's, from 4.17 on.
    """
    found = _decode(address, code)
    body = found[1:] if found and bytes(found[0].bytes) == _ENDBR else found
    if abi == lib.TAP_64 and not _starts_as_linux(body):
        begin = "; ".join(f"{i.mnemonic} {i.op_str}".rstrip() for i in body[:2]) or code[:8].hex(" ")
        raise TapError(
            f"syscall tap: the entry at {address:#x} does not begin with swapgs and the change of stacks, "
            f"but with: {begin}; it is not that of a 64-bit Linux from 4.17 on"
        )
    save: CsInsn | None = None
    for number, i in enumerate(body):
        if bytes(i.bytes) in _SAVE_STACK:
            save = save if save and _is_both(save, i) else i
        if i.mnemonic == "call" and save and (back := _back(body[number + 1 :], abi)):
            return _call_site(save, abi), back
    raise TapError(
        f"syscall tap: in the {len(body)} instructions from the entry at {address:#x} on there is no call "
        "with the saved registers and then a return to user mode as pykvm knows them of Linux 4.17 to 6.x"
    )


def stack_offset(code: bytes) -> int | None:
    """Where below GS the entry in `code` finds the kernel's stack."""
    at = code.find(_LOAD_STACK)
    offset = code[at + len(_LOAD_STACK) : at + len(_LOAD_STACK) + 4]
    return int.from_bytes(offset, "little") if at >= 0 and len(offset) == 4 else None


def gate_address(read: Callable[[int, int], bytes], sregs: Any, vector: int) -> int:
    """Where interrupt `vector` leads in long mode (SDM Vol. 3A, 6.14.1); 0 if nowhere.

    `read` gives guest memory by gpa, `sregs` is struct kvm_sregs.
    """
    at = vector * _GATE_BYTES
    if at + _GATE_BYTES - 1 > sregs.idt.limit:
        return 0
    tables = sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer
    gate = int.from_bytes(read_virtual(read, *tables, sregs.idt.base + at, _GATE_BYTES), "little")
    if not gate & _PRESENT:
        return 0
    return (gate & 0xFFFF) | (gate >> 48 & 0xFFFF) << 16 | (gate >> 64 & 0xFFFF_FFFF) << 32


def _decode(address: int, code: bytes) -> list[CsInsn]:
    """The instructions from `address` up to the first that ends the way, or can't be decoded."""
    from capstone import CS_ARCH_X86, CS_MODE_64, Cs  # noqa: PLC0415 - half a second that only a tap needs

    found: list[CsInsn] = []
    for i in Cs(CS_ARCH_X86, CS_MODE_64).disasm(code, address):
        found.append(i)
        if i.mnemonic in _ENDS:
            break
    return found


def _starts_as_linux(body: Sequence[CsInsn]) -> bool:
    if len(body) < 2 or bytes(body[0].bytes) != _SWAPGS:
        return False
    return body[1].mnemonic == "mov" and "gs:[" in body[1].op_str and body[1].op_str.endswith("], rsp")


def _is_both(first: CsInsn, second: CsInsn) -> bool:
    """Whether the two stand side by side: any of them will do, and the first is as good."""
    return bool(first.address + len(first.bytes) == second.address)


def _call_site(i: CsInsn, abi: int) -> Site:
    code = bytes(i.bytes)
    target = _REGISTERS.index(_SAVE_STACK[code])
    where = i.address, code, lib.TAP_CALL, abi, lib.TAP_STEP_COPY, i.address + len(code)
    return Site(*where, source=_RSP, target=target)


def _back(after: Sequence[CsInsn], abi: int) -> Site | None:
    """The site behind the call, if this is how Linux goes on there."""
    rest = [i for i in after[:16] if i.mnemonic != "nop"]
    if len(rest) < 2:
        return None
    first, second = rest[0], rest[1]
    code = bytes(first.bytes)
    where = first.address, code, lib.TAP_RETURN, abi
    behind = first.address + len(code)
    if code == _LOAD_RCX and bytes(second.bytes) == _LOAD_RIP:
        return Site(*where, lib.TAP_STEP_LOAD, behind, target=_REGISTERS.index("rcx"), offset=0x58)
    if code in _TESTS and second.mnemonic == "je":
        return Site(*where, lib.TAP_STEP_TEST, behind, bytes=_TESTS[code])
    if abi == lib.TAP_32 and first.mnemonic == "jmp" and first.op_str.startswith("0x"):
        return Site(*where, lib.TAP_STEP_SKIP, int(first.op_str, 16))
    return None
