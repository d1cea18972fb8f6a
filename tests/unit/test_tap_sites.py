"""Where a syscall tap stands in a kernel's entry code, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import lib
from pykvm.tap.sites import Site, TapError, find_sites, gate_address, stack_offset

AT = 0xFFFF_FFFF_81C0_0080
ENDBR = bytes.fromhex("f30f1efa")
SWAPGS = bytes.fromhex("0f01f8")
TO_KERNEL_STACK = bytes.fromhex("654889242514600000 65488b242550fb0100 6a2b 50 57")
SAVE = bytes.fromhex("4889e7")
MITIGATIONS = bytes.fromhex("4863f0 eb02 9090 e800000000")
CALL = bytes.fromhex("e8ca3de0ff")
NOPS = bytes.fromhex("0f1f440000")
LOADS = bytes.fromhex("488b4c2458 4c8b9c2480000000")
TEST_JE = bytes.fromhex("84c0 0f848f0f0000")
END = bytes.fromhex("0f01f8 480f07")


def entry(*parts: bytes) -> bytes:
    return b"".join(parts)


def found(code: bytes, abi: int = lib.TAP_64) -> tuple[Site, Site]:
    return find_sites(AT, code, abi)


@pytest.mark.parametrize("begin", [b"", ENDBR])
@pytest.mark.parametrize("nops", [b"", NOPS, b"\x90" * 5])
def test_sites_of_linux_up_to_6_5(begin: bytes, nops: bytes) -> None:
    """The call's site is where RDI gets the saved registers' address, the return's where RCX is loaded."""
    code = entry(begin, SWAPGS, TO_KERNEL_STACK, SAVE, MITIGATIONS, CALL, nops, LOADS, END)
    call, back = found(code)
    assert code[call.address - AT :].startswith(SAVE)
    assert (call.code, call.step, call.source, call.target) == (SAVE, lib.TAP_STEP_COPY, 6, 5)
    assert call.next == call.address + 3
    assert code[back.address - AT :].startswith(LOADS)
    assert (back.step, back.target, back.offset) == (lib.TAP_STEP_LOAD, 2, 0x58)
    assert back.next == back.address + 5


def test_sites_of_linux_from_6_6_on() -> None:
    """There do_syscall_64 tells in AL how to return."""
    code = entry(ENDBR, SWAPGS, TO_KERNEL_STACK, SAVE, MITIGATIONS, CALL, TEST_JE, END)
    _, back = found(code)
    assert (back.step, back.bytes, back.code) == (lib.TAP_STEP_TEST, 1, b"\x84\xc0")


def test_an_older_kernel_gives_the_registers_as_second_argument() -> None:
    """From 4.17 to 5.13 the first is the number."""
    save = bytes.fromhex("4889c7 4889e6")
    call, _ = found(entry(SWAPGS, TO_KERNEL_STACK, save, CALL, LOADS, END))
    assert (call.code, call.target) == (save[3:], 4)


def test_an_interrupt_gate_ends_with_a_jump() -> None:
    """INT 0x80 goes back as all interrupts do: the guest is sent where the jump leads."""
    jump = bytes.fromhex("e9fb0e0000")
    code = entry(bytes.fromhex("90 6aff e800000000 4889c4"), SAVE, CALL, jump, b"\xcc" * 8)
    _, back = found(code, lib.TAP_32)
    assert back.step == lib.TAP_STEP_SKIP
    assert back.next == back.address + 5 + 0xEFB


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"", "does not begin with swapgs"),
        (b"\x90" * 64, "begin with swapgs and the change of stacks, but with: nop; nop"),
        (entry(SWAPGS, b"\x90" * 20), "does not begin with swapgs"),
        (entry(SWAPGS, TO_KERNEL_STACK, END), "there is no call"),
        (entry(SWAPGS, TO_KERNEL_STACK, SAVE, CALL, END), "there is no call"),
        (entry(SWAPGS, TO_KERNEL_STACK, CALL, LOADS, END), "there is no call"),
        (entry(SWAPGS, TO_KERNEL_STACK, SAVE, b"\x0f\x0b", CALL, LOADS), "there is no call"),
        (entry(SWAPGS, TO_KERNEL_STACK, SAVE, CALL, TEST_JE[:2], END), "there is no call"),
    ],
)
def test_other_code_is_refused_in_one_line(code: bytes, words: str) -> None:
    """What is not recognised is not touched, and the error says what is there."""
    with pytest.raises(TapError, match=words) as caught:
        found(code)
    assert "\n" not in str(caught.value)
    assert hex(AT) in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from([lib.TAP_64, lib.TAP_32]))
def test_any_code_is_taken_or_refused(code: bytes, abi: int) -> None:
    """The guest chooses these bytes: nothing but a TapError comes of them."""
    begin = entry(SWAPGS, TO_KERNEL_STACK, SAVE, code, CALL, LOADS)
    try:
        sites = found(begin, abi)
    except TapError:
        return
    for site in sites:
        assert begin[site.address - AT :].startswith(site.code)
        assert len(site.code) >= 2


def test_stack_and_its_absence() -> None:
    """The offset of the kernel's stack below GS stands in the entry; a cut one is none."""
    assert stack_offset(TO_KERNEL_STACK) == 0x1FB50
    assert stack_offset(TO_KERNEL_STACK[:16]) is None
    assert stack_offset(b"") is None


def sregs(limit: int) -> SimpleNamespace:
    return SimpleNamespace(cr0=0, cr3=0, cr4=0, efer=0, idt=SimpleNamespace(base=0x1000, limit=limit))


def test_gate_of_the_idt() -> None:
    """A gate's address is in three parts; one that is not present, or behind the limit, leads nowhere."""
    gate = bytes.fromhex("7856 1000 00ee 3412 ffffffff 00000000")
    memory = bytes(0x1000 + 0x800) + gate
    read = lambda gpa, size: memory[gpa : gpa + size]  # noqa: E731 - a fake in one line
    assert gate_address(read, sregs(0xFFF), 0x80) == 0xFFFF_FFFF_1234_5678
    assert gate_address(read, sregs(0x80E), 0x80) == 0
    assert gate_address(read, sregs(0xFFF), 0x7F) == 0
