"""Page tables that a test builds by the manual's drawings are walked to where they lead."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import GuestAddressError
from pykvm.paging import Translation, identity_long, identity_pse, read_virtual, walk

PG, PSE, PAE, LA57 = 1 << 31, 1 << 4, 1 << 5, 1 << 12
LMA, NXE = 1 << 10, 1 << 11
P, RW, US, PS, NX = 1, 2, 4, 1 << 7, 1 << 63
HIGH = 0xFFFF_8000_0000_0000


@dataclass
class Mode:
    """A paging mode: its control registers, and its levels as (lowest bit, number of bits)."""

    name: str
    cr4: int
    efer: int
    levels: tuple[tuple[int, int], ...]
    entry_bytes: int
    pages: tuple[int, ...]  # the levels' lowest bits at which a page may end the walk

    def __str__(self) -> str:
        return self.name


LEGACY = Mode("32-bit", 0, 0, ((22, 10), (12, 10)), 4, (12,))
WITH_PSE = Mode("32-bit PSE", PSE, 0, ((22, 10), (12, 10)), 4, (12, 22))
WITH_PAE = Mode("PAE", PAE, NXE, ((30, 2), (21, 9), (12, 9)), 8, (12, 21))
LEVEL4 = Mode("4-level", PAE, LMA | NXE, ((39, 9), (30, 9), (21, 9), (12, 9)), 8, (12, 21, 30))
LEVEL5 = Mode("5-level", PAE | LA57, LMA | NXE, ((48, 9), *LEVEL4.levels), 8, (12, 21, 30))
MODES = [LEGACY, WITH_PSE, WITH_PAE, LEVEL4, LEVEL5]
EACH_MODE = pytest.mark.parametrize("mode", MODES, ids=str)
EACH_64BIT = pytest.mark.parametrize("mode", [LEVEL4, LEVEL5], ids=str)


@dataclass
class Tables:
    """Guest memory that holds page tables from 1 MiB on, and whatever else is put there."""

    mode: Mode
    memory: bytearray = field(default_factory=lambda: bytearray(2 << 20))
    free: int = 0x10_1000
    root: int = 0x10_0000

    def read(self, gpa: int, size: int) -> bytes:
        """The door to this memory."""
        if gpa < 0 or gpa + size > len(self.memory):
            raise GuestAddressError(f"{gpa:#x}+{size:#x}")
        return bytes(self.memory[gpa : gpa + size])

    def where(self, gva: int, level: int) -> int:
        """The gpa of the entry for `gva` at a level, which tables must lead to."""
        table = self.root
        for shift, bits in self.mode.levels[: level + 1]:
            at = table + (gva >> shift & (1 << bits) - 1) * self.mode.entry_bytes
            table = int.from_bytes(self.read(at, self.mode.entry_bytes), "little") & 0x000F_FFFF_FFFF_F000
        return at

    def put(self, at: int, entry: int) -> None:
        """Write one entry."""
        self.memory[at : at + self.mode.entry_bytes] = entry.to_bytes(self.mode.entry_bytes, "little")

    def map(self, gva: int, entry: int, shift: int = 12, rights: int = P | RW | US) -> None:
        """Let `gva` lead to the page `entry` at the level of `shift`, through tables with `rights`."""
        for level, (low, _) in enumerate(self.mode.levels):
            at = self.where(gva, level)
            if low == shift:
                self.put(at, entry)
                return
            if not self.read(at, 1)[0] & P:
                self.put(at, self.free | (P if self.mode is WITH_PAE and level == 0 else rights))
                self.free += 0x1000
        raise AssertionError("no such level")

    def walk(self, gva: int) -> Translation | None:
        """The walk under test."""
        return walk(self.read, PG, self.root, self.mode.cr4, self.mode.efer, gva)


def linear(mode: Mode) -> st.SearchStrategy[int]:
    """Addresses that a mode knows: 32 bits, or canonical ones."""
    if mode.levels[0][0] < 39:
        return st.integers(0, (1 << 32) - 1)
    half = 1 << (mode.levels[0][0] + 8)
    return st.integers(0, 2 * half - 1).map(lambda n: n if n < half else n - 2 * half + (1 << 64))


@EACH_MODE
@given(data=st.data())
def test_round_trip(mode: Mode, data: st.DataObject) -> None:
    """A page of any size the mode has, anywhere, with any rights, is found with them."""
    shift = data.draw(st.sampled_from(mode.pages))
    gva = data.draw(linear(mode))
    top = 32 if mode.entry_bytes == 4 else 52
    page = data.draw(st.integers(0, (1 << (top - shift)) - 1)) << shift
    rights = data.draw(st.sampled_from([0, RW, US, RW | US]))
    nx = data.draw(st.booleans()) and mode.entry_bytes == 8
    tables = Tables(mode)
    tables.map(gva, page | P | rights | (PS if shift > 12 else 0) | (NX if nx else 0), shift)
    assert tables.walk(gva) == Translation(
        page | gva & (1 << shift) - 1, 1 << shift, writable=bool(rights & RW), user=bool(rights & US), nx=nx
    )


@EACH_MODE
@given(data=st.data())
def test_neighbours_are_not_mapped(mode: Mode, data: st.DataObject) -> None:
    """One page is one page: the ones before and behind it fault."""
    gva = data.draw(linear(mode)) & ~0xFFF
    tables = Tables(mode)
    tables.map(gva, 0x5000 | P)
    assert tables.walk(gva + 0xFFF) == Translation(0x5FFF, 4096, writable=False, user=False, nx=False)
    width = 1 << (32 if mode.levels[0][0] < 39 else 64)
    assert tables.walk((gva - 1) % width) is None
    assert tables.walk((gva + 0x1000) % width) is None


@EACH_MODE
def test_an_absent_entry_at_each_level(mode: Mode) -> None:
    """Without the present bit at any level nothing else counts."""
    for level in range(len(mode.levels)):
        tables = Tables(mode)
        tables.map(0x1234_5000, 0x5000 | P)
        at = tables.where(0x1234_5000, level)
        tables.memory[at] &= ~P
        assert tables.walk(0x1234_5000) is None


@EACH_MODE
@pytest.mark.parametrize("right", [RW, US])
def test_each_level_can_take_a_right_away(mode: Mode, right: int) -> None:
    """A right holds only if every level gives it."""
    for level in range(len(mode.levels)):
        if mode is WITH_PAE and level == 0:
            continue  # these entries have no rights
        tables = Tables(mode)
        tables.map(0x1234_5000, 0x5000 | P | RW | US)
        tables.memory[tables.where(0x1234_5000, level)] &= ~right
        found = tables.walk(0x1234_5000)
        assert found == Translation(0x5000, 4096, writable=right != RW, user=right != US, nx=False)


@pytest.mark.parametrize("mode", [WITH_PAE, LEVEL4, LEVEL5], ids=str)
def test_each_level_can_forbid_execution(mode: Mode) -> None:
    """NX at one level is NX for the page; without EFER.NXE the bit is reserved and faults."""
    for level in range(1 if mode is WITH_PAE else 0, len(mode.levels)):
        tables = Tables(mode)
        tables.map(0x1234_5000, 0x5000 | P)
        tables.memory[tables.where(0x1234_5000, level) + 7] |= 0x80
        found = tables.walk(0x1234_5000)
        assert found is not None
        assert found.nx
        assert walk(tables.read, PG, tables.root, mode.cr4, mode.efer & ~NXE, 0x1234_5000) is None


@pytest.mark.parametrize(
    ("mode", "level", "bit"),
    [
        (WITH_PSE, 0, 21),
        (WITH_PAE, 0, 1),
        (WITH_PAE, 0, 2),
        (WITH_PAE, 0, 7),
        (WITH_PAE, 0, 63),
        (WITH_PAE, 1, 52),
        (WITH_PAE, 1, 13),
        (WITH_PAE, 1, 20),
        (LEVEL4, 0, 7),
        (LEVEL4, 2, 13),
        (LEVEL4, 2, 20),
        (LEVEL5, 0, 7),
        (LEVEL5, 1, 7),
    ],
    ids=str,
)
def test_reserved_bits(mode: Mode, level: int, bit: int) -> None:
    """A reserved bit in an entry on the way is a fault, as it is for the CPU."""
    shift = {WITH_PSE.name: 22}.get(mode.name, 21)
    tables = Tables(mode)
    tables.map(0, P | PS, shift)
    assert tables.walk(0) is not None
    at = tables.where(0, level)
    tables.memory[at + bit // 8] |= 1 << bit % 8
    assert tables.walk(0) is None


@pytest.mark.parametrize("mode", [LEVEL4, LEVEL5], ids=str)
def test_reserved_bits_of_a_gigabyte_page(mode: Mode) -> None:
    """Bits 13 to 29 of a 1 GiB page are reserved, bit 12 is PAT and free bits are the system's."""
    for bit, faults in ((12, False), (13, True), (29, True), (52, False), (62, False)):
        tables = Tables(mode)
        tables.map(0, P | PS | 1 << bit, 30)
        found = tables.walk(0)
        assert (found is None) == faults, bit
        assert found is None or found.gpa == 0


def test_large_bit_without_pse() -> None:
    """In 32-bit paging without CR4.PSE the size bit means nothing: the entry is a table."""
    tables = Tables(LEGACY)
    tables.map(0x40_1000, 0x7000 | P, rights=P | PS)
    assert tables.walk(0x40_1000) == Translation(0x7000, 4096, writable=False, user=False, nx=False)


def test_pse36() -> None:
    """Bits 20 to 13 of a 4 MiB entry are address bits 39 to 32."""
    tables = Tables(WITH_PSE)
    tables.map(0x40_0000, 0x0080_0000 | 0xA5 << 13 | P | PS, 22)
    found = tables.walk(0x40_0123)
    assert found is not None
    assert found.gpa == 0xA5_0080_0123


def test_paging_off() -> None:
    """Without CR0.PG a linear address is physical, of 32 bits, and nothing is read."""
    found = walk(lambda gpa, size: pytest.fail("read"), 1, 0x1000, PAE, 0, 0x1_2345_6789)
    assert found == Translation(0x2345_6789, 1 << 32, writable=True, user=True, nx=False)


@pytest.mark.parametrize("mode", [LEGACY, WITH_PSE, WITH_PAE], ids=str)
def test_32_bit_addresses_wrap(mode: Mode) -> None:
    """Outside long mode only 32 bits of an address count."""
    tables = Tables(mode)
    tables.map(0x1000, 0x5000 | P)
    assert tables.walk((7 << 32) + 0x1000) == tables.walk(0x1000) is not None


@pytest.mark.parametrize(("mode", "bits"), [(LEVEL4, 48), (LEVEL5, 57)], ids=str)
def test_canonical_addresses(mode: Mode, bits: int) -> None:
    """An address whose upper bits are not all the same is nothing, even if tables would lead on."""
    top = 1 << (bits - 1)
    tables = Tables(mode)
    for gva in (top - 0x1000, (1 << 64) - top):
        tables.map(gva, 0x5000 | P)
        assert tables.walk(gva) is not None
    assert tables.walk(top) is None  # the same table entries as the lowest high address
    assert tables.walk((1 << 64) - top - 0x1000) is None
    assert tables.walk(1 << 64) is None
    assert tables.walk(-1) is None


def test_cr3_flags_are_no_address() -> None:
    """PCID and cache bits of CR3, and bits above the address, don't move the root."""
    for mode, noise in ((LEVEL4, 0xFFF | 1 << 63), (LEGACY, 0xFFF), (WITH_PAE, 0x1F)):
        tables = Tables(mode)
        tables.map(0x1000, 0x5000 | P)
        assert walk(tables.read, PG, tables.root | noise, mode.cr4, mode.efer, 0x1000) is not None


def test_pae_root_on_32_bytes() -> None:
    """PAE's four pointers may start at any multiple of 32."""
    tables = Tables(WITH_PAE, root=0x10_0FE0)
    tables.map(0xC000_0000, 0x5000 | P)
    assert tables.walk(0xC000_0000) is not None


@EACH_MODE
def test_tables_outside_of_memory(mode: Mode) -> None:
    """A root or a table that is not in guest memory leads nowhere, without an error."""
    tables = Tables(mode)
    tables.map(0x1000, 0x5000 | P)
    assert walk(tables.read, PG, 0x7FFF_F000, mode.cr4, mode.efer, 0x1000) is None
    tables.put(tables.where(0x1000, 0), 0x7FFF_F000 | P)
    assert tables.walk(0x1000) is None
    assert walk(lambda gpa, size: b"\x07", PG, 0, mode.cr4, mode.efer, 0x1000) is None


@EACH_MODE
@given(st.binary(min_size=64, max_size=64), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_any_tables_are_walked(mode: Mode, content: bytes, cr3: int, gva: int) -> None:
    """Tables of any content, from any root, end in a translation or in nothing, in bounded steps."""
    steps = []

    def read(gpa: int, size: int) -> bytes:
        steps.append(gpa)
        return bytes(content[(gpa + i) % 64] for i in range(size))

    found = walk(read, PG, cr3, mode.cr4, mode.efer, gva)
    assert len(steps) <= len(mode.levels)
    assert found is None or (
        0 <= found.gpa < 1 << 52 and found.page_bytes in {1 << shift for shift in mode.pages}
    )


@given(st.integers(0, (1 << 32) - 1), st.booleans())
def test_built_maps_lead_back(gva: int, user: bool) -> None:
    """The identity maps that are built are found by the walk."""
    for pieces, cr4, efer, page in (
        (identity_long(0x10_0000, user=user), PAE, LMA, 2 << 20),
        (identity_pse(0x10_0000), PSE, 0, 4 << 20),
    ):
        tables = Tables(LEVEL4)
        for gpa, data in pieces.items():
            tables.memory[gpa : gpa + len(data)] = data
        found = walk(tables.read, PG, 0x10_0000, cr4, efer, gva)
        assert found == Translation(gva, page, writable=True, user=user and efer == LMA, nx=False)


def test_built_directories() -> None:
    """Each of the 2,048 entries is its number times 2 MiB, present, writable, accessed, dirty, large."""
    data = identity_long(0, user=False)[0x2000]
    entries = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    assert entries == [number << 21 | 0xE3 for number in range(2048)]


@EACH_64BIT
def test_read_virtual_across_pages(mode: Mode) -> None:
    """Bytes are joined over pages that lie apart, and end where the mapping does."""
    tables = Tables(mode)
    tables.map(HIGH, 0x5000 | P)
    tables.map(HIGH + 0x1000, 0x3000 | P)
    tables.memory[0x5FF0:0x6000] = b"first page ends."
    tables.memory[0x3000:0x3004] = b"then"

    def read(gva: int, size: int) -> bytes:
        return read_virtual(tables.read, PG, tables.root, mode.cr4, mode.efer, gva, size)

    assert read(HIGH + 0xFF0, 20) == b"first page ends.then"
    assert read(HIGH + 0xFF0, 3) == b"fir"
    assert len(read(HIGH + 0xFF0, 0x5000)) == 0x1010
    assert read(HIGH + 0x2000, 1) == read(HIGH - 1, 16) == read(HIGH, 0) == b""


def test_read_virtual_ends_with_memory() -> None:
    """What is mapped to no memory can't be read; paging off reads up to the end of memory."""
    tables = Tables(LEVEL4)
    tables.map(0x1000, 0x7000_0000 | P)
    assert read_virtual(tables.read, PG, tables.root, PAE, LMA, 0x1000, 16) == b""
    end = len(tables.memory)
    assert len(read_virtual(tables.read, 0, 0, 0, 0, end - 0x2000, 0x4000)) == 0x2000


def test_read_virtual_at_the_top() -> None:
    """The last byte of the address space is the last: nothing wraps to 0 in long mode."""
    tables = Tables(LEVEL4)
    tables.map((1 << 64) - 0x1000, 0x5000 | P)
    tables.map(0, 0x6000 | P)
    assert len(read_virtual(tables.read, PG, tables.root, PAE, LMA, (1 << 64) - 8, 64)) == 8
