"""One lab's life, from its start to its end: the host's side of the channel.

A single thread waits, by poll(2), for the lab, the emulator, the user's streams, and signals. Nothing it does
blocks: a stream is read when the other side has room for it and written when it takes something, so a
reader that does not read stops its own stream and nothing else.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from pykvm.errors import LabError, LabTimeoutError
from pykvm.lab import wire
from pykvm.lab.console import printable
from pykvm.lab.diagnosis import Diagnosis
from pykvm.lab.streams import Output, Streams
from pykvm.lab.terminal import EscapeWatch, in_background, window_size
from pykvm.lab.wire import ChannelError, Decoder, Ending, Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.lab.backend import Running
    from pykvm.lab.report import Reporter

__all__ = ["SIGNALS", "Limits", "Session", "StoppedError"]

SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
_READ_BYTES = 64 * 1024
_QUEUE_BYTES = 64 * 1024
_DYING_S = 5.0
_ALL_EVENTS = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class StoppedError(Exception):
    """The user stopped the lab; `exit_status` is 128 and the signal that did it."""

    def __init__(self, number: int) -> None:
        self.exit_status = 128 + number


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: until the init says HELLO; for the whole (None: no limit); to end in order after that."""

    boot_s: float
    whole_s: float | None
    grace_s: float


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
        self._diagnosis = Diagnosis(lab, reporter, console_copies)
        self._decoder = Decoder(running.preamble)
        self._damage: ChannelError | None = None
        self._out = bytearray()
        self._outputs = {1: Output(streams.stdout), 2: Output(streams.stderr)}
        self._credit = wire.WINDOW
        self._ending: Ending | None = None
        self._interrupted = False
        self._stdin_open = True
        self._begin = time.monotonic()
        self._give_up: float | None = None
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
            raise self._diagnosis.death(self._running)
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
        if not (self._has_command() and self._stdin_open and self._credit and len(self._out) < _QUEUE_BYTES):
            return False
        return not in_background(self._streams.stdin)

    def _unwritten(self) -> bool:
        return any(output.waiting for output in self._outputs.values())

    def _deadline(self) -> float | None:
        if self._give_up is not None:
            return self._give_up
        ends = [self._begin + self._limits.whole_s] if self._limits.whole_s is not None else []
        if not self._diagnosis.booted:
            ends.append(self._begin + self._limits.boot_s)
        return min(ends, default=None)

    def _patience_ms(self) -> int:
        """Until the next deadline, at most a second: whether we are in the background has no event."""
        deadline = self._deadline()
        left = 1.0 if deadline is None else min(max(deadline - time.monotonic(), 0), 1.0)
        return int(left * 1000) + 1

    def _check_time(self) -> None:
        if not self._diagnosis.booted:
            self._reporter.state(f"booting the {self._lab} lab: {time.monotonic() - self._begin:.0f} s")
        deadline = self._deadline()
        if deadline is None or time.monotonic() < deadline:
            return
        if self._damage:
            raise self._damage
        if self._give_up is not None or not self._diagnosis.booted:
            raise self._timed_out()
        # the command first, so that results of the time until now are saved
        self._diagnosis.time_is_over()
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
        try:
            for frame in self._decoder.feed(self._read(self._running.receive)):
                self._diagnosis.answered = True
                self._take(frame)
        except ChannelError as damage:
            if not self._running.preamble:
                raise
            # an emulator that shares the channel speaks there when it dies: its end tells more
            self._damage = damage
            self._limits = replace(self._limits, whole_s=time.monotonic() - self._begin + _DYING_S)
            self._readers[self._running.receive] = lambda: self._drop(self._running.receive)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                output = self._outputs.get(frame.stream)
                if output and frame.payload:
                    self._queue_output(frame.stream, output, frame.payload)
            case Kind.WINDOW:
                self._credit += _number(frame.payload)
            case Kind.STAGE:
                self._diagnosis.stage = printable(frame.payload)
            case Kind.HELLO:
                self._greet(_number(frame.payload))
            case Kind.FAIL:
                raise self._diagnosis.failure(frame.payload)
            case Kind.EXIT:
                self._ending = Ending.decode(frame.payload)
            case _:
                pass

    def _greet(self, protocol: int) -> None:
        if self._diagnosis.booted:
            raise self._diagnosis.damage("its init started twice")
        if protocol != wire.PROTOCOL:
            raise LabError(f"the {self._lab} lab's init speaks protocol {protocol}, not {wire.PROTOCOL}")
        self._diagnosis.booted = True
        self._reporter.clear()
        self._out += b"".join(self._job)

    # ---- the user's streams -----------------------------------------------------------------------------

    def _queue_output(self, number: int, output: Output, data: bytes) -> None:
        if len(output.waiting) + len(data) > wire.WINDOW:
            raise LabError(
                f"the channel to the {self._lab} lab is damaged: more output than there was room for"
            )
        output.waiting += data
        self._write_output(number, output)

    def _write_output(self, number: int, output: Output) -> None:
        try:
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
            if self._streams.terminal and self._diagnosis.booted:
                self._send(Kind.SIZE, struct.pack("<HH", *window_size(self._streams.stdout)))
        elif number not in {signal.SIGINT, signal.SIGQUIT} or self._interrupted or not self._has_command():
            raise StoppedError(number)
        else:
            self._interrupted = number == signal.SIGINT
            self._send(Kind.SIGNAL, struct.pack("<I", number))

    def _timed_out(self) -> LabTimeoutError:
        after = time.monotonic() - self._begin
        if self._diagnosis.booted or (self._limits.whole_s is not None and after >= self._limits.whole_s):
            return self._diagnosis.late(after)
        return self._diagnosis.no_boot(after)

    def _has_command(self) -> bool:
        return self._diagnosis.booted and self._ending is None

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

    def _drop(self, fd: int) -> None:
        self._read(fd)

    def _read_console(self) -> None:
        data = self._read(self._running.console)
        try:
            self._diagnosis.console.append(data)
        except OSError as error:
            raise LabError(f"writing the console's log: {error.strerror}") from error

    def _read_messages(self) -> None:
        self._diagnosis.hear(self._read(self._running.messages))

    def _emulator_ended(self) -> None:
        """Take what it left in its streams, then see whether that was the command's end."""
        del self._readers[self._pid_fd]
        for fd, read in list(self._readers.items()):
            while fd in self._readers and fd != self._pid_fd and _has_data(fd):
                read()
        self._readers.pop(self._running.receive, None)


def _number(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "little")


def _has_data(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
