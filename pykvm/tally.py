"""What a run cost and left behind, added up over its vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.errors import KvmError
from pykvm.exits import reason_name
from pykvm.report import cpu_snapshot
from pykvm.result import CpuSnapshot, RunStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.memory import GuestMemory
    from pykvm.trace.clock import TscClock
    from pykvm.vcpu import Vcpu

__all__ = ["cpu_snapshots", "exit_counts", "run_stats"]


def exit_counts(vcpus: Sequence[Vcpu]) -> dict[str, int]:
    """Returns of KVM_RUN by reason."""
    counts: dict[str, int] = {}
    for vcpu in vcpus:
        for reason, count in enumerate(vcpu.loop.by_reason):
            if count:
                counts[reason_name(reason)] = counts.get(reason_name(reason), 0) + count
    return counts


def run_stats(
    vcpus: Sequence[Vcpu], clock: TscClock, *, wall_ns: int, unclaimed: int, dropped_records: int
) -> RunStats:
    """Times and counts of the loops, which have stopped."""
    loops = [vcpu.loop for vcpu in vcpus]
    return RunStats(
        wall_ns=wall_ns,
        guest_ns=clock.duration_ns(sum(loop.guest_ticks for loop in loops)),
        own_ns=clock.duration_ns(sum(loop.own_ticks for loop in loops)),
        answer_ns=clock.duration_ns(sum(loop.answer_ticks for loop in loops)),
        wait_ns=clock.duration_ns(sum(loop.wait_ticks for loop in loops)),
        skipped_steps=sum(_skipped(loop.steps, loop.step_period) for loop in loops),
        entries=sum(loop.entries for loop in loops),
        exits=sum(loop.exits for loop in loops),
        fast_exits=sum(loop.fast_exits for loop in loops),
        unclaimed=unclaimed,
        dropped_records=dropped_records,
    )


def _skipped(steps: int, period: int) -> int:
    """How many of so many single steps have no record: of every `period` the first has one."""
    return steps * (period - 1) // period if period else 0


def cpu_snapshots(vcpus: Sequence[Vcpu], memory: GuestMemory) -> tuple[CpuSnapshot, ...]:
    """Registers and code of each vCPU whose state KVM can still tell."""
    found = []
    for vcpu in vcpus:
        try:
            found.append(cpu_snapshot(vcpu, memory))
        except KvmError:
            continue
    return tuple(found)
