"""Live lines, in the manner of strace: one event a line, indented by the layer that does the work.

::

         time s cpu    after    takes  layer         event
       0.000135   0  9.30 µs   110 ns  pykvm               IO out 0xe9 DebugConsole ← 0x48 'H'   _start+0x15
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.event import LAYERS, beginning
from pykvm.trace.text import describe, duration_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.output import Stdout
    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.output import TraceOutput

__all__ = ["LiveSink"]

_DEPTH = {layer: 2 * depth for depth, layer in enumerate(LAYERS)}
_COLOURS = {  # SGR; by layer, from the program down to the hardware
    "guest user": "32",
    "guest kernel": "36",
    "KVM": "35",
    "pykvm": "33",
    "host kernel": "34",
}
_BOLD = {"hypercall": "1", "syscall": "1", "mark": "1;32"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_HEADER = f"{'time s':>11} cpu {'after':>8} {'takes':>8}  {'layer':<12}  event"


class LiveSink:
    """Writes each event as a line of text, with colours if `colour`.

    "takes" is the event's duration, "after" is how long the guest ran before it.
    """

    def __init__(
        self, output: TraceOutput, *, colour: bool | None = None, console: Stdout | None = None
    ) -> None:
        """Colours by default where `output` is a terminal. `console` shows the guest's output beside it."""
        self._output = output
        self._console = console
        self._colour = output.is_terminal if colour is None else colour
        self._zero_ns: int | None = None

    def __repr__(self) -> str:
        return self._output.name

    def open(self, about: TraceAbout) -> None:  # noqa: ARG002 - the protocol's
        """Write the column's names."""
        header = f"{_DIM}{_HEADER}{_RESET}" if self._colour else _HEADER
        self._output.write(f"{header}\n".encode())

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Write one line for each event."""
        if self._zero_ns is None:
            self._zero_ns = beginning(events)
        line = self._coloured if self._colour else self._plain
        text = "".join([line(event) for event in events])
        if self._console and not self._console.is_at_line_start:
            self._console.is_at_line_start = True
            text = "\n" + text
        self._output.write(text.encode(errors="replace"))

    def close(self, result: RunResult | None) -> None:  # noqa: ARG002 - the protocol's
        """Close the file."""
        self._output.close()

    def _parts(self, event: TraceEvent) -> tuple[str, str, str]:
        """The line in three: before the text, the text, behind it."""
        seconds = (event.time_ns - (self._zero_ns or 0)) / 1e9
        who = event.thread[:3] if event.vcpu is None else event.vcpu
        times = f"{duration_text(event.guest_ns):>8} {duration_text(event.duration_ns):>8}"
        front = f"{seconds:11.6f} {who:>3} {times}  {event.layer:<12}  {'':{_DEPTH.get(event.layer, 0)}}"
        text = f"{event.task}: {describe(event)}" if event.task else describe(event)
        if event.container:
            text = f"[{event.container}] {text}"
        back = f"   {event.where}" if event.where else ""
        if event.code and event.kind != "step":
            back += f"   | {event.code}"
        return front, text, back

    def _plain(self, event: TraceEvent) -> str:
        return f"{''.join(self._parts(event))}\n"

    def _coloured(self, event: TraceEvent) -> str:
        front, text, back = self._parts(event)
        code = ";".join(filter(None, (_BOLD.get(event.kind), _COLOURS.get(event.layer))))
        return f"{_DIM}{front}{_RESET}\x1b[{code}m{text}{_RESET}{_DIM}{back}{_RESET}\n"
