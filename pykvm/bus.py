"""Who answers at this address: devices are attached to ranges, and no two ranges overlap."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bus", "Device"]


class Device(Protocol):
    """What sits on a bus. It knows offsets into its own range, never addresses.

    Data is little-endian bytes of the access's own width (1, 2, 4 or 8). The offset may be
    anything inside the attached range and the access may reach past its end by up to 7 bytes:
    the guest chooses both.
    """

    def read(self, offset: int, size: int) -> bytes:
        """Answer exactly `size` bytes."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Take `data`, 1 to 8 bytes."""
        ...


class Bus:
    """An address space of devices; used twice, for ports and for MMIO."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._starts: list[int] = []
        self._entries: list[tuple[int, int, Device]] = []

    def attach(self, where: range, device: Device) -> None:
        """Put `device` at the addresses of `where`.

        Raises ConfigError if the range is empty or overlaps one that is taken.
        """
        if where.step != 1 or not where:
            raise ConfigError(f"{self.name}: a device needs a range of addresses, not {where!r}")
        at = bisect_right(self._starts, where.start)
        before = self._entries[at - 1] if at else None
        after = self._entries[at] if at < len(self._entries) else None
        for start, stop, other in filter(None, (before, after)):
            if start < where.stop and where.start < stop:
                raise ConfigError(
                    f"{self.name}: {type(device).__name__} at {where.start:#x}-{where.stop - 1:#x} overlaps "
                    f"{type(other).__name__} at {start:#x}-{stop - 1:#x}"
                )
        self._starts.insert(at, where.start)
        self._entries.insert(at, (where.start, where.stop, device))

    def find(self, address: int) -> tuple[Device, int] | None:
        """The device that answers at `address`, and the offset there; None if nobody does."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            start, stop, device = self._entries[at]
            if address < stop:
                return device, address - start
        return None

    def __iter__(self) -> Iterator[tuple[range, Device]]:
        """The attached (range, device) pairs in order of address."""
        return iter([(range(start, stop), device) for start, stop, device in self._entries])
