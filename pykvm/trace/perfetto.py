"""A Perfetto trace, for ui.perfetto.dev: one group of tracks for each vCPU, in it one track for each layer.

The file is a protobuf: a sequence of packets, each written whole, so a file that was cut short still opens.
These fields of Perfetto's public schema (protos/perfetto/trace, which only ever grows) are used::

    Trace            1 packet
    TracePacket      6 clock_snapshot  8 timestamp  10 trusted_packet_sequence_id  11 track_event
                     12 interned_data  13 sequence_flags  59 trace_packet_defaults  60 track_descriptor
    ClockSnapshot    1 clocks (1 clock_id  2 timestamp)  2 primary_trace_clock
    PacketDefaults   58 timestamp_clock_id
    TrackDescriptor  1 uuid  2 name  5 parent_uuid  11 child_ordering  12 sibling_order_rank
    TrackEvent       4 debug_annotations  9 type  10 name_iid  11 track_uuid
    DebugAnnotation  1 name_iid  3 uint_value  4 int_value  6 string_value
    InternedData     2 event_names  3 debug_annotation_names (each: 1 iid  2 name)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pykvm.trace.event import LAYERS
from pykvm.trace.text import bytes_text, result_text, title, track, value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["PerfettoSink"]

_BEGIN, _END, _INSTANT = 1, 2, 3
_EXPLICIT = 3  # ChildTracksOrdering
_CLEARED, _NEEDS_STATE = 1, 2  # SequenceFlags
_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6  # BuiltinClock
_SEQUENCE = 1
_KNOWN_MAX = 8192
_NAMES_MAX = 1 << 16
_ANY = "other"
_GUEST: dict[int | None, str] = {3: "guest user"}


def _varint(value: int) -> bytes:
    """A number of protobuf: seven bits a byte, the lowest first."""
    if value < 0x80:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode(errors="replace"))


def _packet(*fields: bytes) -> bytes:
    return _bytes(1, b"".join((_number(10, _SEQUENCE), *fields)))


_STATE = _number(13, _NEEDS_STATE)
_TAIL = _number(10, _SEQUENCE) + _STATE
_SHORT = 4000
_LENGTHS = [_varint(length) for length in range(_SHORT + 100)]


class _Names:
    """Strings that are written once and then called by a number."""

    def __init__(self, field: int) -> None:
        self._field = field
        self._numbers: dict[str, int] = {}

    def number(self, name: str, out: list[bytes]) -> int:
        """The number of `name`; a new one's definition goes to `out`."""
        found = self._numbers.get(name)
        if found is None:
            if len(self._numbers) >= _NAMES_MAX:  # the guest chooses some of them
                name = _ANY
            found = self._numbers.setdefault(name, len(self._numbers) + 1)
            entry = _number(1, found) + _text(2, name)
            out.append(_packet(_bytes(12, _bytes(self._field, entry)), _STATE))
        return found


class PerfettoSink:
    """Writes each event as a slice, or as an instant where it has no end.

    In a vCPU's group "guest" is the time inside KVM_RUN, named after the level it was left at; the other
    tracks are the layers at work. A hypercall lies inside the exit that brought it. Syscalls have a track
    for each process, because those of several processes overlap on one vCPU.
    """

    def __init__(self, output: TraceOutput) -> None:
        self._output = output
        self._names = _Names(2)
        self._keys = _Names(3)
        self._tracks: dict[tuple[str, ...], int] = {}
        self._known: dict[Any, tuple[bytes, bytes, bytes]] = {}
        self._data: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return self._output.name

    def open(self, about: TraceAbout) -> None:
        """Write what the numbers mean: clocks, and the sequence that all packets belong to."""
        now = {
            _MONOTONIC: about.start_ns,
            _REALTIME: about.start_unix_ns,
            _BOOTTIME: about.start_ns + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns(),
        }
        clocks = b"".join(_bytes(1, _number(1, clock) + _number(2, ns)) for clock, ns in now.items())
        first = _number(13, _CLEARED | _NEEDS_STATE), _bytes(59, _number(58, _MONOTONIC))
        self._output.write(_packet(*first) + _packet(_bytes(6, clocks + _number(2, _MONOTONIC))))

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Write the events' packets, all of them or none."""
        out: list[bytes] = []
        for event in events:
            self._event(event, out)
        self._output.write(b"".join(out))

    def close(self, result: RunResult | None) -> None:  # noqa: ARG002 - the protocol's
        """Close the file."""
        self._output.close()

    # ---- from an event to packets

    def _event(self, event: TraceEvent, out: list[bytes]) -> None:
        start, guest_ns, takes = event.time_ns, event.guest_ns, event.duration_ns
        if guest_ns:
            begin, end = self._guest(event.vcpu, event.cpl, out)
            out += (_at(start - guest_ns, begin), _at(start, end))
        what = (event.kind, event.layer, event.name, event.via, event.args, takes is None)
        mark = event.data if event.kind == "mark" else b""
        key = (what, event.where, event.vcpu, event.task, event.container, event.cr3, event.thread, mark)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = self._known[key] = self._shape(event, out)
        begin, inner, end = known
        more = self._more(event, out)
        if inner:
            out += (_at(start, begin), _at(start, inner + more))
        else:
            out.append(_at(start, begin + more))
        if takes is not None:
            last = _at(start + takes, end)
            out += (last, last) if inner else (last,)

    def _guest(self, vcpu: int | None, cpl: int | None, out: list[bytes]) -> tuple[bytes, bytes]:
        """Beginning and end of a stay in the guest."""
        key = ("guest", vcpu, cpl)
        known = self._known.get(key)
        if known is None:
            track = _number(11, self._track(out, f"vCPU {vcpu}", "guest"))
            name = _number(10, self._names.number(_GUEST.get(cpl, "guest kernel"), out))
            known = self._known[key] = (_number(9, _BEGIN) + track + name, b"", _number(9, _END) + track)
        return known[0], known[2]

    def _shape(self, event: TraceEvent, out: list[bytes]) -> tuple[bytes, bytes, bytes]:
        """What an event has in common with others: its beginning, that of an inner slice or b"", its end."""
        kind = _number(9, _INSTANT if event.duration_ns is None else _BEGIN)
        place = _number(11, self._track(out, *track(event)))
        name = _number(10, self._names.number(title(event), out))
        notes = b"".join(self._note(key, value_text(key, value), out) for key, value in event.args)
        if event.where:
            notes += self._note("at", event.where, out)
        if event.cr3 is not None:
            notes += self._note("cr3", f"{event.cr3:#x}", out)
        end = _number(9, _END) + place
        if event.kind != "hypercall" or event.duration_ns is None:
            return kind + place + name + notes, b"", end
        outer = _number(10, self._names.number(event.via, out))
        return kind + place + outer, kind + place + name + notes, end

    def _more(self, event: TraceEvent, out: list[bytes]) -> bytes:
        """What every event has for itself."""
        more = b""
        if event.result is not None:
            more += self._note("result", result_text(event.result), out)
        if event.data:
            note = self._data.get(event.data)
            if note is None:
                if len(self._data) >= _KNOWN_MAX:
                    self._data.clear()
                note = self._data[event.data] = self._note("data", bytes_text(event.data), out)
            more += note
        if event.code:
            more += self._note("instruction", event.code, out)
        return more

    def _note(self, key: str, value: str, out: list[bytes]) -> bytes:
        return _bytes(4, _number(1, self._keys.number(key, out)) + _text(6, value))

    def _track(self, out: list[bytes], *path: str) -> int:
        """The number of the track at `path`: a group and a name in it. New ones are described in `out`."""
        found = self._tracks.get(path)
        if found is None:
            parent = self._track(out, *path[:-1]) if len(path) > 1 else 0
            found = self._tracks[path] = len(self._tracks) + 1
            about = _number(1, found) + _text(2, path[-1])
            about += _number(5, parent) if parent else _number(11, _EXPLICIT)
            if path[-1] in _RANKS:
                about += _number(12, _RANKS[path[-1]])
            out.append(_packet(_bytes(60, about)))
        return found


_RANKS = {"guest": 0, **{layer: rank for rank, layer in enumerate(LAYERS, 1)}}


def _at(ns: int, event: bytes) -> bytes:
    """A packet with a track event at a time; the hot path, so without the helpers.

    The time is written in eight groups of seven bits, needed or not: enough for two years since boot.
    """
    if ns >> 56 or len(event) >= _SHORT:
        return _packet(_number(8, ns), _bytes(11, event), _STATE)
    # fmt: off
    when = bytes((
        0x40, ns & 127 | 128, ns >> 7 & 127 | 128, ns >> 14 & 127 | 128, ns >> 21 & 127 | 128,
        ns >> 28 & 127 | 128, ns >> 35 & 127 | 128, ns >> 42 & 127 | 128, ns >> 49, 0x5A,
    ))
    # fmt: on
    length = _LENGTHS[len(event)]
    return (
        b"\x0a" + _LENGTHS[len(when) + len(length) + len(event) + len(_TAIL)] + when + length + event + _TAIL
    )
