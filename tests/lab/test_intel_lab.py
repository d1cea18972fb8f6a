"""The Intel lab boots in Bochs, has a KVM, and passes a command's streams, status and signals on as they are.

A boot takes a third of a minute of CPU time, so a test here asks several things of one lab.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT_S = 600
LAB = [sys.executable, "-m", "pykvm", "lab", "--cpu", "intel", "-q"]


def lab(
    *arguments: str | Path, data: bytes = b"", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `pykvm lab --cpu intel` with these arguments and `data` on its standard input."""
    return subprocess.run(
        [*LAB, *map(str, arguments)],
        input=data,
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
        cwd=cwd,
        env={**os.environ, **variables},
    )


def children_of(pid: int) -> Sequence[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def is_gone(pid: int) -> bool:
    """Whether a process ended, seen in its state: an orphan may stay a zombie for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def listening_sockets_of(pid: int) -> set[str]:
    """The inodes of the TCP sockets on which a process listens."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    inodes = {fields[9] for lines in tables for line in lines if (fields := line.split())[3] == "0A"}
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115 - no real path
    return {link for link in links if link.removeprefix("socket:[").rstrip("]") in inodes}


def test_there_is_a_kvm_and_streams_and_status_come_through(tmp_path: Path) -> None:
    """VMX, /dev/kvm; noise there and back, a flood; directory, variables, errors apart; 7 is 7."""
    noise = os.urandom(200_000)
    (tmp_path / "noise").write_bytes(noise[:170_000])
    script = """
        grep -cw vmx /proc/cpuinfo >&2; : <>/dev/kvm && stat -c %a /dev/kvm >&2
        cat noise -; head -c 8000000 /dev/zero; pwd >&2; echo "$LAB_TEST $PYKVM_LAB $(hostname)" >&2
        echo changed > noise; exit 7
    """
    done = lab("--", "sh", "-c", script, data=noise[170_000:], cwd=tmp_path, LAB_TEST="a  b")
    assert (done.returncode, len(done.stdout)) == (7, 8_200_000)
    assert zlib.crc32(done.stdout) == zlib.crc32(noise + bytes(8_000_000))
    assert done.stderr.decode() == f"2\n666\n{tmp_path}\na  b intel lab-intel\n"
    assert (tmp_path / "noise").read_bytes() == noise[:170_000]


def test_this_python_its_packages_and_the_checkout_are_there(tmp_path: Path) -> None:
    """A guest of pykvm's runs inside; what is written to the shared directory comes back, removals too."""
    (tmp_path / "old").write_text("old")
    (tmp_path / "sub").mkdir()
    run = (
        f'"$0" -m pykvm run 01_hello > {tmp_path}/sub/console; echo $? > {tmp_path}/status; rm {tmp_path}/old'
    )
    done = lab("--share", tmp_path, "--", "sh", "-c", run, sys.executable)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["status", "sub"]
    natively = subprocess.run(
        [sys.executable, "-m", "pykvm", "run", "01_hello"], capture_output=True, check=False
    )
    assert (tmp_path / "sub/console").read_bytes() == natively.stdout != b""
    assert int((tmp_path / "status").read_text()) == natively.returncode


def test_a_command_that_is_not_there() -> None:
    """127, and one line."""
    done = lab("--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, b"")
    assert done.stderr == b"pykvm: lab: no-such-program: No such file or directory\n"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("c", b"pykvm: the intel lab's kernel panicked while it was running the command: sysrq triggered"),
        ("b", b"pykvm: the intel lab ended before the command did: it was running the command; its CPU met"),
    ],
    ids=["panic", "restart"],
)
def test_a_kernel_that_dies_is_reported_as_such(key: str, words: bytes) -> None:
    """125, and what happened; what was written before is there."""
    done = lab(
        "--", "sh", "-c", f"echo before; sleep 1; echo {key} > /proc/sysrq-trigger; sleep 9; echo after"
    )
    assert (done.returncode, done.stdout) == (125, b"before\n")
    assert done.stderr.splitlines()[-1].startswith(words)


def test_a_lab_has_no_open_port_and_ends_with_its_owner() -> None:
    """Two labs at once, lines as they are written and typed; Ctrl-C ends the command, SIGKILL everything."""
    script = "trap 'echo caught; exit 9' INT; while read line; do echo got $line; done; sleep 600"
    command = [*LAB, "--", "sh", "-c", script]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as two,
    ):
        assert one.stdin
        assert one.stdout
        assert two.stdin
        assert two.stdout
        one.stdin.write(b"one\n")
        one.stdin.flush()
        two.stdin.write(b"two\n")
        two.stdin.flush()
        assert one.stdout.readline() == b"got one\n"
        assert two.stdout.readline() == b"got two\n"
        (emulator,) = children_of(one.pid)
        (other,) = children_of(two.pid)
        assert listening_sockets_of(emulator) == set()
        one.send_signal(signal.SIGKILL)
        assert one.wait(LIMIT_S) == -signal.SIGKILL
        two.send_signal(signal.SIGINT)
        assert two.stdout.readline() == b"caught\n"
        assert two.wait(LIMIT_S) == 9
    deadline = time.monotonic() + 10
    while not (is_gone(emulator) and is_gone(other)) and time.monotonic() < deadline:
        os.sched_yield()
    assert is_gone(emulator)
    assert is_gone(other)
