"""The VM's ioctls, each done for real on this KVM."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from bare import PAGE, START, Bare, out, pic_setup, word

from pykvm._native import ffi, lib
from pykvm.errors import KvmError
from pykvm.exits import HltExit, IoExit, MmioExit, MsrExit
from pykvm.kvm import Kvm
from pykvm.memory import GuestMemory, MemorySlot
from pykvm.vm import GsiLine, Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

HLT = b"\xf4"
LSTAR = 0xC0000082
HANDLER = 0x2000
READY, MARK, IRQ_PORT = 0x11, 0x55, 0x80
VECTOR = 0x24
APIC = 0xFEE00000
SVR, APIC_ENABLED = 0xF0, 0x1FF

TOLD = IoExit(IRQ_PORT, 1, 1, True, bytes([MARK]))


def store(address: int) -> bytes:
    """movb $1, address"""
    return b"\xc6\x06" + word(address) + b"\x01"


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def signalled(eventfd: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


# ---- memory


@pytest.mark.needs("readonly_memory", "mmio")
def test_a_write_to_a_read_only_slot_is_an_exit_and_changes_nothing() -> None:
    """KVM_MEM_READONLY: reads come from memory, writes go to the VMM."""
    with Bare(b"\xa0" + word(0x3000) + b"\xe6\x80" + store(0x3000) + HLT) as bare:
        bare.memory.write(0x3000, b"\x77")
        slot = bare.memory.slots[0]
        bare.vm.delete_memory_slot(0)
        parts = [MemorySlot(gpa, size, slot.hva + gpa, gpa == 0x3000, slot.view) for gpa, size in SPLIT]
        for number, part in enumerate(parts):
            bare.vm.set_memory_slot(number, part)
        assert bare.next_exit() == IoExit(0x80, 1, 1, True, b"\x77")
        assert bare.next_exit() == MmioExit(0x3000, 1, True, b"\x01")
        assert bare.next_exit() == HltExit()
        assert bare.memory.read(0x3000, 1) == b"\x77"


SPLIT = [(0, 0x3000), (0x3000, PAGE), (0x4000, 0xC000)]


@pytest.mark.needs("mmio")
def test_a_slot_that_was_taken_away_is_no_memory_any_more() -> None:
    """delete_memory_slot(): what lay there is nobody's, and a new slot shows its own bytes."""
    with Bare(b"\xa0" + word(0x3000) + b"\xe6\x80" + HLT) as bare, GuestMemory(PAGE) as other:
        whole = bare.memory.slots[0]
        bare.vm.delete_memory_slot(0)
        bare.vm.set_memory_slot(0, MemorySlot(0, 0x3000, whole.hva, False, whole.view))
        assert bare.next_exit() == MmioExit(0x3000, 1, False, b"")
        other.write(0, b"\x99")
        bare.vm.set_memory_slot(1, MemorySlot(0x3000, PAGE, other.slots[0].hva, False, other.slots[0].view))
        bare.vcpu.view.answer_mmio(b"\x11")
        assert bare.next_exit() == IoExit(0x80, 1, 1, True, b"\x11")
        assert bare.next_exit() == HltExit()
        bare.vcpu.set_regs({"rip": START, "rflags": 2})
        assert bare.next_exit() == IoExit(0x80, 1, 1, True, b"\x99")


def test_slots_that_overlap_or_are_crooked_are_refused_with_the_reason() -> None:
    """EEXIST and EINVAL, each with its next step."""
    with Bare(HLT) as bare:
        slot = bare.memory.slots[0]
        with pytest.raises(KvmError, match="overlaps another") as caught:
            bare.vm.set_memory_slot(1, slot)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KvmError, match="page-aligned") as caught:
            bare.vm.set_memory_slot(1, MemorySlot(0x100001, PAGE, slot.hva, False, slot.view))
        assert caught.value.errno == errno.EINVAL


@pytest.mark.needs("dirty_log")
def test_the_dirty_log_names_the_pages_written_since_the_last_look() -> None:
    """KVM_GET_DIRTY_LOG: reads don't count, each page once, and the log begins anew.

    KVM may count a page too much, not too few: some count the one that the code is fetched from.
    """
    code = store(0x5123) + store(0x5FFF) + b"\xa0" + word(0x7000) + store(0xA000) + HLT + store(0x6000) + HLT
    with Bare(code) as bare:
        slot = bare.memory.slots[0]
        bare.vm.set_memory_slot(0, slot, log_dirty=True)
        assert bare.next_exit() == HltExit()
        assert [page for page in bare.vm.dirty_pages(0, slot) if page != START] == [0x5000, 0xA000]
        assert bare.vm.dirty_pages(0, slot) == []
        assert bare.next_exit() == HltExit()
        assert bare.vm.dirty_pages(0, slot) == [0x6000]


def test_a_slot_without_a_log_has_none() -> None:
    """ENOENT, not an empty answer."""
    with Bare(HLT) as bare, pytest.raises(KvmError) as caught:
        bare.vm.dirty_pages(0, bare.memory.slots[0])
    assert caught.value.errno == errno.ENOENT


# ---- capabilities


def test_the_vm_knows_its_capabilities() -> None:
    """KVM_CHECK_EXTENSION on the VM: values, and 0 for what is not there."""
    with Kvm() as kvm, Vm(kvm) as vm:
        assert vm.check_extension("KVM_CAP_USER_MEMORY") == 1
        assert vm.check_extension("KVM_CAP_MAX_VCPUS") >= 1
        assert kvm.check_extension(4711) == 0


def test_a_capability_that_can_t_be_enabled_is_refused() -> None:
    """KVM_ENABLE_CAP: EINVAL names the ioctl."""
    with Kvm() as kvm, Vm(kvm) as vm, pytest.raises(KvmError) as caught:
        vm.enable_cap("KVM_CAP_USER_MEMORY", 1)
    assert (caught.value.call, caught.value.errno) == ("KVM_ENABLE_CAP", errno.EINVAL)


def test_more_vcpus_than_there_can_be_are_refused_with_the_next_step() -> None:
    """KVM_CREATE_VCPU beyond the limit, and the same one twice."""
    with Kvm() as kvm, Vm(kvm) as vm:
        with pytest.raises(KvmError, match="more vCPUs than this KVM allows"):
            vm.create_vcpu(1 << 20)
        with vm.create_vcpu(0), pytest.raises(KvmError, match="exists already"):
            vm.create_vcpu(0)


def test_a_vm_can_be_closed_twice() -> None:
    """The second time does nothing."""
    with Kvm() as kvm:
        vm = Vm(kvm)
        vm.close()
        vm.close()


# ---- interrupt controllers


@pytest.mark.needs("irqchip")
def test_there_is_one_irqchip_and_it_comes_first() -> None:
    """A second one, or one after a vCPU, is refused with the reason."""
    with Kvm() as kvm, Vm(kvm) as vm:
        vm.create_irqchip()
        assert vm.has_irqchip
        with pytest.raises(KvmError, match="create it first and once"):
            vm.create_irqchip()
    with Kvm() as kvm, Vm(kvm) as vm, vm.create_vcpu(0), pytest.raises(KvmError):
        vm.create_irqchip()


@pytest.mark.needs("irqchip")
@pytest.mark.parametrize("chip", [0, 1, 2])
def test_an_irqchip_s_state_can_be_taken_and_put_back(chip: int) -> None:
    """KVM_GET_IRQCHIP and KVM_SET_IRQCHIP, for both PICs and the IOAPIC."""
    with Kvm() as kvm, Vm(kvm) as vm:
        vm.create_irqchip()
        state = vm.get_irqchip(chip)
        assert state.chip_id == chip
        vm.set_irqchip(state)
        assert bytes(ffi.buffer(vm.get_irqchip(chip))) == bytes(ffi.buffer(state))


@pytest.mark.needs("irqchip")
def test_the_pit_s_state_can_be_taken_and_put_back() -> None:
    """KVM_GET_PIT2 and KVM_SET_PIT2 fit together."""
    with Kvm() as kvm, Vm(kvm) as vm:
        vm.create_irqchip()
        vm.create_pit()
        state = vm.get_pit()
        vm.set_pit(state)
        assert vm.get_pit().flags == state.flags


@contextmanager
def interruptible() -> Iterator[Bare]:
    """A guest that sleeps with interrupts on, its PIC set up, and tells of each one that comes to VECTOR."""
    sleep = b"\xfb\xf4\xeb\xfd"  # sti; 1: hlt; jmp 1b
    tell = out(IRQ_PORT, MARK) + out(0x20, 0x20) + b"\xcf"  # and end of interrupt; iret
    with Bare(pic_setup() + out(IRQ_PORT, READY) + sleep, irqchip=True) as bare:
        bare.vector(VECTOR, tell, HANDLER)
        assert bare.next_exit() == IoExit(IRQ_PORT, 1, 1, True, bytes([READY]))
        yield bare


@pytest.mark.needs("irqchip", "real16")
def test_an_interrupt_line_interrupts_the_guest() -> None:
    """KVM_IRQ_LINE through the PIC; the device's GsiLine drives it."""
    with interruptible() as bare:
        line = GsiLine(bare.vm, 4)
        for _ in range(3):
            line.set_level(True)
            assert bare.next_exit() == TOLD
            line.set_level(False)


@pytest.mark.needs("irqchip", "real16")
def test_a_line_that_nobody_drives_interrupts_nobody() -> None:
    """The guest sleeps on."""
    with interruptible() as bare:
        bare.vm.irq_line(4, False)
        assert bare.next_exit(0.05) is None


@pytest.mark.needs("irqfd", "real16")
def test_an_eventfd_interrupts_the_guest_until_it_is_removed(eventfd: int) -> None:
    """KVM_IRQFD: each write is one edge."""
    with interruptible() as bare:
        bare.vm.irqfd(eventfd, 4)
        for _ in range(3):
            os.eventfd_write(eventfd, 1)
            assert bare.next_exit() == TOLD
        bare.vm.irqfd(eventfd, 4, remove=True)
        os.eventfd_write(eventfd, 1)
        assert bare.next_exit(0.05) is None


@pytest.mark.needs("irqfd")
def test_a_level_triggered_eventfd_can_be_asked_for(eventfd: int) -> None:
    """KVM_IRQFD with a resample fd: taken on an IOAPIC pin, and taken away again."""
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    with Bare(HLT, irqchip=True) as bare:
        bare.vm.irqfd(eventfd, 10, resample_fd=resample)
        bare.vm.irqfd(eventfd, 10, remove=True)
    os.close(resample)


@pytest.mark.needs("irqchip", "real16")
def test_a_gsi_goes_where_its_route_says() -> None:
    """KVM_SET_GSI_ROUTING: GSI 9 drives pin 4 of the first PIC, and GSI 4 nothing any more."""
    with interruptible() as bare:
        bare.vm.set_gsi_routing([(9, 0, 4)])
        bare.vm.irq_line(9, True)
        assert bare.next_exit() == TOLD
        bare.vm.irq_line(9, False)
        bare.vm.irq_line(4, True)
        assert bare.next_exit(0.05) is None


def enable_apic(bare: Bare) -> None:
    registers = bare.vcpu.get_lapic()
    registers[SVR : SVR + 4] = APIC_ENABLED.to_bytes(4, "little")
    bare.vcpu.set_lapic(registers)


@pytest.mark.needs("irqchip", "real16")
def test_a_message_interrupts_the_guest() -> None:
    """KVM_SIGNAL_MSI to the local APIC with id 0; True says that it arrived."""
    with interruptible() as bare:
        enable_apic(bare)
        assert bare.vm.signal_msi(APIC, VECTOR)
        assert bare.next_exit() == TOLD


@pytest.mark.needs("irqfd", "real16")
def test_a_gsi_can_be_a_message(eventfd: int) -> None:
    """A route to an MSI, raised by an eventfd."""
    with interruptible() as bare:
        enable_apic(bare)
        bare.vm.set_gsi_routing([(30, APIC << 32 | VECTOR)])
        bare.vm.irqfd(eventfd, 30)
        os.eventfd_write(eventfd, 1)
        assert bare.next_exit() == TOLD


# ---- eventfds for writes


@pytest.mark.needs("ioeventfd")
def test_a_port_s_eventfd_is_signalled_without_an_exit(eventfd: int) -> None:
    """KVM_IOEVENTFD on a port: each OUT counts, other ports come out as before."""
    with Bare(out(0x70, 1) + out(0x70, 2) + out(0x71, 3) + HLT) as bare:
        bare.vm.ioeventfd(eventfd, 0x70, 1, pio=True)
        assert bare.next_exit() == IoExit(0x71, 1, 1, True, b"\x03")
        assert signalled(eventfd) == 2
        assert bare.next_exit() == HltExit()


@pytest.mark.needs("ioeventfd")
def test_an_eventfd_may_wait_for_one_value(eventfd: int) -> None:
    """Other values are exits; removed, all are."""
    with Bare((out(0x70, 1) + out(0x70, 2) + HLT) * 2) as bare:
        bare.vm.ioeventfd(eventfd, 0x70, 1, pio=True, match=2)
        assert bare.next_exit() == IoExit(0x70, 1, 1, True, b"\x01")
        assert bare.next_exit() == HltExit()
        assert signalled(eventfd) == 1
        bare.vm.ioeventfd(eventfd, 0x70, 1, pio=True, match=2, remove=True)
        assert bare.next_exit() == IoExit(0x70, 1, 1, True, b"\x01")
        assert bare.next_exit() == IoExit(0x70, 1, 1, True, b"\x02")
        assert signalled(eventfd) == 0


@pytest.mark.needs("ioeventfd", "mmio")
def test_an_address_s_eventfd_is_signalled_without_an_exit(eventfd: int) -> None:
    """KVM_IOEVENTFD on an MMIO address that the real-mode guest reaches through DS."""
    code = b"\xb8\x00\xf0\x8e\xd8" + store(0x0010) + HLT  # mov $0xf000, %ax; mov %ax, %ds; movb $1, 0x10
    with Bare(code) as bare:
        bare.vm.ioeventfd(eventfd, 0xF0010, 1)
        assert bare.next_exit() == HltExit()
        assert signalled(eventfd) == 1


# ---- time, MSRs, statistics


def test_the_guest_s_clock_can_be_set() -> None:
    """KVM_SET_CLOCK, and KVM_GET_CLOCK goes on from there."""
    with Bare(HLT, irqchip=True) as bare:
        hour = 3600 * 10**9
        bare.vm.set_clock(hour)
        assert hour <= bare.vm.get_clock().clock < hour + 60 * 10**9


@pytest.mark.needs("msr_filter")
def test_filtered_msrs_come_to_us() -> None:
    """Writes of one MSR by filter; reads pass; the answer decides what the guest sees."""
    wrmsr = b"\x66\xb9" + LSTAR.to_bytes(4, "little") + b"\x66\xb8\x78\x56\x34\x12\x66\x31\xd2\x0f\x30"
    with Bare(wrmsr + b"\x0f\x32\xe6\x80" + HLT) as bare:  # wrmsr; rdmsr; out %al, $0x80
        bare.vm.filter_msrs([LSTAR])
        found = bare.next_exit()
        assert found == MsrExit(LSTAR, True, 0x12345678, lib.KVM_MSR_EXIT_REASON_FILTER)
        bare.vcpu.view.msr.error = 0
        assert isinstance(bare.next_exit(), IoExit)
        assert bare.next_exit() == HltExit()


def test_statistics_have_a_header_and_descriptors() -> None:
    """KVM_GET_STATS_FD of VM and vCPU: binary statistics that describe themselves."""
    with Bare(HLT) as bare:
        for fd in (bare.vm.stats_fd(), bare.vcpu.stats_fd()):
            header = ffi.new("struct kvm_stats_header *")
            ffi.buffer(header)[:] = os.pread(fd, ffi.sizeof("struct kvm_stats_header"), 0)
            os.close(fd)
            assert header.num_desc > 0
            assert header.desc_offset < header.data_offset
