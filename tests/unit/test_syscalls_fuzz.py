"""Whatever a program claims, describing it neither raises nor grows nor reads without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.errors import GuestAddressError
from pykvm.trace.syscalls import describe, result_text
from pykvm.trace.syscalls.constants import parse_flags, parse_values
from pykvm.trace.syscalls.kinds import ABIS, plans, rows
from pykvm.trace.syscalls.strings import quote

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

LONGEST = 1 << 17
MOST_READS = 128
MOST_BYTES = 1 << 16
WORD = st.integers(0, (1 << 64) - 1)
# small numbers are descriptors, commands and sizes; a few addresses make pointers meet each other
ARGUMENT = st.one_of(
    st.integers(0, 300), st.sampled_from([0x1000, 0x1008, 0x2000, 1 << 63, (1 << 64) - 8]), WORD
)
ARGUMENTS = st.lists(ARGUMENT, max_size=6)
RESULT = st.one_of(st.integers(-600, 5000), WORD)
NUMBER = st.one_of(st.integers(0, 480), WORD, st.integers(max_value=0))


class Reader:
    """A program's memory made of one repeated pattern, which counts what is read of it."""

    def __init__(self, pattern: bytes, whim: int) -> None:
        self.pattern, self.whim = pattern, whim
        self.reads = self.bytes = 0

    def __call__(self, gva: int, size_bytes: int) -> bytes:
        self.reads += 1
        self.bytes += size_bytes
        assert 0 < size_bytes <= MOST_BYTES
        if self.whim == 0 and gva % 3 == 0:
            raise GuestAddressError(f"{gva:#x}")
        if self.whim == 1 and gva % 3 == 0:
            return b""
        size_bytes = size_bytes // 2 if self.whim == 2 and gva % 2 else size_bytes + (self.whim == 3)
        start = gva % len(self.pattern)
        return (self.pattern * (size_bytes // len(self.pattern) + 2))[start : start + size_bytes]


# pointers, lengths, commands and text, in any mixture; pointers into the pattern make lists without an end
PIECE = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 16, 32, 0x1000, 0x1008, 0x2000, (1 << 64) - 1, 1 << 63]).map(
        lambda number: number.to_bytes(8, "little")
    ),
    st.integers(0, 300).map(lambda number: number.to_bytes(4, "little")),
    st.binary(min_size=1, max_size=40),
)
READER = st.builds(Reader, st.lists(PIECE, min_size=1, max_size=20).map(b"".join), st.integers(0, 5))


def check(number: int, args: list[int], result: int, read: Reader, abi: str) -> None:
    """Before and after: a line, of a bounded length, for a bounded number of reads."""
    call = describe(number, args, read=read, abi=abi)
    assert len(str(call)) < LONGEST
    assert read.reads <= MOST_READS
    assert read.bytes <= MOST_BYTES
    read.reads = read.bytes = 0
    done = call.returned(result, read=read)
    assert len(str(done)) < LONGEST
    assert done.result
    assert read.reads <= MOST_READS
    assert read.bytes <= MOST_BYTES
    assert str(done).isprintable()


@given(number=NUMBER, args=ARGUMENTS, result=RESULT, read=READER, abi=st.sampled_from(ABIS))
def test_anything_is_put_into_words(
    number: int, args: list[int], result: int, read: Reader, abi: str
) -> None:
    """Any number, arguments and result, over memory that lies, is short, or raises."""
    check(number, args, result, read, abi)


@pytest.mark.parametrize("abi", ABIS)
@settings(max_examples=10, deadline=None)
@given(args=st.lists(ARGUMENT, min_size=6, max_size=6), result=RESULT, read=READER)
def test_every_syscall_stands_any_arguments(args: list[int], result: int, read: Reader, abi: str) -> None:
    """Each line of the tables and each variant of it, by turns, with the same wild arguments."""
    for number in rows(abi):
        read.reads = read.bytes = 0
        check(number, args, result, read, abi)
        plan = plans(abi)[number]
        assert plan is not None
        for command in plan.variants:
            changed = [*args]
            changed[plan.variant_position] = command
            read.reads = read.bytes = 0
            check(number, changed, result, read, abi)


@pytest.mark.parametrize("abi", ABIS)
def test_lists_that_lead_back_to_themselves_end(abi: str) -> None:
    """Memory that is one pointer to itself, with the largest counts: every syscall still ends soon."""
    read = Reader((0x1000).to_bytes(8, "little"), whim=9)
    largest = (1 << 64) - 1
    for number in rows(abi):
        for args in (
            [0x1000] * 6,
            [0x1000, largest] * 3,
            [largest, 0x1000] * 3,
            [3, 0x1000, largest, 0, 0x1000, 0x1000],
        ):
            read.reads = read.bytes = 0
            check(number, args, 32, read, abi)


@given(number=NUMBER, result=st.integers(), abi=st.sampled_from(ABIS))
def test_any_result_is_put_into_words(number: int, result: int, abi: str) -> None:
    """A result alone, of any size, is a short text."""
    assert 0 < len(result_text(number, result, abi=abi)) < 2000


@given(data=st.binary(max_size=100))
def test_quoted_bytes_are_read_back_by_c_as_they_were(data: bytes) -> None:
    """What stands between the quotes means these bytes and no others, by C's rules of escapes."""
    text = quote(data)[1:-1]
    found, at = bytearray(), 0
    letters = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}
    while at < len(text):
        if text[at] != "\\":
            found.append(ord(text[at]))
            at += 1
        elif text[at + 1] in letters:
            found.append(letters[text[at + 1]])
            at += 2
        else:
            digits = text[at + 1 : at + 4]
            while not all(digit in "01234567" for digit in digits):
                digits = digits[:-1]
            found.append(int(digits, 8))
            at += 1 + len(digits)
    assert bytes(found) == data


@given(value=WORD)
def test_flags_lose_no_bit(value: int) -> None:
    """The names and numbers that flags are printed as make up the flags again."""
    flags = parse_flags(
        "f/64: &0x3 F_NONE=0 F_ONE F_TWO | F_BOTH=0xc F_LOW=4 F_HIGH F_TOP=0x8000000000000000"
    )["f"]
    numbers = {"F_NONE": 0, "F_ONE": 1, "F_TWO": 2, "F_BOTH": 12, "F_LOW": 4, "F_HIGH": 8, "F_TOP": 1 << 63}
    words = [word.split(" /*")[0] for word in flags.text(value).split("|")]
    assert sum(numbers[word] if word in numbers else int(word, 0) for word in words) == value


def test_sets_are_spelled_like_enums() -> None:
    """A name without a number is the next one; among flags, the next bit."""
    values = parse_values("color: RED=1 GREEN BLUE=-1\nshape/64: ROUND=0x10\n  SQUARE\n")
    assert values["color"].names == {1: "RED", 2: "GREEN", 0xFFFF_FFFF: "BLUE"}
    assert values["shape"].names == {0x10: "ROUND", 0x11: "SQUARE"}
    assert parse_flags("f: A_X=1 A_Y A_Z")["f"].text(7) == "A_X|A_Y|A_Z"
    assert parse_flags("f: A_X=1 A_Y A_Z")["f"].text(8) == "0x8 /* A_??? */"
    assert parse_flags("f: A_X=1 A_Y A_Z")["f"].text(9) == "A_X|0x8"
    assert parse_flags("f: A_X=1 A_Y A_Z")["f"].text(1 << 32 | 2) == "A_Y"
