"""CPUID policy: what a guest is told about its CPU, made from what KVM supports.

Rows are (function, index, flags, eax, ebx, ecx, edx). Source: SDM vol. 2A, CPUID; the kernel's
Documentation/virt/kvm/x86/cpuid.rst for the hypervisor leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["policy"]

Row = tuple[int, ...]
_HYPERVISOR = 1 << 31  # 1.ECX: a hypervisor is present; without it Linux looks for no kvmclock
_TSC_DEADLINE = 1 << 24  # 1.ECX: only an in-kernel local APIC has it
_X2APIC = 1 << 21  # 1.ECX: likewise
_HTT = 1 << 28  # 1.EDX: the number of CPUs in EBX counts
_VENDORS = {"intel": b"GenuineIntel", "amd": b"AuthenticAMD"}


def policy(
    supported: Iterable[Row], *, apic_id: int, vcpus: int, irqchip: bool, vendor: str | None = None
) -> list[Row]:
    """The rows for the vCPU with `apic_id` of `vcpus`; `vendor` "intel" or "amd" overrides the host's."""
    rows = []
    for function, index, flags, eax, ebx, ecx, edx in supported:
        row: Row = (function, index, flags, eax, ebx, ecx, edx)
        if function in (0, 0x80000000) and vendor:
            row = (function, index, flags, eax, *_vendor_words(vendor))
        elif function == 1:
            lapic = _TSC_DEADLINE | _X2APIC
            features = (ecx | lapic if irqchip else ecx & ~lapic) | _HYPERVISOR
            ids = ebx & 0x0000FFFF | (apic_id & 0xFF) << 24 | min(vcpus, 255) << 16
            threads = edx | _HTT if vcpus > 1 else edx & ~_HTT
            row = (function, index, flags, eax, ids, features, threads)
        elif function in (0xB, 0x1F):
            row = (function, index, flags, *_topology(index, vcpus), apic_id)
        elif function == 0x8000001E:  # AMD's: APIC id, core id with one thread each, node 0 of 1
            row = (function, index, flags, apic_id, apic_id & 0xFF, 0, 0)
        elif function == 0xA:  # no performance monitoring: its registers may not work here
            row = (function, index, flags, 0, 0, 0, 0)
        rows.append(row)
    return rows


def _vendor_words(vendor: str) -> tuple[int, int, int]:
    """EBX, ECX, EDX of leaf 0: the name's letters stand in EBX, EDX, ECX."""
    name = _VENDORS[vendor]
    word = [int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8)]
    return word[0], word[2], word[1]


def _topology(level: int, vcpus: int) -> tuple[int, int, int]:
    """EAX, EBX, ECX of one level of leaf 0xb: threads, then cores of one package, then nothing."""
    if level == 0:
        return 0, 1, 1 << 8 | level
    if level == 1:
        return max(vcpus - 1, 0).bit_length(), vcpus, 2 << 8 | level
    return 0, 0, level
