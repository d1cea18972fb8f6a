"""The layouts that C, Python and guests share: each size and offset is pinned, and none changes unseen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykvm._native import ffi, lib

HEADER = Path(__file__).resolve().parents[2] / "guests" / "include" / "hypercall_abi.h"

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

STRUCTS = {"struct hypercall": (48, HYPERCALL), "struct trace_record": (320, TRACE_RECORD)}

CONSTANTS = {
    "HYPERCALL_ABI_VERSION": 1,
    "HYPERCALL_PORT": 0x510C,
    "HC_VERSION": 0,
    "HC_EXIT": 1,
    "HC_CONSOLE_WRITE": 2,
    "HC_TIME": 3,
    "HC_MARK": 4,
    "HC_EIO": -5,
    "HC_EFAULT": -14,
    "HC_EINVAL": -22,
    "HC_ENOSYS": -38,
    "HC_NUMBER": 0,
    "HC_ABI": 4,
    "HC_RESULT": 8,
    "HC_ARG0": 16,
    "HC_ARG1": 24,
    "HC_ARG2": 32,
    "HC_ARG3": 40,
    "HC_SIZE": 48,
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


def test_every_number_is_what_it_was() -> None:
    """A guest built against an older header still means the same; a new name needs a new line here."""
    header = HEADER.read_text()
    names = set(re.findall(r"^#define (\w+) +\S", header, re.MULTILINE))
    assert names == set(CONSTANTS)
    assert {name: getattr(lib, name) for name in names} == CONSTANTS


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
