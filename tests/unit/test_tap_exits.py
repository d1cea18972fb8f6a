"""The C part of the tap on invented exits: guest memory, page tables and kvm_run are the test's own."""

from __future__ import annotations

import mmap
from struct import pack, pack_into
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.exits import RunView

PORT = 0xEE
MEMORY_BYTES = 1 << 16
RAM_GVA = 0xFFFF_8880_0000_0000  # where the tables below map all of the memory, in one 2 MiB page
PML4, PDPT, DIRECTORY, STACK = 0x1000, 0x2000, 0x3000, 0x8000
CALL_AT, BACK_AT = 0xFFFF_FFFF_8100_00F3, 0xFFFF_FFFF_8100_012B
TASK = RAM_GVA + STACK
TASK_STRUCT, PER_CPU = 0x9000, 0xA000
RSP, RDI, RCX = 6, 5, 2
SAVED = "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di number ip cs flags sp ss".split()


class Rig:
    """A vCPU that left the guest, and a tap with two sites."""

    def __init__(self, capacity: int = 8) -> None:
        self.memory = bytearray(MEMORY_BYTES)
        pack_into("<Q", self.memory, PML4 + (RAM_GVA >> 39 & 511) * 8, PDPT | 3)
        pack_into("<Q", self.memory, PDPT + (RAM_GVA >> 30 & 511) * 8, DIRECTORY | 3)
        pack_into("<Q", self.memory, DIRECTORY + (RAM_GVA >> 21 & 511) * 8, 0x83)
        self.hold = ffi.from_buffer(self.memory)
        self.shared = ffi.new("struct loop_shared *", {"slot_count": 1})
        self.shared.slots[0] = {"gpa": 0, "size": MEMORY_BYTES, "host": ffi.cast("uint8_t *", self.hold)}
        self.ring = ffi.new("struct tap_record[]", capacity)
        self.tap = ffi.new("struct syscall_tap *")
        self.shared.tap = self.tap
        tap = self.tap
        tap.records, tap.capacity, tap.port, tap.site_count = self.ring, capacity, PORT, 2
        tap.current_at = tap.name_at = tap.process_at = tap.thread_at = tap.id_at = lib.TAP_NO_OFFSET
        tap.choices[0].wants_all = 1
        self.site(0, rip=CALL_AT, next=CALL_AT + 3, kind=lib.TAP_CALL, step=lib.TAP_STEP_COPY)
        tap.sites[0].source, tap.sites[0].target = RSP, RDI
        self.site(1, rip=BACK_AT, next=BACK_AT + 5, kind=lib.TAP_RETURN, step=lib.TAP_STEP_LOAD)
        tap.sites[1].target, tap.sites[1].offset = RCX, 0x58
        self.area = mmap.mmap(-1, 8192)
        self.view = RunView(self.area)
        self.loop = ffi.new("struct exit_loop *", {"run": self.view.run, "run_bytes": 8192, "exit_tsc": 77})
        self.loop.shared = self.shared
        self.kept: list[Any] = []
        self.exit(CALL_AT)

    def site(self, number: int, **values: int) -> None:
        self.tap.sites[number] = values

    def exit(self, rip: int, *, reason: int = lib.KVM_EXIT_IO, port: int = PORT) -> None:
        run = self.view.run
        run.exit_reason = reason
        run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
        run.kvm_dirty_regs = 0
        if reason == lib.KVM_EXIT_IO:
            io = self.view.io
            io.direction, io.size, io.port, io.count, io.data_offset = 1, 1, port, 1, 4096
        else:
            self.view.debug.dr6 = 1
        sregs = self.sregs
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 1 << 31, PML4 | 5, 1 << 5, 1 << 10
        sregs.gs.base = RAM_GVA + PER_CPU
        self.regs.rip, self.regs.rsp, self.regs.rflags = rip, TASK, 2

    @property
    def regs(self) -> Any:
        return self.view.synced.regs

    @property
    def sregs(self) -> Any:
        return self.view.synced.sregs

    def save(self, **registers: int) -> None:
        values = [registers.get(name, 0) & (1 << 64) - 1 for name in SAVED]
        pack_into("<21Q", self.memory, STACK, *values)

    def answer(self) -> bool:
        return bool(lib.tap_answer(self.loop))

    def look(self) -> Any:
        """What C finds, and the record."""
        record = ffi.new("struct tap_record *")
        return lib.tap_look(self.loop, record), record

    def taken(self) -> list[Any]:
        out = ffi.new("struct tap_record[]", 16)
        self.kept.append(out)  # what is returned points into it
        return [out[i] for i in range(lib.tap_take(self.tap, out, 16))]


@pytest.mark.parametrize("skipped", [0, 2])
def test_a_call_is_recorded_and_the_mov_done(skipped: int) -> None:
    """RDI becomes RSP and the guest goes on behind the MOV, whether KVM has stepped over the OUT or not."""
    rig = Rig()
    rig.exit(CALL_AT + skipped)
    rig.save(number=257, di=1, si=2, dx=3, r10=4, r8=5, r9=6, ip=0x401000, sp=0x7FFF_0000)
    assert rig.answer()
    assert (rig.regs.rip, rig.regs.rdi) == (CALL_AT + 3, TASK)
    assert rig.view.run.kvm_dirty_regs == lib.KVM_SYNC_X86_REGS
    (record,) = rig.taken()
    assert (record.number, list(record.args), record.task) == (257, [1, 2, 3, 4, 5, 6], TASK)
    assert (record.kind, record.tsc, record.cr3, record.rip, record.rsp) == (
        *(lib.TAP_CALL, 77, PML4, 0x401000),
        0x7FFF_0000,
    )
    assert (rig.tap.calls, rig.tap.returns) == (1, 0)


def test_a_return_is_recorded_and_the_load_done() -> None:
    """RCX comes from the saved registers; the result is the saved RAX."""
    rig = Rig()
    rig.exit(BACK_AT)
    rig.save(number=0, ax=-9, cx=0x1234)
    assert rig.answer()
    assert (rig.regs.rip, rig.regs.rcx) == (BACK_AT + 5, 0x1234)
    (record,) = rig.taken()
    assert (record.kind, record.result) == (lib.TAP_RETURN, (1 << 64) - 9)


@pytest.mark.parametrize(
    ("rax", "size", "flags"),
    [(0, 1, 0x46), (1, 1, 0x2), (0x80, 1, 0x82), (0x100, 1, 0x46), (3, 1, 0x6), (0x8000_0000, 4, 0x86)],
)
def test_test_sets_the_flags_of_the_cpu(rax: int, size: int, flags: int) -> None:
    """ZF, SF and PF as by the SDM's TEST; CF and OF are cleared."""
    rig = Rig()
    rig.site(0, rip=CALL_AT, next=CALL_AT + 2, kind=lib.TAP_RETURN, step=lib.TAP_STEP_TEST, bytes=size)
    rig.regs.rax, rig.regs.rflags = rax, 0x2 | 1 | 1 << 11
    assert rig.answer()
    assert rig.regs.rflags == flags


def test_a_breakpoint_goes_on_with_rf() -> None:
    """The instruction is still there: nothing is done in its place, and RF keeps it from stopping again."""
    rig = Rig()
    rig.site(0, rip=CALL_AT, next=CALL_AT, kind=lib.TAP_CALL, step=lib.TAP_STEP_NONE)
    rig.exit(CALL_AT, reason=lib.KVM_EXIT_DEBUG)
    assert rig.answer()
    assert (rig.regs.rip, rig.regs.rflags) == (CALL_AT, 2 | 1 << 16)


def test_what_is_not_ours_is_left_to_others() -> None:
    """Another place, another port, an IN, a single step, or registers that KVM has not told."""
    rig = Rig()
    for rip, port in ((CALL_AT + 1, PORT), (CALL_AT, PORT + 1), (0, PORT)):
        rig.exit(rip, port=port)
        assert not rig.answer()
    rig.exit(CALL_AT)
    rig.view.io.direction = 0
    assert not rig.answer()
    rig.exit(CALL_AT, reason=lib.KVM_EXIT_DEBUG)
    assert not rig.answer()
    rig.exit(CALL_AT)
    rig.view.run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS
    assert not rig.answer()
    assert not rig.taken()
    assert rig.regs.rip == CALL_AT


def test_the_filter_works_before_anything_is_recorded() -> None:
    """Numbers by a table, processes by CR3 or by Linux's number; what is left out goes on all the same."""
    rig = Rig()
    choice = rig.tap.choices[0]
    choice.wants_all = 0
    choice.wanted[2] = 1 << 5
    for number in (132, 133, 1023, 1024, (1 << 64) - 2):
        rig.exit(CALL_AT)
        rig.save(number=number)
        assert rig.answer()
        assert rig.regs.rip == CALL_AT + 3
    assert [record.number for record in rig.taken()] == [133]
    rig.tap.cr3_count, rig.tap.cr3s[0] = 1, PML4 + 0x1000
    rig.exit(CALL_AT)
    rig.save(number=133)
    assert rig.answer()
    assert not rig.taken()
    assert rig.tap.calls == 6


def test_the_process_is_named() -> None:
    """Through GS to the current task, and from there its name and numbers."""
    rig = Rig()
    tap = rig.tap
    tap.current_at, tap.name_at, tap.process_at, tap.thread_at = 0x10, 0x20, 0x40, 0x44
    pack_into("<Q", rig.memory, PER_CPU + 0x10, RAM_GVA + TASK_STRUCT)
    pack_into("<16s", rig.memory, TASK_STRUCT + 0x20, b"a-name-of-15-by\0")
    rig.memory[TASK_STRUCT + 0x40 : TASK_STRUCT + 0x48] = pack("<2i", 12, 13)
    assert rig.answer()
    (record,) = rig.taken()
    assert (ffi.string(record.name), record.process, record.thread) == (b"a-name-of-15-by", 12, 13)
    tap.process_count, tap.processes[0] = 1, 99
    rig.exit(CALL_AT)
    assert rig.answer()
    assert not rig.taken()


def test_where_a_task_is_goes_to_python_until_it_knows() -> None:
    """Through the task to its cgroup's id and its PID namespace's number; what is known, C answers alone."""
    rig = Rig()
    tap, at = rig.tap, TASK_STRUCT
    tap.current_at, tap.node_steps, tap.id_at = 0x10, (0x50, 0x58, 0x60), 0x68
    tap.proxy_at, tap.namespace_at, tap.number_at = 0x70, 0x78, 0x80
    pack_into("<Q", rig.memory, PER_CPU + 0x10, RAM_GVA + at)
    for offset in (0x50, 0x58, 0x60, 0x70, 0x78):  # every step leads to the same page
        pack_into("<Q", rig.memory, at + offset, RAM_GVA + at)
    pack_into("<Q", rig.memory, at + 0x68, 4711)
    pack_into("<I", rig.memory, at + 0x80, 0xF000_0042)
    assert not rig.answer()
    found, record = rig.look()
    assert found == lib.TAP_IN_WORDS
    assert (record.group, record.pid_namespace) == (4711, 0xF000_0042)
    assert record.node == record.proxy == RAM_GVA + at
    lib.tap_know(tap, record)
    assert rig.answer()
    assert rig.taken()[0].group == 4711
    pack_into("<Q", rig.memory, at + 0x70, 0)  # a task that is about to end has no namespaces
    rig.exit(CALL_AT)
    _, record = rig.look()
    assert (record.group, record.pid_namespace, record.proxy) == (4711, 0, 0)


def test_a_full_ring_loses_nothing() -> None:
    """The exit waits for Python, unanswered; after the ring is read it is answered and recorded once."""
    rig = Rig(capacity=2)
    for _ in range(2):
        rig.exit(CALL_AT)
        assert rig.answer()
    rig.exit(CALL_AT)
    assert not rig.answer()
    assert rig.regs.rip == CALL_AT
    assert [record.sequence for record in rig.taken()] == [0, 1]
    assert rig.answer()
    assert [record.sequence for record in rig.taken()] == [2]
    assert rig.tap.calls == 3


def test_a_signal_s_frame_is_read() -> None:
    """RDX at the frame's ucontext says that a handler starts; RIP and RAX behind it stand in the frame."""
    rig = Rig()
    rig.exit(BACK_AT)
    frame = RAM_GVA + 0xC000
    pack_into("<Q", rig.memory, 0xC000 + 8 + 40 + 13 * 8, (1 << 64) - 4)
    pack_into("<Q", rig.memory, 0xC000 + 8 + 40 + 16 * 8, 0x401002)
    rig.save(number=35, di=14, sp=frame, dx=frame + 8)
    assert rig.answer()
    (record,) = rig.taken()
    assert record.flags == lib.TAP_SIGNAL
    assert list(record.args)[:3] == [14, 0x401002, (1 << 64) - 4]


WORDS = st.integers(0, (1 << 64) - 1)


@settings(max_examples=50)
@given(
    rsp=WORDS | st.integers(RAM_GVA - 64, RAM_GVA + MEMORY_BYTES + 64),
    cr3=WORDS,
    gs=WORDS,
    site=st.sampled_from([CALL_AT, BACK_AT]),
    entries=st.lists(st.tuples(st.integers(0, MEMORY_BYTES // 8 - 1), WORDS), max_size=8),
)
def test_any_address_of_the_guest_s_is_survived(
    rsp: int, cr3: int, gs: int, site: int, entries: list[tuple[int, int]]
) -> None:
    """Wild stacks, page tables and per-CPU areas: answered, recorded or counted as wild, and nothing else."""
    rig = Rig()
    rig.tap.current_at, rig.tap.name_at, rig.tap.process_at, rig.tap.thread_at = 0, 0, 8, 12
    rig.tap.id_at = 16
    rig.exit(site)
    rig.regs.rsp, rig.sregs.cr3, rig.sregs.gs.base = rsp, cr3 if entries else PML4, gs
    for at, value in entries:
        pack_into("<Q", rig.memory, at * 8, value)
    before = bytes(rig.memory)
    lib.tap_know(rig.tap, rig.look()[1])
    wild = rig.tap.wild
    assert rig.answer()
    assert len(rig.taken()) + (rig.tap.wild > wild) >= 1
    assert bytes(rig.memory) == before


@settings(max_examples=50)
@given(st.integers(RAM_GVA - 5000, RAM_GVA + MEMORY_BYTES + 5000), st.integers(0, 9000))
def test_reading_ends_where_memory_ends(gva: int, size: int) -> None:
    """As many bytes as there are, never one beyond the slot."""
    rig = Rig()
    buffer = ffi.new("uint8_t[]", max(size, 1))
    count = lib.tap_read(rig.loop, gva, buffer, size)
    inside = RAM_GVA <= gva < RAM_GVA + MEMORY_BYTES
    most = RAM_GVA + MEMORY_BYTES - gva
    assert count == (min(size, most) if inside else 0)
