"""The instruction behind an exit: found at RIP or before it, and the one that fits; with what it read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.errors import GuestAddressError
from pykvm.trace.disasm import Disassembler

BASE = 0x10_0000
IO, MMIO, HLT = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO, lib.KVM_EXIT_HLT
WRITE, READ = lib.RECORD_WRITE, 0


def shown(code: bytes, at: int, *, before: bytes = b"", **fields: Any) -> str:
    """The instruction of a record with RIP at BASE + `at`, where `code` lies at BASE, paging off."""
    flags = fields.pop("flags", 0)
    usual = {
        "reason": IO,
        "address": 0xE9,
        "size": 1,
        "count": 1,
        "rip": BASE + at,
        "rdx": 0xE9,
        "rax": 0x48,
        "cr0": 1,
        "code_bits": 32,
        "flags": lib.RECORD_REGS | lib.RECORD_SREGS | flags,
    }
    record = ffi.new("struct trace_record *", {**usual, **fields})
    return Disassembler(memory(before + code, BASE - len(before)))(memoryview(bytes(ffi.buffer(record))))


def memory(contents: bytes, start: int) -> Any:
    """Guest memory that holds `contents` at `start` and nothing else."""

    def read(gpa: int, size: int) -> bytes:
        if gpa < start or gpa + size > start + len(contents):
            raise GuestAddressError("outside")
        return contents[gpa - start : gpa - start + size]

    return read


PAD = b"\x90" * 16
OUT_DX_AL, OUT_IMM_AL, IN_AL_DX = b"\xee", b"\xe6\xe9", b"\xec"


@pytest.mark.parametrize(
    ("code", "at", "flags", "text"),
    [
        (OUT_DX_AL + PAD, 0, WRITE, "out dx, al   ; dx=0xe9 al=0x48"),
        (OUT_DX_AL + PAD, 1, WRITE, "out dx, al   ; dx=0xe9 al=0x48"),
        (OUT_IMM_AL + PAD, 0, WRITE, "out 0xe9, al   ; al=0x48"),
        (OUT_IMM_AL + PAD, 2, WRITE, "out 0xe9, al   ; al=0x48"),
        (IN_AL_DX + PAD, 0, READ, "in al, dx   ; dx=0xe9"),
        (IN_AL_DX + PAD, 1, READ, "in al, dx   ; dx=0xe9"),
        (IN_AL_DX + OUT_DX_AL + PAD, 1, READ, "in al, dx   ; dx=0xe9"),  # the one behind goes the other way
        (IN_AL_DX + OUT_DX_AL + PAD, 1, WRITE, "out dx, al   ; dx=0xe9 al=0x48"),
        (b"\xe6\x80" + OUT_DX_AL + PAD, 2, WRITE, "out dx, al   ; dx=0xe9 al=0x48"),  # another port
        (b"\xf3\x6e" + PAD, 0, WRITE, "rep outsb dx, byte ptr [esi]   ; dx=0xe9"),
        (PAD, 5, WRITE, ""),  # no such instruction anywhere
    ],
)
def test_port_access_is_found_on_both_sides_of_rip(code: bytes, at: int, flags: int, text: str) -> None:
    """Some KVMs have moved RIP on when they hand an OUT to userspace, some have not."""
    found = shown(PAD + code, 16 + at, flags=flags)
    assert found.startswith(text)
    assert bool(found) == bool(text)


def test_an_immediate_that_looks_like_out_is_not_taken_for_one() -> None:
    """`out %al, $0xee` ends with the byte that is `out %al, %dx`."""
    found = shown(PAD + b"\xe6\xee" + PAD, 18, flags=WRITE, address=0xEE, rdx=0xEE)
    assert found == "out 0xee, al   ; al=0x48"


def test_where_both_would_do_it_is_as_it_was_before() -> None:
    """The same OUT twice in a row: an exit that leaves no doubt tells how this KVM does it."""
    one = {"reason": IO, "address": 0xE9, "size": 1, "rdx": 0xE9, "cr0": 1, "code_bits": 32}
    flags = lib.RECORD_REGS | lib.RECORD_SREGS | WRITE
    code = PAD + OUT_DX_AL * 2 + PAD + OUT_DX_AL + PAD
    disassemble = Disassembler(memory(code, BASE))

    def at(rip: int, rax: int) -> str:
        fields = {**one, "rip": rip, "rax": rax, "flags": flags}
        return disassemble(memoryview(bytes(ffi.buffer(ffi.new("struct trace_record *", fields)))))

    behind, doubtful = BASE + 16 + 2 + 16 + 1, BASE + 16 + 1
    assert at(behind, 1) == "out dx, al   ; dx=0xe9 al=0x1"
    assert at(doubtful, 2) == "out dx, al   ; dx=0xe9 al=0x2"
    known = disassemble._moved
    assert known == {(IO, True): True}


STORE, LOAD = b"\x88\x11", b"\x8a\x01"  # mov [ecx], dl; mov al, [ecx]


@pytest.mark.parametrize(
    ("code", "at", "flags", "text"),
    [
        (STORE + PAD, 0, WRITE, "mov byte ptr [ecx], dl   ; ecx=0xd0000004 dl=0xe9 [0xd0000004]"),
        (STORE + PAD, 2, WRITE, "mov byte ptr [ecx], dl   ; ecx=0xd0000004 dl=0xe9 [0xd0000004]"),
        (LOAD + PAD, 0, READ, "mov al, byte ptr [ecx]   ; ecx=0xd0000004 [0xd0000004]"),
        (STORE + LOAD + PAD, 2, WRITE, "mov byte ptr [ecx], dl"),  # the load behind it has not run yet
        (STORE + LOAD + PAD, 2, READ, "mov al, byte ptr [ecx]"),
    ],
)
def test_memory_access_fits_by_its_address_and_direction(code: bytes, at: int, flags: int, text: str) -> None:
    """Through the page tables that the guest had then."""
    found = shown(PAD + code, 16 + at, reason=MMIO, address=0xD000_0004, rcx=0xD000_0004, flags=flags)
    assert found.startswith(text)


def test_memory_access_elsewhere_does_not_fit() -> None:
    """No instruction is better than a wrong one."""
    assert shown(PAD + STORE + PAD, 16, reason=MMIO, address=0xD000_0004, rcx=0xD000_1004, flags=WRITE) == ""


def test_halt_is_behind_rip() -> None:
    """HLT has been executed when it exits."""
    assert shown(PAD + b"\xf4" + PAD, 17, reason=HLT) == "hlt"


def test_other_exits_show_what_is_at_rip() -> None:
    """Where the guest stopped."""
    assert shown(PAD + b"\x0f\x0b" + PAD, 16, reason=lib.KVM_EXIT_INTERNAL_ERROR) == "ud2"


def test_sixteen_bit_code_counts_from_its_segment() -> None:
    """RIP alone is not where it is."""
    found = shown(PAD + OUT_DX_AL + PAD, 0, code_bits=16, cs_base=0xF_0000, rip=0x1_0000 + 16, flags=WRITE)
    assert found == "out dx, al   ; dx=0xe9 al=0x48"


def test_sixty_four_bit_code_knows_rip_relative_operands() -> None:
    """And names of two registers for one are shown once."""
    code = b"\x48\x8b\x05\x10\x00\x00\x00"  # mov rax, [rip+0x10]
    found = shown(PAD + code + PAD, 16, reason=lib.KVM_EXIT_DEBUG, code_bits=64)
    assert found == f"mov rax, qword ptr [rip + 0x10]   ; [{BASE + 16 + 7 + 16:#x}]"


def test_code_at_the_beginning_of_memory() -> None:
    """What lies before is not there; nothing is read from it."""
    assert shown(OUT_DX_AL + PAD, 1, flags=WRITE) == "out dx, al   ; dx=0xe9 al=0x48"


def test_a_record_without_registers_has_no_instruction() -> None:
    """Its code size is not known."""
    assert shown(PAD, 0, code_bits=0) == ""


@settings(max_examples=50)
@given(
    st.binary(max_size=64),
    st.integers(0, 2**64 - 1) | st.integers(BASE - 20, BASE + 80),
    st.sampled_from([IO, MMIO, HLT, 8, 17]),
    st.sampled_from([0, 16, 32, 64, 77]),
    st.lists(st.integers(0, 2**64 - 1), min_size=16, max_size=16),
)
def test_nothing_that_a_guest_holds_makes_it_fail(
    code: bytes, rip: int, reason: int, bits: int, numbers: list[int]
) -> None:
    """Any bytes, any registers, any page tables."""
    names = "rax rbx rcx rdx rsi rdi rbp rsp r8 r15 cr0 cr3 cr4 efer cs_base address".split()
    registers: dict[str, Any] = dict(zip(names, numbers, strict=True))
    found = shown(code, 0, **registers, reason=reason, code_bits=bits, rip=rip)
    assert isinstance(found, str)
