"""Runs a probe in a process of its own, so that one that hangs or crashes takes nothing along."""

from __future__ import annotations

import json
import os
import select
import signal
from typing import TYPE_CHECKING

from pykvm.doctor.outcome import Outcome, Result, fails
from pykvm.doctor.rig import UnexpectedExitError
from pykvm.errors import KvmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_in_child"]

_LAST_RESORT_S = 240.0  # the limits in rig.py end a probe; this is for one that never gets there
_OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGPROF, signal.SIGALRM)
_MOST_BYTES = 1 << 16


def run_in_child(probe: Callable[[], Outcome], *, limit_s: float = _LAST_RESORT_S) -> Outcome:
    """What `probe` returns, or why it did not: it hangs, was killed, or raised an error.

    The calling process should have one thread: the child is a fork of it.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        _be_the_child(probe, write_end)
    os.close(write_end)
    try:
        answer, in_time = _read_all(read_end, limit_s)
    finally:
        os.close(read_end)
        status = _end(pid)
    if not in_time:
        return Outcome(Result.HANGS, f"killed after {limit_s:g} s")
    return _outcome(answer, status)


def _be_the_child(probe: Callable[[], Outcome], write_end: int) -> None:
    """Answer and end; never returns into the parent's code."""
    try:
        for number in _OWN_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OWN_SIGNALS)
        os.write(write_end, json.dumps(_answer(probe).as_json()).encode()[:_MOST_BYTES])
    finally:
        os._exit(0)


def _answer(probe: Callable[[], Outcome]) -> Outcome:
    try:
        return probe()
    except (UnexpectedExitError, KvmError) as error:
        return fails(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other probes go on
        return Outcome(Result.BROKEN, f"{type(error).__name__}: {error}")


def _read_all(fd: int, limit_s: float) -> tuple[bytes, bool]:
    """All that comes until the other end is closed, and whether that was within the limit."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    answer = b""
    while poll.poll(limit_s * 1000):
        piece = os.read(fd, _MOST_BYTES)
        if not piece:
            return answer, True
        answer += piece
    return answer, False


def _end(pid: int) -> int:
    """Make sure that the child is gone; its wait status."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return status


def _outcome(answer: bytes, status: int) -> Outcome:
    if answer:
        return Outcome.from_json(json.loads(answer))
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGPROF:
        return Outcome(Result.HANGS, "KVM_RUN spins until a signal ends it")
    if number == signal.SIGALRM:
        return Outcome(Result.HANGS, "KVM_RUN sleeps until a signal ends it")
    word = signal.Signals(number).name if number else f"status {os.waitstatus_to_exitcode(status)}"
    return Outcome(Result.BROKEN, f"the probe's process ended by {word}")
