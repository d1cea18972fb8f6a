"""The work as a process of a Linux guest: its system calls go to the guest's kernel and its drivers.

The kernel is Debian's, unmodified. Its start is not the work: counts are of the time between the program's
start and its end, which the guest's first process marks.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from pykvm.compare.model import Absent, Column
from pykvm.compare.parts import ALL, TIMEOUT_S, built, kvm_exits_of, lacks, need_end, resident_bytes
from pykvm.compare.ptrace import mark_begin, mark_end
from pykvm.compare.ways import Done, Job, Look, vmm_command
from pykvm.doctor.features import LINUX
from pykvm.errors import LabError, PykvmError
from pykvm.lab.store import Store
from pykvm.linux.command import CMDLINE
from pykvm.linux.marks import LinuxMark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.linux.kit import Kit
    from pykvm.machine import Machine
    from pykvm.trace.event import TraceEvent

__all__ = ["NEEDS", "cached", "way"]

_PROGRAM = "compare_program"  # 15 bytes: all of a name that Linux keeps
NEEDS = (*LINUX, "irqfd", "ioeventfd", "msr_filter")
"""What a KVM needs for it: the tap, and devices that work beside the vCPUs."""
_MODULES = ("virtio_mmio", "virtio_console", "virtio_blk")


class _Linux:
    column = Column(
        "linux",
        "process in a Linux guest",
        "an ordinary process on Debian's kernel, which has a virtio console and disk; counted and timed from "
        "the program's start to its end",
        "process in\na Linux guest",
    )
    order = 30
    marks_work = True
    cannot = ALL

    def lacks(self) -> str:
        """Asks the KVM, once, and the cache."""
        if why := lacks(NEEDS):
            return why
        return "" if cached() else "there is no kernel for Linux guests; `pykvm kernel fetch` gets one"

    def run(self, job: Job, look: Look) -> Done:
        """Build the machine, boot Linux, run the program, take it apart."""
        from pykvm.machine import Machine  # noqa: PLC0415 - who has no KVM does not pay

        start = time.monotonic_ns()
        output = bytearray()
        calls: Counter[str] = Counter()
        with Machine(memory="256M") as machine:
            _load(machine, job, output)
            if look is Look.CALLS:
                _count_calls(machine, calls)
            window = _Window(machine, look)
            machine.on_mark = window.on_mark
            result = machine.run(timeout=TIMEOUT_S)
            machine_bytes = resident_bytes(machine)
        wall_ns = time.monotonic_ns() - start
        need_end(result, "exit", job.workload)
        if window.work_ns is None:
            raise PykvmError(f"{job.workload}: the guest did not mark where its work begins and ends")
        return Done(
            bytes(output), wall_ns, calls, {}, window.exits, window.kvm_exits, window.work_ns, machine_bytes
        )

    def close(self) -> None:
        """Nothing is kept."""

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        """One process of ours for all jobs."""
        return [vmm_command("linux", jobs)]


def cached() -> Kit | None:
    """The guests' kernel and what goes with it, if the cache has it."""
    from pykvm.linux.kit import cached_kit  # noqa: PLC0415 - as above

    try:
        return cached_kit(Store())
    except LabError:
        return None


def _load(machine: Machine, job: Job, output: bytearray) -> None:
    """The kernel, with the program in its initramfs; `output` gets what the program prints."""
    from pykvm.devices.virtio.block import Block  # noqa: PLC0415 - as above
    from pykvm.devices.virtio.console import Console  # noqa: PLC0415 - as above
    from pykvm.devices.virtio.disk_files import RawFile  # noqa: PLC0415 - as above
    from pykvm.lab import cpio  # noqa: PLC0415 - as above
    from pykvm.linux.initramfs import Job as Inside  # noqa: PLC0415 - as above
    from pykvm.linux.initramfs import build_initramfs  # noqa: PLC0415 - as above

    kit = cached()
    if kit is None:
        raise PykvmError("there is no kernel for Linux guests; `pykvm kernel fetch` gets one")
    machine.virtio.add(Block(RawFile(job.disk, read_only=True)))
    machine.virtio.add(Console(output.extend))
    inside = Inside()
    inside.add("tty", "/dev/hvc0")
    inside.add("plain")
    inside.add("run", f"exec /bin/{_PROGRAM} {job.workload} {job.operations} /dev/vda")
    program = cpio.file(f"bin/{_PROGRAM}", built("compare_program.elf").read_bytes(), 0o755)
    initrd = build_initramfs(kit, inside, _MODULES) + cpio.pack([cpio.directory("bin"), program])
    machine.load(kit.vmlinux, initrd=initrd, cmdline=f"{CMDLINE} quiet")


def _count_calls(machine: Machine, calls: Counter[str]) -> None:
    """Have the tap count the program's system calls; its start is the shell's doing."""
    from pykvm.tap import SyscallTap  # noqa: PLC0415 - as above

    SyscallTap(machine, words=False)

    def count(event: TraceEvent) -> None:
        if event.kind == "syscall" and event.task.startswith(_PROGRAM) and event.name != "execve":
            calls[event.name] += 1

    machine.add_sink(count)


class _Window:
    """What happens between the program's start and its end."""

    def __init__(self, machine: Machine, look: Look) -> None:
        self._machine = machine
        self._look = look
        self._before: tuple[Mapping[str, int], Mapping[str, int] | Absent] = {}, {}
        self._start_ns = 0
        self.exits: Mapping[str, int] = {}
        self.kvm_exits: Mapping[str, int] | Absent = {}
        self.work_ns: int | None = None

    def on_mark(self, value: int) -> None:
        """The vCPU's thread calls, in the exit by which the guest writes its mark."""
        if value == LinuxMark.TERMINAL_READY:
            self._before = self._look_at()
            self._start_ns = time.monotonic_ns()
            if self._look is Look.HOST:
                mark_begin()
        elif value == LinuxMark.COMMAND_ENDED and self._start_ns:
            if self._look is Look.HOST:
                mark_end()
            self.work_ns = time.monotonic_ns() - self._start_ns
            self._end(*self._look_at())

    def _look_at(self) -> tuple[Mapping[str, int], Mapping[str, int] | Absent]:
        from pykvm.tally import exit_counts  # noqa: PLC0415 - as above

        kvm = kvm_exits_of(self._machine) if self._look is Look.EXITS else {}
        return exit_counts(self._machine.vcpus), kvm

    def _end(self, exits: Mapping[str, int], kvm: Mapping[str, int] | Absent) -> None:
        """The last mark is an exit itself, and none of the work's."""
        before, kvm_before = self._before
        self.exits = +(Counter(exits) - Counter(before) - Counter({"IO": 1}))
        if isinstance(kvm, Absent) or isinstance(kvm_before, Absent):
            self.kvm_exits = kvm
        else:
            self.kvm_exits = {
                name: max(count - kvm_before.get(name, 0) - 1, 0) for name, count in kvm.items()
            }


way = _Linux()
