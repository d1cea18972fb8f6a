"""A command in the background: its errors come here until it runs, then it is on its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_background"]

_RUNS = b"\0"
_CHUNK = 4096


def in_background(work: Callable[[Callable[[], None]], int]) -> int:
    """Call `work` in a process of its own session, without a terminal: 0 as soon as it says that it runs.

    `work` gets a function to say so, and returns an exit status. What it writes to stderr before that comes
    out here, and its status if it ends before. Call it while there is one thread.
    """
    out, into = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(out)
        os._exit(_in_child(work, into))
    os.close(into)
    try:
        is_running = _copy(out)
    finally:
        os.close(out)
    if is_running:
        return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or PykvmError.exit_status


def _copy(out: int) -> bool:
    """Write what the child says to our stderr; whether it has said that it runs."""
    while data := os.read(out, _CHUNK):
        text, mark, _ = data.partition(_RUNS)
        if text:
            os.write(2, text)
        if mark:
            return True
    return False


def _in_child(work: Callable[[Callable[[], None]], int], into: int) -> int:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.dup2(into, 2)
    os.close(into)

    def runs() -> None:
        sys.stderr.flush()
        os.write(2, _RUNS)
        os.dup2(nothing, 2)

    try:
        return work(runs)
    except PykvmError as error:
        sys.stderr.write(f"pykvm: {error}\n")
        return error.exit_status
    except BaseException as error:  # noqa: BLE001 - the end of a process: nobody above may go on
        sys.stderr.write(f"pykvm: {type(error).__name__}: {error}\n")
        return PykvmError.exit_status
    finally:
        sys.stderr.flush()
