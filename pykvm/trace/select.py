"""Selection: which events are wanted, decided once and applied before any sink sees an event."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.trace.event import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.trace.event import TraceEvent

__all__ = ["Selection", "check_words", "parse_ports"]

_TASK = re.compile(r"\[(\d+)(?::\d+)?\]$")


class Selection:
    """Which events are wanted. An empty part of it wants everything; notes always pass.

    `only` and `without` hold kinds of event or exit reasons ("hypercall", "IO"; case does not matter),
    `ports` ranges of I/O ports or gpas that exits must touch, `syscalls` and `hypercalls` names, `processes`
    numbers of the guest's processes and `containers` names, whose syscalls are wanted. An event that none of
    the last five speaks of (a halt where ports are chosen) is left out, unless `only` names it.
    """

    def __init__(
        self,
        *,
        only: Iterable[str] = (),
        without: Iterable[str] = (),
        ports: Iterable[range] = (),
        syscalls: Iterable[str] = (),
        hypercalls: Iterable[str] = (),
        processes: Iterable[int] = (),
        containers: Iterable[str] = (),
    ) -> None:
        self._only = frozenset(word.lower() for word in only)
        self._without = frozenset(word.lower() for word in without)
        self._ports = tuple(ports)
        self._names = {"syscall": frozenset(syscalls), "hypercall": frozenset(hypercalls)}
        self._processes = frozenset(processes)
        self._containers = frozenset(containers)
        self._callers = bool(self._processes or self._containers)
        self._is_narrow = bool(self._ports or self._callers or any(self._names.values()))
        self.is_everything = not (self._only or self._without or self._is_narrow)

    def keep(self, events: Sequence[TraceEvent]) -> Sequence[TraceEvent]:
        """Those of `events` that are wanted."""
        return events if self.is_everything else [event for event in events if self.wants(event)]

    def may_want(self, kind: str) -> bool:
        """Whether any event of `kind`, which no exit brings, could be wanted: else nobody need produce it."""
        if kind in self._without or (self._only and kind not in self._only):
            return False
        chosen = bool(self._names.get(kind) or (kind == "syscall" and self._callers))
        return not self._is_narrow or kind in self._only or chosen

    def wants(self, event: TraceEvent) -> bool:
        """Whether `event` is wanted."""
        kind = event.kind
        words = (kind, event.via.lower())
        if kind == "note":
            return True
        if any(word in self._without for word in words):
            return False
        named = any(word in self._only for word in words)
        if self._only and not named:
            return False
        return not self._is_narrow or self._is_chosen(event, named=named)

    def _is_chosen(self, event: TraceEvent, *, named: bool) -> bool:
        if event.kind == "syscall" and not self._is_of_whom(event):
            return False
        names = self._names.get(event.kind)
        if names:
            return event.name in names
        if event.kind == "syscall" and self._callers:
            return True
        if self._ports and event.kind in ("exit", "mark"):
            address = next((value for name, value in event.args if name in ("port", "gpa")), None)
            return named or any(address in where for where in self._ports)
        return named

    def _is_of_whom(self, event: TraceEvent) -> bool:
        """Whether a syscall is that of a chosen process, in a chosen container."""
        if self._containers and event.container not in self._containers:
            return False
        return not self._processes or _process(event.task) in self._processes


def _process(task: str) -> int | None:
    """The process number in "name[12]" or "name[12:13]"; None where it is not known."""
    found = _TASK.search(task)
    return int(found[1]) if found else None


def parse_ports(text: str) -> range:
    """The range of "0x3f8", "0x3f8-0x3ff" or "0x3f8+8"; both ends belong to it.

    Raises ConfigError for what is none.
    """
    first, dash, last = text.partition("-")
    start, plus, count = text.partition("+")
    try:
        if plus:
            found = range(int(start, 0), int(start, 0) + int(count, 0))
        else:
            found = range(int(first, 0), int(last if dash else first, 0) + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 0:
        raise ConfigError(f"{text!r} is no range of ports; give one like 0x3f8, 0x3f8-0x3ff or 0x3f8+8")
    return found


def check_words(words: Iterable[str], reasons: Iterable[str]) -> None:
    """Raise ConfigError if one of `words` is neither a kind of event nor one of the exit `reasons`."""
    known = {*KINDS, *(reason.lower() for reason in reasons)}
    for word in words:
        if word.lower() not in known:
            raise ConfigError(
                f"{word!r} is no kind of event ({', '.join(KINDS)}) and no exit reason (io, mmio, hlt …)"
            )
