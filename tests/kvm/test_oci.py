"""`pykvm-oci` called as podman and its monitor call a runtime, with bundles of our own."""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.needs import NOT_HERE

from pykvm.cli.oci import main
from pykvm.lab.store import Store
from pykvm.linux.kit import cached_kit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs("ring3_syscall", "irqchip", "irqfd", "ioeventfd", "smp")
TIMEOUT_S = 200
_PR_SET_CHILD_SUBREAPER = 36
APPLETS = ("cat", "echo", "hostname", "id", "ls", "sh", "sleep", "stty")
NAMESPACES = ("pid", "mount", "uts", "ipc", "network", "cgroup")


class Monitor:
    """As much of podman's monitor as is needed: it takes in what the runtime leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._words = ["--root", str(folder / "state"), "--log-format=json", f"--log={folder / 'log'}"]

    def call(
        self, *words: str, status: int = 0, stdin: str = os.devnull, stdout: str = "", stderr: str = ""
    ) -> str:
        """What one command prints, run in this process: to load Python anew takes a lab seconds."""
        answer = self.folder / "answer"
        names = (stdin, stdout or str(answer), stderr or str(self.folder / "errors"))
        before = [os.dup(fd) for fd in range(3)]
        for fd, name in enumerate(names):
            opened = os.open(name, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if fd else 0), 0o600)
            os.dup2(opened, fd)
            os.close(opened)
        try:
            with redirect_stdout(open(1, "w", closefd=False)), redirect_stderr(open(2, "w", closefd=False)):
                found = main([*self._words, *words])
                sys.stdout.flush()
        finally:
            for fd, old in enumerate(before):
                os.dup2(old, fd)
                os.close(old)
        assert found == status, Path(names[2]).read_text()
        return answer.read_text() if not stdout else ""

    def state(self, name: str) -> dict[str, Any]:
        """The state of a container."""
        found: dict[str, Any] = json.loads(self.call("state", name))
        return found

    def status_of(self, pid_file: Path) -> int:
        """How a process that was left behind ended."""
        _, status = os.waitpid(int(pid_file.read_text()), 0)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """A monitor in this process, and no container after it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found = Monitor(tmp_path)
    yield found
    for name in json.loads(found.call("list", "--format", "json")):
        found.call("delete", "--force", name["id"])
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A root with busybox."""
    kit = cached_kit(Store())
    if not kit:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    path = tmp_path / "bundle"
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (path / "rootfs" / name).mkdir(parents=True)
    (path / "rootfs/bin/busybox").write_bytes(kit.busybox.read_bytes())
    (path / "rootfs/bin/busybox").chmod(0o755)
    for name in APPLETS:
        (path / "rootfs/bin" / name).symlink_to("busybox")
    return path


def configure(
    bundle: Path,
    command: str,
    *,
    terminal: bool,
    mounts: tuple[dict[str, Any], ...] = (),
    read_only: bool = False,
) -> None:
    """A config.json in the form that podman writes."""
    process = {
        "terminal": terminal,
        "args": ["sh", "-c", command],
        "env": ["PATH=/bin", "TERM=dumb"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    }
    usual = (
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    )
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": read_only},
        "hostname": "inside",
        "mounts": [*usual, *mounts],
        "annotations": {"pykvm.memory": "320M"},
        "linux": {"namespaces": [{"type": name} for name in NAMESPACES], "cgroupsPath": "/x/y"},
    }
    (bundle / "config.json").write_text(json.dumps(config))


def _take_terminal(listener: socket.socket, found: list[int]) -> None:
    link, _ = listener.accept()
    with link:
        _, rights, _, _ = link.recvmsg(64, socket.CMSG_SPACE(4))
        found += array.array("i", rights[0][2][:4])


def _read_until(fd: int, what: bytes) -> bytes:
    seen = b""
    while what not in seen:
        seen += os.read(fd, 4096)
    return seen


def test_a_container_from_create_to_delete(monitor: Monitor, bundle: Path) -> None:
    """podman's calls in their order; the monitor gets streams, status and process as from any runtime."""
    shared = monitor.folder / "shared"
    shared.mkdir()
    (shared / "hosts").write_text("1.2.3.4 friend\n")
    mounts = (
        {"destination": "/out", "type": "bind", "source": str(shared), "options": ["rbind", "rw"]},
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": str(shared / "hosts"),
            "options": ["bind", "ro"],
        },
        {
            "destination": "/run",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["rw", "rprivate", "nosuid", "nodev", "tmpcopyup"],
        },
    )
    command = "cat /etc/hosts; hostname >/out/name; read line; echo $line >&2; trap 'exit 9' TERM; "
    command += "echo x 2>/dev/null >/etc/x || echo up; while :; do sleep 1; done"
    configure(bundle, command, terminal=False, mounts=mounts, read_only=True)
    pid_file, exec_pid = monitor.folder / "pid", monitor.folder / "exec-pid"
    (monitor.folder / "in").write_bytes(b"typed\n")
    files: dict[str, Any] = {f"std{name}": str(monitor.folder / name) for name in ("in", "out", "err")}
    words = ["--bundle", str(bundle), "--pid-file", str(pid_file), "one"]
    monitor.call("create", *words, **files)
    state = monitor.state("one")
    assert (state["status"], state["pid"]) == ("created", int(pid_file.read_text()))
    assert Path(f"/proc/{state['pid']}").exists()
    monitor.call("delete", "one", status=1)  # not before it has stopped
    monitor.call("start", "one")
    assert monitor.state("one")["status"] == "running"
    process = {"args": ["sh", "-c", "echo exec >/out/exec; exit 4"], "env": ["PATH=/bin"], "cwd": "/"}
    (monitor.folder / "process.json").write_text(json.dumps({**process, "user": {"uid": 0, "gid": 0}}))
    words = [
        "--process",
        str(monitor.folder / "process.json"),
        "--pid-file",
        str(exec_pid),
        "--detach",
        "one",
    ]
    monitor.call("exec", *words)
    assert monitor.status_of(exec_pid) == 4
    assert monitor.call("exec", "one", "echo", "in", "front") == "in front\n"
    monitor.call("exec", "one", "/no/such", status=127)
    (monitor.folder / "resources").write_text(json.dumps({"memory": {"limit": 48 << 20}}))
    monitor.call("update", f"--resources={monitor.folder / 'resources'}", "one")
    assert monitor.call("exec", "one", "cat", "/sys/fs/cgroup/memory.max") == f"{48 << 20}\n"
    end = time.monotonic() + TIMEOUT_S
    while b"up" not in (monitor.folder / "out").read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    monitor.call("kill", "one", "TERM")
    assert monitor.status_of(pid_file) == 9
    assert (monitor.state("one")["status"], monitor.state("one")["pid"]) == ("stopped", 0)
    monitor.call("kill", "one", "KILL", status=1)
    monitor.call("delete", "one")
    assert not (monitor.folder / "state/one").exists()
    assert (monitor.folder / "out").read_bytes() == b"1.2.3.4 friend\nup\n"
    assert (monitor.folder / "err").read_bytes() == b"typed\n"
    assert ((shared / "name").read_text(), (shared / "exec").read_text()) == ("inside\n", "exec\n")


def test_create_tells_that_there_is_no_such_program(monitor: Monitor, bundle: Path) -> None:
    """In the words that podman looks for, and before anybody starts it; nothing is left."""
    configure(bundle, "", terminal=False)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["nothing-of-this-name"]
    (bundle / "config.json").write_text(json.dumps(config))
    monitor.call("create", "--bundle", str(bundle), "none", status=1)
    assert "nothing-of-this-name: no such file or directory" in (monitor.folder / "log").read_text()
    assert json.loads(monitor.call("list", "--format", "json")) == []


def test_a_terminal_goes_to_who_asked_for_it(monitor: Monitor, bundle: Path) -> None:
    """Over the socket; its size is the window's, and `delete --force` ends what runs."""
    configure(
        bundle,
        'until [ "$(stty size)" = "33 99" ]; do sleep 1; done; read x; echo got $x; sleep 1000',
        terminal=True,
    )
    pid_file, path = monitor.folder / "pid", monitor.folder / "console"
    found: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        thread = threading.Thread(target=_take_terminal, args=(listener, found))
        thread.start()
        words = ["--bundle", str(bundle), "--pid-file", str(pid_file), "--console-socket", str(path), "two"]
        monitor.call("create", *words)
        thread.join(TIMEOUT_S)
    (terminal,) = found
    monitor.call("start", "two")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    os.write(terminal, b"this\r")
    _read_until(terminal, b"got this\r\n")
    monitor.call("delete", "--force", "two")
    assert monitor.status_of(pid_file) == -signal.SIGKILL
    os.close(terminal)
