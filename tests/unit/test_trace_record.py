"""Trace records: stamped by C, taken from the ring, decoded; none lost, doubled or out of order."""

from __future__ import annotations

import pickle
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.exits import RunView
from pykvm.trace.clock import TscClock
from pykvm.trace.record import RECORD_BYTES, TraceRecord, TraceRecords, TraceRing

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_BYTES = ffi.sizeof("struct kvm_run")
AREA_BYTES = RUN_BYTES + 4096
IN, OUT = 0, 1
CAPACITY = 4


class Vcpu:
    """The C side of one vCPU: records exits that were put into its kvm_run."""

    def __init__(self, number: int = 0) -> None:
        self.view = RunView(bytearray(AREA_BYTES))
        self.view.run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS
        self.loop = ffi.new("struct exit_loop *", {"fd": -1, "vcpu": number, "run_bytes": AREA_BYTES})
        self.loop.run = self.view.run
        self.now = 100

    def opens(self, rip: int = 0) -> bool:
        """An exit has come: whether its record found room, or was dropped."""
        self.view.synced.regs.rip = rip
        self.loop.stay_tsc, self.loop.exit_tsc = self.now, self.now + 10
        self.now += 30
        return bool(lib.record_open(self.loop))

    def closes(self, flags: int = lib.RECORD_DONE) -> None:
        """The exit has been answered."""
        lib.record_close(self.loop, self.now - 10, flags)

    def records(self, rip: int = 0) -> bool:
        found = self.opens(rip)
        self.closes()
        return found

    def io(self, direction: int, size: int, data: bytes, count: int = 1, port: int = 0x3F8) -> None:
        self.view.run.exit_reason = lib.KVM_EXIT_IO
        io = self.view.io
        io.direction, io.size, io.count, io.port, io.data_offset = direction, size, count, port, RUN_BYTES
        self.view.bytes[RUN_BYTES : RUN_BYTES + len(data)] = data


@pytest.fixture
def vcpu() -> Vcpu:
    return Vcpu()


def ring_of(vcpu: Vcpu, capacity: int = CAPACITY, **options: Any) -> TraceRing:
    options = {"keep_newest": False, **options}
    return TraceRing(ffi.addressof(vcpu.loop, "trace"), capacity, **options)


def decoded(raw: bytes) -> list[TraceRecord]:
    return list(TraceRecords(raw, TscClock()))


def rips(raw: bytes) -> list[int]:
    return [record.regs["rip"] for record in decoded(raw)]


@pytest.fixture
def ring(vcpu: Vcpu) -> Iterator[TraceRing]:
    ring = ring_of(vcpu)
    yield ring
    ring.close()


def only(ring: TraceRing) -> TraceRecord:
    (record,) = decoded(ring.take())
    return record


# ---- what a record holds


def test_a_port_write_is_recorded_whole(vcpu: Vcpu, ring: TraceRing) -> None:
    """Port, width, data, registers and who answered."""
    vcpu.io(OUT, 4, b"\x78\x56\x34\x12")
    vcpu.view.synced.regs.rax = 0x12345678
    vcpu.opens(rip=0x1000)
    vcpu.closes()
    record = only(ring)
    assert (record.reason, record.address, record.size, record.count) == ("IO", 0x3F8, 4, 1)
    assert (record.is_write, record.data, record.verb) == (True, b"\x78\x56\x34\x12", "")
    assert (record.regs["rip"], record.regs["rax"]) == (0x1000, 0x12345678)
    assert str(record) == "IO wrote 0x12345678 to port 0x3f8 at rip=0x1000"


def test_a_port_read_is_recorded_with_its_answer(vcpu: Vcpu, ring: TraceRing) -> None:
    """The data is what the guest got, not what lay there before."""
    vcpu.io(IN, 2, b"\xaa\xaa")
    vcpu.opens()
    vcpu.view.answer_io(b"\x34\x12")
    vcpu.closes()
    record = only(ring)
    assert (record.is_write, record.data) == (False, b"\x34\x12")
    assert str(record).startswith("IO read 0x1234 from port 0x3f8")


def test_an_mmio_read_is_recorded_with_its_answer(vcpu: Vcpu, ring: TraceRing) -> None:
    """Likewise, at a guest-physical address."""
    vcpu.view.run.exit_reason = lib.KVM_EXIT_MMIO
    vcpu.view.mmio.phys_addr, vcpu.view.mmio.len, vcpu.view.mmio.is_write = 0xD0000000, 4, 0
    vcpu.opens()
    vcpu.view.answer_mmio(b"\x01\x02\x03\x04")
    vcpu.closes()
    record = only(ring)
    assert (record.reason, record.address, record.size, record.data) == (
        "MMIO",
        0xD0000000,
        4,
        b"\x01\x02\x03\x04",
    )


def test_an_rdmsr_is_recorded_with_its_answer(vcpu: Vcpu, ring: TraceRing) -> None:
    """The MSR's index, and the value that the guest got."""
    vcpu.view.run.exit_reason = lib.KVM_EXIT_X86_RDMSR
    vcpu.view.msr.index = 0xC0000082
    vcpu.opens()
    vcpu.view.msr.data = 0x1122334455667788
    vcpu.closes()
    record = only(ring)
    assert (record.address, record.is_write) == (0xC0000082, False)
    assert int.from_bytes(record.data, "little") == 0x1122334455667788


def test_a_string_write_keeps_its_beginning_and_its_length(vcpu: Vcpu, ring: TraceRing) -> None:
    """8 bytes of data, 32 of text, and how often it was repeated."""
    text = bytes(range(65, 65 + 50))
    vcpu.io(OUT, 1, text, count=50)
    vcpu.records()
    record = only(ring)
    assert (record.count, record.size, record.data, record.text) == (50, 1, text[:8], text[:32])


def test_times_are_in_order_and_end_with_the_next_entry(vcpu: Vcpu, ring: TraceRing) -> None:
    """KVM_RUN called, returned, answered; `is_done` says that the guest went on."""
    vcpu.io(OUT, 1, b"x")
    vcpu.records()
    vcpu.opens()
    vcpu.closes(0)
    first, last = decoded(ring.take())
    assert first.enter_ns < first.exit_ns < first.resume_ns
    assert (first.is_done, last.is_done) == (True, False)


@pytest.mark.parametrize("valid", [0, lib.KVM_SYNC_X86_REGS, lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS])
def test_only_what_kvm_synced_is_told(vcpu: Vcpu, ring: TraceRing, valid: int) -> None:
    """Registers that are not there are left out, never shown as 0."""
    vcpu.view.run.kvm_valid_regs = valid
    vcpu.view.synced.sregs.cr3 = 0x9000
    vcpu.records(rip=5)
    regs = only(ring).regs
    assert ("rip" in regs) == bool(valid & lib.KVM_SYNC_X86_REGS)
    assert regs.get("cr3") == (0x9000 if valid & lib.KVM_SYNC_X86_SREGS else None)


@given(st.integers(0, (1 << 32) - 1) | st.integers(0, 45), st.binary(min_size=64, max_size=64))
def test_any_exit_can_be_recorded_decoded_and_printed(reason: int, noise: bytes) -> None:
    """Whatever the bytes of kvm_run say."""
    vcpu = Vcpu()
    ring = ring_of(vcpu)
    vcpu.view.run.exit_reason = reason
    vcpu.view.bytes[lib.RUN_UNION_OFFSET : lib.RUN_UNION_OFFSET + 64] = noise
    vcpu.records(rip=7)
    record = only(ring)
    assert record.regs["rip"] == 7
    assert str(record)
    ring.close()


# ---- rings


def test_a_stopping_ring_is_full_until_it_is_taken(vcpu: Vcpu, ring: TraceRing) -> None:
    """It refuses the next record and takes it when there is room: nothing is lost."""
    assert all(vcpu.records(rip) for rip in range(CAPACITY))
    assert not vcpu.opens(99)
    assert rips(ring.take()) == list(range(CAPACITY))
    assert vcpu.records(99)
    assert rips(ring.take()) == [99]
    assert ring.take() == b""
    assert ring.dropped == 0


def test_a_dropping_ring_keeps_the_oldest_and_counts(vcpu: Vcpu) -> None:
    """What comes while it is full is gone, and the number of them is known."""
    ring = ring_of(vcpu, drop=True)
    assert all(vcpu.records(rip) for rip in range(CAPACITY + 3))
    assert rips(ring.take()) == list(range(CAPACITY))
    assert ring.dropped == 3
    ring.close()


def test_a_flight_recorder_keeps_the_newest(vcpu: Vcpu) -> None:
    """take() may be asked again: it empties nothing."""
    ring = ring_of(vcpu, keep_newest=True)
    for rip in range(CAPACITY + 3):
        assert vcpu.records(rip)
    assert rips(ring.take()) == rips(ring.take()) == [3, 4, 5, 6]
    assert ring.dropped == 0
    ring.close()


def test_an_open_record_is_nobody_s_yet(vcpu: Vcpu, ring: TraceRing) -> None:
    """The reader gets it when it is complete."""
    vcpu.opens(1)
    assert ring.take() == b""
    vcpu.closes()
    assert rips(ring.take()) == [1]


@given(st.lists(st.integers(0, 6), max_size=60), st.sampled_from(["stop", "drop", "newest"]))
def test_rings_agree_with_a_queue(steps: list[int], mode: str) -> None:
    """Any mixture of bursts of exits and readers (0): what comes out is what a queue of that size gives."""
    vcpu = Vcpu()
    ring = ring_of(vcpu, keep_newest=mode == "newest", drop=mode == "drop")
    model: deque[int] = deque(maxlen=CAPACITY if mode == "newest" else None)
    made = dropped = 0
    for step in steps:
        if step == 0:
            assert rips(ring.take()) == list(model)
            if mode != "newest":
                model.clear()
        for _ in range(step):
            has_room = mode == "newest" or len(model) < CAPACITY
            if not has_room and mode == "stop":
                assert not vcpu.opens(made)
                break
            assert vcpu.records(made)
            if has_room:
                model.append(made)
            else:
                dropped += 1
            made += 1
    assert rips(ring.take()) == list(model)
    assert ring.dropped == dropped
    ring.close()


def test_a_closed_ring_records_nothing(vcpu: Vcpu, ring: TraceRing) -> None:
    """The loop goes on without it; closing gives the memory back."""
    ring.close()
    assert vcpu.records()
    assert vcpu.loop.open == 0


# ---- records in a row


def row(*numbers: int, vcpu: int = 0, start: int = 100) -> bytes:
    source = Vcpu(vcpu)
    source.now = start
    ring = ring_of(source, 16)
    for number in numbers:
        source.records(number)
    raw = ring.take()
    ring.close()
    return raw


def test_a_row_is_a_sequence() -> None:
    """Length, indices from both ends, slices with steps, and an end."""
    records = TraceRecords(row(*range(10)), TscClock())
    assert len(records) == 10
    assert records[3].regs["rip"] == 3
    assert records[-1].regs["rip"] == 9
    assert [r.regs["rip"] for r in records[2:5]] == [2, 3, 4]
    assert [r.regs["rip"] for r in records[::-3]] == [9, 6, 3, 0]
    assert isinstance(records[1:2], TraceRecords)
    with pytest.raises(IndexError):
        records[10]


def test_a_row_equals_what_it_holds() -> None:
    """Another row or a tuple of the same records; nothing else."""
    clock = TscClock()
    records = TraceRecords(row(1, 2), clock)
    assert records == TraceRecords(row(1, 2), clock) == tuple(records)
    assert records != records[:1]
    assert TraceRecords(b"", clock) == ()
    assert records != 5


def test_a_row_survives_pickling() -> None:
    """It comes out of another process as it went in."""
    records = TraceRecords(row(1, 2, 3), TscClock())
    assert pickle.loads(pickle.dumps(records)) == records  # noqa: S301 - our own bytes


def test_a_torn_end_is_cut_off() -> None:
    """Bytes that are no whole record are none."""
    raw = row(1, 2)
    assert len(TraceRecords(raw[:-1], TscClock())) == 1
    assert len(raw) == 2 * RECORD_BYTES


def test_several_vcpus_become_one_row_in_order_of_time() -> None:
    """Each one's own order is kept."""
    parts = [row(0, 1, 2, vcpu=0, start=100), b"", row(10, 11, 12, vcpu=1, start=115)]
    merged = TraceRecords.merged(parts, TscClock())
    assert [(r.vcpu, r.regs["rip"]) for r in merged] == [(0, 0), (1, 10), (0, 1), (1, 11), (0, 2), (1, 12)]
    assert [r.exit_ns for r in merged] == sorted(r.exit_ns for r in merged)
