"""The kernel's trace ring buffer in binary: event formats, and pages of events with their times in ns. Pure.

Source: the kernel's Documentation/trace/events.rst (formats) and ring-buffer-design.rst; the layout of a page
and of an event's header is what tracefs' events/header_page and events/header_event say.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["EventFormat", "RawEvent", "decode_page", "parse_format"]

_FIELD = re.compile(
    r"\sfield:(?P<text>[^;]+);\s*offset:(?P<at>\d+);\s*size:(?P<size>\d+);\s*signed:(?P<signed>[01]);"
)
_SYMBOL = re.compile(r'\{ *([^,{}"]+?) *, *"([^"]*)" *\}')
_PADDING, _EXTEND, _STAMP = 29, 30, 31
_MISSED = 1 << 31
_COMMIT_MASK = (1 << 27) - 1
_HEAD_BYTES = 16


class _Field(NamedTuple):
    name: str
    at: int
    size: int
    signed: bool
    length: int


class EventFormat(NamedTuple):
    """How one tracepoint's events are laid out. `symbols` are the __print_symbolic tables, in order."""

    name: str
    number: int
    fields: tuple[_Field, ...]
    symbols: tuple[Mapping[int, str], ...]

    def decode(self, data: bytes) -> dict[str, int | tuple[int, ...]]:
        """The event's own fields; an array is a tuple, a field that is cut off is left out."""
        values: dict[str, int | tuple[int, ...]] = {}
        for field in self.fields:
            step = field.size // field.length
            if field.at + field.size > len(data) or step not in (1, 2, 4, 8):
                continue
            parts = tuple(
                int.from_bytes(data[at : at + step], "little", signed=field.signed)
                for at in range(field.at, field.at + field.size, step)
            )
            values[field.name] = parts[0] if field.length == 1 else parts
        return values


class RawEvent(NamedTuple):
    """One event of a page: when (ns of the buffer's clock), which tracepoint, by whom, its bytes."""

    time_ns: int
    number: int
    tid: int
    data: bytes


def parse_format(text: str) -> EventFormat:
    """A tracepoint's `format` file. Raises ValueError if it is none."""
    name = re.search(r"^name: (\S+)", text, re.MULTILINE)
    number = re.search(r"^ID: (\d+)", text, re.MULTILINE)
    if not name or not number:
        raise ValueError("no format of a tracepoint")
    fields = tuple(_field(match) for match in _FIELD.finditer(text))
    printing = text.partition("print fmt:")[2]
    tables = tuple(
        {key: word for key, word in map(_symbol, _SYMBOL.findall(part)) if key is not None}
        for part in printing.split("__print_symbolic(")[1:]
    )
    own = tuple(field for field in fields if not field.name.startswith("common_"))
    return EventFormat(name[1], int(number[1]), own, tables)


def _field(match: re.Match[str]) -> _Field:
    name, _, length = match["text"].rsplit(maxsplit=1)[-1].partition("[")
    size, count = int(match["size"]), 1
    if length[:-1].isdigit():
        count = max(int(length[:-1]), 1)
    return _Field(name.lstrip("*"), int(match["at"]), size, match["signed"] == "1", count)


def _symbol(pair: tuple[str, str]) -> tuple[int | None, str]:
    """The number of a table's row, which the kernel may write as a sum; None if it is no number."""
    try:
        return sum(int(part, 0) for part in pair[0].strip("() ").split("+")), pair[1]
    except ValueError:
        return None, pair[1]


def decode_page(page: bytes) -> Iterator[RawEvent | int]:
    """The events of one page as read from trace_pipe_raw, in order.

    An int among them says how many events the kernel lost before this page, -1 if it does not know.
    Bytes that make no sense end the page.
    """
    if len(page) < _HEAD_BYTES:
        return
    time_ns, commit = struct.unpack_from("<QQ", page)
    end = min(_HEAD_BYTES + (commit & _COMMIT_MASK), len(page))
    if commit & _MISSED:
        yield _lost(page, end, stored=bool(commit >> 30 & 1))
    at = _HEAD_BYTES
    while at + 4 <= end:
        (head,) = struct.unpack_from("<I", page, at)
        kind, delta = head & 31, head >> 5
        if kind == _PADDING and not delta:
            return
        if kind in (_EXTEND, _STAMP):
            if at + 8 > end:
                return
            (high,) = struct.unpack_from("<I", page, at + 4)
            # an absolute stamp has 59 bits; the upper 5 are those of the page's own time
            time_ns = (
                time_ns + (delta | high << 27)
                if kind == _EXTEND
                else delta | high << 27 | time_ns >> 59 << 59
            )
            at += 8
            continue
        time_ns += delta
        start = at + 4
        size = kind * 4
        if kind in (0, _PADDING):  # the length stands in the next word and counts itself
            if start + 4 > end:
                return
            (length,) = struct.unpack_from("<I", page, start)
            start, size = start + 4, max(length - 4, 0)
        data = page[start : min(start + size, end)]
        if kind != _PADDING and len(data) >= 8:
            number, tid = struct.unpack_from("<HxxI", data)
            yield RawEvent(time_ns, number, tid, data)
        at = start + (size + 3 & -4)


def _lost(page: bytes, end: int, *, stored: bool) -> int:
    if stored and end + 8 <= len(page):
        return int(struct.unpack_from("<Q", page, end)[0])
    return -1
