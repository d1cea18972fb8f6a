"""The AMD lab boots, has a KVM, and passes a command's streams, status and signals on as they are.

Each test but the last boots one lab, as `pykvm lab` does for its user.
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

LIMIT_S = 180
LAB = [sys.executable, "-m", "pykvm", "lab"]


def lab(
    *arguments: str | Path, data: bytes = b"", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `pykvm lab` with these arguments and `data` on its standard input."""
    return subprocess.run(
        [*LAB, *map(str, arguments)],
        input=data,
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
        cwd=cwd,
        env={**os.environ, **variables},
    )


def emulators_of(pid: int) -> Sequence[int]:
    """The children of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def is_gone(pid: int) -> bool:
    """Whether a process ended, seen in its state: an orphan may stay a zombie for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def test_there_is_a_kvm_and_the_status_comes_back() -> None:
    """The CPU has svm, /dev/kvm can be opened, and 7 is 7."""
    done = lab("-q", "--", "sh", "-c", "grep -cw svm /proc/cpuinfo; : <>/dev/kvm && echo kvm; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"1\nkvm\n", b"")


def test_streams_environment_and_directory_are_those_of_the_caller(tmp_path: Path) -> None:
    """1 MB of noise through the lab and back; errors apart, variables and directory kept, files unchanged."""
    noise = os.urandom(1_000_000)
    (tmp_path / "noise").write_bytes(noise[:500_000])
    script = 'cat noise - && pwd >&2 && echo "$LAB_TEST $PYKVM_LAB" >&2; echo changed > noise; cat noise >&2'
    done = lab("-q", "--", "sh", "-c", script, data=noise[500_000:], cwd=tmp_path, LAB_TEST="a  b")
    assert zlib.crc32(done.stdout) == zlib.crc32(noise)
    assert len(done.stdout) == len(noise)
    assert done.stderr.decode() == f"{tmp_path}\na  b amd\nchanged\n"
    assert done.returncode == 0
    assert (tmp_path / "noise").read_bytes() == noise[:500_000]


def test_a_line_comes_out_when_it_is_written_and_one_goes_in_when_it_is_typed() -> None:
    """Streams are not held back until the end."""
    with subprocess.Popen(
        [*LAB, "-q", "--", "sh", "-c", "while read line; do echo got $line; done; exit 3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.stdin.close()
        assert process.wait(LIMIT_S) == 3


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (["no-such-program"], 127, b"pykvm: lab: no-such-program: No such file or directory\n"),
        (["/"], 126, b"pykvm: lab: /: Permission denied\n"),
        (["sh", "-c", "kill -9 $$"], 137, b""),
    ],
    ids=["not found", "not executable", "killed"],
)
def test_a_command_that_does_not_run_or_is_killed(command: list[str], status: int, words: bytes) -> None:
    """127, 126, and 128 with the signal's number, as a shell has it."""
    done = lab("-q", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", words)


def test_a_command_whose_time_is_over_is_stopped() -> None:
    """124, what it wrote until then, and where it was."""
    began = time.monotonic()
    done = lab("-q", "--timeout", "30", "--", "sh", "-c", "echo begun; sleep 600")
    assert (done.returncode, done.stdout) == (124, b"begun\n")
    assert b"was stopped after 3" in done.stderr
    assert b"it was running the command; its kernel still answered" in done.stderr
    assert time.monotonic() - began < 60


def test_a_kernel_that_dies_is_reported_as_such(tmp_path: Path) -> None:
    """125, the panic in its own words; what was written before is there, and the console's log is kept."""
    script = "echo before; sleep 0.5; echo c > /proc/sysrq-trigger; echo after"
    done = lab("-q", "--keep-log", tmp_path / "log", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (125, b"before\n")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        b"pykvm: the amd lab's kernel panicked while it was running the command: sysrq triggered"
    )
    assert b"Kernel panic - not syncing" in (tmp_path / "log").read_bytes()


def test_two_labs_at_once_share_what_they_were_given(tmp_path: Path) -> None:
    """Each writes to its own shared directory, at the same path as outside, and nowhere else."""
    shares = [tmp_path / "one", tmp_path / "two"]
    processes = []
    for share in shares:
        share.mkdir()
        script = f"cd {share}; echo {share.name} > result; mkdir sub; touch {tmp_path}/lost; cat result"
        command = [*LAB, "-q", "--smp", "1", "--mem", "512M", "--share", str(share), "--", "sh", "-c", script]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    for share, process in zip(shares, processes, strict=True):
        assert process.communicate(timeout=LIMIT_S)[0] == f"{share.name}\n".encode()
        assert process.returncode == 0
        assert (share / "result").read_text() == f"{share.name}\n"
        assert (share / "sub").is_dir()
    assert not (tmp_path / "lost").exists()


def test_it_is_a_computer_of_its_own(tmp_path: Path) -> None:
    """Namespaces, a changed root, cgroups, the kernel's tracing and the loopback network work inside."""
    script = """
        set -e
        unshare --user --map-root-user --pid --fork --mount --net true
        mkdir /tmp/new && mount -t tmpfs new /tmp/new && mkdir /tmp/new/old
        unshare --mount sh -c 'cd /tmp/new && pivot_root . old'
        grep -qw memory /sys/fs/cgroup/cgroup.controllers
        test -e /sys/kernel/tracing/events/kvm/kvm_exit
        grep -q 0100007F /proc/net/fib_trie || grep -q 127.0.0.1 /proc/net/fib_trie
        echo hello > /dev/stderr
        test "$(hostname)" = lab-amd && stat -c %a /dev/kvm
    """
    done = lab("-q", "--", "sh", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"666\n", b"hello\n")


def test_a_lab_whose_owner_is_killed_does_not_go_on() -> None:
    """Neither SIGKILL nor SIGTERM leaves an emulator behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            [*LAB, "-q", "--", "sh", "-c", "echo up; sleep 600"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            (emulator,) = emulators_of(process.pid)
            process.send_signal(number)
            assert process.wait(LIMIT_S) == (143 if number is signal.SIGTERM else -signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not is_gone(emulator) and time.monotonic() < deadline:
            os.sched_yield()
        assert is_gone(emulator)
