"""Tracer: takes events from all sources while the guest runs, puts them in order, hands them to all sinks."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError
from pykvm.trace.event import ClosableSource
from pykvm.trace.select import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.result import RunResult
    from pykvm.trace.event import Sink, Source, TraceAbout, TraceEvent

__all__ = ["FunctionSink", "Tracer"]

_POLL_S = 0.02
_WINDOW_NS = 200_000_000
_HELD_MAX = 1 << 17
_PIECE = 64
_NEVER = 1 << 63
_BY_TIME = itemgetter(0)


class FunctionSink:
    """A function as a sink: called with each event."""

    def __init__(self, function: Callable[[TraceEvent], object]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))

    def open(self, about: TraceAbout) -> None:
        """Nothing to prepare."""

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Call the function with each event."""
        for event in events:
            self._function(event)

    def close(self, result: RunResult | None) -> None:
        """Nothing to finish."""


class _Outlet:
    """A sink, what it wants, and whether it still works."""

    def __init__(self, sink: Sink, selection: Selection) -> None:
        self.sink = sink
        self.selection = selection
        self.error: Exception | None = None

    def name(self) -> str:
        shown = repr(self.sink)
        return type(self.sink).__name__ if shown.startswith("<") else shown


class Tracer:
    """The one reader of all sources, with a thread of its own while the guest runs.

    Events are handed on in order of time. One that another source may still precede is held back, but for
    200 ms at most, and never more than 131,072 of them: what then comes late is written late.
    A sink or a source that raises is switched off and stands in `troubles`; the run goes on.
    """

    def __init__(self) -> None:
        self._outlets: list[_Outlet] = []
        self._sources: list[Source] = []
        self._held: list[TraceEvent] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tracer", daemon=True)
        self._about: TraceAbout | None = None
        self._putting = threading.Lock()
        self.troubles: list[str] = []
        self.events = 0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def add_sink(self, sink: Sink, selection: Selection | None = None) -> None:
        """Send the events of `selection`, by default all, to `sink`. Before start() only."""
        self._outlets = [*self._outlets, _Outlet(sink, selection or Selection())]

    def join(self, sink: Sink, selection: Selection | None = None) -> None:
        """The same while the tracer runs: what comes from now on."""
        outlet = _Outlet(sink, selection or Selection())
        if self._about:
            self._try(outlet, lambda sink: sink.open(self._about))  # type: ignore[arg-type]
        self._outlets = [*self._outlets, outlet]

    def leave(self, sink: Sink) -> None:
        """Nothing more goes to `sink`; it is closed when nobody writes to it any more."""
        gone = [outlet for outlet in self._outlets if outlet.sink is sink]
        self._outlets = [outlet for outlet in self._outlets if outlet.sink is not sink]
        with self._putting:
            for outlet in gone:
                self._try(outlet, lambda sink: sink.close(None), always=True)

    def add_source(self, source: Source) -> None:
        """Take events from `source` too, at any time before finish()."""
        self._sources.append(source)

    # ---- the run

    def start(self, about: TraceAbout) -> None:
        """Open the sinks and begin to read."""
        self._about = about
        for outlet in self._outlets:
            self._try(outlet, lambda sink: sink.open(about))
        self._thread.start()

    def finish(self, notes: Sequence[TraceEvent] = ()) -> None:
        """The guest has stopped: read what is left, write it, and `notes` after it."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        while self._turn():
            pass
        for source in list(self._sources):
            self._take(source, final=True)
        self._put(sorted(self._held, key=_BY_TIME))
        self._held = []
        self._put(notes)

    def close(self, result: RunResult | None) -> None:
        """Close the sinks, after finish(). `result` may be None: pykvm itself failed."""
        for outlet in self._outlets:
            self._try(outlet, lambda sink: sink.close(result), always=True)

    def _main(self) -> None:
        pause_s = 0.0
        while not self._over.wait(pause_s):
            pause_s = 0.0 if self._turn() else _POLL_S

    def _turn(self) -> int:
        """Ask every source once and hand on what is in order: how many events they had."""
        stuck = time.monotonic_ns() - _WINDOW_NS
        found, horizon = 0, _NEVER
        for source in list(self._sources):
            count, until = self._take(source)
            # who had something will go on: only a source that is silent is not waited for
            horizon = min(horizon, until if count else max(until, stuck))
            found += count
        held = self._held
        held.sort(key=_BY_TIME)
        ready = max(bisect_left(held, horizon, key=_BY_TIME), len(held) - _HELD_MAX)
        self._held = held[ready:]
        self._put(held[:ready])
        return found

    def _take(self, source: Source, *, final: bool = False) -> tuple[int, int]:
        """How many events the source had, and the time before which no more will come."""
        try:
            events, until = (source.finish(), _NEVER) if final else source.take()
            self._held += events
            return len(events), until
        except Exception as error:  # noqa: BLE001 - whatever a source does, the run goes on
            self._sources.remove(source)
            self._trouble(type(source).__name__, error)
            return 0, _NEVER

    def _put(self, events: Sequence[TraceEvent]) -> None:
        self.events += len(events)
        for start in range(0, len(events), _PIECE):  # a full disk shall have room for most of them
            piece = events[start : start + _PIECE]
            with self._putting:
                heard = [outlet for outlet in self._outlets if not outlet.error]
                if not heard:
                    return
                for outlet in heard:
                    if wanted := outlet.selection.keep(piece):
                        self._try(outlet, partial(_write, wanted))

    def _try(self, outlet: _Outlet, do: Callable[[Sink], object], *, always: bool = False) -> None:
        if outlet.error and not always:
            return
        try:
            do(outlet.sink)
        except Exception as error:  # noqa: BLE001 - whatever a sink does, the run goes on
            if not outlet.error:
                outlet.error = error
                self._trouble(outlet.name(), error)
                if all(outlet.error for outlet in self._outlets):
                    self._let_go()

    def _let_go(self) -> None:
        """Nobody listens any more: what only the kernel keeps for us need not be read to its end."""
        for source in list(self._sources):
            if isinstance(source, ClosableSource):
                self._sources.remove(source)
                source.close()

    def _trouble(self, who: str, error: Exception) -> None:
        what = str(error) if isinstance(error, PykvmError) else f"{type(error).__name__}: {error}"
        self.troubles.append(f"the trace to {who} was switched off: {what}")


def _write(events: Sequence[TraceEvent], sink: Sink) -> None:
    sink.write(events)
