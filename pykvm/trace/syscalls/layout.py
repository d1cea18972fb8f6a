"""C structs in one line each: where the fields lie for a 64-bit and for a 32-bit program, and how they print.

::

    timespec: tv_sec=long tv_nsec=long
    pollfd: fd=i32 events=i16:poll_events revents=i16:poll_events
    rusage: ru_utime=timeval ru_stime=timeval ... _rest=long[14]

`name=type` or `name=type:kind`: types are i8 to i64, u8 to u64, h8 to h64 (printed in hexadecimal), long,
ulong, hlong and ptr (the program's word), char[N] (a string that may end before N), type[N], and structs.
`kind` is a kind of argument that says how the number is printed. A name with a leading underscore is not
printed; `...` stands for what strace leaves out. Fields are aligned as C does it; on i386, 8-byte
numbers are aligned to 4. Behind the name, `/packed` says no alignment at all; `/32` spells the struct of
32-bit programs where that is another one.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm.trace.syscalls.scalars import hexadecimal, pointer, scalar
from pykvm.trace.syscalls.strings import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.trace.syscalls.call import Call

    Printer = Callable[[Call, bytes], str]

__all__ = ["Fields", "Layout", "Layouts"]

_FIELD = re.compile(r"(\w+)=(\w+)(?:\[(\d+)\])?(?::(\w+))?")
_CODES = {8: "b", 16: "h", 32: "i", 64: "q"}


class Fields:
    """The bytes of one struct, and the unsigned numbers in it by name: `fields["st_mode"]`."""

    __slots__ = ("_data", "_places")

    def __init__(self, data: bytes, places: dict[str, tuple[int, int]]) -> None:
        self._data, self._places = data, places

    def __getitem__(self, name: str) -> int:
        start, end = self._places[name]
        return int.from_bytes(self._data[start:end], "little")

    def signed(self, name: str) -> int:
        """The same as a signed number."""
        start, end = self._places[name]
        return int.from_bytes(self._data[start:end], "little", signed=True)

    def behind(self, name: str) -> bytes:
        """The bytes from the field `name` to the end of the struct."""
        return self._data[self._places[name][0] :]


class Layout(NamedTuple):
    """One struct for one width of program: its size and alignment in bytes, its fields, how they print.

    `places` are (offset, end) by name; `printers` give the text of a field, or "..." in its place.
    """

    size_bytes: int
    align: int
    places: dict[str, tuple[int, int]]
    printers: tuple[Printer, ...]

    def fields(self, data: bytes) -> Fields:
        """The numbers in `data`, which holds size_bytes."""
        return Fields(data, self.places)

    def text(self, call: Call, data: bytes) -> str:
        """The whole struct: {tv_sec=1, tv_nsec=0}."""
        return f"{{{', '.join([printer(call, data) for printer in self.printers])}}}"


class Layouts:
    """The structs that a text spells, for one width of program; each is laid out when first asked for."""

    def __init__(self, text: str, *, is_64bit: bool) -> None:
        """`text` has one struct a line; lines that are indented go on with the one before."""
        self._word_bytes = 8 if is_64bit else 4
        self._made: dict[str, Layout] = {}
        self._spelled: dict[str, tuple[str, bool]] = {}
        for line in text.strip().replace("\n  ", " ").splitlines():
            head, _, body = line.partition(":")
            name, *how = head.split("/")
            if "32" not in how or not is_64bit:
                self._spelled[name] = body, "packed" in how

    def __iter__(self) -> Iterator[str]:
        return iter(self._spelled)

    def __contains__(self, name: str) -> bool:
        return name in self._spelled

    def __getitem__(self, name: str) -> Layout:
        """The struct `name`; KeyError for none."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(*self._spelled[name])
        return made

    def _make(self, body: str, is_packed: bool) -> Layout:
        most = 1 if is_packed else self._word_bytes
        places: dict[str, tuple[int, int]] = {}
        printers: list[Printer] = []
        at, align = 0, 1
        for word in body.split():
            match = _FIELD.fullmatch(word)
            if match is None:
                printers.append(_left_out)
                continue
            name, kind, length, how = match.groups()
            own, one = self._align_and_size(kind)
            own = min(own, most)
            start = -(-at // own) * own
            at = start + one * int(length or 1)
            align = max(align, own)
            places[name] = start, at
            if name[0] != "_":
                printers.append(_named(name, self._printer(start, kind, length, how)))
        return Layout(-(-at // align) * align, align, places, tuple(printers))

    def _align_and_size(self, kind: str) -> tuple[int, int]:
        if kind in self._spelled:
            inner = self[kind]
            return inner.align, inner.size_bytes
        size_bytes = 1 if kind == "char" else self._code(kind, signed=False).size
        return size_bytes, size_bytes

    def _printer(self, start: int, kind: str, length: str | None, how: str | None) -> Printer:
        """What prints a field that starts at `start`: a string, an array, or one thing."""
        if kind == "char":
            end = start + int(length or 1)
            return lambda _call, data: quote(data[start:end].partition(b"\0")[0])
        step = self._align_and_size(kind)[1]
        if length is None:
            return self._one(start, kind, how)
        parts = [self._one(start + i * step, kind, how) for i in range(int(length))]
        return lambda call, data: f"[{', '.join([part(call, data) for part in parts])}]"

    def _one(self, start: int, kind: str, how: str | None) -> Printer:
        if kind in self._spelled:
            inner = self[kind]
            return lambda call, data: inner.text(call, data[start : start + inner.size_bytes])
        unpack = self._code(kind, signed=how is None and (kind == "long" or kind[0] == "i")).unpack_from
        if how is None and kind[0] not in "hp":
            return lambda _call, data: str(unpack(data, start)[0])
        text = scalar(how) if how else pointer if kind == "ptr" else hexadecimal
        if text is None:
            raise KeyError(f"{how} is no kind of number")
        return lambda call, data: str(text(call, unpack(data, start)[0]))

    def _code(self, kind: str, *, signed: bool) -> Struct:
        """How the number is unpacked; what a kind prints comes as an unsigned number."""
        is_word = kind in ("long", "ulong", "hlong", "ptr")
        letter = _CODES[self._word_bytes * 8 if is_word else int(kind[1:])]
        return Struct(f"<{letter if signed else letter.upper()}")


def _left_out(_call: Call, _data: bytes) -> str:
    return "..."


def _named(name: str, text: Printer) -> Printer:
    return lambda call, data: f"{name}={text(call, data)}"
