"""The paravirtual ABI's host side without a KVM: versions, answers, records, rings, marks."""

from __future__ import annotations

import os
import select
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.call_rings import CallRings
from pykvm.errors import ConfigError, GuestAddressError
from pykvm.exits import HypercallExit
from pykvm.hypercall import CALLS, HypercallPort, HypercallRegister, Hypercalls
from pykvm.memory import GuestMemory
from pykvm.spec import MachineSpec
from pykvm.transports import Marks, Transports

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
CALL_AT = 0x8_0000
RING_AT = 0x9_0000
HEADER, CALL = 128, 48
U64 = st.integers(0, (1 << 64) - 1)


class Host:
    """A table of calls that notes what reaches the machine."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.printed = bytearray()
        self.exits: list[int] = []
        self.marks: list[int] = []
        self.record: Any = ffi.NULL
        self.calls = Hypercalls(
            memory,
            output=self.printed.extend,
            on_exit=self.exits.append,
            on_mark=self.marks.append,
            record=lambda: self.record,
            read=lambda _: b"",
            wait=lambda *_: None,
        )

    def ask(self, number: int, *args: int, abi: int = lib.HYPERCALL_ABI_VERSION) -> int:
        """One call of the struct at CALL_AT; its result."""
        call = ffi.new("struct hypercall *", {"number": number, "abi": abi, "arg": list(args)})
        self.memory.write(CALL_AT, ffi.buffer(call))
        self.calls.at(CALL_AT)
        return int.from_bytes(self.memory.read(CALL_AT + lib.HC_RESULT, 8), "little", signed=True)


@pytest.fixture
def host() -> Iterator[Host]:
    with GuestMemory(MIB) as memory:
        yield Host(memory)


# ---- the table of calls


@pytest.mark.parametrize(
    ("abi", "version"), [(0, 1), (1, 1), (2, 2), (3, lib.HYPERCALL_ABI_VERSION), (1 << 31, 2)]
)
def test_version_is_what_both_sides_speak(host: Host, abi: int, version: int) -> None:
    """A guest that was built against version 1 finds version 1, and a newer one what the host has."""
    assert host.ask(lib.HC_VERSION, abi=abi) == version


def test_a_machine_without_more_offers_the_least(host: Host) -> None:
    """OUT alone, and no disk."""
    assert host.ask(lib.HC_FEATURES) == lib.HC_HAS_OUT | lib.HC_HAS_OUT << lib.HC_PREFERRED_SHIFT
    assert {host.ask(number, 0, 1, 0) for number in (0x10, 0x11, 0x12)} == {lib.HC_ENODEV}


@pytest.mark.parametrize("number", [lib.HC_NOTHING, 15, 0x13, 0x1234, 0x7FFF_FFFF])
def test_an_unknown_number_is_an_error(host: Host, number: int) -> None:
    """ENOSYS, and nothing else happens."""
    assert host.ask(number, 1, 2, 3, 4) == lib.HC_ENOSYS


def test_memory_map_tells_ram_and_rom(host: Host) -> None:
    """Every slot is a range; only whole ones are written, and their number is told all the same."""
    assert host.ask(lib.HC_MEMORY_MAP, 0x1000, 24) == 1
    (found,) = ffi.from_buffer("struct memory_range[]", host.memory.read(0x1000, 24))
    assert (found.start, found.size_bytes, found.kind, found.reserved) == (0, MIB, lib.MEMORY_RAM, 0)
    with GuestMemory(2 * MIB, rom=bytes(1 << 16)) as memory:
        host = Host(memory)
        assert host.ask(lib.HC_MEMORY_MAP, 0x1000, 3 * 24 + 23) == 4
        ranges = ffi.from_buffer("struct memory_range[]", memory.read(0x1000, 4 * 24))
        kinds = [(r.start, r.kind) for r in ranges]
        assert kinds == [(0, 1), (0xF_0000, lib.MEMORY_ROM), (MIB, 1), (0, 0)]
        assert host.ask(lib.HC_MEMORY_MAP, 0xF_0000, 24) == lib.HC_EFAULT


@pytest.mark.parametrize("gpa", [MIB - 47, MIB, 1 << 40, (1 << 64) - 8])
def test_a_struct_outside_memory_is_told_in_the_trace(host: Host, gpa: int) -> None:
    """There is no place for an answer: an error, and a record that names the address."""
    host.record = ffi.new("struct trace_record *")
    with pytest.raises(GuestAddressError):
        host.calls.at(gpa)
    record = host.record
    assert (record.call_number, record.call_args[0]) == (lib.HC_NOTHING, gpa)
    assert (record.call_result, CALLS[record.call_number].name) == (lib.HC_EFAULT, "unreadable")
    assert record.flags == lib.RECORD_CALL | lib.RECORD_RESULT


def test_a_bad_pointer_is_an_error_and_a_record(host: Host) -> None:
    """The trace has the call with its arguments and the error."""
    host.record = ffi.new("struct trace_record *")
    assert host.ask(lib.HC_CONSOLE_WRITE, 1 << 60, 5) == lib.HC_EFAULT
    record = host.record
    assert (record.call_number, list(record.call_args)[:2]) == (lib.HC_CONSOLE_WRITE, [1 << 60, 5])
    assert record.call_result == lib.HC_EFAULT
    assert record.flags & lib.RECORD_RESULT


def test_a_register_is_called_at_its_beginning_alone(host: Host) -> None:
    """A store of 4 or 8 bytes at offset 0 is a call; one behind it is lost; a load answers the version."""
    host.ask(lib.HC_MARK, 7)
    register, port = HypercallRegister(host.calls), HypercallPort(host.calls)
    register.write(0, CALL_AT.to_bytes(8, "little"))
    register.write(4, CALL_AT.to_bytes(4, "little"))
    port.write(0, CALL_AT.to_bytes(4, "little"))
    assert host.marks == [7, 7, 7]
    assert register.read(0, 4) == port.read(0, 4) == lib.HYPERCALL_ABI_VERSION.to_bytes(4, "little")


# ---- what a machine offers


class Kvm:
    """A VM as far as transports look at it."""

    def __init__(
        self, module: str, capability: int = 1 << 12, *, has_irqchip: bool = False, doorbells: int = 1
    ) -> None:
        self.kvm = SimpleNamespace(module=lambda: module)
        self.capability = capability
        self.has_irqchip = has_irqchip
        self.doorbells = doorbells
        self.enabled: list[tuple[str, int]] = []
        self.fds: list[int] = []

    def check_extension(self, name: str) -> int:
        return {"KVM_CAP_EXIT_HYPERCALL": self.capability, "KVM_CAP_IOEVENTFD": self.doorbells}[name]

    def enable_cap(self, name: str, value: int) -> None:
        self.enabled.append((name, value))

    def ioeventfd(self, eventfd: int, address: int, size: int, *, pio: bool) -> None:
        assert (address, size, pio) == (lib.HYPERCALL_DOORBELL_PORT, 4, True)
        self.fds.append(eventfd)

    def irqfd(self, eventfd: int, gsi: int) -> None:
        assert gsi == lib.CALL_RING_GSI
        self.fds.append(eventfd)


def features(vm: Any, only: str | None = None) -> tuple[int, int]:
    """What HC_FEATURES answers: the bits, and the preferred one."""
    rings = SimpleNamespace()
    transports: Any = Transports(vm, [], None, rings, only=only, has_disk=False)  # type: ignore[arg-type]
    found = transports.more_calls()[lib.HC_FEATURES](None)
    return found & 0xFFFF_FFFF, found >> lib.HC_PREFERRED_SHIFT


def test_all_that_works_is_offered() -> None:
    """VMCALL only on a KVM with the CPU's virtualization, whatever the capability says; OUT is preferred."""
    rest = lib.HC_HAS_OUT | lib.HC_HAS_MMIO | lib.HC_HAS_RING
    full = Kvm("kvm_intel", has_irqchip=True)
    assert features(full) == (rest | lib.HC_HAS_VMCALL | lib.HC_HAS_RING_INTERRUPT, lib.HC_HAS_OUT)
    assert full.enabled == [("KVM_CAP_EXIT_HYPERCALL", 1 << 12)]
    for vm in (Kvm("kvm_pvm"), Kvm("unknown"), Kvm("kvm_amd", 0)):
        assert features(vm) == (rest, lib.HC_HAS_OUT)
        assert not vm.enabled


@pytest.mark.parametrize("only", ["out", "mmio", "vmcall", "ring"])
def test_one_transport_alone(only: str) -> None:
    """The one that was asked for, and OUT, by which the guest asks."""
    bit = getattr(lib, f"HC_HAS_{only.upper()}")
    assert features(Kvm("kvm_amd"), only) == (lib.HC_HAS_OUT | bit, bit)


def test_a_transport_that_is_not_there_is_refused() -> None:
    """Before the guest starts, with a line that says what to do; words that are none likewise."""
    with pytest.raises(ConfigError, match="use out, mmio or ring"):
        features(Kvm("kvm_pvm"), "vmcall")
    with pytest.raises(ConfigError, match="use out or mmio"):
        features(Kvm("kvm_intel", doorbells=0), "ring")
    assert not features(Kvm("kvm_intel", doorbells=0))[0] & lib.HC_HAS_RING
    with pytest.raises(ConfigError, match="out, mmio, vmcall, ring"):
        MachineSpec(transport="carrier pigeon").check()
    with pytest.raises(ConfigError, match="board pykvm"):
        MachineSpec(transport="mmio", board="testdev").check()


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        ((lib.HYPERCALL_VMCALL_KEY, 1, CALL_AT), 0),
        ((lib.HYPERCALL_VMCALL_KEY, 1, MIB), lib.HC_EFAULT),
        ((0x3000, 1, 0x10), -1000),
    ],
)
def test_vmcall_is_answered_in_its_register(host: Host, args: tuple[int, ...], answer: int) -> None:
    """0 for a call of ours, EFAULT where its struct is nowhere, KVM's own ENOSYS for what is not ours."""
    host.ask(lib.HC_MARK, 1)
    transports: Any = Transports(Kvm("kvm_amd"), [], None, SimpleNamespace(), only=None, has_disk=False)  # type: ignore[arg-type]
    transports.calls = host.calls
    hypercall = SimpleNamespace(ret=None)
    vcpu = SimpleNamespace(view=SimpleNamespace(hypercall=hypercall))
    transports.on_vmcall(vcpu, HypercallExit(lib.HYPERCALL_VMCALL, (*args, 0, 0, 0)))
    assert hypercall.ret == answer % (1 << 64)
    assert len(host.marks) == (2 if answer == 0 else 1)


# ---- marks


def test_marks_from_c_and_python_are_in_order() -> None:
    """Whoever sees a mark first, the list is in order of time, and bounded."""
    shared = ffi.new("struct loop_shared *")
    marks = Marks(ffi.addressof(shared, "marks"))
    call = ffi.new("struct hypercall *", {"number": lib.HC_MARK})
    expected = list(range(1000))
    by_python = 0
    for value in expected:
        call.arg[0] = value
        if lib.fast_call(shared, ffi.NULL, call) != lib.ANSWERED:
            marks.add(value)
            by_python += 1
    assert 0 < by_python < 10
    assert [value for value, _ in marks.all()] == expected
    assert marks.warnings() == ()


def test_marks_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that marks without end costs no memory without end, and the result says so."""
    monkeypatch.setattr("pykvm.transports._MARKS_MOST", 3)
    marks = Marks(ffi.new("struct byte_ring *"))
    for value in range(5):
        marks.add(value)
    assert [value for value, _ in marks.all()] == [0, 1, 2]
    assert marks.warnings() == ("2 marks of the guest behind the first 3 were not kept",)


# ---- rings


@contextmanager
def rings_of(host: Host, vm: Any = None) -> Iterator[CallRings]:
    """Rings in `host`'s memory, served by their thread."""
    shared = ffi.new("struct loop_shared *")
    console, taken = ffi.new("uint8_t[]", 256), ffi.new("uint8_t[]", 256)
    shared.console.bytes, shared.console.capacity = console, 256
    shared.slot_count = 1
    (slot,) = host.memory.slots
    shared.slots[0].size, shared.slots[0].host = slot.size_bytes, ffi.cast("uint8_t *", slot.hva)

    def drain() -> None:
        size = lib.byte_ring_read(ffi.addressof(shared, "console"), taken, 256)
        host.printed.extend(bytes(ffi.buffer(taken, size)))

    failures: list[BaseException] = []
    a_vm: Any = vm or Kvm("kvm_amd")
    rings = CallRings(
        a_vm,
        host.memory,
        shared,
        lock=threading.RLock(),
        drain=drain,
        on_start=lambda: None,
        on_failure=failures.append,
    )
    try:
        yield rings
    finally:
        rings.stop()
        drain()
        rings.close()
        shared.slot_count = 0
    assert failures == []


def announce(host: Host, rings: CallRings, gpa: int = RING_AT, size: int | None = None, **fields: int) -> int:
    """Write a ring's header and announce it: the result."""
    header = {"header_bytes": HEADER, "call_bytes": CALL, "capacity": 8} | fields
    flags = header.pop("flags", 0)
    host.memory.write(gpa, ffi.buffer(ffi.new("struct call_ring *", header)))
    size = HEADER + 8 * CALL if size is None else size
    return rings.open(ffi.new("struct hypercall *", {"arg": [gpa, size, flags]}), host.calls)


def submit(host: Host, *asked: tuple[int, ...], gpa: int = RING_AT, head: int | None = None) -> None:
    """Put calls into the ring, from its first place on, and move its head."""
    for i, (number, *args) in enumerate(asked):
        call = ffi.new("struct hypercall *", {"number": number, "abi": 2, "arg": args})
        host.memory.write(gpa + HEADER + i * CALL, ffi.buffer(call))
    host.memory.write(gpa + 16, (len(asked) if head is None else head).to_bytes(8, "little"))


def results(host: Host, count: int, gpa: int = RING_AT) -> list[int]:
    """The results of the first calls of a ring."""
    at = [gpa + HEADER + i * CALL + lib.HC_RESULT for i in range(count)]
    return [int.from_bytes(host.memory.read(where, 8), "little", signed=True) for where in at]


def test_a_ring_s_calls_are_done_in_order(host: Host) -> None:
    """By C or by Python, before the thread ends; what is about a vCPU is refused."""
    host.memory.write(0x1000, b"one, two, ")
    asked = [
        (lib.HC_CONSOLE_WRITE, 0x1000, 5),
        (lib.HC_VERSION,),
        (lib.HC_CONSOLE_WRITE, 0x1005, 5),
        (lib.HC_YIELD, 0, 0),
        (lib.HC_CALL_RING, RING_AT, 4096),
        (lib.HC_RANDOM, 1 << 60, 8),
        (0xBAD,),
        (lib.HC_EXIT, 3),
    ]
    with rings_of(host) as rings:
        assert announce(host, rings) == 0
        submit(host, *asked)
        rings.ring_doorbell()
    expected = [5, 2, 5, lib.HC_EINVAL, lib.HC_EINVAL, lib.HC_EFAULT, lib.HC_ENOSYS, 0]
    assert results(host, 8) == expected
    assert (bytes(host.printed), host.exits) == (b"one, two, ", [3])
    assert host.memory.read(RING_AT + 64, 8) == (8).to_bytes(8, "little")


def test_more_text_than_the_console_s_ring_holds(host: Host) -> None:
    """The thread has the ring of bytes emptied as often as it is full: nothing is lost."""
    host.memory.write(0x1000, bytes(range(200)))
    with rings_of(host) as rings:
        announce(host, rings)
        submit(host, *[(lib.HC_CONSOLE_WRITE, 0x1000, 200)] * 8)
        rings.ring_doorbell()
    assert bytes(host.printed) == bytes(range(200)) * 8


def test_a_ring_with_too_many_calls_is_left_alone(host: Host) -> None:
    """head - tail above the capacity: the error is told in the ring, and no call is done."""
    with rings_of(host) as rings:
        announce(host, rings)
        submit(host, *[(lib.HC_MARK, 1)] * 8, head=9)
        rings.ring_doorbell()
    assert ffi.from_buffer("int32_t[]", host.memory.read(RING_AT + 76, 4))[0] == lib.HC_EINVAL
    assert host.marks == []


def test_a_ring_that_fills_itself_does_not_hold_up_the_end(host: Host) -> None:
    """A call may write into its own ring; after the run so many are done as rings can hold, and no more."""
    with rings_of(host) as rings:
        announce(host, rings)
        ring = rings.worker.rings[0]

        def feed(_: Any) -> int:
            ring.header.head = ring.done + 2
            return 0

        host.calls._calls[lib.HC_STATS] = feed
        submit(host, *[(lib.HC_STATS,)] * 8, head=1)
        rings.ring_doorbell()
        rings.stop()
        assert rings.worker.taken > lib.CALL_RINGS_MAX * lib.CALL_RING_CALLS_MAX
        assert ring.header.head == ring.done + 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"header_bytes": 127}, lib.HC_EINVAL),
        ({"call_bytes": 47}, lib.HC_EINVAL),
        ({"capacity": 0}, lib.HC_EINVAL),
        ({"capacity": 3}, lib.HC_EINVAL),
        ({"capacity": 16}, lib.HC_EINVAL),
        ({"capacity": 8192, "size": MIB - RING_AT}, lib.HC_EINVAL),
        ({"capacity": 1 << 63}, lib.HC_EINVAL),
        ({"size": HEADER + 8 * CALL - 1}, lib.HC_EINVAL),
        ({"size": 0}, lib.HC_EINVAL),
        ({"size": 1}, lib.HC_EINVAL),
        ({"gpa": RING_AT + 4}, lib.HC_EINVAL),
        ({"flags": 2}, lib.HC_EINVAL),
        ({"flags": lib.CALL_RING_INTERRUPT}, lib.HC_EINVAL),  # there is no irqchip
    ],
)
def test_a_ring_that_makes_no_sense_is_refused(host: Host, wrong: dict[str, int], error: int) -> None:
    """No ring, no thread, no fd."""
    with rings_of(host) as rings:
        assert announce(host, rings, **wrong) == error
        assert rings.worker.ring_count == 0
        assert rings.worker.doorbell_fd == rings.worker.interrupt_fd == -1


def test_an_interrupt_follows_when_calls_are_done(host: Host) -> None:
    """Also where Python did the last one; the eventfd is the vCPU's interrupt."""
    vm = Kvm("kvm_amd", has_irqchip=True)
    with rings_of(host, vm) as rings:
        assert announce(host, rings, flags=lib.CALL_RING_INTERRUPT) == 0
        interrupts = vm.fds[1]
        for head, number in enumerate([lib.HC_TIME, lib.HC_VERSION, lib.HC_TIME], start=1):
            submit(host, *[(number,)] * head)
            rings.ring_doorbell()
            assert select.select([interrupts], [], [], 10)[0]
            os.eventfd_read(interrupts)


def test_there_are_so_many_rings_and_no_more(host: Host) -> None:
    """The same memory may be announced again; the seventeenth ring is refused."""
    with rings_of(host, Kvm("kvm_amd", has_irqchip=True)) as rings:
        wanted = range(lib.CALL_RINGS_MAX)
        assert [announce(host, rings, flags=lib.CALL_RING_INTERRUPT) for _ in wanted] == list(wanted)
        assert announce(host, rings) == lib.HC_EBUSY


@given(gpa=U64, size=U64, flags=U64, header=st.binary(min_size=HEADER, max_size=HEADER))
def test_any_announcement_is_an_error_or_a_ring_in_memory(
    gpa: int, size: int, flags: int, header: bytes
) -> None:
    """Whatever the guest says: an error, GuestAddressError, which the table makes one of, or a sound ring."""
    with GuestMemory(MIB) as memory:
        host = Host(memory)
        memory.write(RING_AT, header)
        with rings_of(host) as rings:
            for where, much in ((gpa, size), (RING_AT, size % MIB), (RING_AT, MIB - RING_AT)):
                request = ffi.new("struct hypercall *", {"arg": [where, much, flags & 3]})
                try:
                    answer = rings.open(request, host.calls)
                except GuestAddressError:
                    continue
                assert answer < 0


HOSTILE = st.integers(0, (1 << 64) - 1) | st.integers(MIB - 64, MIB + 64) | st.integers(0, 64)
SAFE = [number for number in CALLS if number not in (lib.HC_EXIT, lib.HC_YIELD)]


@given(
    st.lists(
        st.tuples(st.sampled_from(SAFE) | st.integers(0, (1 << 32) - 1), HOSTILE, HOSTILE, HOSTILE),
        max_size=8,
    ),
    st.integers(0, 9) | U64,
)
def test_a_ring_of_hostile_calls_changes_only_what_it_may(
    asked: list[tuple[int, int, int, int]], head: int
) -> None:
    """Every call gets a result or the ring an error; outside the buffers that were named no byte changes."""
    with GuestMemory(MIB) as memory:
        host = Host(memory)
        with rings_of(host) as rings:
            assert announce(host, rings) == 0
            submit(host, *asked, head=head)
            rings.ring_doorbell()
        done = int.from_bytes(memory.read(RING_AT + 64, 8), "little")
        writes = (lib.HC_RANDOM, lib.HC_MEMORY_MAP)
        into = [range(gpa, gpa + size) for number, gpa, size, _ in asked if number in writes]
        if any(RING_AT < where.stop <= MIB and where.start < RING_AT + HEADER + 8 * CALL for where in into):
            return  # they may change the ring itself, and what it asks for with it
        assert done == (head if head <= 8 else 0)
        for number, gpa, size, _ in asked:
            if number in writes and gpa < MIB:
                memory.write(gpa, bytes(min(size, MIB - gpa)))
        memory.write(RING_AT, bytes(HEADER + 8 * CALL))
        assert memory.read(0, MIB).count(0) == MIB
