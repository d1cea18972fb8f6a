"""ELF executables for x86: the program headers say what goes where, the symbol table names it.

The System V ABI's object file format, of which a guest needs three tables::

    file offset 0   ELF header       class (32/64), machine, entry, where the tables are
    e_phoff         program headers  PT_LOAD: this part of the file belongs at p_paddr, p_memsz long
    e_shoff         section headers  SHT_SYMTAB and its string table: names of addresses

Guests have no loader to relocate them: only ET_EXEC, linked for fixed addresses, can run. Programs for the
paravirtual kernel have one, and may be position-independent.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm.boot.image import Image, Symbol, checked_image
from pykvm.regs import CpuMode

if TYPE_CHECKING:
    from pykvm.boot.source import Source

__all__ = [
    "MAGIC",
    "Elf",
    "ProgramHeader",
    "load_elf",
    "load_segments",
    "physical_entry",
    "read_elf",
    "read_symbols",
]

MAGIC = b"\x7fELF"

_ET_EXEC, _ET_DYN = 2, 3
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_INTERP = 1, 3
_SHT_SYMTAB = 2
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00
_STT_FUNC = 2  # 0 is a plain label, 1 an object
_HEADERS_MAX_BYTES = 1 << 16  # of program headers; Linux has the same limit
_SYMBOLS_MAX_BYTES = 1 << 26
_NAME_MAX_BYTES = 1024

_MACHINES = {
    8: "MIPS",
    20: "PowerPC",
    21: "64-bit PowerPC",
    22: "s390",
    40: "32-bit ARM",
    50: "Itanium",
    183: "64-bit ARM",
    243: "RISC-V",
    247: "BPF",
    258: "LoongArch",
}
_NOT_EXECUTABLE = {
    1: "it is an object file; link it first (ld -static -T script)",
    3: "it is position-independent (a PIE or a shared library), and nobody relocates a guest; "
    "link it with -static -no-pie",
    4: "it is a core dump, not a program",
}


class _Layout(NamedTuple):
    """The structures of one class, each with its fields brought into the same order."""

    header: Struct
    program: Struct
    program_fields: tuple[int, ...]  # type, flags, offset, vaddr, paddr, filesz, memsz
    section: Struct
    symbol: Struct
    symbol_fields: tuple[int, ...]  # name, value, size, info, shndx


_ELF32 = _Layout(
    Struct("<16xHHIIIIIHHHHHH"),
    Struct("<8I"),
    (0, 6, 1, 2, 3, 4, 5),
    Struct("<10I"),
    Struct("<IIIBBH"),
    (0, 1, 2, 3, 5),
)
_ELF64 = _Layout(
    Struct("<16xHHIQQQIHHHHHH"),
    Struct("<IIQQQQQQ"),
    (0, 1, 2, 3, 4, 5, 6),
    Struct("<IIQQQQIIQQ"),
    Struct("<IBBHQQ"),
    (0, 4, 5, 1, 3),
)


class ProgramHeader(NamedTuple):
    """One part of the file and its place in memory; the fields are those of Elf64_Phdr."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class Elf(NamedTuple):
    """A checked ELF header and its program headers."""

    is_64bit: bool
    machine: int
    entry: int
    programs: tuple[ProgramHeader, ...]
    sections_offset: int
    section_bytes: int
    section_count: int
    is_relocatable: bool = False


def read_elf(source: Source, *, relocatable: bool = False) -> Elf:
    """The headers of an x86 executable; one that moves itself (a static PIE) only where it is `relocatable`.

    Raises ImageError for another machine or byte order, for what is not an executable of fixed
    addresses, and for headers that are damaged or not there.
    """
    ident = source.read(0, 16, "the ELF identification")
    if ident[4] not in (1, 2):
        raise source.error(f"its ELF class is {ident[4]}, neither 32 nor 64 bit: damaged")
    if ident[5] != 1:
        raise source.error("it is a big-endian ELF file, for another machine; x86 is little-endian")
    form = _ELF64 if ident[4] == 2 else _ELF32
    fields = form.header.unpack(source.read(0, form.header.size, "the ELF header"))
    kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = fields
    _check_machine(source, form, machine)
    if kind != _ET_EXEC and not (relocatable and kind == _ET_DYN and entry):
        raise source.error(_NOT_EXECUTABLE.get(kind, f"its ELF type is {kind}, not that of an executable"))
    programs = _read_programs(source, form, phoff, phentsize, phnum)
    return Elf(form is _ELF64, machine, entry, programs, shoff, shentsize, shnum, kind == _ET_DYN)


def load_elf(
    source: Source,
    mode: CpuMode | None,
    entry: int | None,
    *,
    limit_bytes: int,
    is_read_later: bool = False,
) -> Image:
    """The Image of an ELF executable, by default in protected mode (32 bit) or long mode (64 bit).

    With `is_read_later` its segments may be parts of the file still: see LoadSegment.
    """
    elf = read_elf(source)
    if mode is None:
        if not elf.is_64bit and elf.machine == _EM_X86_64:
            raise source.error(
                "it is an x32 ELF file, 64-bit code in a 32-bit file; say the CPU mode by option"
            )
        mode = CpuMode.LONG64 if elf.is_64bit else CpuMode.PROT32
    return checked_image(
        source,
        "elf64" if elf.is_64bit else "elf32",
        mode,
        physical_entry(elf) if entry is None else entry,
        load_segments(elf),
        limit_bytes=limit_bytes,
        is_read_later=is_read_later,
    )


def load_segments(elf: Elf) -> list[tuple[int, int, int, int]]:
    """What `checked_image` takes: (gpa, file offset, bytes in the file, bytes in memory) of each PT_LOAD."""
    return [(p.paddr, p.offset, p.filesz, p.memsz) for p in elf.programs if p.type == _PT_LOAD]


def physical_entry(elf: Elf) -> int:
    """The gpa of the entry.

    e_entry is a virtual address, and no page table maps a kernel's high half yet: if it lies in a
    segment's virtual range it moves with the segment. Kernels that give a physical one are left alone.
    """
    for p in elf.programs:
        if p.type == _PT_LOAD and p.vaddr <= elf.entry < p.vaddr + p.memsz:
            return elf.entry - p.vaddr + p.paddr
    return elf.entry


def read_symbols(source: Source, *, relocatable: bool = False) -> tuple[Symbol, ...]:
    """The named code and data of an ELF file in order of address, none if it was stripped.

    Undefined and absolute symbols, sections and files are left out. Raises ImageError if the tables
    are damaged.
    """
    elf = read_elf(source, relocatable=relocatable)
    form = _ELF64 if elf.is_64bit else _ELF32
    sections = _read_sections(source, form, elf)
    for kind, offset, size, link in sections:
        if kind == _SHT_SYMTAB and link < len(sections):
            _, names_offset, names_size, _ = sections[link]
            if max(size, names_size) > _SYMBOLS_MAX_BYTES:
                raise source.error(f"its symbols take {max(size, names_size):#x} bytes, too many to read")
            table = source.read(offset, size - size % form.symbol.size, "the symbol table")
            return _symbols(form, table, source.read(names_offset, names_size, "the symbols' names"))
    return ()


def _check_machine(source: Source, form: _Layout, machine: int) -> None:
    if machine not in (_EM_386, _EM_X86_64):
        name = _MACHINES.get(machine, f"machine number {machine}")
        raise source.error(f"it is an ELF file for {name}; pykvm runs x86 guests")
    if form is _ELF64 and machine == _EM_386:
        raise source.error("it is a 64-bit ELF file for a 32-bit machine: damaged")


def _read_programs(
    source: Source, form: _Layout, offset: int, entry_bytes: int, count: int
) -> tuple[ProgramHeader, ...]:
    if not count:
        raise source.error("it has no program headers, so nothing says where it belongs in memory; link it")
    if entry_bytes != form.program.size:
        raise source.error(f"its program headers have {entry_bytes} bytes, not {form.program.size}: damaged")
    if count * entry_bytes > _HEADERS_MAX_BYTES:
        raise source.error(f"it claims {count} program headers, more than any linker makes: damaged")
    table = source.read(offset, count * entry_bytes, "the table of program headers")
    programs = tuple(
        ProgramHeader(*(fields[i] for i in form.program_fields)) for fields in form.program.iter_unpack(table)
    )
    if any(p.type == _PT_INTERP for p in programs):
        raise source.error("it is dynamically linked, for an operating system; link it with -static")
    return programs


def _read_sections(source: Source, form: _Layout, elf: Elf) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section; none if there is no table."""
    if not elf.sections_offset or not elf.section_count:
        return []
    if elf.section_bytes != form.section.size:
        raise source.error(
            f"its section headers have {elf.section_bytes} bytes, not {form.section.size}: damaged"
        )
    table = source.read(elf.sections_offset, elf.section_count * form.section.size, "the section headers")
    return [(s[1], s[4], s[5], s[6]) for s in form.section.iter_unpack(table)]


def _symbols(form: _Layout, table: bytes, names: bytes) -> tuple[Symbol, ...]:
    found = []
    for fields in form.symbol.iter_unpack(table):
        name_at, value, size, info, section = (fields[i] for i in form.symbol_fields)
        if info & 0xF > _STT_FUNC or section == _SHN_UNDEF or section >= _SHN_LORESERVE:
            continue
        end = names.find(b"\0", name_at, name_at + _NAME_MAX_BYTES)
        name = names[name_at : end if end >= 0 else name_at + _NAME_MAX_BYTES]
        if name:
            found.append(Symbol(name.decode(errors="replace"), value, size))
    found.sort(key=lambda symbol: (symbol.address, symbol.size_bytes > 0))
    return tuple(found)
