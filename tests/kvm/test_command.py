"""`pykvm run` as a process: its statuses, its output, and every way to interrupt it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Save = Callable[[bytes], str]

LIMIT_S = 180
RUN = [sys.executable, "-m", "pykvm", "run"]

HLT, SPIN = b"\xf4", b"\xeb\xfe"
CONSOLE = layout.DEBUG_CONSOLE.start.to_bytes(2, "little")
SAY = b"\xba" + CONSOLE + b"\xb0!\xee"  # mov $port, %dx; mov $'!', %al; out %al, %dx
FLOOD = b"\xba" + CONSOLE + b"\xb0A" + b"\xee" * 100 + b"\xe9" + (-103 & 0xFFFF).to_bytes(2, "little")
ECHO = (  # waits for a byte on COM1, prints it there, and again
    b"\xba\xfd\x03\xec\xa8\x01\x74\xf8"  # 1: mov $0x3fd, %dx; in %dx, %al; test $1, %al; jz 1b
    b"\xba\xf8\x03\xec\xee\xeb\xf2"  # mov $0x3f8, %dx; in %dx, %al; out %al, %dx; jmp 1b
)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write 16-bit code to a file that says its mode by its name."""

    def save(code: bytes) -> str:
        path = tmp_path / "guest.real16.bin"
        path.write_bytes(code)
        return str(path)

    return save


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*RUN, *words], timeout=LIMIT_S, check=False, **options)


@contextmanager
def running(*words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command while it runs; killed if it is still there at the end."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*RUN, *words], **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.needs("long64")
def test_hello_greets_on_stdout_and_tells_its_cost_on_stderr() -> None:
    """The guest's bytes and nothing else on stdout; status 0."""
    done = run("01_hello")
    assert done.returncode == 0
    assert done.stdout == b"Hello from 64-bit long mode!\n"
    assert done.stderr.startswith(b"pykvm: exit code 0 after ")
    assert done.stderr.endswith(b"exits: 30 IO\n")
    assert run("--quiet", "hello").stderr == b""


@pytest.mark.needs("real16")
@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (HLT, 110, "halt"),
        (b"\xb0\xfe\xe6\x64" + HLT, 111, "reset"),
        (b"\xba\x05\x05\xb0\x01\xee" + HLT, 113, "panic"),
        (b"\xe6\x99" + HLT, 114, "unclaimed-io"),
        (b"\xba\x00\x05\xb0\x2a\xee" + HLT, 42, "exit code 42"),
        (SPIN, 124, "timeout"),
    ],
    ids=["halt", "reset", "panic", "unclaimed", "exit code", "timeout"],
)
def test_each_end_has_its_status(save: Save, code: bytes, status: int, word: str) -> None:
    """And its word on the last line of stderr."""
    done = run("--timeout", "1", save(code))
    assert done.returncode == status
    assert word in done.stderr.decode().splitlines()[-1]
    assert b"Traceback" not in done.stderr


@pytest.mark.needs("real16")
def test_json_is_the_whole_result(save: Save) -> None:
    """On stdout, readable by a machine; nothing on stderr."""
    done = run("--json", "--timeout", "1", save(SAY + b"\xe6\x99"))
    found = json.loads(done.stdout)
    assert (found["reason"], found["console"], found["exit_status"]) == ("unclaimed-io", "!", 114)
    assert found["exits"] == {"IO": 2}
    assert done.returncode == 114
    assert done.stderr == b""


@pytest.mark.needs("real16")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_order(save: Save, number: signal.Signals) -> None:
    """Status 130, one line, and what the guest had printed."""
    with running(save(SAY + SPIN)) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"!"
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert err.startswith(b"pykvm: interrupted after ")
    assert err.count(b"\n") == 1


@pytest.mark.needs("real16")
def test_signal_after_signal_is_no_traceback(save: Save) -> None:
    """An impatient user."""
    with running(save(SAY + SPIN)) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        for _ in range(20):
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in err


@pytest.mark.needs("real16")
@pytest.mark.parametrize("how", ["time limit", "signal"])
def test_a_reader_who_does_not_read_can_t_hold_up_the_end(save: Save, how: str) -> None:
    """The guest floods a pipe that nobody empties; the run ends all the same."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # soon full, also where an exit takes long
    os.set_blocking(writer, True)
    limit = ["--timeout", "2"] if how == "time limit" else []
    with running(*limit, save(FLOOD), stdout=writer) as process:
        if how == "signal":
            wait_until_full(writer)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    os.close(reader)
    os.close(writer)
    assert process.returncode == (124 if how == "time limit" else 130)
    assert b"Traceback" not in err


def wait_until_full(fd: int) -> None:
    """Until a pipe takes nothing any more."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    deadline = time.monotonic() + LIMIT_S
    while poll.poll(0):  # no event says that a pipe is full; and the only CPU may be the guest's
        assert time.monotonic() < deadline, "the guest does not flood"
        time.sleep(0.02)


@pytest.mark.needs("real16")
def test_a_reader_who_goes_ends_the_run(save: Save) -> None:
    """As `| head` does: status 141, silently."""
    with running(save(FLOOD)) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(LIMIT_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.needs("real16")
def test_a_full_disk_ends_the_run_with_one_line(save: Save) -> None:
    """Status 125: pykvm could not do its part."""
    with Path("/dev/full").open("w") as full:
        done = run(save(FLOOD), stdout=full)
    assert done.returncode == 125
    assert done.stderr == b"pykvm: standard output: No space left on device\n"


@pytest.mark.needs("real16")
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_no_error(save: Save, closed: str) -> None:
    """Neither the status nor the other streams suffer."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *RUN, save(SAY + HLT)]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 110
    assert done.stdout == (b"" if "1>" in closed else b"!")
    assert done.stderr.startswith(b"" if "2>" in closed else b"pykvm: halt")
    assert done.stderr.count(b"\n") <= 1


@pytest.mark.needs("real16")
def test_what_is_piped_in_reaches_the_guest(save: Save) -> None:
    """stdin goes to the serial port, all of it, and its end is no end of the run."""
    text = b"typed ahead, more than the FIFO holds: " + bytes(range(32, 127))
    with running(save(ECHO), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text)
        process.stdin.close()
        assert process.stdout.read(len(text)) == text
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    assert process.returncode == 130


@contextmanager
def on_terminal(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int, list[Any]]]:
    """The command on a terminal of its own: the process, the user's end, and the settings before."""
    user, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    options: dict[str, Any] = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    try:
        with running(*words, **options, start_new_session=True, preexec_fn=own_terminal) as process:
            yield process, user, before
    finally:
        os.close(terminal)
        os.close(user)


def own_terminal() -> None:
    """Make stdin the controlling terminal of the new session, as a shell does."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(fd: int, wanted: bytes) -> bytes:
    got = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while wanted not in got:
        assert poll.poll(LIMIT_S * 1000), got
        got += os.read(fd, 1000)
    return got


@pytest.mark.needs("real16")
@pytest.mark.parametrize("leave", [b"\x01x", b"\x01X"])
def test_ctrl_a_x_leaves_and_the_terminal_is_as_before(save: Save, leave: bytes) -> None:
    """Raw while the guest runs, so that it gets each key; restored when it ends."""
    with on_terminal(save(ECHO)) as (process, user, before):
        os.write(user, b"hi")
        read_until(user, b"hi")
        os.write(user, leave)
        assert process.wait(LIMIT_S) == 130
        assert termios.tcgetattr(user) == before


@pytest.mark.needs("real16")
def test_ctrl_c_on_the_terminal_leaves_a_guest_that_does_not_listen(save: Save) -> None:
    """A guest that spins takes no input: Ctrl-C is for pykvm."""
    with on_terminal(save(SAY + SPIN)) as (process, user, before):
        read_until(user, b"!")
        os.write(user, b"\x03")
        assert process.wait(LIMIT_S) == 130
        assert termios.tcgetattr(user) == before


@pytest.mark.needs("real16")
def test_the_terminal_is_restored_after_a_signal(save: Save) -> None:
    """SIGTERM from elsewhere."""
    with on_terminal(save(SAY + SPIN)) as (process, user, before):
        read_until(user, b"!")
        assert termios.tcgetattr(user) != before
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 130
        assert termios.tcgetattr(user) == before
