"""From the spelling of a syscall's arguments to what puts them into words.

A plan is a line of the table, taken apart once: for each argument its place, when it can be read, and the
function that prints it. Kinds are looked up when the first call needs them.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from pykvm.trace.syscalls.events import EVENT_LISTS, EVENTS
from pykvm.trace.syscalls.files import FILE_LISTS, FILES
from pykvm.trace.syscalls.ioctl_names import ioctl_numbers
from pykvm.trace.syscalls.lists import LISTS, POINTED
from pykvm.trace.syscalls.messages import MESSAGE_LISTS, MESSAGES
from pykvm.trace.syscalls.pointers import struct
from pykvm.trace.syscalls.processes import PROCESS_LISTS, PROCESSES
from pykvm.trace.syscalls.scalars import scalar
from pykvm.trace.syscalls.sockets import SOCKET_LISTS, SOCKETS
from pykvm.trace.syscalls.specials import SPECIALS
from pykvm.trace.syscalls.strings import address
from pykvm.trace.syscalls.structs import layouts
from pykvm.trace.syscalls.table import X86_64
from pykvm.trace.syscalls.table_i386 import i386_rows
from pykvm.trace.syscalls.times import TIMES
from pykvm.trace.syscalls.values import value_sets
from pykvm.trace.syscalls.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.trace.syscalls.call import Call

    Formatter = Callable[[Call, int], str | None]

__all__ = ["ABIS", "Argument", "Plan", "Plans", "Row", "formatter", "list_formatter", "plans", "rows"]

ABIS = ("x86-64", "i386")
_SAME = {"fcntl64": "fcntl"}  # 32-bit programs have it under a name of their own
_WORD = re.compile(r"(?:(\w+)=)?(?:(\d):)?([>~!^]?)(\w+)(?:@([\dr]))?")


class Argument(NamedTuple):
    """One printed argument.

    `position` counts from 0. `when` is "" for what the program passes, ">" for what the kernel fills in,
    "!" for what it fills in when a signal interrupts, "~" and "^" for what it changes: "~" prints both,
    "^" the last. `size_from` is the argument that says how much there is, -1 for the result.
    """

    position: int
    when: str
    kind: str
    size_from: int | None
    text: Formatter

    @property
    def before(self) -> Formatter:
        """What prints it before the kernel has seen the call."""
        return unread if self.when in (">", "!") else self.text


class Plan:
    """How the calls of one syscall are printed.

    `before` has the place and the printer of each argument; `after` of those that the kernel fills in or
    changes, by index among the printed arguments. `result` is a kind of `results`, "" for a number.
    `variants` are the plans for single values of one argument, of which the bits in a mask count.
    """

    __slots__ = ("after", "before", "name", "result", "variant_mask", "variant_position", "variants")

    def __init__(self, name: str, arguments: tuple[Argument, ...], result: str) -> None:
        self.name = name
        self.before = tuple((argument.position, argument.before) for argument in arguments)
        self.after = tuple((i, argument) for i, argument in enumerate(arguments) if argument.when)
        self.result = result
        self.variant_position = self.variant_mask = 0
        self.variants: dict[int, Plan] = {}


class Row(NamedTuple):
    """A line of the table, before any kind is looked up."""

    number: int
    name: str
    kinds: tuple[str, ...]
    result: str


@cache
def rows(abi: str) -> Mapping[int, Row]:
    """The syscalls of an ABI, by number. Raises KeyError for an ABI that is none."""
    lines = {"x86-64": lambda: X86_64.strip().splitlines(), "i386": i386_rows}[abi]()
    return {row.number: row for row in map(_row, lines)}


def _row(line: str) -> Row:
    spelled, _, result = line.partition(" -> ")
    number, name, *kinds = spelled.split()
    return Row(int(number), name, tuple(kinds), result)


class Plans(dict[int, Plan | None]):
    """The plans of an ABI by number, each made when it is first asked for; None for an unknown number."""

    def __init__(self, abi: str) -> None:
        super().__init__()
        self._abi = abi
        self._is_64bit = abi == "x86-64"

    def __missing__(self, number: int) -> Plan | None:
        row = rows(self._abi).get(number)
        if row is None:
            return None  # not kept: a guest may try all 2**64 numbers
        plan = self._make(row.name, row.kinds, row.result)
        for position, mask, keys, kinds, result in _variants().get(_SAME.get(row.name, row.name), ()):
            plan.variant_position, plan.variant_mask = position, mask
            other = self._make(row.name, kinds, result)
            plan.variants.update((_command(row.kinds[position], key), other) for key in keys)
        self[number] = plan  # whole, since another vCPU's thread may take it at once
        return plan

    def _make(self, name: str, kinds: tuple[str, ...], result: str) -> Plan:
        arguments = tuple(_argument(word, at, is_64bit=self._is_64bit) for at, word in enumerate(kinds))
        return Plan(name, arguments, result)


@cache
def plans(abi: str) -> Plans:
    """The plans of an ABI."""
    return Plans(abi)


@cache
def _variants() -> dict[str, list[tuple[int, int, list[str], tuple[str, ...], str]]]:
    """By name: (position, mask, commands, kinds, result) of each line."""
    found: dict[str, list[tuple[int, int, list[str], tuple[str, ...], str]]] = {}
    for line in VARIANTS.strip().replace("\n  ", " ").splitlines():
        head, keys, spelled = line.split(": ")
        name, where = head.split()
        position, _, mask = where.partition("&")
        kinds, _, result = spelled.partition(" -> ")
        row = int(position) - 1, int(mask or "0xffffffff", 0), keys.split(), tuple(kinds.split()), result
        found.setdefault(name, []).append(row)
    return found


def _command(kind: str, name: str) -> int:
    """The number of a command's name, among the names of the argument's kind."""
    if kind == "ioctl_request":
        return ioctl_numbers()[name]
    names = value_sets()["futex_cmd" if kind == "futex_op" else kind].names
    return next(value for value, known in names.items() if known == name)


def _argument(word: str, at: int, *, is_64bit: bool) -> Argument:
    match = _WORD.fullmatch(word)
    if match is None:
        raise ValueError(f"{word!r} is not how an argument is spelled")
    label, place, when, kind, size_from = match.groups()
    index = None if size_from is None else -1 if size_from == "r" else int(size_from) - 1
    text = formatter(kind, is_64bit=is_64bit) if index is None else _sized(list_formatter(kind), index)
    position = int(place) - 1 if place else at
    return Argument(position, when, kind, index, _labelled(label, text) if label else text)


def _labelled(label: str, text: Formatter) -> Formatter:
    def labelled(call: Call, value: int) -> str | None:
        found = text(call, value)
        return None if found is None else f"{label}={found}"

    return labelled


def _sized(text: Callable[[Call, int, int], str], index: int) -> Formatter:
    if index < 0:
        return lambda call, value: text(call, value, call.result or 0)
    return lambda call, value: text(call, value, call.args[index])


_SINGLE: tuple[Mapping[str, Formatter], ...] = (
    *(SPECIALS, SOCKETS, FILES, PROCESSES, TIMES, EVENTS, MESSAGES, POINTED),
)
_SEVERAL = LISTS | EVENT_LISTS | FILE_LISTS | PROCESS_LISTS | SOCKET_LISTS | MESSAGE_LISTS


@cache
def formatter(kind: str, *, is_64bit: bool) -> Formatter:
    """What prints an argument of this kind. Raises KeyError for a kind that there is not."""
    for known in _SINGLE:
        if kind in known:
            return known[kind]
    if (number := scalar(kind)) is not None:
        return number
    if kind not in layouts(is_64bit=is_64bit):
        raise KeyError(f"{kind} is no kind of argument")
    return struct(kind)


def list_formatter(kind: str) -> Callable[[Call, int, int], str]:
    """What prints an argument whose size is given beside it. Raises KeyError as `formatter` does."""
    return _SEVERAL[kind]


def unread(_call: Call, value: int) -> str:
    """What stands for something that is not there yet: its address."""
    return address(value)
