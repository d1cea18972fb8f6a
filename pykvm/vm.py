"""One VM: memory slots, interrupt controllers and their lines, eventfds, clock, capabilities. The VM fd.

Source: the kernel's Documentation/virt/kvm/api.rst, "VM ioctls".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.ioctls import call
from pykvm.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.kvm import Kvm
    from pykvm.memory import MemorySlot

__all__ = ["GsiLine", "Vm"]

_PAGE = 4096


class GsiLine:
    """One GSI of a VM's in-kernel irqchip, as a device is given it (see `pykvm.irq.IrqLine`)."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set_level(self, level: bool) -> None:
        """Drive the line."""
        self._vm.irq_line(self._gsi, level)


class Vm:
    """A virtual machine's fd. Close the vCPUs before the VM, and the VM before its memory."""

    def __init__(self, kvm: Kvm, machine_type: int = 0) -> None:
        self.kvm = kvm
        self.fd = kvm.create_vm(machine_type)
        self.has_irqchip = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Destroy the VM."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def check_extension(self, capability: str) -> int:
        """KVM_CHECK_EXTENSION on the VM, which may know better than the system fd."""
        return call(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, capability))

    def enable_cap(self, capability: str, *args: int) -> None:
        """KVM_ENABLE_CAP for "KVM_CAP_…" with up to four arguments."""
        request = ffi.new("struct kvm_enable_cap *", {"cap": getattr(lib, capability), "args": list(args)})
        call(self.fd, "KVM_ENABLE_CAP", request)

    # ---- memory

    def set_memory_slot(self, number: int, slot: MemorySlot, *, log_dirty: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION: show `slot` to the guest as slot `number`."""
        flags = lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty else 0
        flags |= lib.KVM_MEM_READONLY if slot.read_only else 0
        self._set_region(number, flags, slot.gpa, slot.size_bytes, slot.hva)

    def delete_memory_slot(self, number: int) -> None:
        """Take slot `number` away from the guest."""
        self._set_region(number, 0, 0, 0, 0)

    def _set_region(self, number: int, flags: int, gpa: int, size: int, hva: int) -> None:
        region = ffi.new("struct kvm_userspace_memory_region *", (number, flags, gpa, size, hva))
        call(self.fd, "KVM_SET_USER_MEMORY_REGION", region)

    def dirty_pages(self, number: int, slot: MemorySlot) -> list[int]:
        """KVM_GET_DIRTY_LOG: the gpas of slot `number`'s pages written since the last call."""
        words = (slot.size_bytes // _PAGE + 63) // 64
        bitmap = ffi.new("uint64_t[]", words)
        call(
            self.fd,
            "KVM_GET_DIRTY_LOG",
            ffi.new("struct kvm_dirty_log *", {"slot": number, "dirty_bitmap": bitmap}),
        )
        return [
            slot.gpa + (word * 64 + bit) * _PAGE
            for word, bits in enumerate(bitmap)
            if bits
            for bit in range(64)
            if bits >> bit & 1
        ]

    def set_tss_address(self, gpa: int = layout.TSS) -> None:
        """KVM_SET_TSS_ADDR: three pages that Intel's KVM needs, below 4 GiB and outside RAM."""
        call(self.fd, "KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_address(self, gpa: int = layout.IDENTITY_MAP) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page that Intel's KVM needs; before any vCPU."""
        call(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("__u64 *", gpa))

    # ---- interrupts

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PIC, IOAPIC and local APICs in the kernel; before any vCPU.

        From then on a HLT waits in the kernel for an interrupt instead of coming out as an exit.
        """
        call(self.fd, "KVM_CREATE_IRQCHIP")
        self.has_irqchip = True

    def create_pit(self) -> None:
        """KVM_CREATE_PIT2: the 8254 timer in the kernel, with a silent port 0x61."""
        call(
            self.fd,
            "KVM_CREATE_PIT2",
            ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY}),
        )

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE: drive one GSI of the in-kernel irqchip."""
        call(self.fd, "KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", (gsi, int(level))))

    def irqfd(self, eventfd: int, gsi: int, *, resample_fd: int | None = None, remove: bool = False) -> None:
        """KVM_IRQFD: a write to `eventfd` raises `gsi`; with `resample_fd` as a level until the EOI."""
        flags = lib.KVM_IRQFD_FLAG_DEASSIGN if remove else 0
        flags |= lib.KVM_IRQFD_FLAG_RESAMPLE if resample_fd is not None else 0
        call(self.fd, "KVM_IRQFD", ffi.new("struct kvm_irqfd *", (eventfd, gsi, flags, resample_fd or 0)))

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        size: int,
        *,
        pio: bool = False,
        match: int | None = None,
        remove: bool = False,
    ) -> None:
        """KVM_IOEVENTFD: a guest's write of `size` bytes at `address` signals `eventfd` without an exit.

        `size` is 1, 2, 4 or 8, or 0 for any; `match` narrows it to one value.
        """
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if match is not None else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN if remove else 0
        call(
            self.fd,
            "KVM_IOEVENTFD",
            ffi.new("struct kvm_ioeventfd *", (match or 0, address, size, eventfd, flags)),
        )

    def set_gsi_routing(self, routes: Sequence[tuple[int, int, int] | tuple[int, int]]) -> None:
        """KVM_SET_GSI_ROUTING: replaces all routes.

        A route is (gsi, chip, pin) for a pin of PIC 0, PIC 1 or IOAPIC 2, or (gsi, msi) with
        msi = address << 32 | data.
        """
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(routes), "entries": len(routes)})
        for entry, route in zip(table.entries, routes, strict=True):
            entry.gsi = route[0]
            union = ffi.cast("char *", ffi.addressof(entry)) + lib.ROUTING_UNION_OFFSET
            if len(route) == 3:
                entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
                chip = ffi.cast("routing_irqchip *", union)
                chip.irqchip, chip.pin = route[1], route[2]
            else:
                entry.type = lib.KVM_IRQ_ROUTING_MSI
                msi = ffi.cast("routing_msi *", union)
                msi.address_lo, msi.address_hi, msi.data = (
                    route[1] >> 32 & 0xFFFFFFFF,
                    route[1] >> 64,
                    route[1] & 0xFFFFFFFF,
                )
        call(self.fd, "KVM_SET_GSI_ROUTING", table)

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: True if the interrupt was delivered, False if the guest blocked it."""
        msi = ffi.new(
            "struct kvm_msi *",
            {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data},
        )
        return call(self.fd, "KVM_SIGNAL_MSI", msi) > 0

    def get_irqchip(self, chip: int) -> Any:
        """KVM_GET_IRQCHIP: state of PIC 0, PIC 1 or IOAPIC 2 as struct kvm_irqchip."""
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        call(self.fd, "KVM_GET_IRQCHIP", state)
        return state

    def set_irqchip(self, state: Any) -> None:
        """KVM_SET_IRQCHIP."""
        call(self.fd, "KVM_SET_IRQCHIP", state)

    def get_pit(self) -> Any:
        """KVM_GET_PIT2 as struct kvm_pit_state2."""
        state = ffi.new("struct kvm_pit_state2 *")
        call(self.fd, "KVM_GET_PIT2", state)
        return state

    def set_pit(self, state: Any) -> None:
        """KVM_SET_PIT2."""
        call(self.fd, "KVM_SET_PIT2", state)

    # ---- time, MSRs, statistics

    def get_clock(self) -> Any:
        """KVM_GET_CLOCK as struct kvm_clock_data: `clock` is kvmclock in ns."""
        data = ffi.new("struct kvm_clock_data *")
        call(self.fd, "KVM_GET_CLOCK", data)
        return data

    def set_clock(self, clock_ns: int) -> None:
        """KVM_SET_CLOCK: kvmclock goes on from `clock_ns`."""
        call(self.fd, "KVM_SET_CLOCK", ffi.new("struct kvm_clock_data *", {"clock": clock_ns}))

    def filter_msrs(self, indices: Iterable[int], *, reads: bool = False, writes: bool = True) -> None:
        """KVM_X86_SET_MSR_FILTER with user-space exits: the guest's accesses to these MSRs come to us.

        They arrive as MsrExit. Needs KVM_CAP_X86_USER_SPACE_MSR; at most 16 separate MSRs. No indices
        and no direction takes the filter away.
        """
        wanted = list(indices)
        flags = (lib.KVM_MSR_FILTER_READ if reads else 0) | (lib.KVM_MSR_FILTER_WRITE if writes else 0)
        self.enable_cap("KVM_CAP_X86_USER_SPACE_MSR", lib.KVM_MSR_EXIT_REASON_FILTER)
        denied = ffi.new("__u8[1]", [0])  # a 0 bit: not allowed, so it exits
        request = ffi.new("struct kvm_msr_filter *", {"flags": lib.KVM_MSR_FILTER_DEFAULT_ALLOW})
        for slot, index in zip(request.ranges, wanted, strict=False):
            slot.flags, slot.nmsrs, slot.base, slot.bitmap = flags, 1, index, denied
        call(self.fd, "KVM_X86_SET_MSR_FILTER", request)

    def stats_fd(self) -> int:
        """KVM_GET_STATS_FD: an fd of the VM's binary statistics; the caller closes it."""
        return call(self.fd, "KVM_GET_STATS_FD")

    # ---- vCPUs

    def create_vcpu(self, number: int) -> Vcpu:
        """KVM_CREATE_VCPU: vCPU `number`, from 0; its APIC id is the same."""
        return Vcpu(call(self.fd, "KVM_CREATE_VCPU", number), number, self.kvm.run_bytes)
