"""One lab's life, from its start to its end: the host's side of the channel.

A single thread waits, by poll(2), for the lab, the emulator, the user's streams, and signals. Nothing it does
blocks: a stream is read when the other side has room for it and written when it takes something, so a
reader that does not read stops its own stream and nothing else.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from pykvm.errors import LabError, LabTimeoutError
from pykvm.lab import wire
from pykvm.lab.console import ConsoleLog
from pykvm.lab.terminal import EscapeWatch, in_background, window_size
from pykvm.lab.wire import Decoder, Ending, Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.lab.backend import Running
    from pykvm.lab.report import Reporter

__all__ = ["Limits", "Session", "StoppedError", "Streams"]

SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
_READ_BYTES = 64 * 1024
_QUEUE_BYTES = 64 * 1024
_SHOWN_LINES = 12
_ALL_EVENTS = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class StoppedError(Exception):
    """The user stopped the lab; `exit_status` is 128 and the signal that did it."""

    def __init__(self, number: int) -> None:
        self.exit_status = 128 + number


@dataclass(frozen=True, slots=True)
class Streams:
    """The descriptors that the command's standard streams are connected to, and how."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: until the init says HELLO; for the whole (None: no limit); to end in order after that."""

    boot_s: float
    whole_s: float | None
    grace_s: float


class _Output:
    """One stream of the command on its way to a descriptor of ours."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = bytearray()
        self.unreported = 0
        # poll calls a pipe writable when PIPE_BUF bytes fit; a file takes any amount
        self._piece = 1 << 20 if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF

    def write(self) -> None:
        """Write what goes without blocking. Raises OSError."""
        try:
            done = os.write(self.fd, self.waiting[: self._piece])
        except BlockingIOError:
            return
        del self.waiting[:done]
        self.unreported += done

    def drop(self) -> None:
        """Nobody will read it."""
        self.unreported += len(self.waiting)
        self.waiting.clear()


class Session:
    """Carries one job through a lab that was started.

    `job` are the frames that tell the init what to run. `run` returns the command's ending or raises:
    LabError if the lab died or could not do it, LabTimeoutError, StoppedError.
    """

    def __init__(
        self,
        lab: str,
        running: Running,
        job: Sequence[bytes],
        streams: Streams,
        limits: Limits,
        *,
        signals: int,
        reporter: Reporter,
        console_copies: Sequence[BinaryIO] = (),
    ) -> None:
        self._lab = lab
        self._running = running
        self._job = job
        self._streams = streams
        self._limits = limits
        self._reporter = reporter
        self.console = ConsoleLog(console_copies)
        self._messages = bytearray()
        self._decoder = Decoder(running.preamble)
        self._out = bytearray()
        self._outputs = {1: _Output(streams.stdout), 2: _Output(streams.stderr)}
        self._credit = wire.WINDOW
        self._ending: Ending | None = None
        self._stage = ""
        self._hello = False
        self._started = False
        self._answered = False
        self._interrupted = False
        self._stdin_open = True
        self._begin = time.monotonic()
        self._give_up: float | None = None
        self._where_late = ""
        self._escape = EscapeWatch()
        self._pid_fd = os.pidfd_open(running.process.pid)
        self._readers: dict[int, Callable[[], None]] = {
            running.receive: self._read_channel,
            running.console: self._read_console,
            running.messages: self._read_messages,
            signals: lambda: self._read_signals(signals),
            self._pid_fd: self._emulator_ended,
        }
        os.set_blocking(running.send, False)
        os.set_blocking(running.receive, False)

    def run(self) -> Ending:
        """Wait for the end and give it."""
        try:
            while self._unwritten() or (self._ending is None and self._running.receive in self._readers):
                self._step()
        finally:
            os.close(self._pid_fd)
        if self._give_up is not None:
            raise self._timed_out()
        if self._ending is None:
            raise self._death()
        return self._ending

    # ---- waiting ----------------------------------------------------------------------------------------

    def _step(self) -> None:
        events = dict.fromkeys(self._readers, select.POLLIN)
        if self._out:
            events[self._running.send] = events.get(self._running.send, 0) | select.POLLOUT
        for output in self._outputs.values():
            if output.waiting:
                events[output.fd] = events.get(output.fd, 0) | select.POLLOUT
        if self._wants_input():
            events[self._streams.stdin] = events.get(self._streams.stdin, 0) | select.POLLIN
        poll = select.poll()
        for fd, mask in events.items():
            poll.register(fd, mask)
        for fd, event in poll.poll(self._patience_ms()):
            self._on_event(fd, event)
        self._check_time()

    def _on_event(self, fd: int, event: int) -> None:
        if event & _ALL_EVENTS and fd in self._readers:
            self._readers[fd]()
        elif event & _ALL_EVENTS and fd == self._streams.stdin and self._wants_input():
            self._read_input()
        if fd == self._running.send and self._out and event & ~select.POLLIN:
            self._write_channel()
        for number, output in self._outputs.items():
            if fd == output.fd and output.waiting and event & ~select.POLLIN:
                self._write_output(number, output)

    def _wants_input(self) -> bool:
        if not (self._started and self._stdin_open and self._credit and len(self._out) < _QUEUE_BYTES):
            return False
        return self._ending is None and not in_background(self._streams.stdin)

    def _unwritten(self) -> bool:
        return any(output.waiting for output in self._outputs.values())

    def _deadline(self) -> float | None:
        if self._give_up is not None:
            return self._give_up
        ends = [self._begin + self._limits.whole_s] if self._limits.whole_s is not None else []
        if not self._hello:
            ends.append(self._begin + self._limits.boot_s)
        return min(ends, default=None)

    def _patience_ms(self) -> int:
        """Until the next deadline, at most a second: whether we are in the background has no event."""
        deadline = self._deadline()
        left = 1.0 if deadline is None else min(max(deadline - time.monotonic(), 0), 1.0)
        return int(left * 1000) + 1

    def _check_time(self) -> None:
        if not self._hello:
            self._reporter.state(f"booting the {self._lab} lab: {time.monotonic() - self._begin:.0f} s")
        deadline = self._deadline()
        if deadline is None or time.monotonic() < deadline:
            return
        if self._give_up is not None or not self._started:
            raise self._timed_out()
        # the command first, so that results of the time until now are saved
        self._answered = False
        self._where_late = self._where()
        self._give_up = time.monotonic() + self._limits.grace_s
        self._send(Kind.PING, b"late")
        self._send(Kind.SIGNAL, struct.pack("<I", signal.SIGTERM))
        self._send(Kind.SIGNAL, struct.pack("<I", signal.SIGCONT))

    # ---- the channel ------------------------------------------------------------------------------------

    def _send(self, kind: Kind, payload: bytes = b"", stream: int = 0) -> None:
        self._out += wire.encode(kind, payload, stream)

    def _write_channel(self) -> None:
        try:
            done = os.write(self._running.send, self._out[:_READ_BYTES])
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()  # the lab is gone; the reading side says so
            return
        del self._out[:done]

    def _read_channel(self) -> None:
        for frame in self._decoder.feed(self._read(self._running.receive)):
            self._answered = True
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                output = self._outputs.get(frame.stream)
                if output and frame.payload:
                    output.waiting += frame.payload
                    self._write_output(frame.stream, output)
            case Kind.WINDOW:
                self._credit += _number(frame.payload)
            case Kind.STAGE:
                self._stage = frame.payload.decode(errors="replace")
            case Kind.HELLO:
                self._greet(_number(frame.payload))
            case Kind.FAIL:
                self._show_console()
                raise LabError(f"the {self._lab} lab failed: {frame.payload.decode(errors='replace')}")
            case Kind.EXIT:
                self._ending = Ending.decode(frame.payload)
            case _:
                pass

    def _greet(self, protocol: int) -> None:
        if protocol != wire.PROTOCOL:
            raise LabError(f"the {self._lab} lab's init speaks protocol {protocol}, not {wire.PROTOCOL}")
        self._hello = self._started = True
        self._reporter.clear()
        self._out += b"".join(self._job)

    # ---- the user's streams -----------------------------------------------------------------------------

    def _write_output(self, number: int, output: _Output) -> None:
        try:
            if _takes_something(output.fd):
                output.write()
        except BrokenPipeError:
            if number == 1:
                raise StoppedError(signal.SIGPIPE) from None
            output.drop()
        except OSError as error:
            raise LabError(f"writing the command's output: {error.strerror}") from error
        if output.unreported >= wire.WINDOW // 4:
            self._send(Kind.WINDOW, struct.pack("<I", output.unreported), number)
            output.unreported = 0

    def _read_input(self) -> None:
        try:
            data = os.read(self._streams.stdin, min(self._credit, wire.MAX_PAYLOAD))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a directory, a terminal that hung up: there is no more input
        if self._streams.terminal and self._escape.feed(data):
            raise StoppedError(signal.SIGINT)
        self._stdin_open = bool(data)
        self._credit -= len(data)
        self._send(Kind.DATA, data)

    def _read_signals(self, fd: int) -> None:
        for number in os.read(fd, 256):
            self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._streams.terminal and self._started:
                self._send(Kind.SIZE, struct.pack("<HH", *window_size(self._streams.stdout)))
        elif number not in {signal.SIGINT, signal.SIGQUIT} or not self._started or self._interrupted:
            raise StoppedError(number)
        else:
            self._interrupted = number == signal.SIGINT
            self._send(Kind.SIGNAL, struct.pack("<I", number))

    # ---- the emulator -----------------------------------------------------------------------------------

    def _read(self, fd: int) -> bytes:
        """What is there; at the end of the stream it is not waited for again."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""  # a pseudo-terminal without another end, a socket that was reset
        if not data:
            del self._readers[fd]
        return data

    def _read_console(self) -> None:
        data = self._read(self._running.console)
        try:
            self.console.append(data)
        except OSError as error:
            raise LabError(f"writing the console's log: {error.strerror}") from error

    def _read_messages(self) -> None:
        self._messages += self._read(self._running.messages)
        del self._messages[: -16 * 1024]

    def _emulator_ended(self) -> None:
        """Take what it left in its streams, then see whether that was the command's end."""
        del self._readers[self._pid_fd]
        for fd, read in list(self._readers.items()):
            while fd in self._readers and fd != self._pid_fd and _has_data(fd):
                read()
        self._readers.pop(self._running.receive, None)

    # ---- bad ends ---------------------------------------------------------------------------------------

    def _show_console(self) -> None:
        lines = self.console.telling_lines(_SHOWN_LINES)
        if lines:
            self._reporter.notice("its console:")
        for line in lines:
            self._reporter.notice(f"| {line}")

    def _where(self) -> str:
        if not self._hello:
            return "its kernel was booting"
        return f"it was {self._stage}" if self._stage else "its init was starting"

    def _last_line(self) -> str:
        line = self.console.last_line
        if self._hello and line.startswith("lab: "):
            return "its kernel said nothing"  # the init's own lines, from before the channel was open
        return f"its console's last line: {line}" if line else "its console said nothing"

    def _death(self) -> LabError:
        if self.console.panic:
            self._show_console()
            return LabError(
                f"the {self._lab} lab's kernel panicked while {self._where()}: {self.console.panic}"
            )
        said = self._messages.decode(errors="replace").strip().splitlines()
        if said and not self._hello:
            return LabError(f"the {self._lab} lab could not start: {said[-1]}")
        self._show_console()
        return LabError(
            f"the {self._lab} lab ended before the command did: {self._where()}; {self._last_line()}"
        )

    def _timed_out(self) -> LabTimeoutError:
        after = time.monotonic() - self._begin
        if not self._hello and (self._limits.whole_s is None or after < self._limits.whole_s):
            self._show_console()
            return LabTimeoutError(f"the {self._lab} lab did not boot in {after:.0f} s; {self._last_line()}")
        where = self._where_late or self._where()
        if self._give_up is not None:
            where += (
                "; its kernel still answered" if self._answered else "; its kernel did not answer any more"
            )
        return LabTimeoutError(
            f"the {self._lab} lab was stopped after {after:.0f} s: {where}; {self._last_line()}"
        )


def _number(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "little")


def _has_data(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _takes_something(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
