"""Bytes as strace prints them: quoted, escaped as in C, at most as many as the call asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.trace.syscalls.call import Call

__all__ = ["PATH_BYTES", "address", "buffer", "path", "quote", "string", "strings"]

PATH_BYTES = 4096
_MOST_STRINGS = 32

_SPECIAL = re.compile(rb"[^ !#-\[\]-~]")
_LETTERS = {9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
_ESCAPES = tuple(
    _LETTERS.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:o}") for byte in range(256)
)
_BEFORE_A_DIGIT = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f-\xff](?=[0-7])")


def address(value: int) -> str:
    """A pointer: NULL or hexadecimal."""
    return f"{value:#x}" if value else "NULL"


def quote(data: bytes, *, more: bool = False) -> str:
    """`data` in quotes; with "..." behind them where there is `more` of it."""
    text = data.decode("ascii") if _SPECIAL.search(data) is None else _escaped(data)
    return f'"{text}"...' if more else f'"{text}"'


def _escaped(data: bytes) -> str:
    """An octal escape is as short as can be, and of three digits where a digit follows."""
    texts = list(map(_ESCAPES.__getitem__, data))
    for match in _BEFORE_A_DIGIT.finditer(data):
        texts[match.start()] = f"\\{data[match.start()]:03o}"
    return "".join(texts)


def string(call: Call, gva: int) -> str:
    """The string that ends with a NUL at `gva`, as far as strings are printed."""
    found = call.string(gva, call.string_bytes + 1) if gva else None
    if found is None:
        return address(gva)
    data, ended = found
    return quote(data[: call.string_bytes], more=not ended)


def path(call: Call, gva: int) -> str:
    """The path at `gva`, all of it up to PATH_MAX."""
    found = call.string(gva, PATH_BYTES) if gva else None
    if found is None:
        return address(gva)
    data, ended = found
    return quote(data if ended else data[:-1], more=not ended)


def buffer(call: Call, gva: int, size_bytes: int) -> str:
    """The `size_bytes` bytes at `gva`, as far as strings are printed."""
    if not gva:
        return "NULL"
    if size_bytes <= 0:
        return '""'
    wanted = min(size_bytes, call.string_bytes)
    data = call.exactly(gva, wanted)
    return address(gva) if data is None else quote(data, more=size_bytes > wanted)


def strings(call: Call, gva: int) -> str:
    """A list of strings that ends with NULL, as argv: at most 32 of them."""
    if not gva:
        return "NULL"
    pointers = call.words(gva, _MOST_STRINGS + 1)
    parts = []
    for pointer in pointers[:_MOST_STRINGS]:
        if not pointer:
            break
        parts.append(string(call, pointer))
    else:
        if not parts:
            return address(gva)
        missing = f"... /* {gva + len(pointers) * call.word_bytes:#x} */"
        parts.append("..." if len(pointers) > _MOST_STRINGS else missing)
    return f"[{', '.join(parts)}]"
