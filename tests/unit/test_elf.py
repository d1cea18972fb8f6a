"""ELF executables become images, and damaged ones one clear line."""

from __future__ import annotations

import pickle
from itertools import pairwise
from struct import pack_into

import pytest
from boot_images import MACHINE, Name, Part, build_elf, result_or_line
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import Image, load, nearest_symbol, symbols
from pykvm.errors import ImageError
from pykvm.regs import CpuMode

HIGH_HALF = {32: 0xC010_0000, 64: 0xFFFF_FFFF_8010_0000}
BITS = pytest.mark.parametrize("bits", [32, 64])


def refusal(data: bytes, mode: CpuMode | None = None) -> str:
    """The one line that refuses an image, without its name."""
    with pytest.raises(ImageError) as caught:
        load(data, name="x", mode=mode)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("x: ")
    return text


@BITS
def test_segments_and_entry(bits: int) -> None:
    """Every PT_LOAD lands at its physical address, with zeros after its bytes; other headers don't."""
    parts = (Part(0x20_0000, b"data", memsz=0x1000), Part(0x10_0000, b"\x90\xf4"), Part(0, b"note", type=4))
    image = load(build_elf(bits, parts, entry=0x10_0001))
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [
        (0x10_0000, b"\x90\xf4", 2),
        (0x20_0000, b"data", 0x1000),
    ]
    assert (image.kind, image.entry) == (f"elf{bits}", 0x10_0001)
    assert image.mode is (CpuMode.LONG64 if bits == 64 else CpuMode.PROT32)
    assert image.end == 0x20_1000


def test_mode_by_option() -> None:
    """A mode given by option goes before the one that the class suggests."""
    assert load(build_elf(64), mode=CpuMode.USER64).mode is CpuMode.USER64
    assert load(build_elf(32), mode=CpuMode.PAGED32).mode is CpuMode.PAGED32


def test_entry_by_option() -> None:
    """An entry given by option is a gpa and goes before e_entry."""
    assert load(build_elf(parts=(Part(0x10_0000, b"\x90\xf4"),)), entry=0x10_0001).entry == 0x10_0001


@BITS
def test_entry_in_the_high_half(bits: int) -> None:
    """A virtual entry moves with its segment to where that one is loaded."""
    high = HIGH_HALF[bits]
    part = Part(0x10_0000, b"\x90" * 16, vaddr=high)
    assert load(build_elf(bits, (part,), entry=high + 4)).entry == 0x10_0004


@BITS
def test_physical_entry_in_a_high_half_kernel(bits: int) -> None:
    """An entry that is no segment's virtual address is taken as physical."""
    part = Part(0x10_0000, b"\x90" * 16, vaddr=HIGH_HALF[bits])
    assert load(build_elf(bits, (part,), entry=0x10_0004)).entry == 0x10_0004


def test_zero_only_segment_may_point_past_the_file() -> None:
    """A segment without bytes in the file has no offset that could be wrong."""
    parts = (Part(0x10_0000), Part(0x20_0000, b"", memsz=64, offset=1 << 40))
    assert load(build_elf(parts=parts)).segments[1].data == b""


def test_image_travels_between_processes() -> None:
    """An image is a value: pickled and back it is equal."""
    image = load(build_elf())
    assert pickle.loads(pickle.dumps(image)) == image  # noqa: S301 - our own bytes


@BITS
def test_other_machines_are_named(bits: int) -> None:
    """An ELF file of another machine is refused with that machine's name, or its number."""
    assert "64-bit ARM" in refusal(build_elf(bits, fields={"machine": 183}))
    assert "machine number 9999" in refusal(build_elf(bits, fields={"machine": 9999}))
    assert "big-endian" in refusal(build_elf(bits, fields={"data": 2}))


def test_mixed_classes() -> None:
    """64-bit code in a 32-bit file needs the mode from the user; the reverse is damage."""
    assert "x32" in refusal(build_elf(32, fields={"machine": MACHINE[64]}))
    assert load(build_elf(32, fields={"machine": MACHINE[64]}), mode=CpuMode.LONG64).mode is CpuMode.LONG64
    assert "damaged" in refusal(build_elf(64, fields={"machine": MACHINE[32]}))


@pytest.mark.parametrize(
    ("kind", "says"), [(1, "object file"), (3, "-no-pie"), (4, "core dump"), (77, "type is 77")]
)
def test_what_is_no_executable(kind: int, says: str) -> None:
    """Object files, PIEs, libraries and core dumps are refused with the way out."""
    assert says in refusal(build_elf(fields={"kind": kind}))


def test_dynamically_linked() -> None:
    """A program that wants an interpreter is refused."""
    assert "-static" in refusal(build_elf(parts=(Part(0x10_0000), Part(0, b"/lib/ld.so", type=3))))


def test_class_that_is_none() -> None:
    """An identification with a class of neither size is damage."""
    data = bytearray(build_elf())
    data[4] = 9
    assert "class is 9" in refusal(bytes(data))


@BITS
def test_truncated_anywhere(bits: int) -> None:
    """Cut off after any number of bytes, the file is refused in one line."""
    whole = build_elf(bits, (Part(0x10_0000, b"\xf4" * 8),))
    for size in range(4, len(whole)):
        refusal(whole[:size])


@BITS
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"phnum": 0}, "no program headers"),
        ({"phnum": 0xFFFF}, "65535 program headers"),
        ({"phnum": 200}, "table of program headers"),
        ({"phentsize": 1}, "program headers have 1 bytes"),
        ({"phentsize": 0, "phnum": 0xFFFF}, "program headers have 0 bytes"),
        ({"phoff": 0xFFFF_FFF0}, "table of program headers"),
    ],
)
def test_hostile_header(bits: int, fields: dict[str, int], says: str) -> None:
    """Counts, sizes and offsets that can't be are said, not believed."""
    assert says in refusal(build_elf(bits, fields=fields))


@BITS
@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((Part(0x10_0000, filesz=100),), "truncated or damaged"),
        ((Part(0x10_0000, offset=0xFFFF_FFFF),), "truncated or damaged"),
        ((Part(0x10_0000, b"1234", memsz=3),), "0x4 bytes in the file but 0x3 in memory"),
        ((Part(0x10_0000, b"1234", memsz=0),), "0x4 bytes in the file but 0x0 in memory"),
        ((Part(0x10_0000, memsz=0x2000), Part(0x10_1000)), "overlap"),
        ((Part(0x10_0000), Part(0x10_0000)), "overlap"),
        ((Part(0x10_0000, b""),), "nothing to load"),
        ((Part(0x10_0000, b"note", type=4),), "nothing to load"),
        ((Part(0x20_0000),), "entry 0x100000 is not in"),
        ((Part(0x0F_FFFF, b"1", memsz=16),), "entry 0x100000 is not in"),
    ],
)
def test_impossible_segments(bits: int, parts: tuple[Part, ...], says: str) -> None:
    """Segments that lie, overlap, or leave the entry out are refused with the address."""
    assert says in refusal(build_elf(bits, parts))


def test_wraps_the_address_space() -> None:
    """A segment may end at 2**64 and not beyond."""
    assert "wraps" in refusal(build_elf(parts=(Part(0x10_0000), Part((1 << 64) - 8, memsz=9))))
    assert load(build_elf(parts=(Part(0x10_0000), Part((1 << 64) - 8, memsz=8)))).end == 1 << 64


@pytest.mark.parametrize(("mode", "reach"), [(CpuMode.REAL16, 1 << 20), (CpuMode.LONG64, 1 << 32)])
def test_entry_out_of_reach(mode: CpuMode, reach: int) -> None:
    """The entry must lie where the mode can start."""
    assert load(build_elf(64, (Part(reach - 1),), entry=reach - 1), mode=mode).entry == reach - 1
    assert "out of reach" in refusal(build_elf(64, (Part(reach),), entry=reach), mode)


def test_more_than_there_is_room_for() -> None:
    """More bytes than the limit are refused before they are read."""
    with pytest.raises(ImageError, match="room for"):
        load(build_elf(parts=(Part(0x10_0000, b"\xf4" * 4096),)), limit_bytes=4095)


@BITS
def test_symbols(bits: int) -> None:
    """Labels, functions and objects come in order of address; the rest is left out."""
    names = (
        Name("main", 0x10_0010, 32, info=2),
        Name("_start", 0x10_0000),
        Name("table", 0x10_0040, 8, info=0x11),
        Name("file.c", 0, info=4),
        Name("undefined", 0, section=0),
        Name("CONSTANT", 7, section=0xFFF1),
        Name("", 0x10_0001),
    )
    found = symbols(build_elf(bits, names=names))
    assert [(s.name, s.address, s.size_bytes) for s in found] == [
        ("_start", 0x10_0000, 0),
        ("main", 0x10_0010, 32),
        ("table", 0x10_0040, 8),
    ]


def test_stripped_or_not_elf() -> None:
    """No symbol table, no symbols; that is no error."""
    assert symbols(build_elf()) == ()
    assert symbols(b"\xf4") == ()


@pytest.mark.parametrize("fields", [{"shentsize": 7}, {"shnum": 0xFFFF}, {"shoff": 1 << 60}])
def test_damaged_symbol_tables(fields: dict[str, int]) -> None:
    """Damage in the section headers does not hinder a start, and is said when symbols are asked for."""
    data = build_elf(names=(Name("main", 0x10_0000),), fields=fields)
    assert load(data).entry == 0x10_0000
    with pytest.raises(ImageError):
        symbols(data)


def test_endless_symbol_name() -> None:
    """A string table without an end gives names of bounded length, many as they are."""
    data = bytearray(build_elf(names=tuple(Name("n" * 3000, i) for i in range(50))))
    table = data.index(b"nnnn")
    for at in range(table, len(data) - 64 * 3):
        if data[at] == 0:
            data[at] = ord("n")
    assert max(len(symbol.name) for symbol in symbols(bytes(data))) == 1024


def test_nearest_symbol() -> None:
    """An address is named by the innermost symbol that holds it, or by the last label before."""
    names = (Name("outer", 0x100, 0x100, info=2), Name("inner", 0x120, 0x10, info=2), Name("label", 0x300))
    found = symbols(build_elf(names=names))
    named = {}
    for address in (0xFF, 0x100, 0x12F, 0x130, 0x1FF, 0x200, 0x300, 0x1234):
        nearest = nearest_symbol(found, address)
        named[address] = nearest and f"{nearest[0].name}+{nearest[1]:#x}"
    assert named == {
        0xFF: None,
        0x100: "outer+0x0",
        0x12F: "inner+0xf",
        0x130: "outer+0x30",
        0x1FF: "outer+0xff",
        0x200: None,
        0x300: "label+0x0",
        0x1234: "label+0xf34",
    }


@given(
    st.sampled_from([32, 64]),
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 64), st.integers(0, 64)), min_size=1
    ),
    st.data(),
)
def test_round_trip(bits: int, sizes: list[tuple[bytes, int, int]], data: st.DataObject) -> None:
    """What was put into an ELF file comes out of it, whatever the order of its headers."""
    parts, at = [], 0x10_0000
    for content, zeros, gap in sizes:
        parts.append(Part(at, content, memsz=len(content) + zeros))
        at += len(content) + zeros + gap
    shuffled = data.draw(st.permutations(parts))
    home = data.draw(st.sampled_from(parts))
    entry = home.paddr + data.draw(st.integers(0, len(home.data) - 1))
    image = load(build_elf(bits, tuple(shuffled), entry))
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [
        (p.paddr, p.data, p.memsz) for p in parts
    ]
    assert image.entry == entry


SOUND_PARTS = (Part(0x10_0000, b"\x90" * 32), Part(0x20_0000))
SOUND = {bits: build_elf(bits, SOUND_PARTS, names=(Name("a", 1),)) for bits in (32, 64)}


@given(st.sampled_from([32, 64]), st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=8))
def test_mutated_files_never_surprise(bits: int, changes: list[tuple[int, int]]) -> None:
    """Any bytes changed: the image is right in itself or refused, nothing else, and at once."""
    data = bytearray(SOUND[bits])
    for at, value in changes:
        data[at] = value
    check_sound(bytes(data))


@given(
    st.sampled_from([32, 64]), st.integers(0, 240), st.sampled_from([0, 1, 0xFFFF_FFFF, 0x8000_0000, 1 << 63])
)
def test_extreme_fields_never_surprise(bits: int, at: int, value: int) -> None:
    """Any eight bytes replaced by an extreme number: right in itself or refused."""
    data = bytearray(SOUND[bits])
    pack_into("<Q", data, at, value)
    check_sound(bytes(data))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_surprise(tail: bytes) -> None:
    """Any bytes after the magic number are refused or sound."""
    check_sound(b"\x7fELF" + tail)


def check_sound(data: bytes) -> None:
    """Load `data` and see that what was accepted keeps the promises of an Image."""
    image = result_or_line(lambda: load(data))
    if isinstance(image, Image):
        assert_sound(image, len(data))
    result_or_line(lambda: symbols(data))


def assert_sound(image: Image, file_bytes: int) -> None:
    """Segments in order, apart, with their bytes; the entry in them."""
    assert all(a.where.stop <= b.gpa for a, b in pairwise(image.segments))
    assert all(len(s.data) <= s.size_bytes and s.where.stop <= 1 << 64 for s in image.segments)
    assert sum(len(s.data) for s in image.segments) <= file_bytes * len(image.segments)
    assert any(s.gpa <= image.entry < s.gpa + len(s.data) for s in image.segments)
