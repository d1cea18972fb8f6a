"""JSON Lines: one event a line, streamed; the schema is in docs/trace-format.md."""

from __future__ import annotations

from json import dumps
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["VERSION", "JsonLinesSink", "Shapes", "event_line"]

VERSION = 1
"""Of the schema. A new key may come without a new version; a known one keeps its meaning."""

_KNOWN_MAX = 8192


def _json(value: int | str) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def _shape(
    kind: str,
    layer: str,
    name: str,
    via: str,
    args: Sequence[tuple[str, int | str]],
    rip: int | None,
    place: str,
    cpl: int | None,
    cr3: int | None,
    task: str,
    thread: str,
    vcpu: int | None,
) -> str:
    """The part of a line that most events share with others."""
    parts = [f'"kind":{quoted(kind)},"layer":{quoted(layer)},"name":{quoted(name)}']
    if via:
        parts.append(f'"via":{quoted(via)}')
    if args:
        pairs = ",".join([f"{quoted(key)}:{_json(value)}" for key, value in args])
        parts.append(f'"args":{{{pairs}}}')
    if rip is not None:
        parts.append(f'"rip":"{rip:#x}"')
    if place:
        parts.append(f'"where":{quoted(place)}')
    if cr3 is not None:
        parts.append(f'"cpl":{cpl or 0},"cr3":"{cr3:#x}"')
    parts += [f'"{key}":{quoted(value)}' for key, value in (("task", task), ("thread", thread)) if value]
    if vcpu is not None:
        parts.append(f'"vcpu":{vcpu}')
    return ",".join(parts)


class Shapes(dict[Any, str]):
    """The parts of lines that were made before; bounded, because the guest chooses arguments."""

    def __missing__(self, key: Any) -> str:
        if len(self) >= _KNOWN_MAX:
            self.clear()
        shape = self[key] = _shape(*key)
        return shape


def event_line(event: TraceEvent, shapes: Shapes) -> str:
    """One event as a line of JSON, about 1 µs. Keys whose value is not known are left out."""
    # fmt: off
    (
        time_ns, kind, layer, name, duration_ns, vcpu, via, args, result, guest_ns, cpl, rip, where, cr3,
        data, task, code, thread, container,
    ) = event
    # fmt: on
    shape = shapes[kind, layer, name, via, args, rip, where, cpl, cr3, task, thread, vcpu]
    takes = f'"duration_ns":{duration_ns},' if duration_ns is not None else ""
    after = f'"guest_ns":{guest_ns},' if guest_ns is not None else ""
    rest = f',"data":"{data.hex()}"' if data else ""
    if result is not None:
        rest = f',"result":{_json(result)}{rest}'
    if container:
        rest += f',"container":{quoted(container)}'
    if code:
        rest += f',"code":{quoted(code)}'
    return f'{{"time_ns":{time_ns},{takes}{after}{shape}{rest}}}\n'


class JsonLinesSink:
    """Writes a line about the run, a line for each event as it comes, and a line about the end."""

    def __init__(self, output: TraceOutput) -> None:
        self._output = output
        self._shapes = Shapes()
        self._events = 0

    def __repr__(self) -> str:
        return self._output.name

    def open(self, about: TraceAbout) -> None:
        """Write the first line: which run this is, and the schema's version."""
        self._line({"kind": "start", "format": "pykvm-trace", "version": VERSION, **about._asdict()})

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Write a line for each event, all of them or none."""
        shapes = self._shapes
        self._output.write("".join([event_line(event, shapes) for event in events]).encode())
        self._events += len(events)

    def close(self, result: RunResult | None) -> None:
        """Write the last line: how the run ended, and how many events there were."""
        end: dict[str, Any] = {"kind": "end", "events": self._events}
        if result:
            stats = result.stats
            end |= {"reason": str(result.reason), "exit_code": result.exit_code, "detail": result.detail}
            end |= {"wall_ns": stats.wall_ns, "exits": stats.exits, "dropped": stats.dropped_records}
            end |= {"skipped_steps": stats.skipped_steps, "entries": stats.entries}
            end["kvm_counts"] = dict(result.kvm_counts)
        self._line(end)
        self._output.close()

    def _line(self, values: dict[str, Any]) -> None:
        self._output.write(f"{dumps(values, separators=(',', ':'))}\n".encode())
