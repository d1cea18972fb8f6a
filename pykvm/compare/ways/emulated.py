"""The work in a fully virtualized guest: its kernel drives the serial port, the disk and the clock of a PC.

The guest knows nothing of pykvm. Each access to a device is a VM exit, and pykvm plays the device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pykvm import layout
from pykvm.boot import symbols
from pykvm.boot.disk_file import DiskFile
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
from pykvm.devices.ata import Ata
from pykvm.machine import Machine
from pykvm.trace.syscalls import syscall_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["way"]

_WORD_BYTES = 16
_CALLS = 512


class _Emulated:
    column = Column(
        "emulated",
        "fully virtualized guest",
        "a kernel with drivers for a PC's serial port (16550A), disk (ATA, PIO) and clock (MC146818)",
        "guest, fully\nvirtualized",
    )
    order = 10
    marks_work = False
    cannot = NO_FILES

    def lacks(self) -> str:
        """Asks the KVM, once."""
        return lacks(RING3)

    def run(self, job: Job, look: Look) -> Done:
        """Build the machine, run it until its kernel halts, take it apart."""
        start = time.monotonic_ns()
        kernel = built("compare_kernel.elf")
        disk = DiskFile(job.disk, writable=False)
        try:
            with Machine(memory="4M", irqchip=False, trace=look is Look.CALLS) as machine:
                ata = Ata(disk, writable=False)
                machine.ports.attach(layout.ATA, ata)
                machine.ports.attach(layout.ATA_CONTROL, ata.control_block)
                machine.load(kernel)
                known = {symbol.name: symbol.address for symbol in symbols(kernel)}
                for at, word in enumerate((job.workload, str(job.operations), "disk"), start=1):
                    machine.memory.write(known["words"] + at * _WORD_BYTES, word.encode() + b"\0")
                result = machine.run(timeout=TIMEOUT_S)
                machine_bytes = resident_bytes(machine)
                kvm_exits = kvm_exits_of(machine) if look is Look.EXITS else {}
                syscalls = _counts(machine, known["syscall_counts"]) if look is Look.CALLS else {}
        finally:
            disk.close()
        wall_ns = time.monotonic_ns() - start
        need_end(result, "halt", job.workload)
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
        return [vmm_command("emulated", jobs)]


def _counts(machine: Machine, gpa: int) -> dict[str, int]:
    """How often the guest's kernel served each system call: an array in its memory."""
    raw = machine.memory.read(gpa, _CALLS * 8)
    numbers = (int.from_bytes(raw[at * 8 : at * 8 + 8], "little") for at in range(_CALLS))
    return {syscall_name(number): count for number, count in enumerate(numbers) if count}


way = _Emulated()
