"""The kernel's trace pages: events, their times, lost ones; nonsense ends a page and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.trace.ring_buffer import RawEvent, decode_page, parse_format

FORMAT = """name: kvm_exit
ID: 1440
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:long id;\toffset:16;\tsize:8;\tsigned:1;
\tfield:unsigned long args[2];\toffset:24;\tsize:16;\tsigned:0;

print fmt: "%s", __print_symbolic(REC->why, { 0x072, "cpuid" }, { 0x040 + 6, "UD excp" }, { -1, "bad" })
"""


def event(data: bytes, delta: int = 0) -> bytes:
    """A data event of up to 112 bytes with a time delta in ns."""
    data += bytes(-len(data) % 4)
    return struct.pack("<I", len(data) // 4 | delta << 5) + data


def page(*events: bytes, time_ns: int = 1000, flags: int = 0, behind: bytes = b"") -> bytes:
    """A page with its header."""
    body = b"".join(events)
    return struct.pack("<QQ", time_ns, len(body) | flags) + body + behind


def record(number: int, tid: int, *values: int) -> bytes:
    """An event's bytes: the common fields and words."""
    return struct.pack(f"<HBBI{len(values)}Q", number, 0, 0, tid, *values)


def test_a_format_gives_fields_and_symbols() -> None:
    """Own fields are decoded with sign and arrays; the table of names is read, sums and all."""
    known = parse_format(FORMAT)
    assert (known.name, known.number) == ("kvm_exit", 1440)
    assert known.symbols == ({0x72: "cpuid", 0x46: "UD excp", -1: "bad"},)
    data = bytes(8) + struct.pack("<I4xq2Q", 0x72, -14, 1, 2)
    assert known.decode(data) == {"exit_reason": 0x72, "id": -14, "args": (1, 2)}
    assert known.decode(data[:30]) == {"exit_reason": 0x72, "id": -14}


def test_events_come_in_order_with_their_times() -> None:
    """Deltas add up; a time extend adds its 59 bits; a long event has its length in a word of its own."""
    long = struct.pack("<II", 0 | 5 << 5, 4 + 200) + record(3, 9) + bytes(192)
    extend = struct.pack("<II", 30 | 7 << 5, 1)
    found = list(decode_page(page(event(record(1, 7, 5), 10), extend, event(record(2, 8)), long)))
    assert found == [
        RawEvent(1010, 1, 7, record(1, 7, 5)),
        RawEvent(1010 + 7 + (1 << 27), 2, 8, record(2, 8)),
        RawEvent(1015 + 7 + (1 << 27), 3, 9, record(3, 9) + bytes(192)),
    ]


def test_lost_events_are_told() -> None:
    """With their number where the kernel stored it, -1 where not."""
    one = event(record(1, 7))
    assert next(decode_page(page(one, flags=1 << 31))) == -1
    assert next(decode_page(page(one, flags=3 << 30, behind=struct.pack("<Q", 42)))) == 42


def test_padding_ends_a_page() -> None:
    """What lies behind a padding without length is no event."""
    assert list(decode_page(page(struct.pack("<I", 29), event(record(1, 7))))) == []


@given(st.binary(max_size=300))
def test_any_bytes_end_in_time(junk: bytes) -> None:
    """Whatever a page holds, decoding ends and yields events of the page's own bytes."""
    for item in decode_page(junk):
        assert isinstance(item, int) or len(item.data) <= len(junk)


def test_what_is_no_format_is_refused() -> None:
    """A file without name and ID."""
    with pytest.raises(ValueError, match="no format"):
        parse_format("hello")
