"""Start states and boot structures are what the manuals ask of a CPU in each mode."""

from __future__ import annotations

import pickle
from struct import unpack, unpack_from

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pykvm import layout, paging, regs
from pykvm.errors import ConfigError
from pykvm.regs import CpuMode, CpuState, Segment, boot_structures, initial_state

BOOT = layout.BOOT
RAM = 64 << 20
PROTECTED = [CpuMode.PROT32, CpuMode.PAGED32, CpuMode.LONG64, CpuMode.USER64]
LONG = [CpuMode.LONG64, CpuMode.USER64]
EACH_PROTECTED = pytest.mark.parametrize("mode", PROTECTED)


def state_of(mode: CpuMode, entry: int = 0x10_0000) -> CpuState:
    """The state for an entry, with the stack below BOOT."""
    return initial_state(mode, entry, boot=BOOT, stack=BOOT)


def memory_of(mode: CpuMode, boot: int = BOOT) -> bytearray:
    """1 MiB of guest memory with the boot structures in it."""
    memory = bytearray(1 << 20)
    for gpa, data in boot_structures(mode, boot, 1 << 20).items():
        memory[gpa : gpa + len(data)] = data
    return memory


MEMORIES = {mode: memory_of(mode) for mode in PROTECTED}


def decoded(entry: int) -> Segment:
    """A descriptor taken apart by the drawing in SDM Vol. 3A, figure 3-8, bit by bit."""

    def bits(low: int, count: int) -> int:
        return entry >> low & (1 << count) - 1

    limit = bits(0, 16) | bits(48, 4) << 16
    return Segment(
        base=bits(16, 24) | bits(56, 8) << 24,
        limit=limit << 12 | 0xFFF if bits(55, 1) else limit,
        selector=0,
        type=bits(40, 4),
        present=bits(47, 1),
        dpl=bits(45, 2),
        db=bits(54, 1),
        s=bits(44, 1),
        l=bits(53, 1),
        g=bits(55, 1),
    )


@EACH_PROTECTED
def test_segments_agree_with_the_gdt(mode: CpuMode) -> None:
    """A segment register holds what its selector would load from the GDT in memory."""
    state, memory = state_of(mode), memory_of(mode)
    base, limit = state.tables["gdt"]
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = state.segments[name]
        offset = segment.selector & ~7
        assert offset + 7 <= limit
        entry = decoded(*unpack_from("<Q", memory, base + offset))
        expected = {
            f: getattr(segment, f) for f in ("base", "limit", "type", "present", "dpl", "db", "s", "l", "g")
        }
        assert {f: getattr(entry, f) for f in expected} == expected, name


@EACH_PROTECTED
def test_task_register(mode: CpuMode) -> None:
    """TR is a busy TSS, as an entry demands; its descriptor is available, so that LTR may load it again."""
    state, memory = state_of(mode), memory_of(mode)
    task = state.segments["tr"]
    assert (task.type, task.present, task.s, task.base, task.limit) == (11, 1, 0, BOOT + 0x800, 0x67)
    assert (task.dpl, task.db, task.l, task.g) == (0, 0, 0, 0)
    entry, upper = unpack_from("<2Q", memory, BOOT + task.selector)
    assert (decoded(entry).type, decoded(entry).base, decoded(entry).limit, upper) == (9, task.base, 0x67, 0)
    assert bytes(memory[task.base : task.base + 0x66]) == bytes(0x66)
    assert unpack_from("<H", memory, task.base + 0x66) == (0x68,)  # no I/O map within the limit


def test_gdt_has_the_order_of_syscall() -> None:
    """SYSCALL and SYSRET find their segments by adding to STAR (SDM Vol. 2B)."""
    memory = memory_of(CpuMode.LONG64)
    syscall, sysret = regs.STAR >> 32 & 0xFFFF, regs.STAR >> 48
    assert (syscall, syscall + 8) == (regs.KERNEL_CODE64, regs.KERNEL_DATA)
    assert (sysret, sysret + 8, sysret + 16) == (regs.USER_CODE32, regs.USER_DATA, regs.USER_CODE64)
    for selector, code, long, ring in (
        (regs.KERNEL_CODE64, True, 1, 0),
        (regs.KERNEL_DATA, False, 0, 0),
        (regs.USER_CODE32, True, 0, 3),
        (regs.USER_DATA, False, 0, 3),
        (regs.USER_CODE64, True, 1, 3),
        (regs.KERNEL_CODE32, True, 0, 0),
        (regs.KERNEL_CODE16, True, 0, 0),
        (regs.KERNEL_DATA16, False, 0, 0),
    ):
        entry = decoded(*unpack_from("<Q", memory, BOOT + (selector & ~7)))
        assert (bool(entry.type & 8), entry.l, entry.dpl, selector & 3) == (code, long, ring, ring)
        assert (entry.present, entry.s) == (1, 1)


def test_way_back_to_real_mode() -> None:
    """The 16-bit segments are what real mode has: 64 KiB, byte granularity, 16-bit operands."""
    memory = memory_of(CpuMode.PROT32)
    for selector in (regs.KERNEL_CODE16, regs.KERNEL_DATA16):
        entry = decoded(*unpack_from("<Q", memory, BOOT + selector))
        assert (entry.base, entry.limit, entry.db, entry.g) == (0, 0xFFFF, 0, 0)


@EACH_PROTECTED
def test_control_registers(mode: CpuMode) -> None:
    """PE always, paging as the mode says, LME and LMA only together with PG and PAE, SSE usable."""
    control = state_of(mode).control
    is_long, is_paged = mode in LONG, mode is not CpuMode.PROT32
    assert control["cr0"] == (0x8001_0033 if is_paged else 0x33)  # PG, WP, NE, ET, MP, PE
    assert control["efer"] == (0x500 if is_long else 0)
    assert bool(control["cr4"] & 1 << 5) == is_long
    assert bool(control["cr4"] & 1 << 4) == (mode is CpuMode.PAGED32)
    assert control["cr4"] & ~0x30 == 0x600  # OSFXSR, OSXMMEXCPT
    assert control["cr3"] == (BOOT + 0x2000 if is_paged else 0)


@EACH_PROTECTED
def test_general_registers(mode: CpuMode) -> None:
    """RIP and RSP as asked, interrupts off, RFLAGS bit 1 set, all else zero."""
    state = state_of(mode, 0x12_3456)
    flags = 2 | (3 << 12 if mode is CpuMode.USER64 else 0)
    assert {k: v for k, v in state.regs.items() if v} == {"rip": 0x12_3456, "rsp": BOOT, "rflags": flags}
    assert len(state.regs) == 18
    assert state.tables["idt"] == (BOOT + 0x1000, 0)
    assert state.segments["ldt"].present == 0


def test_rings() -> None:
    """Ring 3 has its level in CS and SS, their selectors and descriptors; ring 0 has not."""
    for mode, ring in ((CpuMode.LONG64, 0), (CpuMode.USER64, 3)):
        for name in ("cs", "ss"):
            segment = state_of(mode).segments[name]
            assert (segment.dpl, segment.selector & 3) == (ring, ring)


@pytest.mark.parametrize(
    ("mode", "page"), [(CpuMode.PAGED32, 4 << 20), (CpuMode.LONG64, 2 << 20), (CpuMode.USER64, 2 << 20)]
)
@given(gva=st.integers(0, (1 << 32) - 1))
def test_paged_modes_map_4_gib_to_themselves(mode: CpuMode, page: int, gva: int) -> None:
    """Every address below 4 GiB is itself, writable and executable, for ring 3 only where it starts there."""
    memory, control = MEMORIES[mode], state_of(mode).control
    found = paging.walk(lambda gpa, size: bytes(memory[gpa : gpa + size]), gva=gva, **control)
    assert found == paging.Translation(gva, page, writable=True, user=mode is CpuMode.USER64, nx=False)


@pytest.mark.parametrize("mode", LONG)
def test_above_4_gib_nothing_is_mapped(mode: CpuMode) -> None:
    """The first address above the map, and the canonical high half, fault."""
    memory, control = MEMORIES[mode], state_of(mode).control
    for gva in (1 << 32, 1 << 46, 0xFFFF_8000_0000_0000, 1 << 47):
        assert paging.walk(lambda gpa, size: bytes(memory[gpa : gpa + size]), gva=gva, **control) is None


@EACH_PROTECTED
def test_structures_keep_to_their_places(mode: CpuMode) -> None:
    """Pieces stay apart, above BOOT and below the boot information; the IDT's page is left alone."""
    spans = sorted((gpa, gpa + len(data)) for gpa, data in boot_structures(mode, BOOT, RAM).items())
    taken = [byte for start, end in spans for byte in (start, end)]
    assert taken == sorted(taken)
    assert spans[0][0] == BOOT
    assert spans[-1][1] <= BOOT + 0x8000
    assert not any(start < BOOT + 0x2000 and end > BOOT + 0x1000 for start, end in spans)


@pytest.mark.parametrize("mode", [CpuMode.REAL16, CpuMode.RESET])
def test_real_mode_needs_nothing_in_memory(mode: CpuMode) -> None:
    """Real mode and reset leave guest memory alone, however little there is."""
    assert boot_structures(mode, 0, 4096) == {}


@pytest.mark.parametrize(
    ("mode", "need"), [(CpuMode.PROT32, 0x2000), (CpuMode.PAGED32, 0x3000), (CpuMode.LONG64, 0x8000)]
)
def test_memory_for_the_structures(mode: CpuMode, need: int) -> None:
    """The structures fit into exactly what they need, and a byte less is refused in one line."""
    assert boot_structures(mode, 0x1000, 0x1000 + need)
    for boot, memory in (
        (0x1000, 0x1000 + need - 1),
        (-0x1000, RAM),
        (0x1001, RAM),
        ((1 << 32) - 0x1000, 1 << 40),
    ):
        with pytest.raises(ConfigError, match=mode.value):
            boot_structures(mode, boot, memory)


def test_structures_move_with_boot() -> None:
    """In a small memory BOOT lies elsewhere, and every pointer follows."""
    memory, state = (
        memory_of(CpuMode.LONG64, 0x1_0000),
        initial_state(CpuMode.LONG64, 0, boot=0x1_0000, stack=0x1_0000),
    )
    found = paging.walk(lambda gpa, size: bytes(memory[gpa : gpa + size]), gva=0x1234, **state.control)
    assert found is not None
    assert found.gpa == 0x1234
    assert state.segments["tr"].base == 0x1_0800 == decoded(*unpack_from("<Q", memory, 0x1_0030)).base


@example(0x8000, 0x1_0001)
@example(0x8000, 0x1_0010)
@given(st.integers(0, (1 << 20) - 1), st.integers(0, 1 << 20))
def test_real_mode_addresses(entry: int, stack: int) -> None:
    """CS:IP is the entry and SS:SP the stack, each segment at 16 times its selector."""
    state = initial_state(CpuMode.REAL16, entry, boot=BOOT, stack=stack)
    code, pile = state.segments["cs"], state.segments["ss"]
    assert code.base + state.regs["rip"] == entry
    assert state.regs["rip"] <= 0xFFFF
    pushed = pile.base + (state.regs["rsp"] - 2) % (1 << 16)
    assert pushed == stack - 2 if stack >= 2 else pile.base == 0
    assert pile.base == 0 or state.regs["rsp"] in {0, *range(0xFFF1, 0x10000)}  # 64 KiB, but for alignment
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = state.segments[name]
        assert (segment.base, segment.limit) == (segment.selector << 4, 0xFFFF)
        assert (segment.db, segment.g, segment.l, segment.dpl, segment.present) == (0, 0, 0, 0, 1)
    assert state.control == {"cr0": 0x10, "cr3": 0, "cr4": 0, "efer": 0}


@pytest.mark.parametrize(
    ("entry", "selector", "ip"),
    [(0, 0, 0), (0x8000, 0, 0x8000), (0xFFFF, 0, 0xFFFF), (0x1_0000, 0x1000, 0), (0x9_0203, 0x9020, 3)],
)
def test_real_mode_segments(entry: int, selector: int, ip: int) -> None:
    """Below 64 KiB segments are 0; above, the paragraph of the entry, for code and data alike."""
    state = initial_state(CpuMode.REAL16, entry, boot=BOOT, stack=0x7C00)
    assert [state.segments[name].selector for name in ("cs", "ds", "es", "ss")] == [
        selector,
        selector,
        selector,
        0,
    ]
    assert (state.regs["rip"], state.regs["rsp"]) == (ip, 0x7C00)


def test_reset() -> None:
    """The state after power-on is that of the manual's table."""
    state = initial_state(CpuMode.RESET, 0, boot=0, stack=0)
    code = state.segments["cs"]
    assert (code.selector, code.base, code.limit) == (0xF000, 0xFFFF_0000, 0xFFFF)
    assert code.base + state.regs["rip"] == layout.RESET_VECTOR
    assert {k: v for k, v in state.regs.items() if v} == {"rip": 0xFFF0, "rflags": 2, "rdx": 0x600}
    assert state.control == {"cr0": 0x6000_0010, "cr3": 0, "cr4": 0, "efer": 0}
    assert state.tables == {"gdt": (0, 0xFFFF), "idt": (0, 0xFFFF)}
    for name in ("ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        segment = state.segments[name]
        assert (segment.selector, segment.base, segment.limit, segment.present) == (0, 0, 0xFFFF, 1)
    assert (state.segments["tr"].type, state.segments["ldt"].type) == (11, 2)


def test_added_registers() -> None:
    """Registers by name come on top; a name that is none is refused with those that are."""
    state = initial_state(
        CpuMode.PROT32, 0, boot=BOOT, stack=0, regs={"rax": 0x2BAD_B002, "rbx": 1, "rsp": 2}
    )
    assert (state.regs["rax"], state.regs["rbx"], state.regs["rsp"]) == (0x2BAD_B002, 1, 2)
    with pytest.raises(ConfigError, match=r"'eax'.*rax rbx"):
        initial_state(CpuMode.PROT32, 0, boot=BOOT, stack=0, regs={"eax": 1})


@pytest.mark.parametrize(
    ("mode", "entry", "stack"),
    [
        (CpuMode.REAL16, 1 << 20, 0),
        (CpuMode.REAL16, 0, (1 << 20) + 1),
        (CpuMode.LONG64, 1 << 32, 0),
        (CpuMode.PROT32, 0, (1 << 32) + 1),
        (CpuMode.USER64, -1, 0),
    ],
)
def test_out_of_reach(mode: CpuMode, entry: int, stack: int) -> None:
    """An entry or a stack that the mode can't address is refused."""
    with pytest.raises(ConfigError, match=mode.value):
        initial_state(mode, entry, boot=BOOT, stack=stack)


def test_stack_at_4_gib() -> None:
    """A 32-bit stack that ends at 4 GiB has ESP 0: the first push wraps below it."""
    assert initial_state(CpuMode.PROT32, 0, boot=BOOT, stack=1 << 32).regs["rsp"] == 0
    assert initial_state(CpuMode.LONG64, 0, boot=BOOT, stack=1 << 32).regs["rsp"] == 1 << 32


def test_states_are_apart() -> None:
    """Two states share nothing that one could change for the other."""
    one, two = state_of(CpuMode.RESET), state_of(CpuMode.RESET)
    one.regs["rax"] = 1
    one.control["cr0"] = 1
    assert (two.regs["rax"], two.control["cr0"]) == (0, 0x6000_0010)


@pytest.mark.parametrize("mode", list(CpuMode))
def test_state_travels_between_processes(mode: CpuMode) -> None:
    """A state is a value: pickled and back it is equal."""
    state = state_of(mode, 0x8000)
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301 - our own bytes


def test_descriptors_known_from_elsewhere() -> None:
    """The flat descriptors are the numbers that every x86 kernel's GDT has."""
    entries = unpack("<6Q", bytes(memory_of(CpuMode.LONG64)[BOOT : BOOT + 48]))
    assert [f"{entry:016x}" for entry in entries] == [
        "0000000000000000",
        "00af9b000000ffff",
        "00cf93000000ffff",
        "00cffb000000ffff",
        "00cff3000000ffff",
        "00affb000000ffff",
    ]
