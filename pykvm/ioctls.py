"""Every KVM ioctl number, built with ioctl-opt from (direction, number, size of its argument).

Names, directions and sizes are those of the kernel's API document (Documentation/virt/kvm/api.rst); a test
compares each number with the macro in <linux/kvm.h>.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ioctl_opt

from pykvm._native import ffi, lib
from pykvm.errors import KvmError

__all__ = ["ALL", "Ioctl", "call"]

KVMIO = 0xAE


class Ioctl(NamedTuple):
    """One ioctl: its name in the API document and its number."""

    name: str
    number: int


def _make(name: str, direction: int, nr: int, argument: str | None) -> Ioctl:
    size = ffi.sizeof(argument) if argument else 0
    return Ioctl(name, ioctl_opt.IOC(direction, KVMIO, nr, size))


_NONE, _W, _R = ioctl_opt.IOC_NONE, ioctl_opt.IOC_WRITE, ioctl_opt.IOC_READ
_WR = _W | _R

# name, direction, number, argument type (None: a plain value or nothing)
_TABLE: tuple[tuple[str, int, int, str | None], ...] = (
    # the system: /dev/kvm
    ("KVM_GET_API_VERSION", _NONE, 0x00, None),
    ("KVM_CREATE_VM", _NONE, 0x01, None),
    ("KVM_GET_MSR_INDEX_LIST", _WR, 0x02, "struct kvm_msr_list"),
    ("KVM_CHECK_EXTENSION", _NONE, 0x03, None),
    ("KVM_GET_VCPU_MMAP_SIZE", _NONE, 0x04, None),
    ("KVM_GET_SUPPORTED_CPUID", _WR, 0x05, "struct kvm_cpuid2"),
    ("KVM_GET_EMULATED_CPUID", _WR, 0x09, "struct kvm_cpuid2"),
    ("KVM_GET_MSR_FEATURE_INDEX_LIST", _WR, 0x0A, "struct kvm_msr_list"),
    # a VM
    ("KVM_CREATE_VCPU", _NONE, 0x41, None),
    ("KVM_GET_DIRTY_LOG", _W, 0x42, "struct kvm_dirty_log"),
    ("KVM_SET_USER_MEMORY_REGION", _W, 0x46, "struct kvm_userspace_memory_region"),
    ("KVM_SET_TSS_ADDR", _NONE, 0x47, None),
    ("KVM_SET_IDENTITY_MAP_ADDR", _W, 0x48, "__u64"),
    ("KVM_CREATE_IRQCHIP", _NONE, 0x60, None),
    ("KVM_IRQ_LINE", _W, 0x61, "struct kvm_irq_level"),
    ("KVM_GET_IRQCHIP", _WR, 0x62, "struct kvm_irqchip"),
    ("KVM_SET_IRQCHIP", _R, 0x63, "struct kvm_irqchip"),
    ("KVM_SET_GSI_ROUTING", _W, 0x6A, "struct kvm_irq_routing"),
    ("KVM_IRQFD", _W, 0x76, "struct kvm_irqfd"),
    ("KVM_CREATE_PIT2", _W, 0x77, "struct kvm_pit_config"),
    ("KVM_IOEVENTFD", _W, 0x79, "struct kvm_ioeventfd"),
    ("KVM_SET_CLOCK", _W, 0x7B, "struct kvm_clock_data"),
    ("KVM_GET_CLOCK", _R, 0x7C, "struct kvm_clock_data"),
    ("KVM_GET_PIT2", _R, 0x9F, "struct kvm_pit_state2"),
    ("KVM_SET_PIT2", _W, 0xA0, "struct kvm_pit_state2"),
    ("KVM_SET_TSC_KHZ", _NONE, 0xA2, None),
    ("KVM_GET_TSC_KHZ", _NONE, 0xA3, None),
    ("KVM_ENABLE_CAP", _W, 0xA3, "struct kvm_enable_cap"),
    ("KVM_SIGNAL_MSI", _W, 0xA5, "struct kvm_msi"),
    ("KVM_X86_SET_MSR_FILTER", _W, 0xC6, "struct kvm_msr_filter"),
    ("KVM_GET_STATS_FD", _NONE, 0xCE, None),
    # a vCPU
    ("KVM_RUN", _NONE, 0x80, None),
    ("KVM_GET_REGS", _R, 0x81, "struct kvm_regs"),
    ("KVM_SET_REGS", _W, 0x82, "struct kvm_regs"),
    ("KVM_GET_SREGS", _R, 0x83, "struct kvm_sregs"),
    ("KVM_SET_SREGS", _W, 0x84, "struct kvm_sregs"),
    ("KVM_TRANSLATE", _WR, 0x85, "struct kvm_translation"),
    ("KVM_INTERRUPT", _W, 0x86, "struct kvm_interrupt"),
    ("KVM_GET_MSRS", _WR, 0x88, "struct kvm_msrs"),
    ("KVM_SET_MSRS", _W, 0x89, "struct kvm_msrs"),
    ("KVM_GET_FPU", _R, 0x8C, "struct kvm_fpu"),
    ("KVM_SET_FPU", _W, 0x8D, "struct kvm_fpu"),
    ("KVM_GET_LAPIC", _R, 0x8E, "struct kvm_lapic_state"),
    ("KVM_SET_LAPIC", _W, 0x8F, "struct kvm_lapic_state"),
    ("KVM_SET_CPUID2", _W, 0x90, "struct kvm_cpuid2"),
    ("KVM_GET_CPUID2", _WR, 0x91, "struct kvm_cpuid2"),
    ("KVM_GET_MP_STATE", _R, 0x98, "struct kvm_mp_state"),
    ("KVM_SET_MP_STATE", _W, 0x99, "struct kvm_mp_state"),
    ("KVM_NMI", _NONE, 0x9A, None),
    ("KVM_SET_GUEST_DEBUG", _W, 0x9B, "struct kvm_guest_debug"),
    ("KVM_GET_VCPU_EVENTS", _R, 0x9F, "struct kvm_vcpu_events"),
    ("KVM_SET_VCPU_EVENTS", _W, 0xA0, "struct kvm_vcpu_events"),
    ("KVM_GET_DEBUGREGS", _R, 0xA1, "struct kvm_debugregs"),
    ("KVM_SET_DEBUGREGS", _W, 0xA2, "struct kvm_debugregs"),
    ("KVM_GET_XSAVE", _R, 0xA4, "struct kvm_xsave"),
    ("KVM_SET_XSAVE", _W, 0xA5, "struct kvm_xsave"),
    ("KVM_GET_XCRS", _R, 0xA6, "struct kvm_xcrs"),
    ("KVM_SET_XCRS", _W, 0xA7, "struct kvm_xcrs"),
    ("KVM_GET_XSAVE2", _R, 0xCF, "struct kvm_xsave"),
    ("KVM_GET_DEVICE_ATTR", _W, 0xE2, "struct kvm_device_attr"),
)

ALL: dict[str, Ioctl] = {row[0]: _make(*row) for row in _TABLE}

# The next step for the user, where the kernel's word alone does not tell it.
_HINTS: dict[tuple[str, int], str] = {
    ("KVM_CREATE_VM", 12): "the host has no memory left for another VM",
    (
        "KVM_CREATE_VM",
        16,
    ): "another hypervisor on this host (VirtualBox, VMware) is using the CPU's extensions",
    ("KVM_CREATE_VCPU", 7): "that is more vCPUs than this KVM allows",
    ("KVM_CREATE_VCPU", 17): "a vCPU with this id exists already",
    ("KVM_CREATE_VCPU", 22): "that is more vCPUs than this KVM allows; see `pykvm doctor`",
    ("KVM_CREATE_IRQCHIP", 17): "the machine has an irqchip already, or vCPUs: create it first and once",
    ("KVM_SET_USER_MEMORY_REGION", 12): "the host has no memory left; give the guest less",
    ("KVM_SET_USER_MEMORY_REGION", 17): "the slot overlaps another one",
    ("KVM_SET_USER_MEMORY_REGION", 22): "slots are page-aligned and no more than the KVM allows",
    ("KVM_RUN", 14): "the guest touched memory that the host can't give it",
    ("KVM_RUN", 12): "the host has no memory left for the guest",
}


def call(fd: int, name: str, argument: Any = None) -> int:
    """Do one ioctl on `fd`: its result, 0 or more.

    `argument` is a cffi pointer, an int for the ioctls that take a value, or nothing. Raises KvmError
    with the kernel's errno, the ioctl's name, and the next step where there is one.
    """
    if isinstance(argument, int):
        argument = ffi.cast("void *", argument)
    result: int = lib.kvm_ioctl(fd, ALL[name].number, ffi.NULL if argument is None else argument)
    if result < 0:
        raise KvmError(-result, name, _HINTS.get((name, -result), ""))
    return result


def call_sized(fd: int, name: str, kind: str, count_field: str, start: int) -> Any:
    """Do an ioctl whose argument is a counted list that the caller must size: retry on E2BIG.

    `kind` is the struct's cffi name, `count_field` its counter, `start` the first guess.
    """
    count = start
    while True:
        argument = ffi.new(f"{kind} *", {count_field: count, _FLEX[kind]: count})
        try:
            call(fd, name, argument)
        except KvmError as error:
            if error.errno != _E2BIG or count > _MOST:
                raise
            count = max(count * 2, getattr(argument, count_field))
        else:
            return argument


_E2BIG = 7
_MOST = 1 << 16
_FLEX = {"struct kvm_cpuid2": "entries", "struct kvm_msr_list": "indices", "struct kvm_msrs": "entries"}
