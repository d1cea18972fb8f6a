"""From the C loop's records to events: what they are called, what they carry, and that none is missing."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.bus import Bus
from pykvm.trace.event import TraceEvent
from pykvm.trace.exits import RECORD, ExitNames, ExitSource
from pykvm.trace.record import RECORD_BYTES
from pykvm.trace.running_clock import FRACTION, Line

SYNCED = lib.RECORD_REGS | lib.RECORD_SREGS
DONE = SYNCED | lib.RECORD_DONE
CONSOLE = layout.DEBUG_CONSOLE.start


class Clock:
    """A TSC of two ticks a nanosecond that began at tick 0."""

    line = Line(0, 0, (1 << FRACTION) // 2)

    def tick(self) -> Line:
        return self.line

    def piece(self, tsc: int) -> tuple[Line, int]:
        return self.line, 1 << 64


class Ring:
    """A trace ring that a test fills."""

    def __init__(self) -> None:
        self.raw = deque[bytes]()

    def take(self) -> bytes:
        return self.raw.popleft() if self.raw else b""


class Console:
    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass


def record(**fields: Any) -> bytes:
    """One struct trace_record: a byte written to the debug console by default."""
    usual = {
        "enter_tsc": 2000,
        "exit_tsc": 4000,
        "resume_tsc": 4200,
        "address": CONSOLE,
        "data": b"H",
        "reason": lib.KVM_EXIT_IO,
        "count": 1,
        "vcpu": 1,
        "size": 1,
        "flags": DONE | lib.RECORD_WRITE,
        "rip": 0x10_0020,
        "cr3": 0x9_2000,
    }
    return bytes(ffi.buffer(ffi.new("struct trace_record *", {**usual, **fields})))


def source(ring: Ring | None = None, **options: Any) -> ExitSource:
    ports, mmio = Bus("ports"), Bus("MMIO")
    ports.attach(layout.DEBUG_CONSOLE, Console())
    mmio.attach(layout.MMIO_CONSOLE, Console())
    loop = ffi.new("struct exit_loop *")
    names = ExitNames(ports, mmio, lambda address: f"<{address:x}>")
    made: Any = ExitSource(loop, ring or Ring(), clock=Clock(), names=names, **options)  # type: ignore[arg-type]
    made.keep_loop = loop
    found: ExitSource = made
    return found


def events(*records: bytes, **options: Any) -> list[TraceEvent]:
    ring = Ring()
    ring.raw.append(b"".join(records))
    found = list(source(ring, **options).take()[0])
    assert {len(one) for one in found} <= {len(TraceEvent._fields)}, "made without the type's own constructor"
    return found


def event(**fields: Any) -> TraceEvent:
    (found,) = events(record(**fields))
    return found


# ---- the layout


def test_record_is_read_where_c_writes_it() -> None:
    """The struct module's format has every field at the offset that the compiler gave it."""
    wanted = (
        "enter_tsc exit_tsc resume_tsc address data reason count vcpu size flags verb cpl text_bytes rip cr3"
    ).split()
    for name in wanted:
        probe = ffi.new("struct trace_record *")
        ffi.buffer(ffi.addressof(probe, name))[:] = b"\x5a" * ffi.sizeof(
            ffi.typeof(ffi.addressof(probe, name)).item
        )
        found = RECORD.unpack(bytes(ffi.buffer(probe)))
        hits = [i for i, value in enumerate(found) if value not in (0, bytes(8))]
        assert hits == [wanted.index(name)]


def test_record_has_the_size_that_readers_know() -> None:
    """320 bytes, five cache lines."""
    assert RECORD.size == RECORD_BYTES == 320


# ---- what an event says


def test_port_write_names_device_way_and_data() -> None:
    """Times are ns of the clock; the guest's stay before the exit is known, and who is at work."""
    found = event()
    assert found.time_ns == 2000
    assert (found.duration_ns, found.guest_ns) == (100, 1000)
    assert (found.kind, found.layer, found.name, found.via, found.vcpu) == ("exit", "pykvm", "IO", "IO", 1)
    expected = [("way", "out"), ("port", CONSOLE), ("device", "Console"), ("offset", 0), ("size", 1)]
    assert list(found.args) == expected
    assert (found.data, found.rip, found.where, found.cr3, found.cpl) == (
        b"H",
        0x10_0020,
        "<100020>",
        0x9_2000,
        0,
    )


def test_port_read_is_the_other_way() -> None:
    """Without the write flag the guest read, and the data are the answer."""
    found = event(flags=DONE, data=b"\x60")
    assert found.args[0] == ("way", "in")
    assert found.data == b"\x60"


def test_an_address_of_nobody_has_no_device() -> None:
    """And says no offset either."""
    assert [name for name, _ in event(address=0x1234).args] == ["way", "port", "size"]


def test_memory_mapped_io_says_gpa_and_offset() -> None:
    """The offset is the device's own."""
    found = event(
        reason=lib.KVM_EXIT_MMIO, address=layout.MMIO_CONSOLE.start + 8, size=8, count=0, data=b"12345678"
    )
    assert dict(found.args)["gpa"] == layout.MMIO_CONSOLE.start + 8
    assert (dict(found.args)["offset"], found.data, found.name) == (8, b"12345678", "MMIO")


def test_string_io_carries_its_beginning() -> None:
    """Up to 32 bytes; how many times there were stands in the arguments."""
    found = event(count=100, text=b"=" * 32, text_bytes=32, data=b"=" * 8)
    assert dict(found.args)["count"] == 100
    assert found.data == b"=" * 32


def test_a_fast_port_says_its_verb() -> None:
    """Who answered: the C loop, and how."""
    assert dict(event(verb=lib.VERB_APPEND).args)["verb"] == "append"


def test_a_write_to_the_post_port_is_a_mark() -> None:
    """A read of it is an exit like any other."""
    assert event(address=layout.POST.start).kind == "mark"
    assert event(address=layout.POST.start, flags=DONE).kind == "exit"


def test_hypercall_has_its_name_its_arguments_and_its_result() -> None:
    """The exit that brought it stays known."""
    found = event(
        flags=DONE | lib.RECORD_WRITE | lib.RECORD_CALL | lib.RECORD_RESULT,
        call_number=lib.HC_CONSOLE_WRITE,
        call_args=[0x8000, 5, 0, 0],
        call_result=5,
        text=b"Hello",
        text_bytes=5,
        address=layout.HYPERCALL.start,
        size=4,
    )
    assert (found.kind, found.name, found.via, found.result) == ("hypercall", "console_write", "IO", 5)
    assert found.args == (("gpa", 0x8000), ("size", 5))
    assert found.data == b"Hello"


def test_unknown_hypercall_is_shown_with_all_arguments() -> None:
    """By its number."""
    flags = DONE | lib.RECORD_CALL | lib.RECORD_RESULT
    found = event(flags=flags, call_number=0xBAD, call_args=[1, 2, 3, 4], call_result=-38)
    assert (found.name, found.result) == ("call 0xbad", -38)
    assert [value for _, value in found.args] == [1, 2, 3, 4]


def test_a_call_that_the_guest_did_not_come_back_from_has_no_result() -> None:
    """HC_EXIT writes one, but nobody sees it."""
    flags = SYNCED | lib.RECORD_CALL | lib.RECORD_RESULT
    assert event(flags=flags, call_number=lib.HC_EXIT, call_result=0).result is None


def test_vmcall_is_a_hypercall() -> None:
    """Of KVM's own numbers."""
    found = event(reason=lib.KVM_EXIT_HYPERCALL, address=12, data=b"\1")
    assert (found.kind, found.name, found.via, found.args) == (
        "hypercall",
        "vmcall",
        "HYPERCALL",
        (("number", 12),),
    )


@pytest.mark.parametrize(("cpl", "layer"), [(0, "guest kernel"), (3, "guest user")])
def test_a_step_stands_in_the_layer_that_executes_it(cpl: int, layer: str) -> None:
    """Not in pykvm's, which only looked."""
    found = event(reason=lib.KVM_EXIT_DEBUG, verb=lib.VERB_STEP, cpl=cpl, address=0x1000, size=0, count=0)
    assert (found.kind, found.layer, found.data) == ("step", layer, b"")


@pytest.mark.parametrize(
    ("reason", "name", "args"),
    [
        (lib.KVM_EXIT_HLT, "HLT", ()),
        (lib.KVM_EXIT_X86_RDMSR, "X86_RDMSR", (("msr", 0xE9),)),
        (lib.KVM_EXIT_INTERNAL_ERROR, "INTERNAL_ERROR", (("suberror", 0xE9),)),
        (lib.KVM_EXIT_DEBUG, "DEBUG", (("pc", 0xE9),)),
        (9999, "reason 9999", ()),
    ],
)
def test_other_exits_have_the_header_s_word(reason: int, name: str, args: tuple[Any, ...]) -> None:
    """A reason that nobody knows is a value, too."""
    found = event(reason=reason)
    assert (found.kind, found.name, found.args) == ("exit", name, args)


def test_registers_that_were_not_synced_are_not_shown() -> None:
    """Zeros in a record are no RIP and no CR3."""
    found = event(flags=lib.RECORD_DONE | lib.RECORD_WRITE)
    assert (found.rip, found.where, found.cr3, found.cpl) == (None, "", None, None)


# ---- all of them, in order, in flat memory


@given(st.lists(st.integers(1, 5), max_size=20))
def test_every_record_becomes_one_event_in_order(parts: list[int]) -> None:
    """However the ring was emptied: nothing is lost, doubled or turned round."""
    ring, total = Ring(), sum(parts)
    tsc = iter(range(4000, 4000 + total))
    for size in parts:
        ring.raw.append(b"".join(record(exit_tsc=next(tsc) * 2, resume_tsc=0) for _ in range(size)))
    exits = source(ring)
    found: list[int] = []
    while batch := exits.take()[0]:
        found += [event.time_ns for event in batch]
    assert found == list(range(4000, 4000 + total))


def test_what_the_guest_chooses_does_not_fill_memory() -> None:
    """A guest that touches every address there is: what is remembered about them stays bounded."""
    names = ExitNames(Bus("ports"), Bus("MMIO"))
    for address in range(10_000):
        assert names.shapes[lib.KVM_EXIT_MMIO, address, 1, 1, 0, 0][0] == "MMIO"
    assert len(names.shapes) <= 4096


def test_a_full_ring_waits_for_its_reader_and_loses_nothing() -> None:
    """The vCPU's thread stays in collect() until the tracer has taken."""
    ring = Ring()
    exits = source(ring)
    for _ in range(4):
        ring.raw.append(record())
        exits.collect(lambda: False)
    ring.raw.append(record())
    waiting = threading.Thread(target=exits.collect, args=(lambda: False,))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    taken = 0
    while batch := exits.take()[0]:
        taken += len(batch)
    waiting.join(10)
    assert not waiting.is_alive()
    assert taken == 5


@pytest.mark.parametrize("how", ["run is over", "reader is gone"])
def test_a_vcpu_does_not_wait_for_ever(how: str) -> None:
    """Not for a reader that has gone, and not when the run is to end."""
    ring = Ring()
    exits = source(ring)
    if how == "reader is gone":
        exits.abandon()
    for _ in range(9):
        ring.raw.append(record())
        exits.collect(lambda: how == "run is over")
    assert sum(len(exits.take()[0]) for _ in range(9)) == 9


def test_records_are_kept_for_who_wants_them_raw() -> None:
    """As they were."""
    kept: list[bytes] = []
    ring = Ring()
    ring.raw.append(record())
    source(ring, keep=kept.append).take()
    assert kept == [record()]


def test_an_open_exit_holds_the_others_back() -> None:
    """What has begun and is not over: nobody may say that everything before now has come.

    Nor while an exit may have happened that has no time yet.
    """
    exits: Any = source()
    now = exits.take()[1]
    loop = exits.keep_loop
    loop.outside, loop.open, loop.enter_tsc, loop.exit_tsc = 1, 1, 10**6, 2 * 10**6
    assert exits.take()[1] == 10**6 - 50_000
    assert now > 10**9
    loop.open = 0
    assert exits.take()[1] == 5 * 10**5 - 50_000
    loop.outside = 0
    assert exits.take()[1] > 10**9
