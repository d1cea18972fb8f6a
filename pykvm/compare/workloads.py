"""The pieces of work, as guests/compare/program.c does them."""

from __future__ import annotations

from typing import NamedTuple

from pykvm.errors import ConfigError

__all__ = ["DISK_SECTORS", "LOOK", "WORKLOADS", "Workload", "workloads_named"]

DISK_SECTORS = 2048
LOOK = "look"
"""What the program does to say where it is; no workload, since it differs in each way."""


class Workload(NamedTuple):
    """One of them. `operations` is how many are counted unless the user says otherwise."""

    name: str
    operation: str
    operations: int
    about: str


WORKLOADS = {
    work.name: work
    for work in (
        Workload(
            "getpid", "getpid()", 100, "ask the kernel for one's own number: the shortest call there is"
        ),
        Workload("files", "open, fstat, close of /", 30, "look up a name in what is mounted"),
        Workload("print", "line of 64 bytes", 100, "write lines to standard output, one call a line"),
        Workload("blocks", "block of 512 bytes", 32, "read a disk, sector by sector, and add it up"),
        Workload("time", "look at the clock", 100, "ask what time it is"),
        Workload(
            "compute", "stretch of 10,000 rounds of xorshift", 100, "calculate, and ask nobody for anything"
        ),
    )
}
"""All, by name."""


def workloads_named(names: tuple[str, ...]) -> list[Workload]:
    """Those of these names, in order; all if there are none. Raises ConfigError for an unknown one."""
    for name in names:
        if name not in WORKLOADS:
            raise ConfigError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in dict.fromkeys(names)] or [*WORKLOADS.values()]
