"""What `pykvm trace` does: from its options to sinks on a machine, and from their troubles to one error."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.errors import ConfigError
from pykvm.exits import reason_names
from pykvm.session import run_image
from pykvm.trace.layers import add_layers
from pykvm.trace.live import LiveSink
from pykvm.trace.output import OutputError, TraceOutput
from pykvm.trace.select import Selection, check_words, parse_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.machine import Machine
    from pykvm.output import Stdout
    from pykvm.result import RunResult
    from pykvm.trace.event import Sink, TraceAbout, TraceEvent

__all__ = ["FORMATS", "TraceOptions", "trace_image", "trace_running"]

FORMATS = {
    "live": (".txt", ".log", ""),
    "jsonl": (".jsonl", ".ndjson"),
    "perfetto": (".pftrace", ".perfetto-trace"),
    "html": (".html", ".htm"),
}
"""Every form of trace, and the file names' ends that choose it."""


_AS_WORDS = ("only", "without", "syscalls", "hypercalls", "containers")


class TraceOptions(NamedTuple):
    """The options of the command beyond those of `run`. `output` "-" is stdout, "" the terminal (stderr)."""

    output: str = ""
    form: str = ""
    summary: bool = False
    as_json: bool = False
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    syscalls: tuple[str, ...] = ()
    hypercalls: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    containers: tuple[str, ...] = ()
    tap: str = "auto"
    host: bool = False
    disassemble: bool = False
    step: int = 0

    @property
    def selection(self) -> Selection:
        """Which events are wanted. Raises ConfigError for words that mean nothing.

        Live lines leave out pykvm's own syscalls, unless they are asked for: of a small guest's lines they
        would be nine of ten.
        """
        check_words((*self.only, *self.without), reason_names())
        if self.syscalls:
            _check_syscalls(self.syscalls)
        is_live = self.chosen_form == "live" and not self.summary
        return Selection(
            only=self.only,
            without=self.without if self.host or self.only or not is_live else (*self.without, "host"),
            ports=[parse_ports(text) for text in self.ports],
            syscalls=self.syscalls,
            hypercalls=self.hypercalls,
            processes=self.processes,
            containers=self.containers,
        )

    @property
    def request(self) -> dict[str, Any]:
        """The selection as a machine is asked for it."""
        ports = [parse_ports(text) for text in self.ports]
        words = {name: getattr(self, name) for name in _AS_WORDS}
        return {**words, "ports": [(where.start, where.stop) for where in ports]}

    @property
    def chosen_form(self) -> str:
        """One of FORMATS, by option or by the file's name. Raises ConfigError for an unknown end."""
        if self.form or not self.output or self.output == "-":
            return self.form or "live"
        end = Path(self.output).suffix.lower()
        found = next((form for form, ends in FORMATS.items() if end in ends), "")
        if not found:
            known = ", ".join(f"{ends[0]} ({form})" for form, ends in FORMATS.items())
            raise ConfigError(f"{self.output}: which form is that? end it with {known}, or give --format")
        return found


def _check_syscalls(names: Sequence[str]) -> None:
    from pykvm.trace.syscalls import syscall_number  # noqa: PLC0415 - its tables take 20 ms

    for name in names:
        if all(syscall_number(name, abi) is None for abi in ("x86-64", "i386")):
            raise ConfigError(f"{name!r} is no system call of Linux on x86")


class _Vital:
    """A sink without which the run has no purpose: when it fails, the run is ended, and `error` says why."""

    def __init__(self, sink: Sink, stop: Callable[[], None]) -> None:
        self._sink = sink
        self._stop = stop
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return repr(self._sink)

    def open(self, about: TraceAbout) -> None:
        self._guard(lambda: self._sink.open(about))

    def write(self, events: Sequence[TraceEvent]) -> None:
        self._guard(lambda: self._sink.write(events))

    def close(self, result: RunResult | None) -> None:
        self._guard(lambda: self._sink.close(result))

    def _guard(self, do: Callable[[], None]) -> None:
        try:
            do()
        except (OutputError, BrokenPipeError) as error:
            self.error = self.error or error
            self._stop()
            raise


def trace_image(image: str, options: Mapping[str, Any], wanted: TraceOptions) -> RunResult:
    """Run `image` as `pykvm run` does with `options`, and trace what is `wanted`.

    Raises what run_image() raises, ConfigError for options that make no sense, OutputError if the trace
    can't be written, BrokenPipeError if its reader has gone: the run is ended then, and what was written
    stays valid.
    """
    selection = wanted.selection
    to_stdout = wanted.output == "-" or wanted.as_json
    sinks: list[_Vital] = []
    outputs = _Outputs(wanted)

    def prepare(machine: Machine, stdout: Stdout, is_given_up: Callable[[], bool]) -> None:
        for sink in outputs.sinks(stdout if not to_stdout else None, is_given_up):
            sinks.append(_Vital(sink, machine.stop))
            machine.add_sink(sinks[-1], selection)
        machine.trace_detail(disassemble=wanted.disassemble, step=wanted.step)
        add_layers(machine, selection, tap=wanted.tap, syscalls=wanted.syscalls, processes=wanted.processes)

    result = run_image(image, options, show=not to_stdout, prepare=prepare)
    for sink in sinks:
        if isinstance(sink.error, OutputError):
            raise OutputError(f"{sink.error}; the trace ends there, and the run was ended")
        if sink.error:
            raise sink.error
    return result


def trace_running(name: str, wanted: TraceOptions) -> RunResult | None:
    """Trace the running machine `name` until its run ends or SIGINT or SIGTERM says that it is enough.

    How that was; None if the machine's process died. Raises ConfigError for a name that nobody has,
    OutputError and BrokenPipeError as trace_image(); the guest goes on then.
    """
    from pykvm.registry import Room  # noqa: PLC0415 - only this pays
    from pykvm.trace.remote import RemoteTrace  # noqa: PLC0415 - as above

    _ = wanted.selection  # whose troubles come before anybody is asked
    is_enough = threading.Event()
    with Room() as room, room.connect(name) as link:
        trace = RemoteTrace(link, _Outputs(wanted).sinks(None, is_enough.is_set))

        def leave(*_: object) -> None:
            is_enough.set()
            trace.leave()

        before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return trace.run(wanted.request)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Outputs:
    """Makes the sinks that the options name.

    A file is opened when the image has been loaded: a wrong one costs nobody an old trace.
    """

    def __init__(self, wanted: TraceOptions) -> None:
        self._wanted = wanted
        self._form = wanted.chosen_form

    def sinks(self, stdout: Stdout | None, is_given_up: Callable[[], bool]) -> list[Sink]:
        """The sinks; live lines on a terminal that shows `stdout` too keep to lines of their own."""
        found: list[Sink] = []
        wanted = self._wanted
        streams = {"": (2, "standard error"), "-": (1, "standard output")}
        if wanted.output or not wanted.summary:
            if wanted.output in streams:
                output = TraceOutput(*streams[wanted.output], is_given_up)
            else:
                output = TraceOutput.create(Path(wanted.output), is_given_up)
            found.append(self._events_sink(output, stdout))
        if wanted.summary:
            from pykvm.trace.summary import SummarySink  # noqa: PLC0415 - needed only here

            output = TraceOutput(*streams["-" if wanted.as_json else ""], is_given_up)
            found.append(SummarySink(output, as_json=wanted.as_json))
        return found

    def _events_sink(self, output: TraceOutput, stdout: Stdout | None) -> Sink:
        if self._form == "jsonl":
            from pykvm.trace.jsonl import JsonLinesSink  # noqa: PLC0415 - as above

            return JsonLinesSink(output)
        if self._form == "perfetto":
            from pykvm.trace.perfetto import PerfettoSink  # noqa: PLC0415 - as above

            return PerfettoSink(output)
        if self._form == "html":
            from pykvm.trace.html import HtmlSink  # noqa: PLC0415 - as above

            return HtmlSink(output)
        shared = stdout is not None and output.is_terminal and os.isatty(1)
        colour = output.is_terminal and not os.environ.get("NO_COLOR")
        return LiveSink(output, colour=colour, console=stdout if shared else None)
