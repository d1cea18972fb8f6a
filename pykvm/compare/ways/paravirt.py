"""The work in a paravirtualized guest: its kernel makes hypercalls, one VM exit for a whole request."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from pykvm.compare.model import Column
from pykvm.compare.parts import (
    NO_FILES,
    RING3,
    TIMEOUT_S,
    built,
    hypercalls_of,
    kvm_exits_of,
    lacks,
    need_end,
    resident_bytes,
)
from pykvm.compare.ways import Done, Job, Look, vmm_command
from pykvm.machine import Machine
from pykvm.trace.syscalls import syscall_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["way"]


class _Paravirt:
    column = Column(
        "paravirt",
        "paravirtualized guest",
        "pykvm's paravirtual kernel, which makes hypercalls",
        "guest, para-\nvirtualized",
    )
    order = 20
    marks_work = False
    cannot = NO_FILES

    def lacks(self) -> str:
        """Asks the KVM, once."""
        return lacks(RING3)

    def run(self, job: Job, look: Look) -> Done:
        """Build the machine, run the program in it, take it apart."""
        start = time.monotonic_ns()
        with Machine(memory="16M", trace=look is Look.CALLS) as machine:
            words = [job.workload, str(job.operations), "/dev/disk"]
            machine.load_program(built("compare_program.elf"), words, disk=job.disk)
            result = machine.run(timeout=TIMEOUT_S)
            machine_bytes = resident_bytes(machine)
            kvm_exits = kvm_exits_of(machine) if look is Look.EXITS else {}
            syscalls = _counts(machine) if look is Look.CALLS else {}
        wall_ns = time.monotonic_ns() - start
        need_end(result, "exit", job.workload)

        return Done(
            result.console,
            wall_ns,
            syscalls,
            hypercalls_of(result),
            result.exits,
            kvm_exits,
            None,
            machine_bytes,
        )

    def close(self) -> None:
        """Nothing is kept."""

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        """One process of ours for all jobs."""
        return [vmm_command("paravirt", jobs)]


def _counts(machine: Machine) -> dict[str, int]:
    """What the guest's kernel has told of each system call."""
    found = machine.paravirt.syscalls() if machine.paravirt else ()
    return dict(Counter(syscall_name(record.number) for record in found))


way = _Paravirt()
