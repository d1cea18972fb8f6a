"""The work as a process of the host: its system calls go to the host's own kernel."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from pykvm.compare.model import Column
from pykvm.compare.parts import ALL, built
from pykvm.compare.ways import Done, Job, Look
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["way"]

_LIMIT_S = 120


class _Host:
    column = Column(
        "host", "host process", "an ordinary process: no guest, no hypervisor", "process\non the host"
    )
    order = 0
    marks_work = False
    cannot = ALL

    def lacks(self) -> str:
        """The host is always there."""
        return ""

    def run(self, job: Job, look: Look) -> Done:  # noqa: ARG002 - there is nothing to look at from inside
        """Start the process, read what it prints through a pipe, wait for its end."""
        start = time.monotonic_ns()
        try:
            done = subprocess.run(
                _argv(job),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PykvmError(f"{job.workload}: the host process took longer than {_LIMIT_S} s") from None
        wall_ns = time.monotonic_ns() - start
        if done.returncode:
            raise PykvmError(f"{job.workload}: the host process ended with status {done.returncode}")
        return Done(done.stdout, wall_ns)

    def close(self) -> None:
        """Nothing is kept."""

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        """A process for each job."""
        return [_argv(job) for job in jobs]


def _argv(job: Job) -> list[str]:
    return [str(built("compare_program.elf")), job.workload, str(job.operations), str(job.disk)]


way = _Host()
