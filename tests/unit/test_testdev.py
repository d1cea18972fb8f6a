"""The parts of pc-testdev."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import layout
from pykvm.devices.testdev import IoMemory, IrqLines, PageFlush, TestLatch

accesses = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 4]), st.none() | st.binary(min_size=4, max_size=4))
)


class Line:
    """An interrupt line that remembers its level."""

    level = False

    def set_level(self, level: bool) -> None:
        self.level = level


@given(accesses)
@settings(deadline=None)
def test_the_latch_reads_back_what_was_written(steps: list[tuple[int, int, bytes | None]]) -> None:
    """For any accesses, also over the end: the four bytes are those last written, all ones behind them."""
    latch, model = TestLatch(), bytearray(4)
    for offset, size, data in steps:
        if data is None:
            assert latch.read(offset, size) == bytes(model[offset : offset + size]).ljust(size, b"\xff")
            continue
        latch.write(offset, data[:size])
        for at, value in enumerate(data[:size], start=offset):
            if at < 4:
                model[at] = value
    assert latch.read(0, 4) == bytes(model)


def test_a_wide_write_reads_back_in_bytes() -> None:
    """A test kernel's own check: 32 bits written, each byte read at its port."""
    latch = TestLatch()
    latch.write(0, (0x12345678).to_bytes(4, "little"))
    assert [latch.read(offset, 1)[0] for offset in range(4)] == [0x78, 0x56, 0x34, 0x12]
    latch.write(0, b"\x99\x99")
    assert latch.read(0, 4) == b"\x99\x99\x34\x12"


@given(st.integers(0, 0xFFFF), st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_io_memory_keeps_bytes_within_its_64_kib(offset: int, data: bytes) -> None:
    """What is written reads back in any width and place, and the memory does not grow."""
    memory = IoMemory()
    memory.write(offset, data)
    inside = data[: 0x1_0000 - offset]
    assert memory.read(offset, len(data)) == inside.ljust(len(data), b"\xff")
    assert len(memory._bytes) == len(layout.TESTDEV_IOMEM)


@given(st.integers(0, 0xFFFF_FFFF))
def test_page_flush_names_the_page(gpa: int) -> None:
    """32 bits written are the gpa of a page to flush, without the offset in it."""
    pages: list[int] = []
    PageFlush(pages.append).write(0, gpa.to_bytes(4, "little"))
    assert pages == [gpa & 0xFFFF_F000]


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b"\x01"), (0, b"\x01\x02"), (1, b"\0\0\0\0"), (0, bytes(8))]
)
def test_page_flush_ignores_other_writes(offset: int, data: bytes) -> None:
    """Only a 32-bit write at the port itself flushes; reads answer all ones."""
    pages: list[int] = []
    device = PageFlush(pages.append)
    device.write(offset, data)
    assert pages == []
    assert device.read(0, 4) == b"\xff" * 4


def test_each_port_drives_its_line() -> None:
    """A byte other than 0 asserts the line of the port's offset, 0 releases it."""
    lines = [Line() for _ in range(24)]
    device = IrqLines(lines.__getitem__, len(lines))
    device.write(14, b"\x01")
    device.write(3, b"\x80")
    assert [gsi for gsi, line in enumerate(lines) if line.level] == [3, 14]
    device.write(14, b"\x00")
    assert [gsi for gsi, line in enumerate(lines) if line.level] == [3]
    assert device.read(3, 1) == b"\xff"


def test_no_write_reaches_a_line_that_is_not_there() -> None:
    """A wide write at the last port drives that line alone."""
    lines = [Line() for _ in range(24)]
    IrqLines(lines.__getitem__).write(23, b"\x01\x01\x01\x01")
    assert [gsi for gsi, line in enumerate(lines) if line.level] == [23]
    assert len(layout.TESTDEV_IRQ) == 24
