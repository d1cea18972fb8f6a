"""Does the work in every way and writes down what it took.

For each workload and way::

    run of 0 and of N operations   looked at from inside   exits, then guest system calls and hypercalls
    the same, traced by ptrace     from outside            host system calls
    run of 0 and of M operations   nothing is counted      the time: the shortest of several; M is large
    once, before all of it         the program looks       where it is: kernel, numbers, memory

What a run of none makes is start and end; the rest, divided by N or M, is what one operation costs. A way
with `marks_work` counts from the program's start to its end, and the start of all else is only timed.
"""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm.compare.model import NO_GUEST, Absent, Cell, Comparison, Count, Place
from pykvm.compare.ptrace import NotCountedError, count_syscalls
from pykvm.compare.ways import Job, Look
from pykvm.compare.workloads import DISK_SECTORS, LOOK
from pykvm.errors import KvmUnavailableError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pykvm.compare.ways import Done, Way
    from pykvm.compare.workloads import Workload

__all__ = ["Plan", "compare"]

_LONG_ENOUGH_NS = 100_000_000  # what operations must add to a run before it is divided
_LOOK_LINES = 6
_PAGE_BYTES = 4096
_NO_PROC = Absent("that kernel has no /proc", applies=False)
_GROWTH, _MOST_GROWTH = 4, 16
_MOST_OPERATIONS = 1 << 24


class Plan(NamedTuple):
    """How to go about it. `operations` None means each workload's own; `repeat` is of every timed run."""

    operations: int | None = None
    repeat: int = 3
    count_host: bool = True


def compare(
    ways: Sequence[Way],
    workloads: Sequence[Workload],
    plan: Plan | None = None,
    *,
    progress: Callable[[str, str], object] = lambda _workload, _way: None,
) -> Comparison:
    """Every workload in every way. `progress` is told before each.

    Raises PykvmError if a run fails, or if two ways did not print the same: then it was not the same work.
    """
    plan = plan or Plan()
    cells = []
    with ExitStack() as stack:
        disk = stack.enter_context(_disk())
        for way in ways:
            stack.callback(way.close)
        places = {}
        for way in ways:
            progress(LOOK, way.column.title)
            places[way.column.name] = _place(way, disk)
        for work in workloads:
            for way in ways:
                progress(work.name, way.column.title)
                job = Job(work.name, plan.operations or work.operations, disk)
                cells.append(_cell(way, job, plan))
            _need_same_output(work.name, cells)
    return Comparison(_kvm(), platform.release(), tuple(way.column for way in ways), tuple(cells), places)


@contextmanager
def _disk() -> Iterator[Path]:
    """A disk image in which each sector is different; in memory, so that nothing is left of it."""
    with os.fdopen(os.memfd_create("pykvm-compare"), "wb") as file:
        for sector in range(DISK_SECTORS):
            file.write(sector.to_bytes(8, "little") * (512 // 8))
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")  # other processes of ours find it there, too


def _kvm() -> str:
    from pykvm.kvm import Kvm  # noqa: PLC0415 - where there is none, the host process is compared with nothing

    try:
        with Kvm() as kvm:
            return kvm.module()
    except KvmUnavailableError:
        return "none"


def _place(way: Way, disk: Path) -> Place:
    """Where the program is: six lines of its own, an empty one for what that kernel does not tell."""
    if why := way.lacks():
        return Place.absent(why)
    done = way.run(Job(LOOK, 1, disk), Look.TIME)
    lines = done.output.decode(errors="replace").splitlines()
    if len(lines) != _LOOK_LINES:
        raise PykvmError(f"{LOOK}: {way.column.name} printed {len(lines)} lines; this is a defect of pykvm")
    system, release, host_name, pid, namespace, pages = lines
    return Place(
        f"{system} {release}",
        host_name,
        int(pid),
        int(namespace.removeprefix("pid:[").removesuffix("]")) if namespace else _NO_PROC,
        int(pages.split()[1]) * _PAGE_BYTES if pages else _NO_PROC,
        NO_GUEST if done.machine_bytes is None else done.machine_bytes,
    )


def _cell(way: Way, job: Job, plan: Plan) -> Cell:
    none, name = job._replace(operations=0), way.column.name
    if why := way.lacks() or way.cannot.get(job.workload, ""):
        return Cell.absent(job.workload, name, job.operations, why)
    looks = (Look.EXITS, Look.CALLS)
    idle, busy = zip(*([way.run(which, look) for which in (none, job)] for look in looks), strict=True)
    host = _host_syscalls(way, none, job) if plan.count_host else Absent("it was not asked for")
    us, start_ms, alone_ms, timed = _time(way, job, plan.repeat)
    return Cell(
        workload=job.workload,
        way=name,
        operations=job.operations,
        guest_syscalls=_count(busy[1].guest_syscalls, idle[1].guest_syscalls),
        hypercalls=_count(busy[1].hypercalls, idle[1].hypercalls),
        exits=_count(busy[0].exits, idle[0].exits),
        kvm_exits=_count(busy[0].kvm_exits, idle[0].kvm_exits),
        host_syscalls=host,
        us_per_operation=us,
        start_ms=start_ms,
        alone_ms=alone_ms,
        timed_operations=timed,
        output_sha256=hashlib.sha256(busy[0].output).hexdigest(),
    )


def _count(all_: Mapping[str, int] | Absent, none: Mapping[str, int] | Absent) -> Count | Absent:
    if isinstance(all_, Absent):
        return all_
    if isinstance(none, Absent):
        return none
    return Count(dict(all_), dict(none))


def _host_syscalls(way: Way, none: Job, job: Job) -> Count | Absent:
    try:
        commands = way.counted([none, job])
        windows = [window for argv in commands for window in count_syscalls(argv, marked=len(commands) == 1)]
    except NotCountedError as error:
        return Absent(str(error))
    if len(windows) != 2:
        return Absent("the process did not mark where its work begins and ends")
    return Count(dict(windows[1]), dict(windows[0]))


def _time(way: Way, job: Job, repeat: int) -> tuple[float | Absent, float, float, int]:
    """µs per operation, ms of a run of none, ms of its work alone, and how many operations were timed."""

    def shortest(operations: int) -> tuple[int, int]:
        """ns of the work, and of the whole run."""
        wanted = job._replace(operations=operations)
        runs: list[Done] = [way.run(wanted, Look.TIME) for _ in range(repeat)]
        work = (done.wall_ns if done.work_ns is None else done.work_ns for done in runs)
        return min(work), min(done.wall_ns for done in runs)

    (none_ns, start_ns), operations = shortest(0), job.operations
    while (more_ns := shortest(operations)[0] - none_ns) < _LONG_ENOUGH_NS and operations < _MOST_OPERATIONS:
        missing = -(-_LONG_ENOUGH_NS // max(more_ns, 1))
        operations *= max(_GROWTH, min(missing, _MOST_GROWTH))
    starts = start_ns / 1e6, none_ns / 1e6, operations
    if more_ns <= 0:
        return Absent(f"{operations} operations take no longer than none"), *starts
    return more_ns / operations / 1e3, *starts


def _need_same_output(workload: str, cells: Sequence[Cell]) -> None:
    printed = {cell.way: cell.output_sha256 for cell in cells if cell.workload == workload}
    found = {way: digest for way, digest in printed.items() if digest}
    if len(set(found.values())) > 1:
        raise PykvmError(
            f"{workload}: {' and '.join(found)} did not print the same; this is a defect of pykvm"
        )
