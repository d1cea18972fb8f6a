"""A tiny machine for one probe: a VM of 4 MiB, one of the guests in guests/probes, one KVM_RUN at a time."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.boot import load
from pykvm.boot.placement import place
from pykvm.cpuid import policy
from pykvm.doctor.outcome import Outcome, differs, works
from pykvm.errors import KvmError, PykvmError
from pykvm.exits import (
    EntryFailExit,
    Exit,
    HltExit,
    InternalErrorExit,
    IoExit,
    ShutdownExit,
    UnknownExit,
    decode,
)
from pykvm.guests import built_folder
from pykvm.kvm import Kvm
from pykvm.memory import GuestMemory, MemorySlot
from pykvm.regs import CpuMode
from pykvm.vcpu import LoopResult, Vcpu
from pykvm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rig", "UnexpectedExitError"]

_SPIN_LIMIT_S = 1.0  # CPU time that one KVM_RUN may take: a hundred times what the longest needs
_SET_UPS = 300  # and at least that many times what it took to make the VM: a measure of the host
_WAITS = 10  # wall time that it may take, the limit of those that sleep, as a multiple of the CPU time
_NO_EXIT = (LoopResult.SIGNAL, LoopResult.KICKED)  # the process was stopped for a while, perhaps
_MEMORY_BYTES = 4 << 20
_EXTRA_BYTES = 64 << 10  # the slot that probe.h calls EXTRA


class UnexpectedExitError(PykvmError):
    """The guest of a probe left by a door that the probe does not know: the KVM can't run it."""


class Rig:
    """A VM with a probe's guest in it, to be entered step by step.

    A KVM_RUN that spins or sleeps for too long ends the whole process, by SIGPROF or SIGALRM: probes run in
    processes of their own.
    """

    def __init__(self, guest: str, mode: str = "long64", *, irqchip: bool = False, vcpus: int = 1) -> None:
        """`guest` names a source in guests/probes. The vCPUs are made at the first use of `vcpu`.

        So that a probe can set up before what KVM wants to know before a vCPU is there.
        """
        self.stage = 0
        self.stage_ns = 0
        self.end_ns = 0
        since = time.perf_counter()
        self._vcpus: list[Vcpu] = []
        self._count = vcpus
        suffix = "bin" if mode == "real16" else "elf"
        self._image = load(built_folder() / "probes" / f"{guest}.{mode}.{suffix}", mode=CpuMode(mode))
        with ExitStack() as stack:
            self.kvm = stack.enter_context(Kvm())
            self.memory = stack.enter_context(GuestMemory(_MEMORY_BYTES))
            self.vm = stack.enter_context(Vm(self.kvm))
            self._set_up(irqchip=irqchip)
            self._stack = stack.pop_all()
        self._limit_s = max(_SPIN_LIMIT_S, _SET_UPS * (time.perf_counter() - since))

    def _set_up(self, *, irqchip: bool) -> None:
        self._placement = place(self._image, self.memory, cmdline="", modules=[])
        self.vm.set_memory_slot(0, self.memory.slots[0])
        self.vm.set_tss_address()
        self.vm.set_identity_map_address()
        if irqchip:
            self.vm.create_irqchip()
            self.vm.create_pit()
        self._shared = ffi.new("struct loop_shared *")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the VM apart."""
        self._stack.close()

    # ---- parts

    @property
    def entry(self) -> int:
        """The gpa of the guest's first instruction."""
        return self._image.entry

    @property
    def vcpus(self) -> list[Vcpu]:
        """The vCPUs; the first one stands at the guest's first instruction."""
        if not self._vcpus:
            for number in range(self._count):
                self._vcpus.append(self._make_vcpu(number))
            self._start()
        return self._vcpus

    @property
    def vcpu(self) -> Vcpu:
        """The first vCPU."""
        return self.vcpus[0]

    def _start(self) -> None:
        """Put the first vCPU at the guest's start. Raises UnexpectedExitError if KVM alters its state."""
        state = self._placement.state
        self._vcpus[0].apply(state)
        sregs = self._vcpus[0].get_sregs()
        for name, value in state.control.items():
            if (kept := getattr(sregs, name)) != value:
                raise UnexpectedExitError(f"KVM_SET_SREGS was given {name} = {value:#x} and keeps {kept:#x}")

    def _make_vcpu(self, number: int) -> Vcpu:
        vcpu = self._stack.enter_context(self.vm.create_vcpu(number))
        supported = self.kvm.supported_cpuid()
        vcpu.set_cpuid(policy(supported, apic_id=number, vcpus=self._count, irqchip=self.vm.has_irqchip))
        vcpu.reset_fpu()
        vcpu.share(self._shared)
        return vcpu

    def add_slot(
        self, contents: bytes = b"", *, read_only: bool = False, log_dirty: bool = False
    ) -> MemorySlot:
        """The slot number 1, 64 KiB behind RAM, which the guests call EXTRA."""
        memory = self._stack.enter_context(GuestMemory(_EXTRA_BYTES))
        memory.write(0, contents)
        slot = memory.slots[0]._replace(gpa=_MEMORY_BYTES, read_only=read_only)
        self.vm.set_memory_slot(1, slot, log_dirty=log_dirty)
        self._stack.callback(self.vm.delete_memory_slot, 1)
        return slot

    def discard(self, port: int) -> None:
        """Let the C exit loop take OUTs to `port` and forget them."""
        self._shared.fast_ports[1].verb = lib.VERB_DISCARD
        self._shared.fast_index[port] = 1

    # ---- running

    def enter(self) -> Exit:
        """Run the guest to its next exit. Raises KvmError if KVM_RUN fails."""
        vcpu = self.vcpu
        signal.setitimer(signal.ITIMER_PROF, self._limit_s)
        signal.setitimer(signal.ITIMER_REAL, _WAITS * self._limit_s)
        try:
            while (result := vcpu.enter()) in _NO_EXIT:
                pass
        finally:
            self.end_ns = time.perf_counter_ns()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if result == LoopResult.EXIT:
            return decode(vcpu.view)
        raise KvmError(vcpu.loop.error, "KVM_RUN")

    def run(self) -> Exit:
        """The next exit that is no stage mark; `stage` and `stage_ns` tell of the last mark."""
        while True:
            exit_ = self.enter()
            if not isinstance(exit_, IoExit) or exit_.port != layout.POST.start:
                return exit_
            self.stage, self.stage_ns = exit_.data[0], time.perf_counter_ns()

    def run_to_stage(self, stage: int) -> None:
        """Run the guest up to its mark `stage`. Raises UnexpectedExitError if it does not get there."""
        while self.stage != stage:
            exit_ = self.enter()
            if not isinstance(exit_, IoExit) or exit_.port != layout.POST.start:
                raise self.unexpected(exit_)
            self.stage, self.stage_ns = exit_.data[0], time.perf_counter_ns()

    def verdict(self) -> int:
        """What the guest says at its end: 0 is well. Raises UnexpectedExitError if it says nothing."""
        exit_ = self.run()
        if isinstance(exit_, IoExit) and exit_.is_write and exit_.port == layout.PLAIN_EXIT.start:
            return int.from_bytes(exit_.data, "little")
        raise self.unexpected(exit_)

    def finish(self, meanings: Mapping[int, str], detail: str = "") -> Outcome:
        """Run to the verdict and say what it means: `meanings` explains those that are not 0."""
        value = self.verdict()
        return works(detail) if value == 0 else differs(meanings.get(value, f"verdict {value:#x}"))

    @property
    def elapsed_us(self) -> float:
        """Microseconds between the last stage mark and the last exit."""
        return (self.end_ns - self.stage_ns) / 1e3

    def unexpected(self, exit_: Exit) -> UnexpectedExitError:
        """`exit_` as an error that says where it happened."""
        where = f"at rip {self.vcpu.get_regs()['rip']:#x}"
        stage = f" after stage {self.stage}" if self.stage else ""
        return UnexpectedExitError(f"{_describe(exit_)} {where}{self._code()}{stage}")

    def _code(self) -> str:
        """The bytes at RIP, as far as they are in RAM, which every mode maps to itself."""
        sregs, rip = self.vcpu.get_sregs(), self.vcpu.get_regs()["rip"]
        linear = rip + (0 if sregs.efer else sregs.cs.base)
        if linear > _MEMORY_BYTES - 8:
            return ""
        return f" ({self.memory.read(linear, 8).hex(' ')})"


def _describe(exit_: Exit) -> str:
    match exit_:
        case InternalErrorExit(suberror=suberror):
            why = " (its emulator lacks the instruction)" if suberror == 1 else ""
            return f"KVM gives up with suberror {suberror}{why}"
        case EntryFailExit(hardware_reason=reason):
            return f"KVM_EXIT_FAIL_ENTRY with hardware reason {reason:#x}"
        case UnknownExit(reason=reason, name=name):
            return f"KVM_EXIT {name} ({reason})"
    return {ShutdownExit: "triple fault", HltExit: "HLT"}.get(type(exit_), str(exit_))
