"""KVM's binary statistics: what the kernel describes is read, and nonsense is refused."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import ffi
from pykvm.errors import KvmError
from pykvm.stats import StatsCounter, StatsReader

NAME_BYTES = 16


def stats_file(rows: list[tuple[str, int, int, tuple[int, ...]]]) -> bytes:
    """A statistics file: rows of (name, flags, exponent, values)."""
    size = ffi.sizeof("struct kvm_stats_desc")
    head = ffi.sizeof("struct kvm_stats_header")
    descriptors_at = head + NAME_BYTES
    data_at = descriptors_at + len(rows) * (size + NAME_BYTES)
    header = struct.pack("<6I", 0, NAME_BYTES, len(rows), head, descriptors_at, data_at)
    body, data = b"", b""
    for name, flags, exponent, values in rows:
        body += struct.pack("<IhHII", flags, exponent, len(values), len(data), 0)
        body += name.encode().ljust(NAME_BYTES, b"\0")
        data += struct.pack(f"<{len(values)}Q", *values)
    return header + b"kvm-7/vcpu-0".ljust(NAME_BYTES, b"\0") + body + data


def reader_of(data: bytes) -> StatsReader:
    """A reader of a file in memory."""
    fd = os.memfd_create("stats")
    os.write(fd, data)
    try:
        return StatsReader(fd)
    except BaseException:
        os.close(fd)
        raise


def test_values_are_read_by_name_with_their_kind_and_unit() -> None:
    """Counters, a time in ns and a histogram come out as the kernel describes them."""
    rows = [
        ("exits", 0x000, 0, (7,)),
        ("halt_wait_ns", 0x020, -9, (1000,)),
        ("wait_hist", 0x024, -9, (1, 2, 3)),
        ("mapped", 0x111, 20, (5,)),
    ]
    reader = reader_of(stats_file(rows))
    try:
        stats = reader.read()
    finally:
        reader.close()
    assert reader.id == "kvm-7/vcpu-0"
    assert list(stats) == ["exits", "halt_wait_ns", "wait_hist", "mapped"]
    assert (stats["exits"].value, stats["exits"].kind) == (7, "cumulative")
    assert stats["halt_wait_ns"][2:5] == ("seconds", 10, -9)
    assert (stats["wait_hist"].values, stats["wait_hist"].value) == ((1, 2, 3), 6)
    assert stats["mapped"][1:5] == ("instant", "bytes", 2, 20)


def test_an_unknown_type_or_unit_is_a_value() -> None:
    """A newer kernel's numbers are shown as numbers."""
    reader = reader_of(stats_file([("new", 0x0FF, 0, (1,))]))
    stat = reader.read()["new"]
    reader.close()
    assert (stat.kind, stat.unit) == ("type 15", "unit 15")


@given(st.binary(max_size=400), st.integers(0, 100))
def test_nonsense_is_refused_with_one_line(junk: bytes, at: int) -> None:
    """Bytes overwritten anywhere are read or refused, nothing else."""
    good = stats_file([("exits", 0, 0, (7,))])
    try:
        reader = reader_of(good[:at] + junk + good[at + len(junk) :])
    except KvmError as error:
        assert "\n" not in str(error)
        return
    try:
        reader.read()
    except KvmError as error:
        assert "\n" not in str(error)
    finally:
        reader.close()


def test_a_truncated_file_is_refused() -> None:
    """A header without its descriptors is named as such."""
    with pytest.raises(KvmError, match="statistics can't be read"):
        reader_of(stats_file([("exits", 0, 0, (7,))])[:60])


def test_a_counter_tells_how_much_more_it_is_by_now() -> None:
    """Of what counts, over several files; what stands still, levels and histograms are left out."""
    rows = [("exits", 0, 0, (7,)), ("still", 0, 0, (1,)), ("level", 1, 0, (1,)), ("hist", 4, 0, (1, 1))]
    fds = [os.memfd_create("stats") for _ in range(2)]
    for fd in fds:
        os.write(fd, stats_file(rows))
    counter = StatsCounter(iter(fds))
    later = [("exits", 0, 0, (9,)), ("still", 0, 0, (1,)), ("level", 1, 0, (5,)), ("hist", 4, 0, (2, 1))]
    for fd in fds:
        os.pwrite(fd, stats_file(later), 0)
    assert counter.counts() == {"exits": 4}
    counter.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fds[0])


def test_a_counter_that_can_not_be_made_holds_nothing() -> None:
    """One file of several is no statistics: all are closed."""
    good, bad = os.memfd_create("good"), os.memfd_create("bad")
    os.write(good, stats_file([("exits", 0, 0, (7,))]))
    with pytest.raises(KvmError):
        StatsCounter(iter([good, bad]))
    for fd in (good, bad):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
