"""The work in a container on the host: namespaces and a root of its own, and the host's own kernel.

`guests/compare/contain.c` makes it: clone3 with all namespaces, a tmpfs as root, pivot_root, execve. A user
namespace makes it possible without root; a host that forbids these says so.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.compare.model import Column
from pykvm.compare.parts import ALL, built
from pykvm.compare.ways import Done, Job, Look
from pykvm.errors import ImageNotFoundError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["way"]

_LIMIT_S = 120
_TRY_S = 10


class _HostContainer:
    column = Column(
        "host-container",
        "container on the host",
        "the same process in namespaces of its own, with a root of its own: no guest, the host's kernel",
        "container\non the host",
    )
    order = 5
    marks_work = False
    cannot = ALL

    def lacks(self) -> str:
        """Tries, since nobody can tell what a host allows that may be a container itself."""
        try:
            done = _run(Job("compute", 0, Path("/")), _TRY_S)
        except (ImageNotFoundError, OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if not done.returncode:
            return ""
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"this host allows no container of ours: {lines[-1] if lines else f'status {done.returncode}'}"

    def run(self, job: Job, look: Look) -> Done:  # noqa: ARG002 - there is nothing to look at from inside
        """Make the container, read what it prints through a pipe, wait for its end."""
        start = time.monotonic_ns()
        try:
            done = _run(job, _LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PykvmError(f"{job.workload}: the container took longer than {_LIMIT_S} s") from None
        wall_ns = time.monotonic_ns() - start
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip()
            raise PykvmError(
                f"{job.workload}: the container ended with status {done.returncode} {why}".strip()
            )
        return Done(done.stdout, wall_ns)

    def close(self) -> None:
        """Nothing is kept."""

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        """What makes the container, and the container: a process for each job."""
        return [_argv(job) for job in jobs]


def _run(job: Job, limit_s: float) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _argv(job), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
    )


def _argv(job: Job) -> list[str]:
    words = [*map(str, (built("compare_contain"), built("compare_program.elf"))), job.workload]
    return [*words, str(job.operations), *([str(job.disk)] if job.workload == "blocks" else [])]


way = _HostContainer()
