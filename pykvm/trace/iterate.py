"""A run as an iterator: the guest in a thread of its own, its events in the caller's loop."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.machine import Machine
    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent
    from pykvm.trace.select import Selection

__all__ = ["TraceIterator"]

_WAITING_MAX = 1 << 16
_LOOK_S = 0.1


class _Queue:
    """A sink that another thread reads from. It is over when somebody said so and nothing is left."""

    def __init__(self) -> None:
        self._waiting: deque[TraceEvent] = deque()
        self._changed = threading.Condition()
        self._is_over = self._is_refused = False

    def open(self, about: TraceAbout) -> None:
        """Nothing to prepare."""

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Wait until there is room, then queue the events."""
        with self._changed:
            while len(self._waiting) > _WAITING_MAX and not self._is_refused:
                self._changed.wait(_LOOK_S)
            if not self._is_refused:
                self._waiting.extend(events)
                self._changed.notify_all()

    def close(self, result: RunResult | None) -> None:
        """The run's thread says when it is over: here the result is not complete yet."""

    def end(self) -> None:
        """No more events will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def refuse(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._is_refused = True
            self._waiting.clear()
            self._changed.notify_all()

    def get(self) -> TraceEvent | None:
        """The next event; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._is_over or self._is_refused:
                    return None
                self._changed.wait(_LOOK_S)
            if len(self._waiting) == _WAITING_MAX:
                self._changed.notify_all()
            return self._waiting.popleft()


class TraceIterator:
    """The events of one run, in order of time; Machine.trace() makes it, the first event starts the run.

    A loop that is slower than the guest holds the guest up: nothing is lost, and memory stays flat.
    `result` is the RunResult once the run is over. close(), a `with` block and the machine's own end
    stop a run whose loop was left early; events that nobody has read are dropped then.
    """

    def __init__(self, machine: Machine, timeout: float | None, selection: Selection | None) -> None:
        self.result: RunResult | None = None
        self._machine = machine
        self._timeout = timeout
        self._failure: BaseException | None = None
        self._queue = _Queue()
        self._thread: threading.Thread | None = None
        machine.add_sink(self._queue, selection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TraceEvent:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traced-run", daemon=True)
            self._thread.start()
        try:
            event = self._queue.get()
        except BaseException:  # Ctrl-C, which reaches the caller's thread alone
            self.close()
            raise
        if event is not None:
            return event
        self._thread.join()
        if self._failure:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """End the run, if it still runs, and wait for its end."""
        self._queue.refuse()
        if self._thread is not None and self._thread.is_alive():
            self._machine.stop()
            self._thread.join()

    def _run(self) -> None:
        try:
            self.result = self._machine.run(timeout=self._timeout)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's loop
            self._failure = error
        self._queue.end()
