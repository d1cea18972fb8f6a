"""Runs `pykvm container` commands one after the other in one process, as fast as that goes.

Reads a list of [argv, input] as JSON from stdin and writes [status, stdout, stderr, seconds] of each as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_all"]


def run_all(commands: list[tuple[list[str], str]]) -> list[tuple[int, str, str, float]]:
    """The results, in order."""
    return [_run(argv, typed) for argv, typed in commands]


def _run(argv: list[str], typed: str) -> tuple[int, str, str, float]:
    kept = [os.dup(fd) for fd in range(3)]
    files: list[Any] = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - closed below
    files[0].write(typed.encode())
    files[0].seek(0)
    for fd, file in enumerate(files):
        os.dup2(file.fileno(), fd)
    began = time.monotonic()
    try:
        status = _OURS[argv[0]](*argv[1:]) if argv[0] in _OURS else _main(argv)
    except BaseException:  # noqa: BLE001 - the others are still of use
        status = -1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, old in enumerate(kept):
            os.dup2(old, fd)
            os.close(old)
    took = time.monotonic() - began
    texts = []
    for file in files[1:]:
        file.seek(0)
        texts.append(file.read().decode(errors="surrogateescape"))
        file.close()
    files[0].close()
    return status, texts[0], texts[1], took


def _main(argv: list[str]) -> int:
    from pykvm.cli import main

    return main(["image", *argv[1:]] if argv[0] == "@image" else ["container", *argv])


def _connect(name: str, question: str) -> int:
    """Say something to a container's published port, and print the answer; nobody may listen yet."""
    from pykvm.containers.records import ContainerStore

    address, port, _ = ContainerStore().find(name).ports[0]
    end = time.monotonic() + 20
    answer = b""
    while not answer and time.monotonic() < end:
        with socket.create_connection((address, port)) as link, suppress(ConnectionError):
            link.sendall(question.encode())
            while data := link.recv(4096):
                answer += data
    sys.stdout.write(answer.decode())
    return 0


def _kill(name: str) -> int:
    """Kill the process of a machine, which can't do anything about it."""
    from pykvm.registry import Room

    with Room() as room:
        os.kill(next(entry.about["pid"] for entry in room.entries() if entry.name == name), signal.SIGKILL)
        while room.is_running(name):
            time.sleep(0.01)
    return 0


_BEGUN: dict[str, int] = {}


def _begin(key: str, *argv: str) -> int:
    """Do it in a process of its own; `@join KEY` waits for its end and gives its output."""
    for fd in (1, 2):
        Path(f"/tmp/{key}.{fd}").write_text("")  # noqa: S108 - a lab's
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        _BEGUN[key] = pid
        return 0
    status = 125
    try:
        os.closerange(3, 256)
        for fd in (1, 2):
            os.dup2(os.open(f"/tmp/{key}.{fd}", os.O_WRONLY | os.O_APPEND), fd)  # noqa: S108 - a lab's
        status = _main(list(argv))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _join(key: str, number: str = "0") -> int:
    """The end of what was begun, after a signal if there is one."""
    pid = _BEGUN.pop(key)
    if int(number):
        os.kill(pid, int(number))
    end = time.monotonic() + 60
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for fd in (1, 2):
        os.write(fd, Path(f"/tmp/{key}.{fd}").read_bytes())  # noqa: S108 - a lab's
    return os.waitstatus_to_exitcode(ended[1])


def _heard(key: str, text: str) -> int:
    """Wait until what was begun has printed this."""
    end = time.monotonic() + 60
    while text not in Path(f"/tmp/{key}.1").read_text():  # noqa: S108 - a lab's
        if time.monotonic() > end:
            return 1
        time.sleep(0.02)
    return 0


def _terminal(script: str, *argv: str) -> int:
    """At a terminal of 24 by 80: `script` is JSON: [waited for, typed or [rows, columns]]…"""
    sys.stdout.flush()
    pid, fd = pty.fork()
    if not pid:
        status = 125
        try:
            while os.get_terminal_size(0).columns != 80:
                time.sleep(0.01)
            sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w"), open(2, "w")  # noqa: SIM115 - descriptors
            status = _main(list(argv))
        finally:
            sys.stdout.flush()
            os._exit(status)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    heard = b""
    try:
        for wanted, then in json.loads(script):
            while wanted.encode() not in heard:
                heard += _piece(fd)
            heard = heard.partition(wanted.encode())[2]
            if isinstance(then, str):
                os.write(fd, then.encode())
            else:
                fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", *then, 0, 0))
        while _piece(fd):
            pass
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # it has closed its end
        pass
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _killed_build(folder: str) -> int:
    """Kill a build in the midst of a command, and see its machine end; print what is left of it."""
    from pykvm.registry import Room

    def machines() -> list[str]:
        with Room() as room:
            return [entry.name for entry in room.entries() if entry.name.startswith("build-")]

    _begin("build", "@image", "build", "-f", f"{folder}/Endless", folder)
    _heard("build", "started")
    there = machines()
    _join("build", str(int(signal.SIGKILL)))
    sys.stdout.flush()
    os.ftruncate(1, 0)
    os.lseek(1, 0, os.SEEK_SET)
    end = time.monotonic() + 60
    while machines() and time.monotonic() < end:
        time.sleep(0.02)
    status = _main(["ps", "-aq", "--filter", "name=build-"])
    return status if there and not machines() else 1


def _panic(name: str) -> int:
    """Have the kernel of a container's guest give up, and wait until its machine has ended."""
    from pykvm.containers.launch import agent_of
    from pykvm.containers.records import ContainerStore
    from pykvm.errors import PykvmError
    from pykvm.registry import Room

    record = ContainerStore().find(name)
    words = ["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]
    with Room() as room:
        with agent_of(room, record) as client, suppress(PykvmError):
            client.ask("exec", 60, process={"args": words, "env": [], "cwd": "/"})
            for _ in client.open("wait", name=record.short):
                pass
        while room.is_running(record.vm):
            time.sleep(0.02)
    return 0


def _piece(fd: int) -> bytes:
    """The next that is printed at a terminal; it is also printed here. OSError at the end."""
    if not select.select([fd], [], [], 60)[0]:
        raise TimeoutError
    piece = os.read(fd, 4096)
    os.write(1, piece)
    return piece


_OURS: dict[str, Callable[..., int]] = {
    "@begin": _begin,
    "@connect": _connect,
    "@heard": _heard,
    "@join": _join,
    "@kill": _kill,
    "@killed_build": _killed_build,
    "@panic": _panic,
    "@terminal": _terminal,
}


if __name__ == "__main__":
    json.dump(run_all(json.load(sys.stdin)), sys.stdout)
