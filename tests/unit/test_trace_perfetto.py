"""Perfetto traces, read back by a decoder of their own: tracks, slices in one another, names, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_parts import ABOUT, Memory, event, events, result, written

from pykvm.trace import perfetto
from pykvm.trace.event import KINDS
from pykvm.trace.perfetto import PerfettoSink

BEGIN, END, INSTANT = 1, 2, 3
Fields = dict[int, list[Any]]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at


def fields(data: bytes) -> Fields:
    """A protobuf message: field number -> values, numbers or bytes."""
    found: Fields = {}
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        value: int | bytes
        value, at = varint(data, at)
        if key & 7 == 2:
            assert at + value <= len(data)
            at, value = at + value, data[at : at + value]
        else:
            assert key & 7 == 0
        found.setdefault(key >> 3, []).append(value)
    return found


class Trace:
    """A trace as a reader sees it: packets in order, then slices by track."""

    def __init__(self, data: bytes) -> None:
        self.packets = [fields(packet) for packet in fields(data).get(1, [])]
        self.names: dict[int, str] = {}
        self.keys: dict[int, str] = {}
        self.tracks: dict[int, tuple[str, int]] = {}
        self.events: list[tuple[int, int, int, str, dict[str, str]]] = []
        for packet in self.packets:
            self._packet(packet)

    def _packet(self, packet: Fields) -> None:
        for interned in map(fields, packet.get(12, [])):
            for number, table in ((2, self.names), (3, self.keys)):
                for entry in map(fields, interned.get(number, [])):
                    table[entry[1][0]] = entry[2][0].decode()
        for about in map(fields, packet.get(60, [])):
            self.tracks[about[1][0]] = (about[2][0].decode(), about.get(5, [0])[0])
        for found in map(fields, packet.get(11, [])):
            notes = {self.keys[n[1][0]]: n[6][0].decode() for n in map(fields, found.get(4, []))}
            name = self.names[found[10][0]] if 10 in found else ""
            self.events.append((packet[8][0], found[11][0], found[9][0], name, notes))

    def path(self, track: int) -> str:
        name, parent = self.tracks[track]
        return f"{self.path(parent)} / {name}" if parent else name

    def slices(self) -> list[tuple[str, str, int, int, int]]:
        """(track, name, depth, from, to) of every slice; they must nest."""
        found = []
        open_: dict[int, list[tuple[str, int]]] = {}
        for time_ns, track, kind, name, _ in sorted(self.events, key=lambda e: e[0]):
            stack = open_.setdefault(track, [])
            if kind == BEGIN:
                stack.append((name, time_ns))
            elif kind == END:
                begun, start = stack.pop()
                found.append((self.path(track), begun, len(stack), start, time_ns))
        assert not any(open_.values())
        return found


def trace(*found: Any) -> Trace:
    out = Memory()
    written(PerfettoSink(out), found, result())  # type: ignore[arg-type]
    assert out.is_closed
    return Trace(out.contents)


def test_an_exit_is_a_slice_and_the_stay_before_it_another() -> None:
    """In the vCPU's group, one on the guest's track, one on that of the layer at work."""
    assert trace(event(10_000)).slices() == [
        ("vCPU 0 / guest", "guest kernel", 0, 9000, 10_000),
        ("vCPU 0 / pykvm", "IO out DebugConsole", 0, 10_000, 10_100),
    ]


def test_a_stay_in_user_mode_is_named_so() -> None:
    """After the level that the guest left."""
    assert trace(event(10_000, cpl=3)).slices()[0][1] == "guest user"


def test_a_hypercall_lies_inside_its_exit() -> None:
    """Two slices of the same length, one in the other."""
    found = trace(event(10_000, kind="hypercall", name="time", args=(), guest_ns=None))
    assert found.slices() == [
        ("vCPU 0 / pykvm", "time", 1, 10_000, 10_100),
        ("vCPU 0 / pykvm", "IO", 0, 10_000, 10_100),
    ]


def test_an_event_without_an_end_is_an_instant() -> None:
    """It opens nothing."""
    found = trace(event(10_000, duration_ns=None, guest_ns=None))
    assert found.slices() == []
    assert [kind for *_, kind, _, _ in found.events] == [INSTANT]


def test_syscalls_have_a_track_for_each_process() -> None:
    """They overlap on one vCPU."""
    one = event(
        1000, kind="syscall", name="read", via="", layer="guest kernel", guest_ns=None, task="sh", args=()
    )
    other = one._replace(time_ns=1050, task="", cr3=0x5000)
    assert [path for path, *_ in trace(one, other).slices()] == [
        "guest processes / sh",
        "guest processes / cr3 0x5000",
    ]


def test_arguments_result_data_and_instruction_are_notes() -> None:
    """Of the slice that they belong to."""
    call = event(
        kind="hypercall", name="mark", args=(("value", 7),), result=-22, code="out dx, eax", guest_ns=None
    )
    outer, inner = (notes for *_, kind, _, notes in trace(call).events if kind == BEGIN)
    assert outer == {}
    expected = {"value": "7", "at": "_start+0x20", "cr3": "0x92000", "result": "-22 EINVAL", "data": "H"}
    assert inner == {**expected, "instruction": "out dx, eax"}


def test_marks_have_their_value_in_their_name() -> None:
    """Each its own, although they come from one place."""
    found = trace(*(event(i * 1000, kind="mark", data=bytes([i]), guest_ns=None) for i in range(3)))
    names = [name for path, name, *_ in found.slices() if path.endswith("pykvm")]
    assert names == ["mark 0x00", "mark 0x01", "mark 0x02"]


def test_the_clocks_are_tied_together() -> None:
    """The first packets: state cleared, time is CLOCK_MONOTONIC, and how that relates to the time of day."""
    first, second, *_ = trace().packets
    assert first[13] == [3]
    assert fields(first[59][0])[58] == [3]
    clocks = {c[1][0]: c[2][0] for c in map(fields, fields(second[6][0])[1])}
    assert (clocks[3], clocks[1]) == (ABOUT.start_ns, ABOUT.start_unix_ns)


@settings(max_examples=25)
@given(st.lists(events(), max_size=5))
def test_any_events_make_a_trace_that_can_be_read(found: list[Any]) -> None:
    """Every packet belongs to the one sequence, and every name is known before it is used."""
    made = trace(*found)
    assert all(packet[10] == [1] for packet in made.packets)
    assert len(made.events) >= len(found)


def known_to(message: Any) -> bool:
    """Whether Perfetto's schema knows every field of a message and of those in it."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(message)):
        return False
    parts = [value for field, value in message.ListFields() if field.message_type]
    flat = [one for part in parts for one in (part if isinstance(part, Sequence) else [part])]
    return all(map(known_to, flat))


def test_perfetto_s_own_schema_reads_it_all() -> None:
    """Every field is known, names and tracks are told before their use, slices open and close in order."""
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema

    call = event(3000, kind="hypercall", name="time", args=(("way", "x"),), result=-14, code="out dx, al")
    kinds = [event(500 + 100 * i, kind=kind, duration_ns=50, guest_ns=None) for i, kind in enumerate(KINDS)]
    syscall = event(3100, kind="syscall", name="read", task="init[1]", duration_ns=None, guest_ns=None)
    out = Memory()
    written(PerfettoSink(out), [*kinds, call, syscall, event(90_000, data=bytes(32))], result())  # type: ignore[arg-type]
    found = schema.Trace.FromString(out.contents)
    assert known_to(found)
    names, tracks, open_ = set[int](), set[int](), Counter[int]()
    last: dict[int, int] = {}
    for packet in found.packet:
        names |= {entry.iid for entry in packet.interned_data.event_names}
        if packet.HasField("track_descriptor"):
            about = packet.track_descriptor
            assert about.parent_uuid in {0, *tracks}
            tracks.add(about.uuid)
        if packet.HasField("track_event"):
            one = packet.track_event
            assert one.track_uuid in tracks
            assert last.get(one.track_uuid, 0) <= packet.timestamp
            last[one.track_uuid] = packet.timestamp
            open_[one.track_uuid] += {BEGIN: 1, END: -1}.get(one.type, 0)
            assert open_[one.track_uuid] >= 0
            assert one.type == END or one.name_iid in names
    assert found.packet[0].trace_packet_defaults.timestamp_clock_id == schema.BUILTIN_CLOCK_MONOTONIC
    assert not +open_
    assert len(tracks) >= 5


@given(st.integers(0, 2**63), st.binary(max_size=5000))
def test_the_fast_way_writes_what_the_plain_way_writes(ns: int, body: bytes) -> None:
    """The same packet, but for zeros in front of the time's bits."""
    (packet,) = fields(perfetto._at(ns, body))[1]
    found = fields(packet)
    assert (found[8], found[11], found[10], found[13]) == ([ns], [body], [1], [2])


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_a_trace_that_was_cut_between_packets_still_reads(keep: float) -> None:
    """What a full disk leaves."""
    out = Memory()
    written(PerfettoSink(out), [event(i * 1000) for i in range(50)])  # type: ignore[arg-type]
    data, ends, at = out.contents, [0], 0
    while at < len(data):
        length, body = varint(data, at + 1)
        at = body + length
        ends.append(at)
    Trace(data[: ends[int(len(ends) * keep)]])


def test_what_is_remembered_stays_bounded() -> None:
    """A guest with ever new arguments and data."""
    sink = PerfettoSink(Memory())  # type: ignore[arg-type]
    sink.write([event(i, args=(("gpa", i),), data=i.to_bytes(4, "little")) for i in range(9000)])
    assert max(len(sink._known), len(sink._data)) <= 8192
