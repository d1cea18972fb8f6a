"""The probes by name: what each tells, and the function that finds it out.

The names are part of pykvm's interface: tests ask for them as needs, guests in their guest.toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pykvm.doctor import cpu_probes as cpu
from pykvm.doctor import debug_probes as debug
from pykvm.doctor import kvm_probes as kvm

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.doctor.outcome import Outcome

__all__ = ["PROBES", "Probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to a KVM: its name, the answer "works" in words, and how to find out."""

    name: str
    tells: str
    run: Callable[[], Outcome]


_ALL = (
    # entries and exits
    Probe("vm", "a VM and a vCPU are made and run to HLT", kvm.vm),
    Probe("kvm_run", "KVM_RUN with immediate_exit returns at once", kvm.kvm_run),
    Probe("pio", "an OUT comes to user space, and the guest goes on", kvm.pio),
    Probe("mmio", "accesses where no memory is come to user space", kvm.mmio),
    Probe("sync_regs", "registers are read and changed in kvm_run", kvm.sync_regs),
    Probe("msr_filter", "chosen RDMSR and WRMSR come to user space", kvm.msr_filter),
    # modes
    Probe("real16", "16-bit real mode runs", partial(cpu.mode, "real16")),
    Probe("prot32", "32-bit protected mode runs", partial(cpu.mode, "prot32")),
    Probe("paged32", "32-bit protected mode with paging runs", partial(cpu.mode, "paged32")),
    Probe("long64", "64-bit long mode runs", partial(cpu.mode, "long64")),
    Probe("cpl0_steps", "ring 0 runs a loop", cpu.cpl0_steps),
    Probe("sse_cpl0", "SSE arithmetic in ring 0", partial(cpu.instruction, "sse")),
    Probe("cmpxchg16b_cpl0", "CMPXCHG16B in ring 0", partial(cpu.instruction, "cmpxchg16b")),
    Probe("popcnt_cpl0", "POPCNT in ring 0", partial(cpu.instruction, "popcnt")),
    Probe("xsave_cpl0", "XSAVE in ring 0", partial(cpu.instruction, "xsave")),
    # interrupts
    Probe(
        "prot32_interrupts",
        "exceptions and IRET in 32-bit mode",
        partial(cpu.interrupts, "interrupts", "prot32"),
    ),
    Probe("prot32_int_n", "INT n in ring 0 of 32-bit mode", partial(cpu.interrupts, "int_n", "prot32")),
    Probe(
        "long64_interrupts",
        "exceptions and IRETQ in long mode",
        partial(cpu.interrupts, "interrupts", "long64"),
    ),
    Probe("long64_int_n", "INT n in ring 0 of long mode", partial(cpu.interrupts, "int_n", "long64")),
    Probe("irqchip", "interrupts of PIT and local APIC arrive", kvm.irqchip),
    Probe("irqfd", "an eventfd of the host interrupts the guest", kvm.irqfd),
    Probe("ioeventfd", "an OUT signals an eventfd without an exit", kvm.ioeventfd),
    Probe("smp", "INIT and SIPI start a second CPU", kvm.smp),
    # rings
    Probe("ring3_code", "code runs in ring 3", cpu.ring3_code),
    Probe("ring3_io", "IN and OUT in ring 3 where IOPL is 3", cpu.ring3_io),
    Probe("ring3_syscall", "SYSCALL from ring 3 reaches LSTAR in ring 0", cpu.ring3_syscall),
    Probe("ring3_syscall_by_pf", "a SYSCALL stuck in ring 3 can be served by #PF", cpu.ring3_syscall_by_pf),
    Probe("int_from_ring3", "INT n from ring 3 reaches ring 0", cpu.ring3_int_n),
    Probe("ring3_exceptions", "exceptions from ring 3 reach ring 0", cpu.ring3_exceptions),
    # hypercalls
    Probe("vmcall", "KVM answers VMCALL", kvm.vmcall),
    Probe("hypercall_exit", "VMCALL number 12 comes to user space", kvm.hypercall_exit),
    # debugging
    Probe("single_step", "every instruction can stop the guest", debug.single_step),
    Probe("hw_breakpoint", "debug registers stop the guest", debug.hw_breakpoint),
    Probe("sw_breakpoint", "INT3 stops the guest", debug.sw_breakpoint),
    # memory
    Probe("dirty_log", "KVM knows which pages the guest wrote", kvm.dirty_log),
    Probe("readonly_memory", "a slot can be read-only", kvm.readonly_memory),
    # the host
    Probe("tracefs", "the host's tracepoints can be read", kvm.tracefs),
    Probe("exit_tracepoints", "tracepoints tell of exits that KVM answers", kvm.exit_tracepoints),
    # capabilities that nothing here exercises yet
    Probe("nested_state", "KVM_CAP_NESTED_STATE", partial(kvm.capability, "KVM_CAP_NESTED_STATE")),
    Probe("xen_hvm", "KVM_CAP_XEN_HVM", partial(kvm.capability, "KVM_CAP_XEN_HVM")),
    Probe("hyperv", "KVM_CAP_HYPERV", partial(kvm.capability, "KVM_CAP_HYPERV")),
)

PROBES: dict[str, Probe] = {probe.name: probe for probe in _ALL}
