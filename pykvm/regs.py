"""The CPU modes that a guest may start in: descriptor tables, page tables and registers, as plain values.

The GDT, at the start of BOOT (see layout.py), is the same in every mode that has one, in the order
that SYSCALL and SYSRET count in::

    0x00  null
    0x08  KERNEL_CODE64   STAR[47:32]: SYSCALL takes CS from here and SS from the next
    0x10  KERNEL_DATA
    0x18  USER_CODE32     STAR[63:48]: SYSRET takes SS from the next, and CS from here (32-bit)
    0x20  USER_DATA
    0x28  USER_CODE64     … or from here (64-bit)
    0x30  TSS_SELECTOR    8 bytes for a 32-bit TSS, 16 for a 64-bit one
    0x40  KERNEL_CODE32
    0x48  KERNEL_CODE16   64 KiB at 0: the way back to real mode
    0x50  KERNEL_DATA16

The USER_* names carry their requested privilege level 3, as they stand in a register. There is no
IDT: its register has limit 0 and its page is left alone, so an exception ends in a triple fault until
the guest brings its own. The TSS is zero but for "no I/O permission map"; a guest that takes interrupts
in ring 3 puts its ring-0 stack there.
"""

from __future__ import annotations

import enum
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout, paging
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GDT_OFFSET",
    "IDT_OFFSET",
    "KERNEL_CODE16",
    "KERNEL_CODE32",
    "KERNEL_CODE64",
    "KERNEL_DATA",
    "KERNEL_DATA16",
    "PAGE_TABLES_OFFSET",
    "STAR",
    "TSS_OFFSET",
    "TSS_SELECTOR",
    "USER_CODE32",
    "USER_CODE64",
    "USER_DATA",
    "CpuMode",
    "CpuState",
    "Segment",
    "boot_structures",
    "descriptor",
    "initial_state",
]

GDT_OFFSET = 0x0000
TSS_OFFSET = 0x0800
IDT_OFFSET = 0x1000
PAGE_TABLES_OFFSET = 0x2000

KERNEL_CODE64 = 0x08
KERNEL_DATA = 0x10
USER_CODE32 = 0x18 | 3
USER_DATA = 0x20 | 3
USER_CODE64 = 0x28 | 3
TSS_SELECTOR = 0x30
KERNEL_CODE32 = 0x40
KERNEL_CODE16 = 0x48
KERNEL_DATA16 = 0x50
STAR = USER_CODE32 << 48 | KERNEL_CODE64 << 32  # what a guest writes to MSR_STAR to use this GDT

_GDT_BYTES = 0x58
_TSS_BYTES = 0x68  # the same for 32 and 64 bit
_RFLAGS_ONE = 1 << 1  # reads as 1 always; KVM refuses an entry without it
_RFLAGS_IOPL3 = 3 << 12
_CR0_BASE = 1 << 1 | 1 << 4 | 1 << 5  # MP, ET, NE
_CR0_PE = 1 << 0
_CR0_WP = 1 << 16
_CR0_RESET = 0x6000_0010
_CR4_SSE = 1 << 9 | 1 << 10  # OSFXSR, OSXMMEXCPT
_DATA, _CODE, _LDT, _TSS_AVAILABLE, _TSS_BUSY = 3, 11, 2, 9, 11
_DATA_NAMES = ("ds", "es", "fs", "gs", "ss")
_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{i}" for i in range(8, 16)),
    *("rip", "rflags"),
)


class CpuMode(enum.Enum):
    """The state in which a vCPU meets the guest's first instruction."""

    REAL16 = "real16"  # 16-bit real mode, entered anywhere below 1 MiB
    PROT32 = "prot32"  # 32-bit protected mode, flat, paging off, ring 0: as multiboot asks for
    PAGED32 = "paged32"  # the same, with 4 GiB identity-mapped in 4 MiB pages
    LONG64 = "long64"  # 64-bit mode, ring 0, 4 GiB identity-mapped in 2 MiB pages
    USER64 = "user64"  # the same in ring 3, with IOPL 3 so that its IN and OUT work without a kernel
    RESET = "reset"  # as after power-on, at the reset vector


_HAS_TABLES = {
    CpuMode.PROT32: PAGE_TABLES_OFFSET,
    CpuMode.PAGED32: PAGE_TABLES_OFFSET + 1 * paging.PAGE_BYTES,
    CpuMode.LONG64: PAGE_TABLES_OFFSET + 6 * paging.PAGE_BYTES,
    CpuMode.USER64: PAGE_TABLES_OFFSET + 6 * paging.PAGE_BYTES,
}
_IS_64BIT = (CpuMode.LONG64, CpuMode.USER64)


class Segment(NamedTuple):
    """A segment register with its hidden part; the names are those of struct kvm_segment.

    `limit` counts bytes also where `g` is 1. A segment with `present` 0 is what KVM calls unusable.
    """

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741  KVM's and the manual's name of the 64-bit flag
    g: int


class CpuState(NamedTuple):
    """The registers that a vCPU starts with.

    `regs` has every name of struct kvm_regs; `segments` has cs ds es fs gs ss tr ldt; `tables` gives
    gdt and idt as (base, limit); `control` has cr0 cr3 cr4 efer, while cr2, cr8 and apic_base are to
    be left as they are.
    """

    regs: dict[str, int]
    segments: dict[str, Segment]
    tables: dict[str, tuple[int, int]]
    control: dict[str, int]


def descriptor(segment: Segment) -> int:
    """The 8 bytes that say in a GDT what `segment` says (SDM Vol. 3A, section 3.4.5), as a number."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    flags = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags |= (limit >> 16 & 0xF) << 8 | segment.l << 13 | segment.db << 14 | segment.g << 15
    base = segment.base
    return limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | flags << 40 | (base >> 24 & 0xFF) << 56


def _flat(selector: int, kind: int, *, bits: int = 32) -> Segment:
    """A code or data segment of 4 GiB at 0; the privilege is the selector's."""
    is_long = int(bits == 64)
    return Segment(0, 0xFFFF_FFFF, selector, kind, 1, selector & 3, 1 - is_long, 1, is_long, 1)


def _small(base: int, selector: int, kind: int) -> Segment:
    """A 16-bit code or data segment of 64 KiB."""
    return Segment(base, 0xFFFF, selector, kind, 1, 0, 0, 1, 0, 0)


def _system(selector: int, kind: int, base: int, limit: int, *, present: int = 1) -> Segment:
    return Segment(base, limit, selector, kind, present, 0, 0, 0, 0, 0)


_FLAT = {
    KERNEL_CODE64: _flat(KERNEL_CODE64, _CODE, bits=64),
    KERNEL_DATA: _flat(KERNEL_DATA, _DATA),
    USER_CODE32: _flat(USER_CODE32, _CODE),
    USER_DATA: _flat(USER_DATA, _DATA),
    USER_CODE64: _flat(USER_CODE64, _CODE, bits=64),
    KERNEL_CODE32: _flat(KERNEL_CODE32, _CODE),
}
_GDT_BELOW_TSS = (
    0,
    *(descriptor(_FLAT[s]) for s in (KERNEL_CODE64, KERNEL_DATA, USER_CODE32, USER_DATA, USER_CODE64)),
)
_GDT_ABOVE_TSS = (
    descriptor(_FLAT[KERNEL_CODE32]),
    descriptor(_small(0, KERNEL_CODE16, _CODE)),
    descriptor(_small(0, KERNEL_DATA16, _DATA)),
)


def boot_structures(mode: CpuMode, boot: int, memory_bytes: int) -> dict[int, bytes]:
    """What must be in guest memory before a vCPU starts in `mode`: gpa -> bytes, none for real mode.

    `boot` is the gpa of BOOT, page-aligned, in memory that starts at 0. Raises ConfigError if the
    structures don't fit there.
    """
    need = _HAS_TABLES.get(mode)
    if need is None:
        return {}
    if boot < 0 or boot % paging.PAGE_BYTES or boot + need > min(memory_bytes, layout.FOUR_GIB):
        raise ConfigError(
            f"memory: {mode.value} needs {need >> 10} KiB at {boot:#x} for descriptor and page tables, "
            f"and the guest has {memory_bytes:#x} bytes; give it more memory, or start it in real16"
        )
    pieces = {boot + GDT_OFFSET: _gdt(mode, boot + TSS_OFFSET), boot + TSS_OFFSET: _tss()}
    if mode in _IS_64BIT:
        pieces.update(paging.identity_long(boot + PAGE_TABLES_OFFSET, user=mode is CpuMode.USER64))
    elif mode is CpuMode.PAGED32:
        pieces.update(paging.identity_pse(boot + PAGE_TABLES_OFFSET))
    return pieces


def initial_state(
    mode: CpuMode, entry: int, *, boot: int, stack: int, regs: Mapping[str, int] | None = None
) -> CpuState:
    """The registers with which a vCPU enters the guest at `entry` in `mode`.

    `entry` and `stack` (the stack's end: the first push goes below it) are linear addresses. RESET
    takes neither. In real mode CS is 0 for an entry below 64 KiB; above, CS is entry >> 4 and IP
    the rest, and DS and ES equal CS, so an image assembled for origin 0 works at any paragraph.
    `regs` are added last (multiboot's EAX and EBX). Raises ConfigError if the mode can't reach the
    entry or the stack, or does not know a register.
    """
    if mode is CpuMode.RESET:
        state = _reset_state()
    elif mode is CpuMode.REAL16:
        _check_reach(mode, entry, stack, layout.LEGACY_END)
        state = _real_state(entry, stack)
    else:
        _check_reach(mode, entry, stack, layout.FOUR_GIB)
        state = _protected_state(mode, entry, stack, boot)
    for name, value in (regs or {}).items():
        if name not in state.regs:
            raise ConfigError(f"there is no register {name!r}; there are {' '.join(_REGISTERS)}")
        state.regs[name] = value
    return state


def _check_reach(mode: CpuMode, entry: int, stack: int, limit: int) -> None:
    if not 0 <= entry < limit or not 0 <= stack <= limit:
        raise ConfigError(
            f"{mode.value}: the entry {entry:#x} and the stack {stack:#x} must lie below {limit:#x}"
        )


def _gdt(mode: CpuMode, tss: int) -> bytes:
    # The descriptor says "available" although TR is busy: a guest may load TR again with LTR,
    # which refuses a busy one.
    task = descriptor(_system(TSS_SELECTOR, _TSS_AVAILABLE, tss, _TSS_BYTES - 1))
    rest = tss >> 32 if mode in _IS_64BIT else 0
    return pack("<11Q", *_GDT_BELOW_TSS, task, rest, *_GDT_ABOVE_TSS)


def _tss() -> bytes:
    """A task-state segment, 32 or 64 bit: both keep the I/O map's offset in their last two bytes."""
    return bytes(_TSS_BYTES - 2) + pack("<H", _TSS_BYTES)


def _protected_state(mode: CpuMode, entry: int, stack: int, boot: int) -> CpuState:
    code, data = {
        CpuMode.LONG64: (_FLAT[KERNEL_CODE64], _FLAT[KERNEL_DATA]),
        CpuMode.USER64: (_FLAT[USER_CODE64], _FLAT[USER_DATA]),
    }.get(mode, (_FLAT[KERNEL_CODE32], _FLAT[KERNEL_DATA]))
    rflags = _RFLAGS_ONE | (_RFLAGS_IOPL3 if mode is CpuMode.USER64 else 0)
    rsp = stack if mode in _IS_64BIT else stack % (1 << 32)
    return CpuState(
        regs=dict.fromkeys(_REGISTERS, 0) | {"rip": entry, "rsp": rsp, "rflags": rflags},
        segments={
            "cs": code,
            **dict.fromkeys(_DATA_NAMES, data),
            "tr": _system(TSS_SELECTOR, _TSS_BUSY, boot + TSS_OFFSET, _TSS_BYTES - 1),
            "ldt": _system(0, _LDT, 0, 0, present=0),
        },
        tables={"gdt": (boot + GDT_OFFSET, _GDT_BYTES - 1), "idt": (boot + IDT_OFFSET, 0)},
        control=_protected_control(mode, boot),
    )


def _protected_control(mode: CpuMode, boot: int) -> dict[str, int]:
    cr0, cr4, efer = _CR0_BASE | _CR0_PE, _CR4_SSE, 0
    if mode is CpuMode.PROT32:
        return {"cr0": cr0, "cr3": 0, "cr4": cr4, "efer": efer}
    cr0 |= paging.CR0_PG | _CR0_WP
    if mode in _IS_64BIT:
        cr4 |= paging.CR4_PAE
        efer = paging.EFER_LME | paging.EFER_LMA
    else:
        cr4 |= paging.CR4_PSE
    return {"cr0": cr0, "cr3": boot + PAGE_TABLES_OFFSET, "cr4": cr4, "efer": efer}


def _real_state(entry: int, stack: int) -> CpuState:
    code = 0 if entry < 1 << 16 else entry >> 4
    # SS as low as it reaches, for 64 KiB of stack; one that ends at 64 KiB is 0000:0000 and wraps.
    ss = max(stack - (1 << 16) + 15, 0) >> 4
    state = _reset_state()
    state.regs.update(rip=entry - (code << 4), rsp=stack - (ss << 4) & 0xFFFF, rdx=0)
    state.segments.update(cs=_real(code, _CODE), ds=_real(code, _DATA), es=_real(code, _DATA))
    state.segments["ss"] = _real(ss, _DATA)
    state.tables["idt"] = (0, 0x3FF)  # the real-mode vectors
    state.control["cr0"] = 1 << 4  # ET alone: caches on, as a firmware leaves them
    return state


def _real(selector: int, kind: int) -> Segment:
    return _small(selector << 4, selector, kind)


def _reset_state() -> CpuState:
    """The state after power-on (SDM Vol. 3A, table "IA-32 and Intel 64 Processor States …")."""
    start = layout.RESET_VECTOR & ~0xFFFF
    rip = layout.RESET_VECTOR - start
    return CpuState(
        # EDX is the CPU's signature: family 6, as KVM itself resets it
        regs=dict.fromkeys(_REGISTERS, 0) | {"rip": rip, "rflags": _RFLAGS_ONE, "rdx": 0x600},
        segments={
            "cs": _small(start, 0xF000, _CODE),
            **dict.fromkeys(_DATA_NAMES, _small(0, 0, _DATA)),
            "tr": _system(0, _TSS_BUSY, 0, 0xFFFF),
            "ldt": _system(0, _LDT, 0, 0xFFFF),
        },
        tables={"gdt": (0, 0xFFFF), "idt": (0, 0xFFFF)},
        control={"cr0": _CR0_RESET, "cr3": 0, "cr4": 0, "efer": 0},
    )
