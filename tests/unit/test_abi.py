"""The layouts that C, Python and guests share: each size and offset is pinned, and none changes unseen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.hypercall import CALLS

INCLUDE = Path(__file__).resolve().parents[2] / "guests" / "include"

HYPERCALL = {"number": (0, 4), "abi": (4, 4), "result": (8, 8), "arg": (16, 32)}

TRACE_RECORD = {
    "enter_tsc": (0, 8),
    "exit_tsc": (8, 8),
    "resume_tsc": (16, 8),
    "address": (24, 8),
    "data": (32, 8),
    "reason": (40, 4),
    "count": (44, 4),
    "vcpu": (48, 2),
    "size": (50, 1),
    "flags": (51, 1),
    "verb": (52, 1),
    "cpl": (53, 1),
    "code_bits": (54, 1),
    "text_bytes": (55, 1),
    **{
        name: (56 + 8 * i, 8)
        for i, name in enumerate(
            "rip rsp rflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
        )
    },
    "cr0": (200, 8),
    "cr3": (208, 8),
    "cr4": (216, 8),
    "efer": (224, 8),
    "cs_base": (232, 8),
    "call_args": (240, 32),
    "call_result": (272, 8),
    "call_number": (280, 4),
    "reserved": (284, 4),
    "text": (288, 32),
}

SYSCALL_RECORD = {
    "number": (0, 8),
    "arg": (8, 48),
    "result": (56, 8),
    "start_time": (64, 8),
    "end_time": (72, 8),
    "cr3": (80, 8),
    "rip": (88, 8),
    "flags": (96, 4),
    "vcpu": (100, 4),
    "pid": (104, 4),
    "tid": (108, 4),
}

SYSCALL_RING = {
    "header_bytes": (0, 4),
    "record_bytes": (4, 4),
    "capacity": (8, 8),
    "head": (16, 8),
    "tail": (24, 8),
    "reserved": (32, 32),
}

CALL_RING = {
    "header_bytes": (0, 4),
    "call_bytes": (4, 4),
    "capacity": (8, 8),
    "head": (16, 8),
    "reserved0": (24, 40),
    "tail": (64, 8),
    "wants_doorbell": (72, 4),
    "error": (76, 4),
    "reserved1": (80, 48),
}

MEMORY_RANGE = {"start": (0, 8), "size_bytes": (8, 8), "kind": (16, 4), "reserved": (20, 4)}

HOST_STATS = {
    name: (8 * i, 8)
    for i, name in enumerate(
        "entries exits fast_exits io_exits mmio_exits hypercall_exits ring_calls ring_wakes".split()
    )
}

BLOCK_INFO = {
    "sectors": (0, 8),
    "sector_bytes": (8, 4),
    "most_sectors": (12, 4),
    "flags": (16, 4),
    "reserved": (20, 4),
}

PROGRAM_FAULT = {
    "kind": (0, 4),
    "signal": (4, 4),
    "vector": (8, 4),
    "code_bytes": (12, 4),
    **{
        name: (16 + 8 * i, 8)
        for i, name in enumerate(
            (
                "error address rip rflags rax rbx rcx rdx rsi rdi rbp rsp "
                "r8 r9 r10 r11 r12 r13 r14 r15 load_base"
            ).split()
        )
    },
    "code": (184, 16),
}

PARAVIRT_FILE = {
    "path": (0, 8),
    "path_hash": (8, 8),
    "data": (16, 8),
    "size_bytes": (24, 8),
    "mtime_s": (32, 8),
    "path_bytes": (40, 4),
    "mode": (44, 4),
    "parent": (48, 8),
}

PARAVIRT_BOOT = {
    "magic": (0, 8),
    "version": (8, 4),
    "size_bytes": (12, 4),
    "ram": (16, 32),
    "program": (48, 8),
    "program_bytes": (56, 8),
    "strings": (64, 8),
    "strings_bytes": (72, 8),
    "string_at": (80, 8),
    "argc": (88, 4),
    "envc": (92, 4),
    "path": (96, 8),
    "path_bytes": (104, 8),
    "files": (112, 8),
    "file_count": (120, 8),
    "trace_records": (128, 8),
    "realtime_ns": (136, 8),
    "random": (144, 32),
}

STRUCTS = {
    "struct hypercall": (48, HYPERCALL),
    "struct trace_record": (320, TRACE_RECORD),
    "struct syscall_record": (112, SYSCALL_RECORD),
    "struct syscall_ring": (64, SYSCALL_RING),
    "struct program_fault": (200, PROGRAM_FAULT),
    "struct call_ring": (128, CALL_RING),
    "struct memory_range": (24, MEMORY_RANGE),
    "struct host_stats": (64, HOST_STATS),
    "struct block_info": (24, BLOCK_INFO),
    "struct guest_mark": (16, {"value": (0, 8), "time_ns": (8, 8)}),
    "struct paravirt_file": (56, PARAVIRT_FILE),
    "struct paravirt_boot": (176, PARAVIRT_BOOT),
}

CONSTANTS = {
    "HYPERCALL_ABI_VERSION": 2,
    "HYPERCALL_PORT": 0x510C,
    "HYPERCALL_DOORBELL_PORT": 0x5110,
    "HYPERCALL_MMIO": 0xD000_1000,
    "HYPERCALL_VMCALL": 12,
    "HYPERCALL_VMCALL_KEY": 0x7076_6000,
    "HC_VERSION": 0,
    "HC_EXIT": 1,
    "HC_CONSOLE_WRITE": 2,
    "HC_TIME": 3,
    "HC_MARK": 4,
    "HC_CONSOLE_READ": 5,
    "HC_RANDOM": 6,
    "HC_YIELD": 7,
    "HC_TRACE_RING": 8,
    "HC_TRACE_DRAIN": 9,
    "HC_FAULT": 10,
    "HC_FEATURES": 11,
    "HC_MEMORY_MAP": 12,
    "HC_STATS": 13,
    "HC_CALL_RING": 14,
    "HC_BLOCK_INFO": 0x10,
    "HC_BLOCK_READ": 0x11,
    "HC_BLOCK_WRITE": 0x12,
    "HC_NOTHING": 0xFFFF_FFFF,
    "HC_YIELD_INPUT": 1,
    "HC_BLOCK_SECTOR": 512,
    "HC_BLOCK_MOST": 65535,
    "HC_HAS_OUT": 1,
    "HC_HAS_MMIO": 2,
    "HC_HAS_VMCALL": 4,
    "HC_HAS_RING": 8,
    "HC_HAS_RING_INTERRUPT": 16,
    "HC_HAS_DISK": 32,
    "HC_PREFERRED_SHIFT": 32,
    "HC_EIO": -5,
    "HC_EAGAIN": -11,
    "HC_EFAULT": -14,
    "HC_EBUSY": -16,
    "HC_ENODEV": -19,
    "HC_EINVAL": -22,
    "HC_EROFS": -30,
    "HC_ENOSYS": -38,
    "HC_NUMBER": 0,
    "HC_ABI": 4,
    "HC_RESULT": 8,
    "HC_ARG0": 16,
    "HC_ARG1": 24,
    "HC_ARG2": 32,
    "HC_ARG3": 40,
    "HC_SIZE": 48,
    "SYSCALL_DONE": 1,
    "SYSCALL_UNKNOWN": 2,
    "SYSCALL_CLOCK_TSC": 0,
    "SYSCALL_CLOCK_KVM": 1,
    "FAULT_EXCEPTION": 0,
    "FAULT_STACK": 1,
    "FAULT_FILE_END": 2,
    "FAULT_NO_MEMORY": 3,
    "FAULT_RAISED": 4,
    "MEMORY_RAM": 1,
    "MEMORY_ROM": 2,
    "BLOCK_READ_ONLY": 1,
    "CALL_RING_INTERRUPT": 1,
    "CALL_RING_GSI": 5,
    "CALL_RING_CALLS_MAX": 4096,
    "CALL_RINGS_MAX": 16,
}

PARAVIRT = {
    "PARAVIRT_MAGIC": 0x7669_766B_7670,
    "PARAVIRT_VERSION": 1,
    "PARAVIRT_RAM_RANGES": 2,
    "PARAVIRT_MARK_ENOSYS": 0x454E_4F53_5953_0000,
    "PARAVIRT_CONSOLE": 1,
    "PARAVIRT_NULL": 2,
    "PARAVIRT_ZERO": 3,
    "PARAVIRT_RANDOM": 4,
    "PARAVIRT_DISK": 5,
}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_where_it_was(name: str) -> None:
    """No field moved, grew, came or went without this table."""
    size, fields = STRUCTS[name]
    found = {field: (about.offset, ffi.sizeof(about.type)) for field, about in ffi.typeof(name).fields}
    assert found == fields
    assert ffi.sizeof(name) == size


@pytest.mark.parametrize("name", STRUCTS)
def test_no_struct_has_holes(name: str) -> None:
    """Every byte belongs to a field: nothing of the host leaks, and all compilers agree."""
    size, fields = STRUCTS[name]
    end = 0
    for offset, width in sorted(fields.values()):
        assert offset == end
        end += width
    assert end == size


@pytest.mark.parametrize(
    ("header", "numbers"), [("hypercall_abi.h", CONSTANTS), ("paravirt_boot.h", PARAVIRT)]
)
def test_every_number_is_what_it_was(header: str, numbers: dict[str, int]) -> None:
    """A guest built against an older header still means the same; a new name needs a new line here."""
    names = set(re.findall(r"^#define (\w+) +\S", (INCLUDE / header).read_text(), re.MULTILINE))
    assert names == set(numbers)
    assert {name: getattr(lib, name) for name in names} == numbers


def test_assembler_offsets_are_the_struct_s() -> None:
    """What assembler guests use as offsets is where the C compiler puts the fields."""
    struct = "struct hypercall"
    assert ffi.offsetof(struct, "number") == lib.HC_NUMBER
    assert ffi.offsetof(struct, "abi") == lib.HC_ABI
    assert ffi.offsetof(struct, "result") == lib.HC_RESULT
    assert [ffi.offsetof(struct, "arg", i) for i in range(4)] == [
        lib.HC_ARG0,
        lib.HC_ARG1,
        lib.HC_ARG2,
        lib.HC_ARG3,
    ]
    assert ffi.sizeof(struct) == lib.HC_SIZE


def test_ports_and_addresses_are_those_of_the_layout() -> None:
    """The header names them again for guests; the map of addresses is drawn in pykvm/layout.py."""
    assert layout.HYPERCALL.start == lib.HYPERCALL_PORT
    assert layout.HYPERCALL_DOORBELL.start == lib.HYPERCALL_DOORBELL_PORT
    assert layout.HYPERCALL_REGISTER.start == lib.HYPERCALL_MMIO
    assert not {layout.I8042_GSI, layout.COM1_GSI, layout.RTC_GSI} & {lib.CALL_RING_GSI}


def test_every_call_has_one_number_and_one_name() -> None:
    """All calls of the header stand in the one table of the host, each under a number of its own."""
    text = (INCLUDE / "hypercall_abi.h").read_text()
    numbers = text.partition("/* Numbers.")[2].partition("#define HC_NOTHING")[0]
    calls = {
        name: int(value, 0) for name, value in re.findall(r"^#define (HC_\w+) (\w+)", numbers, re.MULTILINE)
    }
    assert len(set(calls.values())) == len(calls) == len(CALLS) - 1
    assert {name.removeprefix("HC_").lower(): number for name, number in calls.items()} == {
        shape.name: number for number, shape in CALLS.items() if number != lib.HC_NOTHING
    }
