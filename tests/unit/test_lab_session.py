"""A session carries a job through a lab, and every end has its own word. The lab here is a thread."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING

import pytest

from pykvm.errors import LabError, LabTimeoutError
from pykvm.lab import wire
from pykvm.lab.backend import Running
from pykvm.lab.report import Reporter
from pykvm.lab.session import Limits, Session, StoppedError
from pykvm.lab.streams import Streams
from pykvm.lab.wire import Decoder, Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOB = list(wire.encode_job([b"true"], {}, b"/", {}))
HELLO = struct.pack("<I", wire.PROTOCOL) + b"6.1.0"
EXITED = bytes([wire.How.EXITED, 0])


class Init:
    """The lab's end of the channel, for a script that plays the init."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self.credit = {1: wire.WINDOW, 2: wire.WINDOW}

    def send(self, kind: Kind, payload: bytes = b"", stream: int = 0) -> None:
        self.lab.theirs.sendall(wire.encode(kind, payload, stream))

    def receive(self) -> Frame:
        while not self._frames:
            data = self.lab.theirs.recv(65536)
            if not data:
                raise ConnectionError
            self._frames += self._decoder.feed(data)
        frame = self._frames.pop(0)
        if frame.kind is Kind.WINDOW:
            self.credit[frame.stream] += int.from_bytes(frame.payload, "little")
        return frame

    def expect(self, kind: Kind) -> bytes:
        while (frame := self.receive()).kind is not kind:
            pass
        return frame.payload

    def take_job(self) -> bytes:
        self.send(Kind.HELLO, HELLO)
        whole = b""
        while piece := self.expect(Kind.JOB):
            whole += piece
        return whole

    def say_on_console(self, text: str) -> None:
        os.write(self.lab.console_writer, text.encode())


def wait_for_the_end(init: Init) -> None:
    """An init that says nothing."""
    init.lab.theirs.recv(1)


class Lab:
    """A lab whose emulator is a sleeping process and whose init is a script in a thread."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.ours, self.theirs = socket.socketpair()
        self.console, self.console_writer = os.pipe()
        self.messages, self.messages_writer = os.pipe()
        self.signals, self.signals_writer = os.pipe()
        self.process = subprocess.Popen(["sleep", "60"])
        self.notices = io.StringIO()
        stack.callback(self._close)

    def _close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        for end in (self.ours, self.theirs):
            end.close()
        for fd in (self.console, self.console_writer, self.messages, self.messages_writer):
            os.close(fd)
        os.close(self.signals)
        os.close(self.signals_writer)

    def replace_emulator(self, script: str) -> None:
        """Another emulator, one that ends by itself, when `die` tells it to."""
        self.process.kill()
        self.process.wait()
        self.process = subprocess.Popen(["sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE)

    def die(self) -> None:
        """What an emulator's end looks like from outside."""
        if self.process.stdin:
            self.process.stdin.close()
        else:
            self.process.kill()
        self.process.wait()
        self.theirs.shutdown(socket.SHUT_RDWR)

    def run(
        self,
        script: Callable[[Init], None],
        stdin: int | None = None,
        *,
        stdout: int | None = None,
        stderr: int | None = None,
        limits: Limits = Limits(20, None, 0.3),  # noqa: B008 - it never changes
        terminal: bool = False,
    ) -> tuple[wire.Ending, bytes, bytes]:
        """Play the script; the ending and what came out."""
        out, err = self._file(), self._file()
        null = os.open(os.devnull, os.O_RDWR)
        self.stack.callback(os.close, null)
        streams = Streams(
            null if stdin is None else stdin,
            out.fileno() if stdout is None else stdout,
            err.fileno() if stderr is None else stderr,
            terminal,
        )
        session = Session(
            "test",
            Running(self.process, self.ours.fileno(), self.ours.fileno(), self.console, self.messages),
            JOB,
            streams,
            limits,
            signals=self.signals,
            reporter=Reporter(self.notices),
        )
        thread = threading.Thread(target=self._play, args=(script,))
        thread.start()
        try:
            ending = session.run()
        finally:
            with suppress(OSError):
                self.theirs.shutdown(socket.SHUT_RDWR)
            thread.join()
        out.seek(0)
        err.seek(0)
        return ending, out.read(), err.read()

    def _play(self, script: Callable[[Init], None]) -> None:
        with suppress(OSError):
            script(Init(self))

    def _file(self) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
        self.stack.callback(file.close)
        return file


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab that was just started."""
    with ExitStack() as stack:
        yield Lab(stack)


def test_output_and_status_arrive_as_they_were_sent(lab: Lab) -> None:
    """Both streams stay apart, in order, whole; the job was sent after HELLO."""
    jobs = []

    def script(init: Init) -> None:
        jobs.append(init.take_job())
        for n in range(200):
            init.send(Kind.DATA, b"%d\n" % n, 1)
            init.send(Kind.DATA, b"\x00\xff", 2)
        init.send(Kind.DATA, b"", 1)
        init.send(Kind.EXIT, bytes([wire.How.EXITED, 7]))

    ending, out, err = lab.run(script)
    assert ending.exit_status == 7
    assert out == b"".join(b"%d\n" % n for n in range(200))
    assert err == b"\x00\xff" * 200
    assert jobs == [b"arg=true\0cwd=/\0"]


def test_output_is_credited_and_the_rest_is_written_after_the_end(lab: Lab) -> None:
    """4 windows of output through a pipe that is read late; nothing is lost, and never more is credited."""
    reader, writer = os.pipe()
    sent = os.urandom(4 * wire.WINDOW)
    got = bytearray()

    def read_late() -> None:
        select.select([reader], [], [], 10)
        while data := os.read(reader, 8192):
            got.extend(data)

    def script(init: Init) -> None:
        init.take_job()
        for at in range(0, len(sent), wire.MAX_PAYLOAD):
            while init.credit[1] < wire.MAX_PAYLOAD:
                init.receive()
            init.credit[1] -= wire.MAX_PAYLOAD
            init.send(Kind.DATA, sent[at : at + wire.MAX_PAYLOAD], 1)
        init.send(Kind.EXIT, EXITED)

    thread = threading.Thread(target=read_late)
    thread.start()
    try:
        lab.run(script, stdout=writer)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert bytes(got) == sent


def test_input_is_streamed_within_its_window_and_ends(lab: Lab) -> None:
    """As much as a window goes without credit, the rest as it is credited, then the end of the input."""
    with tempfile.TemporaryFile() as file:
        sent = os.urandom(wire.WINDOW * 2 + 5)
        file.write(sent)
        file.seek(0)
        got = bytearray()

        def script(init: Init) -> None:
            init.take_job()
            while len(got) < wire.WINDOW:
                got.extend(init.expect(Kind.DATA))
            init.send(Kind.PING)
            assert len(got) == wire.WINDOW
            init.send(Kind.WINDOW, struct.pack("<I", wire.WINDOW * 2))
            while piece := init.expect(Kind.DATA):
                got.extend(piece)
            init.send(Kind.EXIT, EXITED)

        lab.run(script, file.fileno())
    assert bytes(got) == sent


@pytest.mark.parametrize("closed", [False, True], ids=["directory", "closed"])
def test_input_that_can_not_be_read_is_at_its_end(lab: Lab, tmp_path: object, closed: bool) -> None:
    """A directory or a descriptor that is not open gives an empty input, as a shell would see it."""
    fd = os.open(str(tmp_path), os.O_RDONLY)
    if closed:
        os.close(fd)
    got = []

    def script(init: Init) -> None:
        init.take_job()
        got.append(init.expect(Kind.DATA))
        init.send(Kind.EXIT, EXITED)

    lab.run(script, fd)
    assert got == [b""]
    if not closed:
        os.close(fd)


def test_a_reader_that_went_away_ends_the_lab_as_sigpipe(lab: Lab) -> None:
    """`pykvm lab -- yes | head` ends, silently, with the status of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.DATA, b"y\n", 1)

    with pytest.raises(StoppedError) as stopped:
        lab.run(script, stdout=writer)
    os.close(writer)
    assert stopped.value.exit_status == 141


def test_a_full_disk_under_the_output_is_an_error(lab: Lab) -> None:
    """Output that can't be written is not lost silently."""
    full = os.open("/dev/full", os.O_WRONLY)

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.DATA, b"y\n", 1)
        init.send(Kind.EXIT, EXITED)

    with pytest.raises(LabError, match="No space left"):
        lab.run(script, stdout=full)
    os.close(full)


def test_the_first_interrupt_is_the_commands_the_second_the_labs(lab: Lab) -> None:
    """SIGINT goes to the command once; again, the lab stops: 130."""
    got = []

    def script(init: Init) -> None:
        init.take_job()
        os.write(lab.signals_writer, bytes([signal.SIGINT]))
        got.append(init.expect(Kind.SIGNAL))
        os.write(lab.signals_writer, bytes([signal.SIGINT]))
        init.receive()

    with pytest.raises(StoppedError) as stopped:
        lab.run(script)
    assert got == [struct.pack("<I", signal.SIGINT)]
    assert stopped.value.exit_status == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_ends_the_lab(lab: Lab, number: signal.Signals) -> None:
    """SIGTERM and SIGHUP stop it at once: 128 and the number."""

    def script(init: Init) -> None:
        init.take_job()
        os.write(lab.signals_writer, bytes([number]))
        init.receive()

    with pytest.raises(StoppedError) as stopped:
        lab.run(script)
    assert stopped.value.exit_status == 128 + number


def test_an_interrupt_while_booting_stops_the_lab(lab: Lab) -> None:
    """There is no command yet that it could be for."""
    os.write(lab.signals_writer, bytes([signal.SIGINT]))
    with pytest.raises(StoppedError):
        lab.run(wait_for_the_end)


def test_a_panic_is_reported_as_one_with_its_lines(lab: Lab) -> None:
    """The error names the panic and where the lab was; the console's telling lines are shown."""

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.STAGE, b"running the command")
        init.send(Kind.DATA, b"before", 1)
        init.say_on_console("[    3.1] BUG: kernel NULL pointer dereference\r\n[    3.1] RIP: 0010:x\r\n")
        init.say_on_console("[    3.2] Kernel panic - not syncing: Fatal exception\r\n")
        lab.die()

    with pytest.raises(
        LabError, match="kernel panicked while it was running the command: Fatal exception; BUG: "
    ):
        lab.run(script)
    assert "| [    3.2] Kernel panic" in lab.notices.getvalue()
    assert "RIP: 0010" not in lab.notices.getvalue()


def test_what_was_written_before_a_death_is_not_lost(lab: Lab) -> None:
    """Output that had arrived when the lab died is written before the error is raised."""
    reader, writer = os.pipe()

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.DATA, b"before", 1)
        lab.die()

    with pytest.raises(LabError, match="ended before the command did"):
        lab.run(script, stdout=writer)
    os.close(writer)
    assert os.read(reader, 100) == b"before"
    os.close(reader)


def test_an_emulator_that_does_not_start_is_quoted(lab: Lab) -> None:
    """Its own last word is the reason."""
    lab.replace_emulator("exit 1")
    os.write(lab.messages_writer, b"qemu: warning\nqemu: cannot set up guest memory\nmore\n")

    def script(init: Init) -> None:
        lab.die()

    with pytest.raises(LabError, match=r"could not start: qemu: cannot set up guest memory$"):
        lab.run(script)


def test_an_emulator_that_is_killed_is_told_by_its_signal(lab: Lab) -> None:
    """An assertion of its own, or a machine that ran out of memory; with its words, if it had any."""
    lab.replace_emulator("kill -ABRT $$")
    os.write(lab.messages_writer, b"qemu: fatal: invalid tss type\nRAX=0\n")

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.STAGE, b"running the command")
        lab.die()

    with pytest.raises(
        LabError, match=r"running the command; .* killed by SIGABRT; qemu: fatal: invalid tss type"
    ):
        lab.run(script)


def test_an_init_that_fails_is_quoted(lab: Lab) -> None:
    """FAIL is the lab's failure, not the command's."""

    def script(init: Init) -> None:
        init.send(Kind.HELLO, HELLO)
        init.send(Kind.FAIL, b"mounting host: Invalid argument")

    with pytest.raises(LabError, match="the test lab failed: mounting host: Invalid argument"):
        lab.run(script)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"garbage garbage", "damaged"),
        (wire.encode(Kind.HELLO, b"\x09\0\0\0"), "protocol 9"),
        (wire.encode(Kind.HELLO, HELLO) * 2, "started twice"),
        (wire.encode(Kind.FAIL, b"\x1b[2J\x1b]0;title\x07no\n"), "failed: .*0;titleno$"),
        (wire.encode(Kind.EXIT, b""), "makes no sense"),
    ],
)
def test_a_stranger_on_the_channel_is_refused(lab: Lab, data: bytes, words: str) -> None:
    """Bytes that are no frames, or another protocol, end the session."""
    with pytest.raises(LabError, match=words):
        lab.run(lambda init: init.lab.theirs.sendall(data))


def test_a_lab_that_sends_more_than_there_is_room_for_is_refused(lab: Lab) -> None:
    """The guest can't fill the host's memory while nobody reads."""
    reader, writer = os.pipe()

    def script(init: Init) -> None:
        init.take_job()
        while True:
            init.send(Kind.DATA, bytes(wire.MAX_PAYLOAD), 1)

    with pytest.raises(LabError, match="more output than there was room for"):
        lab.run(script, stdout=writer)
    os.close(reader)
    os.close(writer)


def test_a_lab_that_does_not_boot_is_stopped_with_its_last_line(lab: Lab) -> None:
    """The boot has a limit of its own."""
    os.write(lab.console_writer, b"[    0.5] waiting for a disk\n")
    with pytest.raises(
        LabTimeoutError, match=r"did not boot in \d+ s; its console's last line: waiting for a disk"
    ) as late:
        lab.run(wait_for_the_end, limits=Limits(0.2, None, 0.1))
    assert late.value.exit_status == 124


def test_time_over_while_booting_says_so(lab: Lab) -> None:
    """The whole limit counts from the start."""
    with pytest.raises(
        LabTimeoutError, match="stopped after 0 s: its kernel was booting; its console said nothing"
    ):
        lab.run(wait_for_the_end, limits=Limits(20, 0.2, 0.1))


def test_a_command_whose_time_is_over_may_still_save_its_results(lab: Lab) -> None:
    """It gets SIGTERM; its output until the end is written; the error says where it was."""
    reader, writer = os.pipe()

    def script(init: Init) -> None:
        init.take_job()
        init.send(Kind.STAGE, b"running the command")
        assert init.expect(Kind.SIGNAL) == struct.pack("<I", signal.SIGTERM)
        init.send(Kind.STAGE, b"saving the results")
        init.send(Kind.DATA, b"saved", 1)
        init.send(Kind.EXIT, EXITED)

    with pytest.raises(LabTimeoutError, match="it was running the command; its kernel still answered"):
        lab.run(script, stdout=writer, limits=Limits(20, 0.2, 5))
    os.close(writer)
    assert os.read(reader, 100) == b"saved"
    os.close(reader)


def test_a_lab_that_hangs_is_ended_after_its_grace(lab: Lab) -> None:
    """A kernel that answers nothing is told from a command that goes on."""

    def script(init: Init) -> None:
        init.take_job()
        init.expect(Kind.PING)
        while True:
            init.receive()

    began = time.monotonic()
    with pytest.raises(LabTimeoutError, match="its kernel did not answer any more"):
        lab.run(script, limits=Limits(20, 0.2, 0.2))
    assert time.monotonic() - began < 5


def test_the_size_of_the_window_is_passed_on(lab: Lab) -> None:
    """With a terminal, SIGWINCH sends rows and columns."""
    got = []

    def script(init: Init) -> None:
        init.take_job()
        os.write(lab.signals_writer, bytes([signal.SIGWINCH]))
        got.append(init.expect(Kind.SIZE))
        init.send(Kind.EXIT, EXITED)

    lab.run(script, terminal=True)
    assert got == [struct.pack("<HH", 24, 80)]


def test_ctrl_right_bracket_three_times_leaves(lab: Lab) -> None:
    """The way out of a terminal whose lab does not answer."""
    reader, writer = os.pipe()
    os.write(writer, b"ls\x1d\x1d\x1d")

    def script(init: Init) -> None:
        init.take_job()
        init.receive()

    with pytest.raises(StoppedError):
        lab.run(script, reader, terminal=True)
    os.close(reader)
    os.close(writer)
