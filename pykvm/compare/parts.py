"""What the ways of guests share: the built images, the needs, and how a machine's run is counted."""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.compare.model import Absent
from pykvm.errors import ImageNotFoundError, KvmError, KvmUnavailableError, PykvmError
from pykvm.guests import built_folder
from pykvm.hypercall import CALLS
from pykvm.result import EndReason
from pykvm.stats import StatsReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.machine import Machine
    from pykvm.result import RunResult

__all__ = [
    "ALL",
    "NO_FILES",
    "RING3",
    "TIMEOUT_S",
    "built",
    "hypercalls_of",
    "kvm_exits_of",
    "lacks",
    "need_end",
    "resident_bytes",
]

ALL: Mapping[str, str] = {}
"""What a way can't do that can do all."""
NO_FILES: Mapping[str, str] = {"files": "its kernel has no file systems to mount"}

RING3 = ("long64_interrupts", "ring3_code", "ring3_exceptions", "ring3_syscall|ring3_syscall_by_pf")
"""What a kernel with a program in ring 3 needs of a KVM."""
TIMEOUT_S = 300
_PAGE_BYTES, _ENTRY_BYTES = 4096, 8
_PRESENT = bytes(range(128, 256))
_OWN_CALLS = {"trace_ring", "trace_drain"}


def built(name: str) -> Path:
    """The file of that name among the built guests. Raises ImageNotFoundError."""
    path = built_folder() / name
    if not path.exists():
        raise ImageNotFoundError(f"{name} has not been built; run `make guests` in the source tree")
    return path


@cache
def lacks(needs: tuple[str, ...]) -> str:
    """Why this KVM can't run a guest with these needs; "" if it can."""
    from pykvm.doctor import lacking, names_in, probe  # noqa: PLC0415 - much, and only for guests

    try:
        outcomes = probe([name for need in needs for name in names_in(need)])
    except KvmUnavailableError as error:
        return f"no KVM: {error}"
    missing = lacking(needs, outcomes)
    return "; ".join(f"this KVM lacks {need} ({why})" for need, why in missing.items())


def need_end(result: RunResult, reason: str, what: str) -> None:
    """Raise PykvmError unless the guest ended as it should, KeyboardInterrupt if that was why it did."""
    if result.reason is EndReason.INTERRUPTED:
        raise KeyboardInterrupt
    if str(result.reason) != reason or result.exit_code:
        raise PykvmError(f"{what}: the guest ended with {result}")


def hypercalls_of(result: RunResult) -> dict[str, int]:
    """The calls of a traced run by name, without those that only tracing made."""
    numbers = (record.call.number for record in result.trace if record.call)
    calls = Counter(CALLS[n].name if n in CALLS else f"call {n:#x}" for n in numbers)
    return {name: count for name, count in calls.items() if name not in _OWN_CALLS}


def kvm_exits_of(machine: Machine) -> Mapping[str, int] | Absent:
    """KVM's own count of the first vCPU's exits, those among them that never left the kernel."""
    try:
        reader = StatsReader(machine.vcpus[0].stats_fd())
    except KvmError as error:
        return Absent(f"KVM_GET_STATS_FD: {os.strerror(error.errno) if error.errno else error}")
    try:
        found = reader.read().get("exits")
    finally:
        reader.close()
    return {"exits": found.value} if found else Absent("KVM's statistics have no number of exits")


def resident_bytes(machine: Machine) -> int:
    """How much of the guest's memory the host has had to give: its pages that were ever touched.

    Bit 63 of an entry of /proc/self/pagemap says that a page is there (proc(5)).
    """
    pages = 0
    with Path("/proc/self/pagemap").open("rb") as file:
        for slot in machine.memory.slots:
            file.seek(slot.hva // _PAGE_BYTES * _ENTRY_BYTES)
            tops = file.read(slot.size_bytes // _PAGE_BYTES * _ENTRY_BYTES)[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
            pages += len(tops) - len(tops.translate(None, _PRESENT))
    return pages * _PAGE_BYTES
