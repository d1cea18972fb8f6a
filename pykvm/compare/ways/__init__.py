"""The ways to do the work: one file each. A module here that has a `way` is a column; no other file names it.

::

    host.py       a process of the host
    emulated.py   a guest that drives the PC's devices
    paravirt.py   a guest that makes hypercalls
    linux.py      a process in a guest that is a whole Linux
    host_container.py    a container of the host's kernel
    linux_container.py   a container in a Linux guest

run() does a job in our own process and looks at it from inside. The host's system calls are counted from
outside, in the commands that counted() gives.
"""

from __future__ import annotations

import enum
import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pykvm.compare.model import NO_GUEST, Absent, Column
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Done", "Job", "Look", "Way", "all_ways", "vmm_command", "ways_named"]


class Look(enum.Enum):
    """What a run is for. What counts the calls has exits of its own, so each is a run by itself."""

    TIME = "time"
    EXITS = "exits"
    CALLS = "calls"  # of the guest: system calls and hypercalls
    HOST = "host"  # a way with `marks_work`: mark the window of the work for who traces us


class Job(NamedTuple):
    """What to do: a workload's name, how often, and the disk image that it may read."""

    workload: str
    operations: int
    disk: Path


class Done(NamedTuple):
    """One run: what it printed, how long it took from nothing to nothing, and what was to be looked at.

    `work_ns` is the work alone, where the way can tell it from a long start. `machine_bytes` is what of the
    machine's memory the host had to give, None where there is none.
    """

    output: bytes
    wall_ns: int
    guest_syscalls: Mapping[str, int] | Absent = NO_GUEST
    hypercalls: Mapping[str, int] | Absent = NO_GUEST
    exits: Mapping[str, int] | Absent = NO_GUEST
    kvm_exits: Mapping[str, int] | Absent = NO_GUEST
    work_ns: int | None = None
    machine_bytes: int | None = None


class Way(Protocol):
    """A column. Its place among the others is by `order`.

    With `marks_work` its counts are of the work alone: where a whole system comes up first, nobody could
    tell them apart. `cannot` has the workloads that it can't do, and why.
    """

    column: Column
    order: int
    marks_work: bool
    cannot: Mapping[str, str]

    def lacks(self) -> str:
        """Why it can't run here; "" if it can."""
        ...

    def run(self, job: Job, look: Look) -> Done:
        """Do the job once.

        Raises PykvmError if it did not end well.
        """
        ...

    def close(self) -> None:
        """Give back what was kept from run to run."""
        ...

    def counted(self, jobs: Sequence[Job]) -> Sequence[Sequence[str]]:
        """The commands to trace: together they do the jobs once each, in order.

        Either one for each job, or one for all that marks a window for each (pykvm.compare.ptrace).
        """
        ...


def vmm_command(way: str, jobs: Sequence[Job]) -> list[str]:
    """The command that does `jobs` in the way called `way`, and marks a window for each."""
    words = [word for job in jobs for word in (job.workload, str(job.operations), str(job.disk))]
    return [sys.executable, "-m", "pykvm.compare.vmm", way, *words]


def all_ways() -> dict[str, Way]:
    """Every way by name, in order."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    ways: list[Way] = sorted((module.way for module in modules if hasattr(module, "way")), key=_order)
    return {way.column.name: way for way in ways}


def _order(way: Way) -> int:
    return way.order


def ways_named(names: Sequence[str]) -> list[Way]:
    """Those of these names; all if there are none. Raises ConfigError for an unknown one."""
    ways = all_ways()
    for name in names:
        if name not in ways:
            raise ConfigError(f"there is no way {name!r}; there are {', '.join(ways)}")
    return [ways[name] for name in ways if not names or name in names]
