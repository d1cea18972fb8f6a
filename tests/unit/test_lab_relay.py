"""The init's relay, compiled with sanitizers and run here: it carries a command's streams byte for byte.

It is the lab's own source on a pseudo-terminal in raw mode, which is what a serial line is to it.
"""

from __future__ import annotations

import hashlib
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pykvm.lab
from pykvm.lab import wire
from pykvm.lab.wire import Decoder, Ending, Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

LIMIT_S = 30
LAB = Path(pykvm.lab.__file__).parent
ENDLESS = ["yes"]  # reads no input, and ends with its output when the relay is gone
SOURCES = [LAB / "relay.c", LAB / "channel.c", Path(__file__).parent / "relay_harness.c"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay as a program; any bad access or undefined operation ends it with a status of its own."""
    out = tmp_path_factory.mktemp("relay") / "relay"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", *checks, "-o", out]
    subprocess.run([*map(str, command), *map(str, SOURCES)], check=True)
    return out


class Peer:
    """The host's side, with the credit it was given and what came back."""

    def __init__(self, program: Path) -> None:
        self._master, self._slave = pty.openpty()  # the slave stays open: without any the master hangs up
        tty.setraw(self._slave)
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:exitcode=99"}
        self.process = subprocess.Popen(
            [program, os.ttyname(self._slave)],
            env=environment,
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        os.set_blocking(self._master, False)
        self._decoder = Decoder()
        self._out = bytearray()
        self._deadline = time.monotonic() + LIMIT_S
        self.frames: list[Frame] = []
        self.output = {1: bytearray(), 2: bytearray()}
        self.credit = wire.WINDOW
        self.reading = True

    def send(self, kind: Kind, payload: bytes = b"", stream: int = 0) -> None:
        self._out += wire.encode(kind, payload, stream)

    def job(
        self, *argv: str, cwd: str = "/", env: Mapping[bytes, bytes] | None = None, **extra: bytes
    ) -> None:
        variables = {b"PATH": os.environb[b"PATH"]} if env is None else env
        more = {key.encode(): value for key, value in extra.items()}
        self._out += b"".join(wire.encode_job(map(os.fsencode, argv), variables, cwd.encode(), more))

    def until(self, kind: Kind, stream: int | None = None, *, empty: bool = False) -> Frame:
        """Take frames until one of this kind."""
        while True:
            frame = self.next_frame()
            if frame.kind is kind and stream in {None, frame.stream} and not (empty and frame.payload):
                return frame

    def until_output(self, expected: bytes, stream: int = 1) -> None:
        while expected not in self.output[stream]:
            self.next_frame()

    def next_frame(self) -> Frame:
        while not self.frames:
            assert time.monotonic() < self._deadline, "the relay does not answer"
            wanted = select.POLLIN | (select.POLLOUT if self._out else 0)
            poll = select.poll()
            poll.register(self._master, wanted)
            # asked before the look: what it wrote before its end is there by then
            ended = self.process.poll() is not None
            events = sum(event for _, event in poll.poll(0 if ended else 1000))
            if events & select.POLLIN:
                self.frames += self._decoder.feed(os.read(self._master, 65536))
            if events & select.POLLOUT:
                del self._out[: os.write(self._master, self._out)]
            assert events & select.POLLIN or not ended, self.process.communicate()
        frame = self.frames.pop(0)
        if frame.kind is Kind.DATA:
            self.output[frame.stream] += frame.payload
            if self.reading and frame.payload:
                self.send(Kind.WINDOW, struct.pack("<I", len(frame.payload)), frame.stream)
        if frame.kind is Kind.WINDOW:
            self.credit += int.from_bytes(frame.payload, "little")
        return frame

    def ending(self) -> Ending:
        return Ending.decode(self.until(Kind.EXIT).payload)

    def hang_up(self) -> None:
        os.close(self._master)
        os.close(self._slave)

    def close(self) -> None:
        self.hang_up()
        try:
            errors = self.process.communicate(timeout=LIMIT_S)[1]
        finally:
            self.process.kill()
        assert self.process.returncode in {0, 3}, errors.decode()


@pytest.fixture
def peer(program: Path) -> Iterator[Peer]:
    """A relay that waits for its job."""
    peer = Peer(program)
    try:
        peer.until(Kind.HELLO)
        yield peer
    finally:
        peer.close()


def test_hello_names_protocol_and_kernel(program: Path) -> None:
    """The first frame is HELLO with both."""
    peer = Peer(program)
    hello = peer.next_frame()
    assert (hello.kind, hello.payload[:4]) == (Kind.HELLO, struct.pack("<I", wire.PROTOCOL))
    assert hello.payload[4:].decode() == os.uname().release
    peer.close()


def test_a_command_gets_arguments_environment_and_directory_as_given(peer: Peer) -> None:
    """Nothing is added, dropped or split: not spaces, not newlines, not bytes that are no UTF-8."""
    peer.job(
        "sh", "-c", 'printf "%s|" "$@"; pwd; env', "x", "", "a b", "c\nd", os.fsdecode(b"\xff\xfe"),
        cwd="/usr", env={b"PATH": b"/usr/bin:/bin", b"A": b"=1=\xff"},
    )  # fmt: skip
    assert peer.ending().exit_status == 0
    first, _, rest = bytes(peer.output[1]).partition(b"|/usr\n")
    assert first == b"|a b|c\nd|\xff\xfe"
    assert {b"A==1=\xff", b"PATH=/usr/bin:/bin"} <= set(rest.split(b"\n"))


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_exit_status_is_the_commands(peer: Peer, script: str, status: int) -> None:
    """An exit code is passed on, a signal becomes 128 and its number."""
    peer.job("sh", "-c", script)
    assert peer.ending().exit_status == status


@pytest.mark.parametrize(("name", "status"), [("no-such-program", 127), ("plain", 126), ("/", 126)])
def test_what_can_not_be_started_is_127_or_126(peer: Peer, tmp_path: Path, name: str, status: int) -> None:
    """Not found and not executable are told apart, as shells do."""
    (tmp_path / "plain").write_text("not executable")
    peer.job(str(tmp_path / name) if name == "plain" else name)
    assert peer.ending().exit_status == status


def test_a_directory_that_is_not_there_fails_the_lab(peer: Peer) -> None:
    """It is not taken for an end of the command."""
    peer.job("true", cwd="/no/such/directory")
    assert b"/no/such/directory" in peer.until(Kind.FAIL).payload
    assert peer.process.wait(LIMIT_S) == 4
    peer.process.returncode = 0


def test_a_flood_of_bytes_of_any_value_arrives_exactly(peer: Peer) -> None:
    """3 MB of noise through cat come back the same, with the windows obeyed both ways."""
    noise = os.urandom(3_000_000)
    peer.job("cat")
    sent = 0
    while sent < len(noise):
        piece = noise[sent : sent + min(peer.credit, wire.MAX_PAYLOAD)]
        peer.credit -= len(piece)
        sent += len(piece)
        if piece:
            peer.send(Kind.DATA, piece)
        else:
            peer.next_frame()
    peer.send(Kind.DATA)
    assert peer.ending().exit_status == 0
    assert hashlib.sha256(peer.output[1]).digest() == hashlib.sha256(noise).digest()
    assert not peer.output[2]


def test_standard_output_and_error_stay_apart_or_are_one(peer: Peer) -> None:
    """Without merge each has its stream; both end."""
    peer.job("sh", "-c", "echo out; echo err >&2")
    peer.ending()
    assert (bytes(peer.output[1]), bytes(peer.output[2])) == (b"out\n", b"err\n")


def test_merged_streams_keep_their_order(peer: Peer) -> None:
    """With merge both arrive on stream 1 in the order they were written."""
    peer.job("sh", "-c", "for n in 1 2 3 4 5; do echo out$n; echo err$n >&2; done", merge=b"1")
    peer.ending()
    expected = "".join(f"out{n}\nerr{n}\n" for n in range(1, 6)).encode()
    assert (bytes(peer.output[1]), bytes(peer.output[2])) == (expected, b"")


def test_a_host_that_does_not_read_stops_the_output_and_nothing_else(peer: Peer) -> None:
    """At most a window of output comes without credit, and a PING is still answered; then all the rest."""
    peer.reading = False
    peer.job("sh", "-c", "head -c 400000 /dev/zero; echo done >&2")
    while len(peer.output[1]) < wire.WINDOW:
        peer.next_frame()
    peer.send(Kind.PING, b"there?")
    assert peer.until(Kind.PING).payload == b"there?"
    assert len(peer.output[1]) == wire.WINDOW
    peer.reading = True
    peer.send(Kind.WINDOW, struct.pack("<I", wire.WINDOW), 1)
    assert peer.ending().exit_status == 0
    assert (len(peer.output[1]), bytes(peer.output[2])) == (400_000, b"done\n")


def test_input_that_nobody_reads_is_dropped_and_credited(peer: Peer) -> None:
    """A command that closes its input does not stop its host."""
    peer.job("sh", "-c", "exec <&-; echo closed; sleep 0.2")
    peer.until_output(b"closed")
    peer.credit = 0
    for _ in range(wire.WINDOW // wire.MAX_PAYLOAD):
        peer.send(Kind.DATA, bytes(wire.MAX_PAYLOAD))
    assert peer.ending().exit_status == 0
    assert peer.credit > 0


def test_a_signal_reaches_the_whole_group(peer: Peer) -> None:
    """SIGINT ends a shell's child and is seen by the shell's trap."""
    peer.job("sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; sleep 60 & wait")
    peer.until_output(b"ready")
    peer.send(Kind.SIGNAL, struct.pack("<I", signal.SIGINT))
    assert peer.ending().exit_status == 9
    assert peer.output[1] == b"ready\ncaught\n"


def test_what_the_command_left_running_is_ended(peer: Peer) -> None:
    """A child in the background that holds the output open does not hold the lab."""
    peer.job("sh", "-c", "sleep 60 & echo $!")
    assert peer.ending().exit_status == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(peer.output[1]), 0)


def test_a_terminal_is_one_with_the_size_and_the_keys_of_a_terminal(peer: Peer) -> None:
    """tty says so, stty knows the size and its change, Ctrl-C interrupts, Ctrl-D ends the input."""
    script = "trap 'stty size; echo int' INT; test -t 0 && stty size; echo ready; read line; cat; echo end"
    peer.job("sh", "-c", script, tty=b"30x90")
    peer.until_output(b"30 90\r\nready")
    peer.send(Kind.SIZE, struct.pack("<HH", 40, 120))
    peer.send(Kind.DATA, b"\x03")
    peer.until_output(b"40 120")
    peer.until_output(b"int")
    peer.send(Kind.DATA, b"typed\n")
    peer.send(Kind.DATA)
    assert peer.ending().exit_status == 0
    assert b"end\r\n" in peer.output[1]


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<BBH", ord("D"), 0, 0xFFFF),
        struct.pack("<BBH", ord("?"), 0, 0),
        wire.encode(Kind.DATA, bytes(wire.MAX_PAYLOAD)) * (wire.WINDOW // wire.MAX_PAYLOAD + 5),
    ],
    ids=["too long", "unknown", "more than the window"],
)
def test_a_damaged_channel_fails_the_lab(peer: Peer, frame: bytes) -> None:
    """Frames that can't be are refused with a reason."""
    peer.job(*ENDLESS)
    peer._out += frame
    assert peer.until(Kind.FAIL).payload
    assert peer.process.wait(LIMIT_S) == 4
    peer.process.returncode = 0


def test_a_host_that_hangs_up_ends_the_lab(program: Path) -> None:
    """Nobody is left to report to: the relay powers off."""
    peer = Peer(program)
    peer.until(Kind.HELLO)
    peer.job(*ENDLESS)
    peer.send(Kind.PING)
    peer.until(Kind.PING)
    peer.close()
    assert peer.process.returncode == 3
