"""Multiboot kernels: the header is found and obeyed, the information is what the specification says."""

from __future__ import annotations

from functools import partial
from struct import pack, unpack_from

import pytest
from boot_images import Part, build_elf, multiboot_header, result_or_line
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import Image, load
from pykvm.boot.multiboot import BOOT_MAGIC, Module, build_info, place_modules
from pykvm.errors import ConfigError, ImageError
from pykvm.regs import CpuMode

MIB = 1 << 20
AT = 0x9_8000
RAM = [(0, 0xA_0000, 1), (MIB, 63 * MIB, 1)]


def kernel(header: bytes = b"") -> bytes:
    """An ELF32 kernel at 1 MiB with a multiboot header 4 bytes into its text."""
    text = b"\x90\x90\x90\xf4" + (header or multiboot_header(1 << 1)) + b"\x90" * 16
    return build_elf(32, (Part(MIB, text, memsz=0x2000),), entry=MIB)


def flat_kernel(flags: int, *words: int, pad: int = 16) -> bytes:
    """A file that is no ELF: some code, a header at offset `pad`, some more."""
    return b"\x90" * pad + multiboot_header(flags, *words) + b"\xf4" * 100


def refusal(data: bytes, *, ignore_video: bool = False) -> str:
    """The one line that refuses an image."""
    with pytest.raises(ImageError) as caught:
        load(data, name="x", ignore_video=ignore_video)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def c_string(info: bytes, gpa: int) -> str:
    """The string that a kernel reads at `gpa`."""
    return info[gpa - AT : info.index(b"\0", gpa - AT)].decode()


def test_elf_kernel() -> None:
    """An ELF32 file with the header is a multiboot kernel, in protected mode without paging."""
    image = load(kernel())
    assert (image.kind, image.mode, image.entry) == ("multiboot", CpuMode.PROT32, MIB)
    assert image.multiboot is not None
    assert image.multiboot.flags == 1 << 1
    assert BOOT_MAGIC == 0x2BAD_B002
    assert (image.segments[0].gpa, image.segments[0].size_bytes) == (MIB, 0x2000)


def test_elf64_kernel() -> None:
    """A 64-bit ELF file with the header starts in 32-bit mode too, as its own code expects."""
    data = build_elf(64, (Part(MIB, multiboot_header() + b"\xf4" * 4),), entry=MIB + 12)
    assert load(data).kind == "multiboot"
    assert load(data).mode is CpuMode.PROT32


def test_mode_by_option_ignores_the_header() -> None:
    """Another mode by option makes a plain ELF image of it."""
    assert load(kernel(), mode=CpuMode.PAGED32).kind == "elf32"
    assert load(kernel(), mode=CpuMode.PROT32).kind == "multiboot"


def test_entry_by_option() -> None:
    """An entry by option goes before the file's."""
    assert load(kernel(), entry=MIB + 1).entry == MIB + 1


def test_ends_at_4_gib() -> None:
    """A kernel may reach to the end of its 4 GiB and not beyond."""
    for size, refused in ((0x1000, False), (0x1001, True)):
        parts = (Part((4 << 30) - 0x1000, multiboot_header() + b"\xf4", memsz=size),)
        found = result_or_line(partial(load, build_elf(64, parts, entry=parts[0].paddr)))
        assert isinstance(found, str) == refused


def test_linked_at_32_kib() -> None:
    """A kernel linked low, for real mode, may lie anywhere in low memory."""
    data = build_elf(32, (Part(0x8000, multiboot_header() + b"\xf4" * 8),), entry=0x800C)
    assert load(data).segments[0].gpa == 0x8000


@pytest.mark.parametrize(
    "header",
    [
        pack("<3I", 0x1BADB002, 0, 1),
        b"\0" + multiboot_header() + b"\0\0\0",
        pack("<3I", 0xE4524FFE, 0, 0x1BADB002),
    ],
    ids=["wrong checksum", "not aligned", "magic in the wrong place"],
)
def test_what_is_no_header(header: bytes) -> None:
    """Without a right checksum and alignment it is no header, and the file plain ELF."""
    assert load(kernel(header)).kind == "elf32"


def test_header_must_lie_in_the_first_8_kib() -> None:
    """The last place for a header is the end of the first 8 KiB."""
    before = 52 + 32
    inside = b"\x90" * (8192 - 12 - before) + multiboot_header()
    assert load(build_elf(32, (Part(MIB, inside),), entry=MIB)).kind == "multiboot"
    assert load(build_elf(32, (Part(MIB, b"\x90" * 4 + inside),), entry=MIB)).kind == "elf32"


def test_a_false_magic_does_not_hide_the_header() -> None:
    """The search goes on after a magic number that belongs to nothing."""
    false = pack("<3I", 0x1BADB002, 0x1BADB002, 0)
    assert load(kernel(false + multiboot_header())).kind == "multiboot"


@pytest.mark.parametrize("bit", [3, 4, 7, 15])
def test_unknown_requirements(bit: int) -> None:
    """Flags 3 to 15 are requirements nobody has defined: refused, naming the bit."""
    assert f"{1 << bit:#x}" in refusal(kernel(multiboot_header(1 << bit)))


@pytest.mark.parametrize("bit", [17, 31])
def test_unknown_wishes(bit: int) -> None:
    """Flags 16 to 31 are optional: an unknown one is ignored."""
    assert load(kernel(multiboot_header(1 << bit))).kind == "multiboot"


def test_graphics_mode() -> None:
    """A kernel that requires graphics is refused unless told otherwise; text mode is what there is."""
    addresses = (0,) * 5
    graphics = kernel(multiboot_header(1 << 2, *addresses, 0, 1024, 768, 32))
    text = kernel(multiboot_header(1 << 2, *addresses, 1, 80, 25, 0))
    assert "graphics" in refusal(graphics)
    image = load(graphics, ignore_video=True)
    assert image.multiboot is not None
    assert image.multiboot.video == (0, 1024, 768, 32)
    assert load(text).kind == "multiboot"


def test_multiboot2() -> None:
    """A kernel of the other specification alone is refused with the way out; with both it runs."""
    words = (0xE85250D6, 0, 24)
    second = pack("<IIII", *words, -sum(words) % (1 << 32)) + pack("<HHI", 0, 0, 8)
    parts = (Part(MIB, bytes(12) + second + b"\xf4"),)  # 8-byte aligned in the file
    assert "multiboot 2" in refusal(build_elf(32, parts, entry=MIB))
    assert load(build_elf(32, parts, entry=MIB), mode=CpuMode.PROT32).kind == "elf32"
    both = (Part(MIB, bytes(12) + second + b"\0" * 8 + multiboot_header()),)
    assert load(build_elf(32, both, entry=MIB)).kind == "multiboot"


def test_addresses_in_the_header() -> None:
    """A file that is no ELF is placed by the header: what to load, where, and how much is zero."""
    data = flat_kernel(1 << 16, MIB + 16, MIB, MIB + 60, MIB + 0x1000, MIB + 48)
    image = load(data)
    assert (image.kind, image.entry) == ("multiboot", MIB + 48)
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [(MIB, data[:60], 0x1000)]


def test_header_at_the_start_of_the_file() -> None:
    """The header may be the very first thing."""
    assert load(flat_kernel(1 << 16, MIB, MIB, 0, 0, MIB + 40, pad=0)).entry == MIB + 40


def test_addresses_that_are_zero() -> None:
    """load_end_addr 0 loads to the end of the file, bss_end_addr 0 adds nothing."""
    data = flat_kernel(1 << 16, MIB + 8, MIB, 0, 0, MIB + 40)
    image = load(data)
    assert [(s.gpa, s.data, s.size_bytes) for s in image.segments] == [(MIB, data[8:], len(data) - 8)]


def test_addresses_go_before_elf() -> None:
    """With flag bit 16 an ELF file's own program headers don't count."""
    offset = 52 + 32 + 4
    header = multiboot_header(1 << 16, 2 * MIB + offset, 2 * MIB, 0, 0, 2 * MIB + offset - 4)
    image = load(kernel(header))
    assert (image.segments[0].gpa, image.entry) == (2 * MIB, 2 * MIB + offset - 4)


@pytest.mark.parametrize(
    ("addresses", "says"),
    [
        ((MIB, MIB + 4, 0, 0, MIB), "can't lie at"),
        ((MIB + 64, MIB, 0, 0, MIB), "can't lie at"),
        ((MIB + 16, MIB, MIB - 1, 0, MIB), "not in order"),
        ((MIB + 16, MIB, MIB + 60, MIB + 59, MIB), "not in order"),
        ((MIB + 16, MIB, MIB + 4096, 0, MIB), "truncated"),
        ((MIB + 16, MIB, 0, 0, MIB - 1), "entry"),
        ((MIB + 16, MIB, 0, 0, 0), "entry"),
        ((0xFFFF_FFF0, 0xFFFF_FFE0, 0, 0, 0xFFFF_FFE0), "out of"),
    ],
)
def test_impossible_addresses(addresses: tuple[int, ...], says: str) -> None:
    """Addresses that contradict the file or one another are refused."""
    assert says in refusal(flat_kernel(1 << 16, *addresses))


def test_neither_elf_nor_addresses() -> None:
    """A header that says nothing in a file that says nothing: refused, unless the user says it."""
    assert "flags bit 16" in refusal(flat_kernel(0))
    assert load(flat_kernel(0), mode=CpuMode.PROT32).kind == "flat"


def test_header_cut_off() -> None:
    """A header whose flags promise more than the file has is refused."""
    assert "of 32 bytes" in refusal(b"\x90" * 16 + multiboot_header(1 << 16, MIB))
    assert "of 48 bytes" in refusal(b"\x90" * 16 + multiboot_header(1 << 2))


def test_information() -> None:
    """Memory, command line, modules, map and loader name stand where the flags say they do."""
    modules = [Module(2 * MIB, 5000, "first file"), Module(3 * MIB, 1)]
    ram = [*RAM, (0xFEC0_0000, 0x1000, 2), (4 << 30, 8 << 30, 1)]
    info = build_info(load(kernel()), at=AT, memory_map=ram, cmdline="kernel a=1 b", modules=modules)
    flags, lower, upper, _, cmdline, count, mods = unpack_from("<7I", info)
    assert mods % 4 == 0
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (640, 63 * 1024)
    assert c_string(info, cmdline) == "kernel a=1 b"
    assert c_string(info, unpack_from("<I", info, 64)[0]) == "pykvm"
    rows = [unpack_from("<4I", info, mods - AT + 16 * i) for i in range(count)]
    assert [row[:2] for row in rows] == [(2 * MIB, 2 * MIB + 5000), (3 * MIB, 3 * MIB + 1)]
    assert [c_string(info, row[2]) for row in rows] == ["first file", ""]
    length, where = unpack_from("<2I", info, 44)
    entries = [unpack_from("<IQQI", info, where - AT + i) for i in range(0, length, 24)]
    assert [entry[1:] for entry in entries] == ram
    assert {entry[0] for entry in entries} == {20}  # each leads to the next: its size without this field


def test_video_fields_are_absent() -> None:
    """Nothing is said of video: its flags are clear and its fields zero, also for who reads them anyway."""
    info = build_info(load(kernel()), at=AT, memory_map=RAM)
    assert unpack_from("<I", info)[0] >> 10 == 0
    assert info[68:120] == bytes(52)


def test_information_without_anything() -> None:
    """Without options the command line is there and empty, and there are no modules."""
    info = build_info(load(kernel()), at=AT, memory_map=[])
    _, lower, upper, _, cmdline, count, _ = unpack_from("<7I", info)
    assert (lower, upper, c_string(info, cmdline), count) == (0, 0, "", 0)


@pytest.mark.parametrize(
    ("ram", "lower", "upper"),
    [
        ([(0, 64 * MIB, 1)], 640, 63 * 1024),
        ([(0, 0x9_0000, 1), (MIB, MIB, 1), (2 * MIB, 2 * MIB, 1)], 576, 3 * 1024),
        ([(0, 0x1_0000, 1)], 64, 0),
        ([(0, MIB, 2), (MIB, MIB, 2)], 0, 0),
        ([(MIB, 8 << 50, 1)], 0, (1 << 32) - 1),
    ],
)
def test_lower_and_upper_memory(ram: list[tuple[int, int, int]], lower: int, upper: int) -> None:
    """mem_lower ends at 640 KiB at most, mem_upper at the first hole above 1 MiB, both in KiB."""
    assert unpack_from("<2I", build_info(load(kernel()), at=AT, memory_map=ram), 4) == (lower, upper)


@pytest.mark.parametrize("cmdline", ["a\0b", "\ud800", "x" * 0x8000])
def test_impossible_command_lines(cmdline: str) -> None:
    """A command line that can't be told to a kernel is the user's error, in one line."""
    with pytest.raises(ConfigError) as caught:
        build_info(load(kernel()), at=AT, memory_map=RAM, cmdline=cmdline)
    assert "\n" not in str(caught.value)


def test_longest_command_line() -> None:
    """The information may fill its place to the last byte."""
    size = len(build_info(load(kernel()), at=AT, memory_map=RAM))
    room = 0x8000 - size
    assert len(build_info(load(kernel()), at=AT, memory_map=RAM, cmdline="x" * room)) == 0x8000
    with pytest.raises(ConfigError, match="shorten"):
        build_info(load(kernel()), at=AT, memory_map=RAM, cmdline="x" * (room + 1))


def test_any_byte_of_a_command_line() -> None:
    """What the shell gave passes unchanged, also where it is no UTF-8."""
    info = build_info(
        load(kernel()), at=AT, memory_map=[], cmdline=b"\xff\xfe \xc3\xa4".decode(errors="surrogateescape")
    )
    assert b"\xff\xfe \xc3\xa4\0" in info


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Module(MIB + 0x1000, 16), "overlaps"),
        (Module(2 * MIB + 1, 16), "page boundaries"),
        (Module((4 << 30) - 16, 16), "below 4 GiB"),
    ],
)
def test_impossible_modules(module: Module, says: str) -> None:
    """A module over the kernel, above its reach, or not aligned as the header requires, is refused."""
    image = load(kernel(multiboot_header(1 << 0)))
    with pytest.raises(ConfigError, match=says):
        build_info(image, at=AT, memory_map=RAM, modules=[module])


def test_modules_may_touch_the_image() -> None:
    """A module may end where the image starts, or start where it ends; its end is a 32-bit number."""
    modules = [Module(MIB - 16, 16), Module(MIB + 0x2000, 16), Module((4 << 30) - 16, 15)]
    assert build_info(load(kernel()), at=AT, memory_map=RAM, modules=modules)


def test_modules_are_placed_on_pages() -> None:
    """Modules lie on pages of their own after the image, and in memory, or it is said."""
    image = load(kernel())
    assert place_modules(image, [5000, 0, 1], [range(64 * MIB)]) == (MIB + 0x2000, MIB + 0x4000, MIB + 0x4000)
    with pytest.raises(ConfigError, match="does not fit"):
        place_modules(image, [MIB], [range(2 * MIB)])


def test_modules_lie_above_one_mib() -> None:
    """An image in low memory leaves low memory to itself."""
    low = load(build_elf(32, (Part(0x8000, multiboot_header() + b"\xf4" * 8),), entry=0x800C))
    assert place_modules(low, [1], [range(2 * MIB)]) == (MIB,)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
    st.lists(st.integers(0, 1 << 20), max_size=5),
)
def test_placed_modules_pass(cmdline: str, sizes: list[int]) -> None:
    """What place_modules gives, build_info takes, and says the same back."""
    image = load(kernel(multiboot_header(1 << 0)))
    placed = [
        Module(at, size, cmdline)
        for at, size in zip(place_modules(image, sizes, [range(64 * MIB)]), sizes, strict=True)
    ]
    info = build_info(image, at=AT, memory_map=RAM, cmdline=cmdline, modules=placed)
    _, _, _, _, line, count, mods = unpack_from("<7I", info)
    rows = [unpack_from("<4I", info, mods - AT + 16 * i) for i in range(count)]
    assert [(start, end - start, c_string(info, name)) for start, end, name, _ in rows] == [
        (m.gpa, m.size_bytes, cmdline) for m in placed
    ]
    assert c_string(info, line) == cmdline


@given(st.integers(0, 0xFFFF_FFFF), st.lists(st.integers(0, 0xFFFF_FFFF), max_size=9), st.integers(0, 64))
def test_arbitrary_headers_never_surprise(flags: int, words: list[int], pad: int) -> None:
    """A header of any content is obeyed or refused."""
    for data in (flat_kernel(flags, *words, pad=4 * pad), kernel(multiboot_header(flags, *words))):
        image = result_or_line(partial(load, data))
        if isinstance(image, Image):
            assert any(s.gpa <= image.entry < s.gpa + len(s.data) for s in image.segments)
            assert image.end <= 1 << 32
