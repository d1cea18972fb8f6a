"""A kvm_run area becomes the exit that it holds, whatever its bytes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import exits
from pykvm._native import ffi, lib
from pykvm.exits import (
    DebugExit,
    EntryFailExit,
    ExceptionExit,
    Exit,
    HltExit,
    HypercallExit,
    InternalErrorExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowExit,
    MemoryFaultExit,
    MmioExit,
    MsrExit,
    NmiExit,
    RunView,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
    decode,
    reason_name,
)

RUN_BYTES = ffi.sizeof("struct kvm_run")
AREA_BYTES = RUN_BYTES + 4096
IN, OUT = 0, 1


def view_of(reason: int) -> RunView:
    view = RunView(bytearray(AREA_BYTES))
    view.run.exit_reason = reason
    return view


def io_view(direction: int, size: int, count: int, data: bytes = b"", offset: int = RUN_BYTES) -> RunView:
    view = view_of(lib.KVM_EXIT_IO)
    io = view.io
    io.direction, io.size, io.port, io.count, io.data_offset = direction, size, 0x3F8, count, offset
    view.bytes[offset : offset + len(data)] = data
    return view


def test_a_port_write_carries_its_data() -> None:
    """OUT: port, width and the bytes, and of a string all of them."""
    assert decode(io_view(OUT, 1, 1, b"A")) == IoExit(0x3F8, 1, 1, True, b"A")
    assert decode(io_view(OUT, 4, 1, b"\x01\x02\x03\x04")) == IoExit(0x3F8, 4, 1, True, b"\x01\x02\x03\x04")
    assert decode(io_view(OUT, 2, 3, b"abcdef")) == IoExit(0x3F8, 2, 3, True, b"abcdef")


def test_a_port_read_carries_none() -> None:
    """IN: what lies in the area before the answer is nobody's data."""
    assert decode(io_view(IN, 2, 4, b"leftover")) == IoExit(0x3F8, 2, 4, False, b"")


def test_the_answer_to_a_port_read_lands_where_kvm_looks() -> None:
    """answer_io() writes at the exit's data offset, a string's every element."""
    view = io_view(IN, 2, 2)
    view.answer_io(b"wxyz")
    assert view.bytes[RUN_BYTES : RUN_BYTES + 4] == b"wxyz"


@pytest.mark.parametrize("offset", [AREA_BYTES - 2, AREA_BYTES, 1 << 40, (1 << 64) - 1])
def test_data_beyond_the_area_is_cut_and_not_read(offset: int) -> None:
    """A data offset that points outside gives what lies inside, at most."""
    view = io_view(OUT, 1, 1)
    view.io.count, view.io.size, view.io.data_offset = 0xFFFFFFFF, 0xFF, offset
    found = decode(view)
    assert isinstance(found, IoExit)
    assert len(found.data) == max(AREA_BYTES - offset, 0)


def test_an_mmio_write_carries_its_data_and_a_read_none() -> None:
    """Address and width; never more than the 8 bytes that there are."""
    view = view_of(lib.KVM_EXIT_MMIO)
    view.mmio.phys_addr, view.mmio.len, view.mmio.is_write = 0xD0000000, 4, 1
    view.mmio.data[0], view.mmio.data[3], view.mmio.data[4] = 1, 4, 9
    assert decode(view) == MmioExit(0xD0000000, 4, True, b"\x01\0\0\x04")
    view.mmio.len = 0xFFFFFFFF
    assert decode(view) == MmioExit(0xD0000000, 8, True, b"\x01\0\0\x04\x09\0\0\0")
    view.mmio.is_write = 0
    assert decode(view) == MmioExit(0xD0000000, 8, False, b"")


def test_the_answer_to_an_mmio_read_lands_where_kvm_looks() -> None:
    """answer_mmio() fills the exit's own data field."""
    view = view_of(lib.KVM_EXIT_MMIO)
    view.answer_mmio(b"\x11\x22")
    assert bytes(ffi.buffer(view.mmio.data))[:3] == b"\x11\x22\0"


def filled(kind: str, member: str, /, **fields: Any) -> RunView:
    view = view_of(getattr(lib, f"KVM_EXIT_{kind}"))
    for name, value in fields.items():
        setattr(getattr(view, member), name, value)
    return view


CASES = [
    (view_of(lib.KVM_EXIT_HLT), HltExit()),
    (view_of(lib.KVM_EXIT_SHUTDOWN), ShutdownExit()),
    (view_of(lib.KVM_EXIT_NMI), NmiExit()),
    (view_of(lib.KVM_EXIT_IRQ_WINDOW_OPEN), IrqWindowExit()),
    (filled("EXCEPTION", "exception", exception=14, error_code=5), ExceptionExit(14, 5)),
    (
        filled("FAIL_ENTRY", "fail_entry", hardware_entry_failure_reason=1 << 31, cpu=3),
        EntryFailExit(1 << 31, 3),
    ),
    (filled("DEBUG", "debug", exception=1, pc=0x1000, dr6=1, dr7=2), DebugExit(1, 0x1000, 1, 2)),
    (filled("INTERNAL_ERROR", "internal", suberror=1, ndata=0), InternalErrorExit(1, ())),
    (filled("INTERNAL_ERROR", "internal", suberror=3, ndata=2), InternalErrorExit(3, (0, 0))),
    (filled("INTERNAL_ERROR", "internal", suberror=3, ndata=1 << 31), InternalErrorExit(3, (0,) * 16)),
    (filled("SYSTEM_EVENT", "system_event", type=2, ndata=1), SystemEventExit(2, (0,))),
    (filled("SYSTEM_EVENT", "system_event", type=1, ndata=99), SystemEventExit(1, (0,) * 16)),
    (filled("IOAPIC_EOI", "eoi", vector=0x30), IoapicEoiExit(0x30)),
    (filled("X86_RDMSR", "msr", index=0xC0000082, reason=2), MsrExit(0xC0000082, False, 0, 2)),
    (filled("X86_WRMSR", "msr", index=0xC0000082, data=7, reason=4), MsrExit(0xC0000082, True, 7, 4)),
    (filled("HYPERCALL", "hypercall", nr=12, args=[1, 2, 3]), HypercallExit(12, (1, 2, 3, 0, 0, 0))),
    (
        filled("MEMORY_FAULT", "memory_fault", gpa=0x1000, size=0x2000, flags=8),
        MemoryFaultExit(0x1000, 0x2000, 8),
    ),
    (filled("UNKNOWN", "hw", hardware_exit_reason=77), UnknownExit(0, "UNKNOWN", 77)),
]


@pytest.mark.parametrize(("view", "expected"), CASES, ids=[type(case[1]).__name__ for case in CASES])
def test_each_reason_becomes_its_kind(view: RunView, expected: Exit) -> None:
    """The kind is named after KVM_EXIT_*, and its fields are the kernel's."""
    assert decode(view) == expected


def test_a_reason_from_the_future_is_a_value() -> None:
    """An unknown number becomes an UnknownExit with it, never an error."""
    found = decode(view_of(4711))
    assert found == UnknownExit(4711, "reason 4711", 0)


def test_a_reason_that_pykvm_has_no_kind_for_keeps_its_name() -> None:
    """The header's word is there although the kind is not."""
    assert decode(view_of(lib.KVM_EXIT_TPR_ACCESS)) == UnknownExit(lib.KVM_EXIT_TPR_ACCESS, "TPR_ACCESS", 0)


def test_names_are_the_headers() -> None:
    """Reasons have one name each, and constants that only share the prefix are no reasons."""
    assert reason_name(lib.KVM_EXIT_IO) == "IO"
    assert reason_name(lib.KVM_EXIT_EXCEPTION) == "EXCEPTION"
    assert reason_name(lib.KVM_EXIT_HYPERCALL) == "HYPERCALL"
    assert reason_name(lib.KVM_EXIT_HYPERV) == "HYPERV"
    assert reason_name(0) == "UNKNOWN"
    assert "IO_IN" not in exits._NAMES.values()


@given(st.integers(0, 60) | st.integers(0, (1 << 32) - 1), st.binary(min_size=512, max_size=512))
def test_decode_never_raises(reason: int, noise: bytes) -> None:
    """Any reason over any bytes is an exit that can be printed, compared and pickled."""
    view = view_of(reason)
    at = lib.RUN_UNION_OFFSET
    size = min(len(noise), RUN_BYTES - at)
    view.bytes[at : at + size] = noise[:size]
    found = decode(view)
    assert isinstance(found, Exit)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own bytes
    assert repr(found).startswith(type(found).__name__)


def test_kinds_without_fields_differ() -> None:
    """Two empty exits of different kinds are not equal, and equal exits hash alike."""
    halt, shutdown = HltExit(), ShutdownExit()
    assert halt != shutdown  # type: ignore[comparison-overlap]  # it must not overlap
    assert len({HltExit(), HltExit(), ShutdownExit(), NmiExit()}) == 3
    assert hash(IoExit(1, 1, 1, True, b"a")) == hash(IoExit(1, 1, 1, True, b"a"))


def test_a_small_area_is_refused() -> None:
    """Less than a struct kvm_run, or bytes that can't be written, is no area."""
    with pytest.raises(ValueError, match="bytes or more"):
        RunView(bytearray(RUN_BYTES - 1))
    with pytest.raises(BufferError):
        RunView(bytes(AREA_BYTES))


def test_a_released_view_shows_nothing() -> None:
    """After release() the area may go: what pointed to it is gone too."""
    area = bytearray(AREA_BYTES)
    view = RunView(area)
    view.release()
    area.clear()  # refused as long as anybody holds it
    with pytest.raises(AttributeError):
        decode(view)
