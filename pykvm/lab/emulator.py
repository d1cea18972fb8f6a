"""Start an emulator so that it never outlives pykvm and no Ctrl-C but ours reaches it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from pykvm.errors import LabError
from pykvm.lab.backend import Tool
from pykvm.lab.tools import find_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["SETPRIV", "start_emulator"]

SETPRIV = Tool("setpriv", "util-linux")


def start_emulator(
    command: Sequence[str],
    *,
    output: int,
    errors: int | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` with standard output to `output`, errors there or to `errors`, input from nowhere.

    It runs in a process group of its own, and the kernel kills it when the thread that calls this ends
    (PR_SET_PDEATHSIG, set by setpriv since Python code between fork and exec is unsafe with threads). Raises
    LabError if it can't be started.
    """
    setpriv = find_program("setpriv") or "setpriv"
    program = find_program(command[0]) or command[0]
    try:
        return subprocess.Popen(
            [setpriv, "--pdeathsig", "KILL", "--", program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if errors is None else errors,
            pass_fds=pass_fds,
            cwd=cwd,
            env=env,
            process_group=0,
        )
    except OSError as error:
        raise LabError(f"{command[0]}: {error.strerror}") from error
