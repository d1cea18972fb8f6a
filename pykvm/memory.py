"""All of a guest's RAM, and the single checked door to its bytes.

RAM is one anonymous mapping made with MAP_NORESERVE: 16 GiB of guest cost the host nothing until the guest
touches them. It appears to the guest in slots: from 0 up to the hole below 4 GiB, and the rest from 4 GiB on.
"""

from __future__ import annotations

import mmap
import os
import re
from bisect import bisect_right
from contextlib import suppress
from typing import NamedTuple, Self

from pykvm import layout
from pykvm._native import ffi
from pykvm.errors import ConfigError, GuestAddressError

__all__ = ["GuestMemory", "MemorySlot", "parse_size"]

PAGE = mmap.PAGESIZE
_HUGE = 2 << 20  # what the host's kernel backs with one page where it may
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes of "64M", "4k", "1GiB", "4096" or 4096. Raises ConfigError for anything else."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(I?B)?\s*", text.upper())
    if not match:
        raise ConfigError(f"{text!r} is no size: give a number with K, M, G or T, as in 64M")
    return int(match[1]) * _UNITS[match[2]]


def _check_ram_size(size_bytes: int) -> None:
    if size_bytes < PAGE:
        raise ConfigError(f"{size_bytes} bytes of guest memory: the least is one page, {PAGE} bytes")
    if size_bytes % PAGE:
        raise ConfigError(f"{size_bytes} bytes of guest memory: give a multiple of the page, {PAGE} bytes")
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size_bytes > host:
        raise ConfigError(
            f"{size_bytes >> 20} MiB of guest memory: the host has {host >> 20} MiB; give the guest less"
        )


class MemorySlot(NamedTuple):
    """One KVM memory slot: guest-physical bytes [gpa, gpa + size_bytes) at host address `hva`."""

    gpa: int
    size_bytes: int
    hva: int
    read_only: bool
    view: memoryview

    @property
    def end(self) -> int:
        """The first gpa behind the slot."""
        return self.gpa + self.size_bytes


class GuestMemory:
    """The guest's RAM and ROM, by guest-physical address (gpa).

    `size_bytes` of RAM, a multiple of the page. Whatever a guest hands us as an address goes through
    read(), write() or view(), which raise GuestAddressError for anything outside.
    """

    def __init__(self, size_bytes: int, *, rom: bytes = b"") -> None:
        """`rom`, if any, is the firmware: read-only just below 1 MiB and again just below 4 GiB."""
        _check_ram_size(size_bytes)
        self.size_bytes = size_bytes
        self._maps: list[mmap.mmap] = []
        self._holds: list[object] = []
        self.slots: list[MemorySlot] = []
        self._starts: list[int] = []
        ram, base = self._map(size_bytes)
        low = min(size_bytes, layout.HOLE.start)
        if rom:
            self._add_firmware(rom, ram, base, low)
        else:
            self._add(0, low, ram, base, 0)
        if size_bytes > low:
            self._add(layout.FOUR_GIB, size_bytes - low, ram, base, low)

    def _map(self, size_bytes: int) -> tuple[memoryview, int]:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        spare = _HUGE if size_bytes >= _HUGE else 0  # the host's huge pages, and KVM's, need it aligned
        try:
            mapping = mmap.mmap(-1, size_bytes + spare, flags=flags)
        except OSError as error:
            raise ConfigError(
                f"{size_bytes >> 20} MiB of guest memory: {error.strerror}; give the guest less"
            ) from None
        hold = ffi.from_buffer(mapping)
        self._maps.append(mapping)
        self._holds.append(hold)
        start = int(ffi.cast("uintptr_t", hold))
        skip = -start % _HUGE if spare else 0
        return memoryview(mapping)[skip : skip + size_bytes], start + skip

    def _add(
        self, gpa: int, size: int, view: memoryview, base: int, at: int, *, read_only: bool = False
    ) -> None:
        slot = MemorySlot(gpa, size, base + at, read_only, view[at : at + size])
        where = bisect_right(self._starts, gpa)
        self._starts.insert(where, gpa)
        self.slots.insert(where, slot)

    def _add_firmware(self, rom: bytes, ram: memoryview, base: int, low: int) -> None:
        size = layout.FIRMWARE_SIZE_BYTES
        if len(rom) != size or low < layout.LEGACY_END:
            raise ConfigError(f"a firmware of {len(rom)} bytes: it must be {size}, and RAM 1 MiB or more")
        view, address = self._map(size)
        view[:] = rom
        self._add(0, layout.FIRMWARE_LOW, ram, base, 0)
        self._add(layout.FIRMWARE_LOW, size, view, address, 0, read_only=True)
        if low > layout.LEGACY_END:
            self._add(layout.LEGACY_END, low - layout.LEGACY_END, ram, base, layout.LEGACY_END)
        self._add(layout.FIRMWARE_HIGH_END - size, size, view, address, 0, read_only=True)

    def use_huge_pages(self) -> None:
        """Back RAM with the host's huge pages where it has them: a guest that fills it exits far less often.

        Each costs 2 MiB at the guest's first touch: not for guests that touch little.
        """
        start = self._ram_offset(self.slots[0])
        with suppress(OSError):  # a kernel without them
            self._maps[0].madvise(mmap.MADV_HUGEPAGE, start, self.size_bytes)

    def _ram_offset(self, slot: MemorySlot) -> int:
        """Where in the mapping of RAM `slot` begins."""
        return slot.hva - int(ffi.cast("uintptr_t", self._holds[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; a view that somebody still holds keeps its mapping alive until it goes."""
        for slot in self.slots:
            with suppress(BufferError):  # the last holder of a view frees it
                slot.view.release()
        self.slots, self._starts = [], []
        for hold in self._holds:
            ffi.release(hold)
        self._holds = []
        for mapping in self._maps:
            with suppress(BufferError):
                mapping.close()
        self._maps = []

    def ram(self) -> list[range]:
        """The guest-physical ranges of RAM, in order; what lies under a ROM is left out."""
        return [range(slot.gpa, slot.end) for slot in self.slots if not slot.read_only]

    def _slot(self, gpa: int, size: int) -> MemorySlot:
        at = bisect_right(self._starts, gpa) - 1
        if at < 0 or gpa >= self.slots[at].end or size < 0:
            raise self._outside(gpa, size)
        return self.slots[at]

    def _outside(self, gpa: int, size: int) -> GuestAddressError:
        at = bisect_right(self._starts, max(gpa, 0)) - 1
        where = f"the slot ends at {self.slots[at].end:#x}" if at >= 0 else "there is no slot"
        return GuestAddressError(f"guest address {gpa:#x} with {size} bytes is outside guest memory: {where}")

    def view(self, gpa: int, size: int, *, writable: bool = False) -> memoryview:
        """A zero-copy window on [gpa, gpa + size), which must lie in one slot."""
        slot = self._slot(gpa, size)
        start = gpa - slot.gpa
        if size > slot.size_bytes - start:
            raise self._outside(gpa, size)
        if writable and slot.read_only:
            raise GuestAddressError(f"guest address {gpa:#x} with {size} bytes is in read-only memory")
        window = slot.view[start : start + size]
        return window if writable else window.toreadonly()

    def read(self, gpa: int, size: int) -> bytes:
        """Copy of [gpa, gpa + size); it may run over adjacent slots."""
        slot = self._slot(gpa, size)
        start = gpa - slot.gpa
        if size <= slot.size_bytes - start:
            return bytes(slot.view[start : start + size])
        return b"".join(bytes(part) for part in self._parts(gpa, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at gpa on the guest's behalf; all of it or, where a part may not be written, nothing."""
        parts = list(self._parts(gpa, len(data), writable=True))
        at = 0
        for part in parts:
            part[:] = data[at : at + len(part)]
            at += len(part)

    def discard(self, gpa: int, size: int) -> None:
        """Give whole pages of RAM back to the host; the guest finds zeros there. Raises GuestAddressError.

        Of a range that is not page-aligned, OSError with EINVAL.
        """
        slot = self._slot(gpa, size)
        if slot.read_only or size > slot.end - gpa:
            raise self._outside(gpa, size)
        if size:
            self._maps[0].madvise(mmap.MADV_DONTNEED, self._ram_offset(slot) + gpa - slot.gpa, size)

    def _parts(self, gpa: int, size: int, *, writable: bool = False) -> list[memoryview]:
        parts: list[memoryview] = []
        at, left = gpa, size
        while left > 0 or not parts:
            try:
                slot = self._slot(at, left)
            except GuestAddressError:
                raise self._outside(gpa, size) from None  # the guest's own words, not our part of them
            step = min(left, slot.end - at)
            parts.append(self.view(at, step, writable=writable))
            at, left = at + step, left - step
        return parts
