"""The parts of QEMU's pc-testdev, for which KVM developers' test kernels are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.irq import IrqLine

__all__ = ["IoMemory", "IrqLines", "PageFlush", "TestLatch"]

_PAGE_BYTES = 4096
_IOMEM_BYTES = 0x1_0000


class IoMemory:
    """MMIO that keeps what is written, like RAM, but each access of which is an exit: 64 KiB."""

    def __init__(self, size_bytes: int = _IOMEM_BYTES) -> None:
        self._bytes = bytearray(size_bytes)

    def read(self, offset: int, size: int) -> bytes:
        """Answer the bytes there; behind the end, all ones."""
        return bytes(self._bytes[offset : offset + size]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Keep the bytes; those behind the end are lost."""
        room = max(len(self._bytes) - offset, 0)
        self._bytes[offset : offset + len(data)] = data[:room]


class TestLatch(IoMemory):
    """Four bytes that read back as written, in any width and at any of the four ports.

    The board shows one latch at two places: at the first, KVM may make one exit of a wide access, at
    the second the chip takes it byte by byte. What the guest sees is the same.
    """

    __test__ = False  # its name is the chip's; it is no test class

    def __init__(self) -> None:
        super().__init__(size_bytes=4)


class PageFlush:
    """A 32-bit gpa written here has its page taken from KVM's page tables; the contents stay.

    The guest's next touch of that page is then a fault for KVM, which is what such tests want. Other
    widths than 4 bytes are ignored; reads answer all ones.
    """

    def __init__(self, flush_page: Callable[[int], None]) -> None:
        """`flush_page` gets the page-aligned gpa, which is the guest's claim and may be outside RAM."""
        self._flush_page = flush_page

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer all ones: the register can't be read."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Flush the page that holds the written gpa."""
        if offset == 0 and len(data) == 4:
            self._flush_page(int.from_bytes(data, "little") & -_PAGE_BYTES)


class IrqLines:
    """One port an interrupt line: a byte other than 0 asserts it, 0 releases it. Reads answer all ones."""

    def __init__(self, irq_line: Callable[[int], IrqLine], lines: int = 24) -> None:
        """`irq_line` gives the line of a GSI, which is the port's offset, 0 to `lines` - 1."""
        self._irq_line = irq_line
        self._lines = lines

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - no register can be read
        """Answer all ones: the lines can't be read."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Drive one line with each byte."""
        for gsi, level in enumerate(data, start=offset):
            if gsi < self._lines:
                self._irq_line(gsi).set_level(level != 0)
