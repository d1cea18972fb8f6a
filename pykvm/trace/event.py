"""TraceEvent: one thing that happened, in one form for all producers and all forms of output.

::

    Source ──take()──>  Tracer  ──write()──> Sink
    exits of a vCPU     one order of time,   live lines, summary,
    syscalls, KVM …     one selection        JSON Lines, Perfetto, HTML, a function

A producer of events is a `Source`, a place where they go is a `Sink`. Both are known to the tracer by
these protocols alone; whoever brings a new one changes nothing else. All times are ns of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.result import RunResult

__all__ = ["KINDS", "LAYERS", "Sink", "Source", "TraceAbout", "TraceEvent", "beginning"]

KINDS = {
    "exit": "KVM_RUN returned",
    "hypercall": "the guest's kernel asked pykvm for something",
    "syscall": "a guest's program asked the guest's kernel for something",
    "step": "one instruction, sampled by single step",
    "kvm": "KVM answered an exit by itself",
    "host": "pykvm asked the host's kernel for something",
    "mark": "the guest said how far it is",
    "note": "the tracer's own remark",
}
"""Every kind of event and what it tells."""

LAYERS = ("guest user", "guest kernel", "KVM", "pykvm", "host kernel")
"""Who can be at work, from the program down to the hardware."""


class TraceEvent(NamedTuple):
    """One event. Only the first four fields are always there; an unknown one is None, "", () or b"".

    `time_ns` is its start; `duration_ns` None means a moment, or an end not seen. `kind` is one of KINDS,
    `layer` the one of LAYERS that does the work meanwhile. `name` is what is asked for: an exit reason
    ("IO", "HLT"), a hypercall, a syscall; `via` the exit reason that brought it, "" for what is no exit.
    `args` are (name, value) pairs, `result` a number or the name of an error. `guest_ns` is the time
    inside KVM_RUN before an exit, spent by the guest at the level `cpl` when it left. `rip` is where,
    `where` the same as symbol+offset; `cr3` tells processes apart at one moment, `task` is the process' name,
    `container` that of the container that it is in, as whoever made it calls it. `data`
    holds the first bytes (at most 32) that were written or answered, `code` the instruction as text.
    """

    time_ns: int
    kind: str
    layer: str
    name: str
    duration_ns: int | None = None
    vcpu: int | None = None
    via: str = ""
    args: tuple[tuple[str, int | str], ...] = ()
    result: int | str | None = None
    guest_ns: int | None = None
    cpl: int | None = None
    rip: int | None = None
    where: str = ""
    cr3: int | None = None
    data: bytes = b""
    task: str = ""
    code: str = ""
    thread: str = ""
    container: str = ""

    @property
    def end_ns(self) -> int:
        """When it was over; the start where that is not known."""
        return self.time_ns + (self.duration_ns or 0)


def beginning(events: Sequence[TraceEvent]) -> int:
    """When the first of the first `events` of a run began, the guest's time before exits included."""
    return min(event.time_ns - (event.guest_ns or 0) for event in events)


class TraceAbout(NamedTuple):
    """What a sink is told before the first event: which run this is.

    `start_ns` is CLOCK_MONOTONIC, `start_unix_ns` the same moment as time of day: shortly before the guest
    is entered for the first time. Who shows times counts from the beginning() of the first events.
    """

    image: str
    vcpus: int
    start_ns: int
    start_unix_ns: int
    kvm: str = ""


class Source(Protocol):
    """A producer of events, asked by the tracer's thread many times a second.

    A source with something unfinished for long (a guest's program that waits in read()) reports it once
    without a duration, and once more when it is known: nobody waits for a source longer than the tracer's
    window, and an event that comes after it is written late.
    """

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """New events in order of time_ns, and the time_ns before which no more will come.

        An exception switches the source off, and is reported at the end of the run.
        """
        ...

    def finish(self) -> Sequence[TraceEvent]:
        """Everything that is left; the guest has stopped. Called once, after the last take()."""
        ...


@runtime_checkable
class ClosableSource(Source, Protocol):
    """A source that can end before the run does."""

    def close(self) -> None:
        """Produce nothing more: nobody listens."""
        ...


class Sink(Protocol):
    """Where events go. All calls come from one thread at a time; an exception switches the sink off."""

    def open(self, about: TraceAbout) -> None:
        """The run is about to start."""
        ...

    def write(self, events: Sequence[TraceEvent]) -> None:
        """Take events, in order of time_ns; at least one."""
        ...

    def close(self, result: RunResult | None) -> None:
        """The run is over; `result` is None if pykvm itself failed. Also called after an error."""
        ...
