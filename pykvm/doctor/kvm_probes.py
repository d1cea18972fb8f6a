"""Probes of what KVM adds: exits, interrupt controllers, hypercalls, eventfds, memory slots, capabilities."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.doctor.outcome import Figure, Outcome, differs, fails, works
from pykvm.doctor.rig import Rig, UnexpectedExitError
from pykvm.exits import HltExit, HypercallExit, IoExit, MmioExit, MsrExit
from pykvm.ioctls import ALL
from pykvm.kvm import Kvm
from pykvm.vcpu import LoopResult

if TYPE_CHECKING:
    from pykvm.vcpu import Vcpu

__all__ = [
    "capability",
    "dirty_log",
    "exit_tracepoints",
    "hypercall_exit",
    "ioeventfd",
    "irqchip",
    "irqfd",
    "kvm_run",
    "mmio",
    "msr_filter",
    "pio",
    "readonly_memory",
    "smp",
    "sync_regs",
    "vm",
    "vmcall",
]

_NOTIFY = 0x600  # PORT_NOTIFY of probe.h
_OUTS = 1000  # of out.S
_GSI = 5  # of irqfd.S
_HYPERCALL = 12  # KVM_HC_MAP_GPA_RANGE
_LSTAR = 0xC000_0082
_REPEAT = 3
_CALLS = 500
_PAGE = 4096


def capability(name: str) -> Outcome:
    """KVM_CHECK_EXTENSION says more than 0."""
    with Kvm() as kvm:
        value = kvm.check_extension(name)
    return works(f"{value:#x}") if value else fails(f"{name} is 0")


def tracefs() -> Outcome:
    """A trace instance of our own can be made, and taken away again."""
    from pykvm.trace.tracefs import KernelSource, TracefsError  # noqa: PLC0415 - only these probes need it

    try:
        KernelSource(host_calls=False).finish()
    except TracefsError as error:
        return fails(str(error))
    return works()


def exit_tracepoints() -> Outcome:
    """A CPUID, which KVM answers by itself, comes as an event."""
    from pykvm.trace.tracefs import KernelSource, TracefsError  # noqa: PLC0415 - as above

    try:
        source = KernelSource(host_calls=False)
    except TracefsError as error:
        return fails(str(error))
    try:
        with Rig("loop") as rig:
            rig.memory.write(rig.entry, b"\x0f\xa2\xf4")  # CPUID, HLT
            rig.enter()
    finally:
        events = source.finish()
    return works() if any(event.kind == "kvm" for event in events) else fails("no kvm_exit came of one")


# ---- entries and exits


def vm() -> Outcome:
    """A VM and a vCPU are made, run to HLT, and taken apart."""
    times = []
    for _ in range(_REPEAT):
        start_ns = time.perf_counter_ns()
        with Rig("loop") as rig:
            rig.memory.write(rig.entry, b"\xf4")  # HLT
            exit_ = rig.enter()
            if not isinstance(exit_, HltExit):
                raise rig.unexpected(exit_)
        times.append(time.perf_counter_ns() - start_ns)
    return works("", Figure("create VM and vCPU, run to HLT, close", min(times) / 1e6, "ms"))


def kvm_run() -> Outcome:
    """KVM_RUN with immediate_exit set returns at once with EINTR."""
    with Rig("start") as rig:
        rig.vcpu.view.run.immediate_exit = 1
        fd, number = rig.vcpu.fd, ALL["KVM_RUN"].number
        start_ns = time.perf_counter_ns()
        results = {lib.kvm_ioctl(fd, number, ffi.NULL) for _ in range(_CALLS)}
        took_us = (time.perf_counter_ns() - start_ns) / 1e3
    if results != {-errno.EINTR}:
        return fails(f"KVM_RUN returned {results} with immediate_exit set")
    return works("", Figure("KVM_RUN with immediate_exit", took_us / _CALLS, "µs"))


def pio() -> Outcome:
    """An OUT leaves the guest, and the guest goes on."""
    return works("", Figure("an OUT to user space and back", min(_time_outs() for _ in range(_REPEAT)), "µs"))


def _time_outs() -> float:
    with Rig("out") as rig:
        rig.discard(_NOTIFY)
        if rig.verdict():
            raise UnexpectedExitError("the guest reports an error")
        return rig.elapsed_us / _OUTS


def mmio() -> Outcome:
    """A read and a write where no slot is become KVM_EXIT_MMIO, with the right data both ways."""
    at, answer = layout.MMIO_DEVICES.start, 0x1234_5678
    with Rig("mmio") as rig:
        read = rig.enter()
        if read != MmioExit(at, 4, is_write=False, data=b""):
            raise rig.unexpected(read)
        rig.vcpu.view.answer_mmio(answer.to_bytes(4, "little"))
        write = rig.enter()
        if write != MmioExit(at + 8, 4, is_write=True, data=(answer + 1).to_bytes(4, "little")):
            raise rig.unexpected(write)
        return rig.finish({})


def msr_filter() -> Outcome:
    """A filtered WRMSR and RDMSR come to user space, which answers them."""
    with Rig("msr") as rig:
        if not rig.vm.check_extension("KVM_CAP_X86_MSR_FILTER"):
            return fails("KVM_CAP_X86_MSR_FILTER is 0")
        rig.vm.filter_msrs([_LSTAR], reads=True, writes=True)
        write = rig.enter()
        if not isinstance(write, MsrExit) or (write.index, write.is_write, write.data) != (
            _LSTAR,
            True,
            0x123000,
        ):
            raise rig.unexpected(write)
        rig.vcpu.view.msr.error = 0
        read = rig.enter()
        if not isinstance(read, MsrExit) or (read.index, read.is_write) != (_LSTAR, False):
            raise rig.unexpected(read)
        rig.vcpu.view.msr.error, rig.vcpu.view.msr.data = 0, 0x456000
        return rig.finish({1: "RDMSR reads something else than user space answered"})


def sync_regs() -> Outcome:
    """Registers can be read and changed in kvm_run, without an ioctl of their own."""
    with Rig("sync_regs") as rig:
        offered = rig.vm.check_extension("KVM_CAP_SYNC_REGS")
        if not offered & lib.KVM_SYNC_X86_REGS:
            return fails(f"KVM_CAP_SYNC_REGS is {offered:#x}")
        rig.vcpu.sync_registers(special=bool(offered & lib.KVM_SYNC_X86_SREGS))
        rig.run_to_stage(1)
        regs = rig.vcpu.view.synced.regs
        if regs.rbx != 0x1234:
            return differs(f"kvm_run shows rbx = {regs.rbx:#x} where it is 0x1234")
        regs.rbx = 0x5678
        rig.vcpu.view.run.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
        return rig.finish({1: "a changed register does not reach the guest"})


# ---- hypercalls


def vmcall() -> Outcome:
    """KVM answers VMCALL with an unknown number: -KVM_ENOSYS."""
    with Rig("vmcall") as rig:
        value = rig.verdict()
        figure = Figure("VMCALL", rig.elapsed_us / 100, "µs")
    return differs("it answers something else than -KVM_ENOSYS") if value else works("", figure)


def hypercall_exit() -> Outcome:
    """VMCALL number 12 comes to user space, with its arguments, and takes the answer back."""
    with Rig("hypercall_exit") as rig:
        offered = rig.vm.check_extension("KVM_CAP_EXIT_HYPERCALL")
        if not offered & 1 << _HYPERCALL:
            return fails(f"KVM_CAP_EXIT_HYPERCALL is {offered:#x}")
        rig.vm.enable_cap("KVM_CAP_EXIT_HYPERCALL", 1 << _HYPERCALL)
        exit_ = rig.run()
        if not isinstance(exit_, HypercallExit):
            raise rig.unexpected(exit_)
        if (exit_.number, exit_.args[:3]) != (_HYPERCALL, (0x3000, 1, 0x10)):
            return differs(f"it arrives as {exit_}")
        rig.vcpu.view.hypercall.ret = 0x77
        value = rig.verdict()
    return works() if value == 0x77 else differs(f"the guest gets {value:#x} where 0x77 was answered")


# ---- interrupts and CPUs


def irqchip() -> Outcome:
    """The PIT's and the local APIC's interrupts arrive, and HLT waits for them in the kernel."""
    with Rig("irqchip", irqchip=True) as rig:
        return rig.finish({})


def smp() -> Outcome:
    """INIT and SIPI from the first CPU start the second, in real mode."""
    with Rig("smp", irqchip=True, vcpus=2) as rig:
        second = threading.Thread(target=_run_until_kicked, args=(rig.vcpus[1],), daemon=True)
        second.start()
        try:
            return rig.finish({})
        finally:
            while second.is_alive():
                rig.vcpus[1].kick()
                second.join(0.01)


def _run_until_kicked(vcpu: Vcpu) -> None:
    """INIT wakes a waiting vCPU up: KVM_RUN returns then, and wants to be called again."""
    while vcpu.enter() == LoopResult.SIGNAL:
        pass


def irqfd() -> Outcome:
    """A write to an eventfd interrupts the guest."""
    with Rig("irqfd", irqchip=True) as rig:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            rig.vm.irqfd(fd, _GSI)
            rig.run_to_stage(1)
            os.eventfd_write(fd, 1)
            return rig.finish({})
        finally:
            os.close(fd)


def ioeventfd() -> Outcome:
    """The guest's OUT signals an eventfd, without an exit."""
    with Rig("out") as rig:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            rig.vm.ioeventfd(fd, _NOTIFY, 1, pio=True)
            exit_ = rig.run()
            if isinstance(exit_, IoExit) and exit_.port == _NOTIFY:
                return fails("the OUT comes to user space all the same")
            signals = os.eventfd_read(fd)
        finally:
            os.close(fd)
        if signals != _OUTS:
            return differs(f"{_OUTS} OUTs gave {signals} signals")
        return works("", Figure("an OUT to an eventfd", rig.elapsed_us / _OUTS, "µs"))


# ---- memory slots


def dirty_log() -> Outcome:
    """The dirty log names the pages that the guest wrote, and no others, once."""
    with Rig("dirty_log") as rig:
        slot = rig.add_slot(log_dirty=True)
        value = rig.verdict()
        pages = [(gpa - slot.gpa) // _PAGE for gpa in rig.vm.dirty_pages(1, slot)]
        again = rig.vm.dirty_pages(1, slot)
    if value or pages != [0, 2, 5]:
        return differs(f"pages 0, 2 and 5 were written; the log says {pages}")
    return differs("the log is not empty after it was read") if again else works()


def readonly_memory() -> Outcome:
    """A read-only slot can be read, and a write to it becomes KVM_EXIT_MMIO."""
    with Rig("readonly") as rig:
        slot = rig.add_slot((0x600D_600D).to_bytes(4, "little"), read_only=True)
        exit_ = rig.run()
        if exit_ != MmioExit(slot.gpa, 4, is_write=True, data=(0xBAD).to_bytes(4, "little")):
            raise rig.unexpected(exit_)
        outcome = rig.finish({1: "it reads something else than the host put there"})
        kept = bytes(slot.view[:4]) == (0x600D_600D).to_bytes(4, "little")
    return outcome if kept else differs("the write reached the memory")
