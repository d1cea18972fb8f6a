"""A machine in the background, and its console from other processes."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.registry import Room

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT_S = 180
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
PYKVM = (sys.executable, "-m", "pykvm")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """The machines' directory of this test; nothing of them is left behind."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Room() as found:
        yield found
        for entry in found.entries():
            pykvm("stop", entry.name)
        assert list((tmp_path / "pykvm").iterdir()) == []


def pykvm(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYKVM, *words], input=typed, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def until_over(room: Room, name: str) -> None:
    end = time.monotonic() + LIMIT_S
    while room.is_running(name):
        assert time.monotonic() < end
        time.sleep(0.05)


def leave_by_keys(name: str) -> tuple[int, str]:
    """Ctrl-A X on a terminal: the status, and what was said."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*PYKVM, "console", name],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - a terminal of its own
        ) as process:
            end = time.monotonic() + LIMIT_S
            while process.poll() is None and time.monotonic() < end:
                os.write(ours, b"\x01x")  # it may not read yet
                time.sleep(0.2)
            said = process.stderr.read() if process.stderr else ""
        return process.returncode, said
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.needs("long64_interrupts", "irqchip")
def test_a_machine_in_the_background_is_typed_on(room: Room) -> None:
    """It begins, is there, echoes what another process types, and is gone with nothing left."""
    done = pykvm("run", "--detach", "--name", "echo", "16_uart_interrupt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ((name, about),) = room.entries()
    assert (name, about["image"]) == ("echo", "16_uart_interrupt")
    assert leave_by_keys("echo") == (0, "pykvm: left echo, which goes on\n")
    assert [entry.name for entry in room.entries()] == ["echo"]
    console = (*PYKVM, "console", "echo")
    with (
        subprocess.Popen(console, stdin=subprocess.PIPE, **PIPES) as typist,
        subprocess.Popen(console, stdin=subprocess.DEVNULL, **PIPES) as watcher,
    ):
        assert watcher.stdout
        assert typist.stdin
        typist.stdin.write("half")
        typist.stdin.flush()
        # Its first byte says that the watcher is there: the line's end, which ends the machine, waits for it.
        first = os.read(watcher.stdout.fileno(), 1).decode()
        typed, complaint = typist.communicate(" and half\n", timeout=LIMIT_S)
        rest, said = watcher.communicate(timeout=LIMIT_S)
    assert (typist.returncode, complaint) == (0, "pykvm: echo has ended\n")
    assert typed == "half and half\n"
    assert (watcher.returncode, said) == (0, "pykvm: echo has ended\n")
    assert typed.endswith(first + rest)
    until_over(room, "echo")


def test_errors_of_the_start_come_here(room: Room) -> None:
    """With the status that the run would have had; no name is taken by it."""
    done = pykvm("run", "-d", "--name", "none", "no_such_guest")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.startswith("pykvm: no_such_guest: no such file")
    assert pykvm("run", "-d", "11_endless_loop").stderr.endswith(
        "--detach wants a --name, and has no result to print\n"
    )
    assert pykvm("console", "none").stderr.startswith("pykvm: no machine named none runs")
    assert room.entries() == []
