"""Where a trace is written: whole pieces or nothing, one line when it fails, no wait without end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pykvm.trace.output import OutputError, TraceOutput


def test_a_file_gets_what_is_written(tmp_path: Path) -> None:
    """What it held before is gone."""
    path = tmp_path / "trace"
    path.write_text("an old one, and longer")
    output = TraceOutput.create(path)
    output.write(b"one\n")
    output.write(b"two\n")
    output.close()
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("path", ["/proc/nowhere/trace", "/", "/dev/null/trace"])
def test_a_path_that_can_not_be_written_is_one_line(path: str) -> None:
    """Who, why, and what to do."""
    with pytest.raises(OutputError, match=r"^\S+: .*; give another file with -o$"):
        TraceOutput.create(Path(path))


def test_a_full_disk_leaves_whole_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece that did not fit is cut off again, as far as it was written."""
    path = tmp_path / "trace"
    output = TraceOutput.create(path)
    output.write(b"whole\n")
    real, room = os.write, [4]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = real(fd, bytes(data[: room[0]]))
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match=r"trace: No space left on device$"):
        output.write(b"too much\n")
    monkeypatch.undo()
    output.write(b"fits again\n")
    output.close()
    assert path.read_bytes() == b"whole\nfits again\n"


def test_a_device_that_is_full_is_one_line() -> None:
    """There is nothing to cut."""
    output = TraceOutput(os.open("/dev/full", os.O_WRONLY), "/dev/full")
    with pytest.raises(OutputError, match=r"^/dev/full: No space left on device$"):
        output.write(b"x")
    output.close()


def test_a_slow_reader_gets_everything() -> None:
    """The writer waits."""
    reader, writer = os.pipe()
    lots, got = bytes(range(256)) * 2048, bytearray()

    def read() -> None:
        while piece := os.read(reader, 9999):
            got.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    output = TraceOutput(writer, "pipe")
    output.write(lots)
    output.close()
    thread.join(20)
    os.close(reader)
    assert bytes(got) == lots


def test_a_reader_who_has_gone_is_a_broken_pipe() -> None:
    """Not an error of ours: nobody is left to tell."""
    reader, writer = os.pipe()
    os.close(reader)
    output = TraceOutput(writer, "pipe")
    with pytest.raises(BrokenPipeError):
        output.write(b"x")
    output.close()


def test_a_reader_who_does_not_read_is_given_up_when_the_run_is_to_end() -> None:
    """Not before."""
    reader, writer = os.pipe()
    asked: list[int] = []

    def is_given_up() -> bool:
        asked.append(1)
        return len(asked) > 2

    output = TraceOutput(writer, "pipe", is_given_up)
    output.write(bytes(1 << 20))
    assert len(asked) == 3
    output.close()
    os.close(reader)


def test_stdout_and_stderr_stay_open() -> None:
    """They belong to everybody."""
    TraceOutput(2, "standard error").close()
    assert os.fstat(2)
