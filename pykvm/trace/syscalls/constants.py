"""Numbers have names: sets of flags and sets of values, spelled in a few words like C's enums.

A line is one set, more lines go on where they are indented::

    whence: SEEK_SET=0 SEEK_CUR SEEK_END
    prot/64: PROT_READ=1 PROT_WRITE PROT_EXEC
    mapflags/64: &0xf MAP_FILE=0 MAP_SHARED MAP_PRIVATE | MAP_FIXED=0x10 MAP_ANONYMOUS

A name without a number is the one before it plus 1; among flags, shifted left by 1. `&MASK` begins a
field of several bits that holds one of the values up to `|`; the flags of one bit come after that, and
one of value 0 is the word for none. `/64` says that the argument has 64 bits; the others are C's int.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FlagSet", "ValueSet", "parse_flags", "parse_values"]

_WORDS = 1 << 12  # so many flag words keep their text: programs use few, and a guest can't make it grow


class ValueSet:
    """Names for single values: `text(2)` is "SEEK_END", and 99 is "0x63 /* SEEK_??? */"."""

    def __init__(self, names: Mapping[int, str], mask: int, stem: str = "") -> None:
        """`names` by unsigned value; `mask` says how many bits count; `stem` is what the names share."""
        self.names = dict(names)
        self._mask = mask
        self._unknown = f" /* {stem}??? */"

    def text(self, value: int) -> str:
        """The name of `value`, or its number."""
        value &= self._mask
        return self.names.get(value) or f"{value:#x}{self._unknown}"


class FlagSet:
    """Names for bits: `text(3)` is "PROT_READ|PROT_WRITE"; bits without a name are added as a number."""

    def __init__(
        self,
        fields: list[tuple[int, dict[int, str]]],
        bits: list[tuple[int, str]],
        mask: int,
        stem: str = "",
    ) -> None:
        """`fields` are (mask, names by value), `bits` (value, name) in the order of printing."""
        self.fields = fields
        self.bits = [(bit, name) for bit, name in bits if bit]
        self._mask = mask
        self._zero = next((name for bit, name in bits if not bit), "0")
        self._unknown = f" /* {stem}??? */"
        self.text = lru_cache(_WORDS)(self._text)

    def _text(self, value: int) -> str:
        rest = value & self._mask
        found: list[str] = []
        for mask, names in self.fields:
            value = rest & mask
            if value in names or value:
                found.append(names.get(value) or f"{value:#x}{self._unknown}")
                rest &= ~mask
        for bit, name in self.bits:
            if rest & bit == bit:
                found.append(name)
                rest &= ~bit
        if not found:
            return f"{rest:#x}{self._unknown}" if rest else self._zero
        if rest:
            found.append(f"{rest:#x}")
        return "|".join(found)


def parse_values(text: str) -> dict[str, ValueSet]:
    """The sets of values in `text`, by name."""
    sets = {}
    for name, mask, words in _lines(text):
        pairs = list(_numbered(words, shift=False))
        sets[name] = ValueSet({value & mask: word for word, value in pairs}, mask, _stem(pairs))
    return sets


def parse_flags(text: str) -> dict[str, FlagSet]:
    """The sets of flags in `text`, by name."""
    return {name: _flag_set(mask, words) for name, mask, words in _lines(text)}


def _lines(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """(name, mask, words) of each set: a set starts at the left margin."""
    for part in text.strip().replace("\n  ", " ").splitlines():
        head, _, words = part.partition(":")
        name, _, bits = head.partition("/")
        yield name, (1 << int(bits or 32)) - 1, words.split()


def _flag_set(mask: int, words: list[str]) -> FlagSet:
    fields: list[tuple[int, dict[int, str]]] = []
    pairs: list[tuple[str, int]] = []
    while words and words[0].startswith("&"):
        end = words.index("|")
        field = list(_numbered(words[1:end], shift=False))
        fields.append((int(words[0][1:], 0), {value: name for name, value in field}))
        pairs += field
        words = words[end + 1 :]
    bits = list(_numbered(words, shift=True))
    return FlagSet(fields, [(value, name) for name, value in bits], mask, _stem(bits or pairs))


def _numbered(words: list[str], *, shift: bool) -> Iterator[tuple[str, int]]:
    value = 0
    for word in words:
        name, given, number = word.partition("=")
        following = value << 1 if shift else value + 1
        value = int(number, 0) if given else following
        yield name, value


def _stem(pairs: list[tuple[str, int]]) -> str:
    """What the first two names share, up to an underscore: EPOLL_CTL_ADD, EPOLL_CTL_DEL: "EPOLL_CTL_"."""
    first, second = (pairs[0][0], pairs[min(1, len(pairs) - 1)][0]) if pairs else ("", "")
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    return first[: first.rfind("_", 0, at) + 1]
