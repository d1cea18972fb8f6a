"""The same work as a host process, in guests of several kinds: what is the difference?

::

    workloads ──┐
    ways/ ──────┴─> measure ──> model.Comparison ──> table   for a terminal
      │  parts         │                      ├────> JSON    as_json()
      ▼                ▼                      └────> page    one HTML file
    machine         ptrace ──> vmm   host system calls, in a process of their own

Every figure is from the runs of this comparison. What this host or this KVM does not let us measure is
said with its reason; nothing is estimated.
"""

from __future__ import annotations

from pykvm.compare.measure import Plan, compare
from pykvm.compare.model import COUNTS, Absent, Cell, Column, Comparison, Count, Place
from pykvm.compare.ways import Done, Job, Look, Way, all_ways, ways_named
from pykvm.compare.workloads import WORKLOADS, Workload, workloads_named

__all__ = [
    "COUNTS",
    "WORKLOADS",
    "Absent",
    "Cell",
    "Column",
    "Comparison",
    "Count",
    "Done",
    "Job",
    "Look",
    "Place",
    "Plan",
    "Way",
    "Workload",
    "all_ways",
    "compare",
    "ways_named",
    "workloads_named",
]
