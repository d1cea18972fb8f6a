"""An event as a person reads it: what was asked, what came of it, how long it took."""

from __future__ import annotations

from errno import errorcode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.trace.event import TraceEvent

__all__ = ["bytes_text", "describe", "duration_text", "result_text", "title", "track", "value_text"]

_HEX = frozenset(
    "port gpa gva msr pc address entry suberror hardware_reason number arg0 arg1 arg2 arg3".split()
)
_LARGE = 1 << 20
_ERRORS = 4096  # the results of a call that stand for an error: -1 to -4095
_ESCAPES = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x22: '\\"', 0x5C: "\\\\", 0x1B: "\\e"}
_CHARACTERS = [_ESCAPES.get(b, chr(b) if 0x20 <= b < 0x7F else f"\\x{b:02x}") for b in range(256)]
_SHOWN = 32


def bytes_text(data: bytes) -> str:
    """The bytes as a C string literal, without quotes."""
    return "".join([_CHARACTERS[byte] for byte in data])


def value_text(name: str, value: int | str) -> str:
    """An argument's value: addresses and large numbers in hexadecimal."""
    if isinstance(value, str):
        return value
    return f"{value:#x}" if name in _HEX or value >= _LARGE else str(value)


def result_text(result: int | str | None) -> str:
    """A call's result, an error with its name; "?" where there is none."""
    if result is None:
        return "?"
    if isinstance(result, int) and -_ERRORS < result < 0:
        return f"{result} {errorcode.get(-result, '')}".rstrip()
    return str(result)


def duration_text(ns: int | None) -> str:
    """A duration with three digits and its unit: 812 ns, 1.25 µs, 30.1 ms, 2.00 s."""
    if ns is None:
        return ""
    if ns < 1000:
        return f"{ns} ns"
    value, unit = next((ns / size, unit) for size, unit in _UNITS if ns >= size)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def describe(event: TraceEvent) -> str:
    """The event in one line, without time, layer and duration."""
    kind = event.kind
    if kind in ("hypercall", "syscall"):
        return _call(event)
    if kind == "step":
        return event.code or "step"
    if kind == "note":
        return event.name
    if kind == "mark":
        return f"mark {int.from_bytes(event.data, 'little'):#04x}"
    return _access(event) if event.via in ("IO", "MMIO") else _plain(event)


def _call(event: TraceEvent) -> str:
    if event.kind == "syscall":  # whose source has put them into words
        args = ", ".join(str(value) for _, value in event.args)
    else:
        args = ", ".join(f"{name}={value_text(name, value)}" for name, value in event.args)
    data = f' "{bytes_text(event.data)}"{_more(event)}' if event.data else ""
    word = "hypercall " if event.kind == "hypercall" else ""
    return f"{word}{event.name}({args}){data} = {result_text(event.result)}"


def _more(event: TraceEvent) -> str:
    size = next((value for name, value in event.args if name == "size"), 0)
    return "…" if isinstance(size, int) and size > len(event.data) >= _SHOWN else ""


def _plain(event: TraceEvent) -> str:
    args = " ".join(f"{name}={value_text(name, value)}" for name, value in event.args)
    return f"{event.name} {args}".rstrip()


def _access(event: TraceEvent) -> str:
    found = dict(event.args)
    where = found.get("port", found.get("gpa", 0))
    device = found.get("device", "nobody")
    offset = found.get("offset", 0)
    text = f"{event.via} {found.get('way', '')} {where:#x} {device}{f'+{offset:#x}' if offset else ''}"
    size, count = int(found.get("size", 1)), int(found.get("count", 1))
    arrow = "→" if found.get("way") in ("in", "read") else "←"
    if count > 1:
        cut = "…" if size * count > len(event.data) else ""
        return f'{text} {count} times {arrow} "{bytes_text(event.data)}"{cut}'
    value = int.from_bytes(event.data[:size], "little")
    is_letter = size == 1 and (0x20 <= value < 0x7F or value in b"\r\n")
    letter = f" '{bytes_text(event.data)}'" if is_letter else ""
    return f"{text} {arrow} {value:#0{2 * size + 2}x}{letter}"


def track(event: TraceEvent) -> tuple[str, str]:
    """Where a timeline shows the event: a group, and the track in it.

    Syscalls have a track for each process, because those of several processes overlap on one vCPU.
    """
    if event.kind == "syscall":
        group = f"container {event.container}" if event.container else "guest processes"
        return group, event.task or f"cr3 {event.cr3 or 0:#x}"
    if event.vcpu is None:
        thread = event.thread
        return f"thread {thread}" if thread.isdecimal() else thread or "pykvm", event.layer
    return f"vCPU {event.vcpu}", event.layer


def title(event: TraceEvent) -> str:
    """The event's name on a timeline: short, and the same for what belongs together."""
    if event.kind == "mark":
        return f"mark {int.from_bytes(event.data, 'little'):#04x}"
    if event.kind == "exit" and event.args and event.args[0][0] == "way":
        found = dict(event.args)
        return f"{event.name} {found['way']} {found.get('device', 'nobody')}"
    return event.name
