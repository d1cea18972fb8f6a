"""The guest's output on stdout: all of it, unless nobody takes it and the run has been told to end."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import PykvmError
from pykvm.output import Stdout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

LOTS = bytes(range(256)) * 4096  # 1 MiB: more than a pipe holds


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: its reading end, and the file of its other end."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout:
        yield reader, stdout
    os.close(reader)


def output_to(stdout: TextIO | None, is_given_up: Callable[[], bool] = lambda: False) -> Stdout:
    """What a process with that stdout has. pytest puts its own there before each test's call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        return Stdout(is_given_up)


def test_a_slow_reader_gets_everything(pipe: tuple[int, TextIO]) -> None:
    """The writer waits; no byte is lost, none is changed."""
    reader, stdout = pipe
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 777):
            got.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    output_to(stdout).write(LOTS)
    stdout.close()
    thread.join(20)
    assert b"".join(got) == LOTS


def test_what_python_has_printed_before_comes_first(pipe: tuple[int, TextIO]) -> None:
    """Python's buffer is emptied before the first byte of the guest's."""
    reader, stdout = pipe
    stdout.write("before ")
    output_to(stdout).write(b"after")
    assert os.read(reader, 100) == b"before after"


def test_a_reader_who_does_not_read_is_given_up_when_asked(pipe: tuple[int, TextIO]) -> None:
    """Asked only while nothing is taken; what was taken before stays taken."""
    reader, stdout = pipe
    asked: list[int] = []

    def is_given_up() -> bool:
        asked.append(1)
        return len(asked) == 2

    output = output_to(stdout, is_given_up)
    output.write(b"taken")
    assert asked == []
    output.write(LOTS)
    assert asked == [1, 1]
    assert os.read(reader, 5) == b"taken"


def test_a_reader_who_has_gone_is_a_broken_pipe(pipe: tuple[int, TextIO]) -> None:
    """The run is to end, and the command with the status of a program killed by SIGPIPE."""
    reader, stdout = pipe
    output = output_to(stdout)
    nobody = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nobody, reader)
    os.close(nobody)
    with pytest.raises(BrokenPipeError):
        output.write(b"x")


def test_a_full_disk_is_one_line() -> None:
    """Not a traceback: pykvm's own error with the kernel's word."""
    with Path("/dev/full").open("w") as full, pytest.raises(PykvmError) as caught:
        output_to(full).write(b"x")
    assert str(caught.value) == "standard output: No space left on device"


def test_without_stdout_output_goes_nowhere() -> None:
    """Started with stdout closed: nobody is there to tell."""
    output_to(None).write(LOTS)


def test_a_non_blocking_stdout_is_waited_for(pipe: tuple[int, TextIO]) -> None:
    """Another program may have left the terminal or the pipe non-blocking."""
    reader, stdout = pipe
    os.set_blocking(stdout.fileno(), False)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(reader, 5000), b"")))
    thread.start()
    output_to(stdout).write(LOTS)
    stdout.close()
    thread.join(20)
    assert b"".join(got) == LOTS
