"""Guest memory: sizes, slots, and the one checked door to its bytes."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import layout
from pykvm._native import ffi
from pykvm.errors import ConfigError, GuestAddressError
from pykvm.memory import GuestMemory, MemorySlot, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
MIB = 1 << 20
HOLE_START, ABOVE = layout.HOLE.start, layout.FOUR_GIB
ROM = bytes(range(256)) * (layout.FIRMWARE_SIZE_BYTES // 256)
HOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4k", 4096),
        ("64M", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("1GB", 1 << 30),
        (" 2 T ", 2 << 40),
        (7, 7),
    ],
)
def test_a_size_is_a_number_with_or_without_a_unit(text: str | int, size: int) -> None:
    """K, M, G and T are powers of 1024, whatever follows them."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "64X", "-1", "1.5G", "0x1000", "64 M B", "64MM", "six", "1e6", "\n"]
)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    """The error repeats what was said and shows what would do."""
    with pytest.raises(ConfigError, match="is no size: give a number") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size", [-PAGE, 0, 1, PAGE - 1, PAGE + 1, 3 * PAGE // 2, HOST_BYTES + PAGE, 1 << 60, 1 << 80]
)
def test_a_size_that_can_t_be_is_refused(size: int) -> None:
    """Nothing, less than a page, part of a page, or more than the host has."""
    with pytest.raises(ConfigError, match="of guest memory: "):
        GuestMemory(size)


def test_one_page_is_memory() -> None:
    """The least that works, and works up to its last byte."""
    with GuestMemory(PAGE) as memory:
        memory.write(PAGE - 1, b"x")
        assert memory.read(PAGE - 1, 1) == b"x"
        assert [(slot.gpa, slot.size_bytes) for slot in memory.slots] == [(0, PAGE)]


def test_large_memory_costs_nothing_until_it_is_touched() -> None:
    """16 GiB, or half the host where it has less, take up no more than a few pages of their own."""
    size = min(16 << 30, HOST_BYTES // 2 // PAGE * PAGE)
    before = _resident_bytes()
    with GuestMemory(size) as memory:
        assert _resident_bytes() - before < MIB
        end = memory.ram()[-1].stop
        memory.write(end - 1, b"\xff")
        assert memory.read(end - 1, 1) == b"\xff"
        assert _resident_bytes() - before < MIB


@pytest.mark.parametrize("size", [2 * MIB, 5 * MIB + PAGE])
def test_huge_pages_fit(size: int) -> None:
    """Host and guest addresses agree in their low 21 bits; what is given back is gone with huge pages too."""
    with GuestMemory(size) as memory:
        assert memory.slots[0].hva % (2 * MIB) == 0
        memory.use_huge_pages()
        memory.write(size - PAGE, b"gone")
        memory.discard(size - PAGE, PAGE)
        assert memory.read(size - PAGE, 4) == bytes(4)
        memory.write(size - 1, b"x")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


# ---- slots


def spans(memory: GuestMemory) -> list[tuple[int, int, bool]]:
    return [(slot.gpa, slot.size_bytes, slot.read_only) for slot in memory.slots]


@pytest.mark.parametrize("size", [PAGE, 64 * MIB, HOLE_START - PAGE, HOLE_START])
def test_memory_up_to_the_hole_is_one_slot(size: int) -> None:
    """It begins at 0 and is all there is."""
    with GuestMemory(size) as memory:
        assert spans(memory) == [(0, size, False)]
        assert memory.ram() == [range(size)]


@pytest.mark.parametrize("more", [PAGE, MIB])
def test_what_does_not_fit_below_the_hole_goes_on_at_4_gib(more: int) -> None:
    """Not a byte of it is lost, and nothing lies in the hole."""
    with GuestMemory(HOLE_START + more) as memory:
        assert spans(memory) == [(0, HOLE_START, False), (ABOVE, more, False)]
        memory.write(ABOVE, b"above")
        assert memory.read(ABOVE, 5) == b"above"
        for gpa in (HOLE_START, ABOVE - 1, ABOVE + more):
            with pytest.raises(GuestAddressError):
                memory.read(gpa, 1)


def test_firmware_is_read_only_below_1_mib_and_below_4_gib() -> None:
    """One ROM at two places, RAM around it, and none of the RAM where the ROM lies."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        low, size = layout.FIRMWARE_LOW, layout.FIRMWARE_SIZE_BYTES
        assert spans(memory) == [
            (0, low, False),
            (low, size, True),
            (layout.LEGACY_END, MIB, False),
            (ABOVE - size, size, True),
        ]
        assert memory.read(low, size) == memory.read(ABOVE - size, size) == ROM
        assert memory.ram() == [range(low), range(layout.LEGACY_END, 2 * MIB)]
        assert len({slot.hva for slot in memory.slots if slot.read_only}) == 1


@pytest.mark.parametrize(("size", "rom"), [(MIB, b"short"), (MIB - PAGE, ROM), (PAGE, ROM)])
def test_firmware_that_does_not_fit_is_refused(size: int, rom: bytes) -> None:
    """A ROM of another size, or too little RAM under it."""
    with pytest.raises(ConfigError, match="a firmware of"):
        GuestMemory(size, rom=rom)


def test_a_slot_s_host_address_is_its_view_s() -> None:
    """What KVM is given and what Python writes are the same bytes."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        for slot in memory.slots:
            with memoryview(slot.view) as view:
                assert int(ffi.cast("uintptr_t", ffi.from_buffer(view))) == slot.hva
            assert slot.hva % PAGE == 0


# ---- the door


def model(memory: GuestMemory) -> dict[int, MemorySlot]:
    """Every page of the memory with its slot."""
    return {page: slot for slot in memory.slots for page in range(slot.gpa // PAGE, slot.end // PAGE)}


EDGES = [
    0,
    PAGE,
    layout.FIRMWARE_LOW,
    layout.LEGACY_END,
    2 * MIB,
    HOLE_START,
    ABOVE - 65536,
    ABOVE,
    1 << 63,
    1 << 64,
]
gpas = st.builds(lambda edge, off: edge + off, st.sampled_from(EDGES), st.integers(-40, 40)) | st.integers()
sizes = st.integers(-3, 80) | st.sampled_from([PAGE, MIB, 1 << 32, 1 << 64])


@pytest.fixture(scope="module")
def board() -> Iterator[tuple[GuestMemory, dict[int, MemorySlot]]]:
    """Memory with RAM and ROM, and a map of its pages."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        yield memory, model(memory)


@given(gpa=gpas, size=sizes, data=st.binary(min_size=1, max_size=80))
@settings(deadline=None)
def test_the_door_agrees_with_a_map_of_every_page(
    board: tuple[GuestMemory, dict[int, MemorySlot]], gpa: int, size: int, data: bytes
) -> None:
    """read(), write() and view() succeed exactly where every byte is there, and for writes is RAM."""
    memory, pages = board

    def owners(size: int) -> list[MemorySlot | None]:
        return [pages.get(page) for page in range(gpa // PAGE, (gpa + max(size, 1) - 1) // PAGE + 1)]

    if 0 <= size <= 2 * MIB and all(owners(size)):
        assert len(memory.read(gpa, size)) == size
    else:
        with pytest.raises(GuestAddressError):
            memory.read(gpa, size)
    touched = owners(len(data))
    if all(slot and not slot.read_only for slot in touched):
        memory.write(gpa, data)
        assert memory.read(gpa, len(data)) == data
    else:
        with pytest.raises(GuestAddressError):
            memory.write(gpa, data)
    if all(touched) and len(set(map(id, touched))) == 1:
        assert bytes(memory.view(gpa, len(data))) == memory.read(gpa, len(data))
    else:
        with pytest.raises(GuestAddressError):
            memory.view(gpa, len(data))


@given(st.integers(0, 2 * PAGE - 1), st.binary(min_size=1, max_size=300))
@settings(deadline=None)
def test_a_refused_write_changes_nothing(offset: int, data: bytes) -> None:
    """Where a part would land in ROM or nowhere, the part before it is not written either."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        gpa = layout.FIRMWARE_LOW - PAGE + offset
        before = memory.read(layout.FIRMWARE_LOW - PAGE, 2 * PAGE)
        if gpa + len(data) > layout.FIRMWARE_LOW:
            with pytest.raises(GuestAddressError):
                memory.write(gpa, data)
            assert memory.read(layout.FIRMWARE_LOW - PAGE, 2 * PAGE) == before


def test_a_read_runs_over_neighbouring_slots() -> None:
    """RAM, ROM and RAM again are one piece to read, and no view."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        end = layout.LEGACY_END
        memory.write(end, b"RAM")
        assert memory.read(end - 2, 5) == ROM[-2:] + b"RAM"
        with pytest.raises(GuestAddressError):
            memory.view(end - 2, 5)


def test_a_view_is_the_memory_itself() -> None:
    """A writable view shows and makes changes; one that is not can't be written."""
    with GuestMemory(PAGE) as memory:
        window = memory.view(16, 4, writable=True)
        window[:] = b"abcd"
        assert memory.read(16, 4) == b"abcd"
        glass = memory.view(16, 4)
        memory.write(16, b"ABCD")
        assert bytes(glass) == b"ABCD"
        with pytest.raises(TypeError):
            glass[0] = 0


def test_rom_gives_no_writable_view() -> None:
    """Read-only memory is read-only through every door."""
    with GuestMemory(2 * MIB, rom=ROM) as memory:
        assert memory.view(layout.FIRMWARE_LOW, 4) == ROM[:4]
        with pytest.raises(GuestAddressError, match="read-only memory"):
            memory.view(layout.FIRMWARE_LOW, 4, writable=True)


def test_the_error_names_address_size_and_the_slot_s_end() -> None:
    """Whoever reads it knows what the guest asked for and how far memory goes."""
    with GuestMemory(2 * PAGE) as memory, pytest.raises(GuestAddressError) as caught:
        memory.read(2 * PAGE - 1, 2)
    assert (
        str(caught.value)
        == "guest address 0x1fff with 2 bytes is outside guest memory: the slot ends at 0x2000"
    )


def test_closed_memory_is_gone_and_closing_twice_is_no_error() -> None:
    """After close() no address is valid."""
    memory = GuestMemory(PAGE)
    memory.close()
    memory.close()
    with pytest.raises(GuestAddressError, match="there is no slot"):
        memory.read(0, 1)


def test_a_view_outlives_the_memory_and_the_last_holder_frees_it() -> None:
    """close() neither fails nor pulls the bytes from under a view."""
    gc.collect()
    before = len(Path("/proc/self/maps").read_text().splitlines())
    memory = GuestMemory(64 * MIB)
    memory.write(0, b"still here")
    view = memory.view(0, 10)
    memory.close()
    assert bytes(view) == b"still here"
    del view
    gc.collect()
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= before
