"""Runs `pykvm container` commands one after the other in one process, as fast as that goes.

Reads a list of [argv, input] as JSON from stdin and writes [status, stdout, stderr, seconds] of each as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_all"]


def run_all(commands: list[tuple[list[str], str]]) -> list[tuple[int, str, str, float]]:
    """The results, in order."""
    return [_run(argv, typed) for argv, typed in commands]


def _run(argv: list[str], typed: str) -> tuple[int, str, str, float]:
    from pykvm.cli import main

    kept = [os.dup(fd) for fd in range(3)]
    files: list[Any] = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - closed below
    files[0].write(typed.encode())
    files[0].seek(0)
    for fd, file in enumerate(files):
        os.dup2(file.fileno(), fd)
    began = time.monotonic()
    try:
        if argv[0] in _OURS:
            status = _OURS[argv[0]](*argv[1:])
        else:
            status = main(["image", *argv[1:]] if argv[0] == "@image" else ["container", *argv])
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


_OURS: dict[str, Callable[..., int]] = {"@connect": _connect, "@kill": _kill}


if __name__ == "__main__":
    json.dump(run_all(json.load(sys.stdin)), sys.stdout)
