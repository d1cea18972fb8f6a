"""How a result is printed, by its kind: a number unless the table says otherwise.

`hex:KIND`, `dec:KIND` and `flags:KIND` print the number and, in brackets, what it means as an argument of
that kind would be printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.call import Call
from pykvm.trace.syscalls.errnos import error_text, is_error
from pykvm.trace.syscalls.events import fd_set_text, poll_results
from pykvm.trace.syscalls.pointers import struct
from pykvm.trace.syscalls.scalars import octal, scalar
from pykvm.trace.syscalls.specials import SPECIALS
from pykvm.trace.syscalls.strings import address
from pykvm.trace.syscalls.times import when

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["plain_result", "result_of"]

_WORDS = (1 << 32, 1 << 64)


def plain_result(kind: str, result: int, *, is_64bit: bool = True) -> str:
    """The result by its kind, without a look at memory; `result` is signed."""
    if is_error(result):
        return error_text(-result)
    how, _, meaning = kind.partition(":")
    if meaning:
        return _with_meaning(how, meaning, result % _WORDS[is_64bit])
    if not result and kind in _IN_MEMORY:
        return "0 (Timeout)"
    known = _KINDS.get(kind)
    return known(result % _WORDS[is_64bit]) if known else str(result)


def result_of(kind: str, call: Call) -> str:
    """The result of a call that has returned, with what lies in its memory where that belongs to it."""
    result = call.result or 0
    known = _IN_MEMORY.get(kind) if result > 0 else None
    return known(call, result) if known else plain_result(kind, result, is_64bit=call.is_64bit)


def _with_meaning(how: str, kind: str, result: int) -> str:
    number = str(result) if how == "dec" else f"{result:#x}" if result else "0"
    text = (SPECIALS.get(kind) or scalar(kind) or _no_text)(Call((0,) * 6, _no_memory), result)
    if text in (number, "0", None):
        return number
    return f"{number} (flags {text})" if how == "flags" else f"{number} ({text})"


def _no_text(_call: Call, _value: int) -> None:
    return None


def _no_memory(_gva: int, _size_bytes: int) -> bytes:
    return b""


_KINDS: dict[str, Callable[[int], str]] = {
    "hidden": str,
    "never": lambda _result: "?",
    "octal": lambda result: octal(None, result),
    "hex": lambda result: f"{result:#x}",
    "ptr": address,
    "time": lambda result: str(result) + when(result).replace("/* ", "(").replace(" */", ")"),
}


def _polled(call: Call, result: int) -> str:
    """How many descriptors have events, and which."""
    return f"{result} ({poll_results(call, call.args[0], call.args[1])})"


def _ppolled(time: str) -> Callable[[Call, int], str]:
    """The same of ppoll, which also says how much of its time, a struct of this name, is left."""

    def text(call: Call, result: int) -> str:
        left = _left(call, call.args[2], time)
        return _polled(call, result).removesuffix(")") + f", {left})" if left else _polled(call, result)

    return text


def _selected(time: str) -> Callable[[Call, int], str]:
    """How many descriptors are ready, in which set, and how much of the time is left."""

    def text(call: Call, result: int) -> str:
        sets = zip(("in", "out", "except"), call.args[1:4], strict=True)
        found = [(name, fd_set_text(call, gva, call.args[0])) for name, gva in sets if gva]
        parts = [f"{name} {ready}" for name, ready in found if ready != "[]"]
        if left := _left(call, call.args[4], time):
            parts.append(left)
        return f"{result} ({', '.join(parts)})"

    return text


def _left(call: Call, gva: int, time: str) -> str:
    text = struct(time)(call, gva)
    return f"left {text}" if text.startswith("{") else ""


_IN_MEMORY: dict[str, Callable[[Call, int], str]] = {
    "polled": _polled,
    "ppolled": _ppolled("timespec"),
    "ppolled64": _ppolled("timespec64"),
    "pselected": _selected("timespec"),
    "pselected64": _selected("timespec64"),
    "selected": _selected("timeval"),
}
