"""Guest page tables: walked as the CPU would walk them, and built for the modes a guest starts in.

Four formats, one walk (SDM Vol. 3A, chapter 4). Each row is one level: the bits of the linear
address that pick an entry of its table, from the root to the page::

    32-bit           31…22 directory   21…12 table                               4-byte entries
    PAE              31…30 pointers    29…21 directory   20…12 table             8-byte entries
    4-level          47…39 PML4        38…30 pointers    29…21 …     20…12 …     8-byte entries
    5-level  56…48   47…39             38…30             29…21       20…12       8-byte entries

An entry, and which of its bits the walk obeys::

    63  62…52  51 … 12           11…9  8  7   6  5  4    3    2    1    0
    NX  free   next table/page   free  G  PS  D  A  PCD  PWT  U/S  R/W  P
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "CR0_PG",
    "CR4_LA57",
    "CR4_PAE",
    "CR4_PSE",
    "EFER_LMA",
    "EFER_LME",
    "EFER_NXE",
    "PAGE_BYTES",
    "Translation",
    "identity_long",
    "identity_pse",
    "read_virtual",
    "walk",
]

CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

PAGE_BYTES = 4096
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
_NX = 1 << 63
_MASK32 = (1 << 32) - 1
_ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51…12: the widest physical address there is
_PDPTE_RESERVED = 0xFFF0_0000_0000_01E6  # PAE's four pointers have neither rights nor a size


class Translation(NamedTuple):
    """What a linear address means: the gpa, the page that holds it, and who may do what there.

    `writable` and `user` hold for the whole way (each level can take a right away), `nx` is True if
    one level forbids execution. With paging off all 4 GiB are one page on which all is allowed.
    """

    gpa: int
    page_bytes: int
    writable: bool
    user: bool
    nx: bool


class _Format(NamedTuple):
    """One of the four formats: the lowest address bit of each level, and which levels may be pages."""

    shifts: tuple[int, ...]
    large: tuple[int, ...]
    entry_bytes: int = 8
    root: int = _ADDRESS

    @property
    def index_mask(self) -> int:
        return PAGE_BYTES // self.entry_bytes - 1


_LEGACY = _Format((22, 12), (), 4, _MASK32 & ~0xFFF)
_LEGACY_PSE = _Format((22, 12), (22,), 4, _MASK32 & ~0xFFF)
_PAE = _Format((30, 21, 12), (21,), root=_MASK32 & ~0x1F)
_LEVEL4 = _Format((39, 30, 21, 12), (30, 21))
_LEVEL5 = _Format((48, 39, 30, 21, 12), (30, 21))


def walk(
    read: Callable[[int, int], bytes], cr0: int, cr3: int, cr4: int, efer: int, gva: int
) -> Translation | None:
    """Where `gva` leads under these control registers; None where the CPU would raise a page fault.

    `read(gpa, size_bytes)` gives guest memory. A table outside of it (GuestAddressError, or fewer
    bytes), a reserved bit and a non-canonical address are None too: the walk itself never raises.
    SMEP, SMAP and protection keys are left out: they depend on who asks. PAE's four pointers are
    read from memory, although a CPU keeps those it saw when CR3 was loaded.
    """
    if not cr0 & CR0_PG:
        return Translation(gva & _MASK32, 1 << 32, writable=True, user=True, nx=False)
    paging = _format(cr4, efer)
    if paging.shifts[0] < 32:
        gva &= _MASK32
    elif not _is_canonical(gva, paging.shifts[0] + 9):
        return None
    return _walk(read, paging, cr3 & paging.root, gva, nx_is_on=bool(efer & EFER_NXE))


def read_virtual(
    read: Callable[[int, int], bytes], cr0: int, cr3: int, cr4: int, efer: int, gva: int, size_bytes: int
) -> bytes:
    """The bytes at `gva`, page after page, up to `size_bytes` or the first that is not there.

    Fewer bytes than asked for, down to none, say where the mapping or the memory ends.
    """
    found = bytearray()
    while len(found) < size_bytes:
        at = walk(read, cr0, cr3, cr4, efer, gva + len(found))
        if at is None:
            break
        wanted = min(size_bytes - len(found), PAGE_BYTES - at.gpa % PAGE_BYTES)
        piece = _read(read, at.gpa, wanted)
        found += piece
        if len(piece) < wanted:
            break
    return bytes(found)


def identity_long(at: int, *, user: bool) -> Mapping[int, bytes]:
    """The 4-level tables that map the first 4 GiB to themselves in 2 MiB pages: gpa -> bytes.

    They are 24 KiB at `at`: a PML4, a page of directory pointers, four directories. Accessed and
    dirty bits are set beforehand, so no CPU, nor an emulator of one, has to write them.
    """
    rights = _PRESENT | _WRITABLE | _ACCESSED | (_USER if user else 0)
    page = rights | _DIRTY | _LARGE
    pointers, directories = at + PAGE_BYTES, at + 2 * PAGE_BYTES
    tables = (directories + PAGE_BYTES * i | rights for i in range(4))
    return {
        at: pack("<Q", pointers | rights).ljust(PAGE_BYTES, b"\0"),
        pointers: pack("<4Q", *tables).ljust(PAGE_BYTES, b"\0"),
        directories: _directories(page),
    }


def _directories(page: int) -> bytes:
    """2,048 entries, number i mapping the 2 MiB at i << 21 with the low byte `page`.

    That number falls into bytes 2 (its low 3 bits, at the top) and 3 (the rest) of an entry. Filled
    in by columns it takes a fifth of the time of a loop, on the way of every 64-bit start.
    """
    entries = bytearray(pack("<Q", page)) * 2048
    entries[2::8] = bytes(range(0, 256, 32)) * 256
    for i in range(8):
        entries[3 + 8 * i :: 64] = bytes(range(256))
    return bytes(entries)


def identity_pse(at: int) -> Mapping[int, bytes]:
    """The page directory that maps 4 GiB to themselves in 4 MiB pages (CR4.PSE): gpa -> 4 KiB."""
    page = _PRESENT | _WRITABLE | _ACCESSED | _DIRTY | _LARGE
    return {at: pack("<1024I", *range(page, page + (1 << 32), 1 << 22))}


def _format(cr4: int, efer: int) -> _Format:
    if efer & EFER_LMA:
        return _LEVEL5 if cr4 & CR4_LA57 else _LEVEL4
    if cr4 & CR4_PAE:
        return _PAE
    return _LEGACY_PSE if cr4 & CR4_PSE else _LEGACY


def _is_canonical(gva: int, bits: int) -> bool:
    """Bits 63 down to `bits` - 1 are all equal (SDM Vol. 1, section 3.3.7.1)."""
    top = gva >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)


def _walk(
    read: Callable[[int, int], bytes], paging: _Format, table: int, gva: int, *, nx_is_on: bool
) -> Translation | None:
    writable, user, nx = True, True, False
    for shift in paging.shifts:
        where = table + (gva >> shift & paging.index_mask) * paging.entry_bytes
        raw = _read(read, where, paging.entry_bytes)
        entry = int.from_bytes(raw, "little")
        if len(raw) < paging.entry_bytes or not entry & _PRESENT:
            return None
        is_page = shift == 12 or (shift in paging.large and bool(entry & _LARGE))
        if entry & _reserved(paging, shift, is_page=is_page, nx_is_on=nx_is_on):
            return None
        if paging is not _PAE or shift != 30:
            writable &= bool(entry & _WRITABLE)
            user &= bool(entry & _USER)
            nx |= bool(entry & _NX)
        if is_page:
            base = _page_base(paging, shift, entry)
            return Translation(base | gva & (1 << shift) - 1, 1 << shift, writable, user, nx)
        table = entry & _ADDRESS
    raise AssertionError("the last level is always a page")


def _page_base(paging: _Format, shift: int, entry: int) -> int:
    """The gpa where the page starts; bits 20…13 of a 4 MiB entry are gpa bits 39…32 (PSE-36)."""
    base = entry & _ADDRESS & ~((1 << shift) - 1)
    if paging.entry_bytes == 4 and shift == 22:
        base |= (entry >> 13 & 0xFF) << 32
    return base


def _reserved(paging: _Format, shift: int, *, is_page: bool, nx_is_on: bool) -> int:
    """The bits that must be 0 in an entry of this level, or the CPU faults (SDM Vol. 3A, table 4-…)."""
    if paging.entry_bytes == 4:
        return 1 << 21 if is_page and shift == 22 else 0
    if paging is _PAE and shift == 30:
        return _PDPTE_RESERVED
    reserved = 0 if nx_is_on else _NX
    if paging is _PAE:
        reserved |= 0x7FF << 52
    if is_page and shift > 12:
        reserved |= (1 << shift) - (1 << 13)  # bit 12 is PAT there
    if not is_page and shift > 30:
        reserved |= _LARGE
    return reserved


def _read(read: Callable[[int, int], bytes], gpa: int, size_bytes: int) -> bytes:
    try:
        return bytes(read(gpa, size_bytes))
    except GuestAddressError:
        return b""
