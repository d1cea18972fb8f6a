"""The vCPU's ioctls, each done for real on this KVM; its entry, its kicks and its ticks."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bare import PAGE, START, Bare, out

from pykvm._native import lib
from pykvm.errors import ConfigError, KvmError
from pykvm.exits import DebugExit, HltExit, InternalErrorExit, IoExit, ShutdownExit
from pykvm.regs import PAGE_TABLES_OFFSET, CpuMode, boot_structures, initial_state
from pykvm.vcpu import GENERAL_REGISTERS, LoopResult, Ticks, Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator

HLT = b"\xf4"
SPIN = b"\xeb\xfe"
NOP = b"\x90"
IN_AL_80 = b"\xe4\x80"
LSTAR, STAR, NO_SUCH_MSR = 0xC0000082, 0xC0000081, 0x12345678
BOOT, PAGE_DIRECTORY = 0x8000, PAGE_TABLES_OFFSET + 2 * PAGE
EFER, EFER_WRONG = 0xC0000080, 1 << 63


@pytest.fixture
def bare() -> Iterator[Bare]:
    with Bare(HLT) as bare:
        yield bare


@pytest.fixture
def vcpu(bare: Bare) -> Vcpu:
    return bare.vcpu


# ---- registers


def test_general_registers_come_back_as_they_were_set(vcpu: Vcpu) -> None:
    """KVM_SET_REGS and KVM_GET_REGS, every one of them and all 64 bits."""
    wanted = {name: (0x0101010101010101 * i) & (1 << 64) - 1 for i, name in enumerate(GENERAL_REGISTERS, 1)}
    wanted["rflags"] = 0x202
    vcpu.set_regs(wanted)
    assert vcpu.get_regs() == wanted
    vcpu.set_regs({"rip": 5, "rflags": 2})
    assert vcpu.get_regs() == dict.fromkeys(GENERAL_REGISTERS, 0) | {"rip": 5, "rflags": 2}


def test_special_registers_come_back_as_they_were_set(vcpu: Vcpu) -> None:
    """KVM_SET_SREGS: segments, tables, control registers."""
    sregs = vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0x12340, 0x1234
    sregs.gdt.base, sregs.gdt.limit = 0x5000, 0x57
    sregs.cr3 = 0x6000
    vcpu.set_sregs(sregs)
    again = vcpu.get_sregs()
    assert (again.cs.base, again.cs.selector, again.gdt.base, again.gdt.limit) == (
        0x12340,
        0x1234,
        0x5000,
        0x57,
    )
    assert again.cr3 == 0x6000


def test_a_start_state_is_applied_and_the_rest_stays(vcpu: Vcpu) -> None:
    """apply(): what the state names changes, what it does not stays."""
    sregs = vcpu.get_sregs()
    sregs.cr2 = 0x777
    vcpu.set_sregs(sregs)
    vcpu.apply(initial_state(CpuMode.PROT32, 0x2000, boot=0x8000, stack=0x7000))
    assert vcpu.get_regs()["rip"] == 0x2000
    assert vcpu.get_sregs().cr0 & 1
    assert vcpu.get_sregs().cr2 == 0x777


def test_the_fpu_comes_back_and_resets(vcpu: Vcpu) -> None:
    """KVM_SET_FPU; reset_fpu() is what FNINIT leaves."""
    fpu = vcpu.get_fpu()
    fpu.fcw = 0x27F
    fpu.xmm[3][5] = 0xAB
    vcpu.set_fpu(fpu)
    again = vcpu.get_fpu()
    assert (again.fcw, again.xmm[3][5]) == (0x27F, 0xAB)
    vcpu.reset_fpu()
    assert (vcpu.get_fpu().fcw, vcpu.get_fpu().xmm[3][5]) == (0x37F, 0)


def test_the_xsave_area_shows_the_same_fpu(vcpu: Vcpu) -> None:
    """KVM_SET_XSAVE: FCW is the first word, where the header at byte 512 says so (SDM vol. 1, 13.4)."""
    area = vcpu.get_xsave()
    area.region[0] = area.region[0] & ~0xFFFF | 0x27F
    area.region[512 // 4] |= 1
    vcpu.set_xsave(area)
    assert vcpu.get_fpu().fcw == 0x27F
    assert vcpu.get_xsave().region[0] & 0xFFFF == 0x27F


def test_extended_control_registers_come_back(vcpu: Vcpu) -> None:
    """KVM_GET_XCRS: XCR0 has the x87 bit always; KVM_SET_XCRS takes what was got."""
    xcrs = vcpu.get_xcrs()
    assert xcrs[0] & 1
    vcpu.set_xcrs(xcrs)
    assert vcpu.get_xcrs() == xcrs


def test_msrs_come_back_and_a_refused_one_is_named(vcpu: Vcpu) -> None:
    """KVM_SET_MSRS stops at the first that KVM refuses; those before it are set."""
    vcpu.set_msrs({LSTAR: 0xFFFFFFFF81000000, STAR: 0x23001000000000})
    assert vcpu.get_msrs([LSTAR, STAR]) == {LSTAR: 0xFFFFFFFF81000000, STAR: 0x23001000000000}
    with pytest.raises(KvmError, match="KVM refused MSR 0xc0000080") as caught:
        vcpu.set_msrs({STAR: 0, EFER: EFER_WRONG, LSTAR: 0})
    assert caught.value.errno == errno.EINVAL
    assert vcpu.get_msrs([STAR, LSTAR]) == {STAR: 0, LSTAR: 0xFFFFFFFF81000000}
    assert vcpu.get_msrs([NO_SUCH_MSR, STAR]) == {STAR: 0}


def test_cpuid_comes_back_as_it_was_set(bare: Bare) -> None:
    """KVM_SET_CPUID2 and KVM_GET_CPUID2: the same rows; leaf 1 may follow the vCPU's state."""
    rows = [row for row in bare.kvm.supported_cpuid() if row[0] in (0, 0x80000000)]
    bare.vcpu.set_cpuid(rows)
    assert bare.vcpu.get_cpuid() == rows


@pytest.mark.needs("irqchip")
def test_the_local_apic_s_registers_come_back() -> None:
    """KVM_GET_LAPIC gives the 1024 bytes of the register page; the id is the vCPU's number."""
    with Bare(HLT, irqchip=True) as bare, bare.vm.create_vcpu(5) as sixth:
        registers = bare.vcpu.get_lapic()
        assert len(registers) == 1024
        registers[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
        bare.vcpu.set_lapic(registers)
        assert bare.vcpu.get_lapic()[0xF0:0xF4] == (0x1FF).to_bytes(4, "little")
        assert sixth.get_lapic()[0x23] == 5


def test_events_and_debug_registers_come_back(vcpu: Vcpu) -> None:
    """KVM_SET_VCPU_EVENTS and KVM_SET_DEBUGREGS take what was got."""
    vcpu.set_events(vcpu.get_events())
    registers = vcpu.get_debugregs()
    registers.db[0], registers.db[3] = 0x1000, 0x4000
    vcpu.set_debugregs(registers)
    assert list(vcpu.get_debugregs().db) == [0x1000, 0, 0, 0x4000]


@pytest.mark.needs("irqchip")
def test_a_second_vcpu_waits_to_be_started() -> None:
    """KVM_GET_MP_STATE: the first runs, the second has not had its INIT; KVM_SET_MP_STATE makes it run."""
    with Bare(HLT, irqchip=True) as bare, bare.vm.create_vcpu(1) as second:
        assert bare.vcpu.get_mp_state() == lib.KVM_MP_STATE_RUNNABLE
        assert second.get_mp_state() == lib.KVM_MP_STATE_UNINITIALIZED
        assert second.is_halted_for_good()
        second.set_mp_state(lib.KVM_MP_STATE_RUNNABLE)
        assert second.get_mp_state() == lib.KVM_MP_STATE_RUNNABLE
        assert not second.is_halted_for_good()


@pytest.mark.needs("long64")
def test_a_virtual_address_is_translated_by_the_guest_s_own_tables(bare: Bare) -> None:
    """KVM_TRANSLATE: without paging an address is itself; with it, what is not mapped is nowhere."""
    assert bare.vcpu.translate(0x1234) == 0x1234
    for gpa, data in boot_structures(CpuMode.LONG64, BOOT, bare.memory.size_bytes).items():
        bare.memory.write(gpa, data)
    second_page = BOOT + PAGE_DIRECTORY + 8
    bare.memory.write(second_page, (0x83).to_bytes(8, "little"))  # 2 MiB at 0: present, writable, large
    bare.vcpu.apply(initial_state(CpuMode.LONG64, START, boot=BOOT, stack=BOOT))
    assert bare.vcpu.translate(0x1234) == 0x1234
    assert bare.vcpu.translate(0x20_0123) == 0x123
    assert bare.vcpu.translate(5 << 30) is None


# ---- entry and exit


def test_a_guest_runs_from_exit_to_exit() -> None:
    """enter() gives each exit once, the answer to a read reaches the guest, and HLT comes out."""
    with Bare(out(0x80, 7) + IN_AL_80 + b"\xe6\x81" + HLT) as bare:
        assert bare.next_exit() == IoExit(0x80, 1, 1, True, b"\x07")
        assert bare.next_exit() == IoExit(0x80, 1, 1, False, b"")
        bare.vcpu.view.answer_io(b"\x5a")
        assert bare.next_exit() == IoExit(0x81, 1, 1, True, b"\x5a")
        assert bare.next_exit() == HltExit()


def test_string_output_arrives_whole() -> None:
    """REP OUTSB: KVM may give several bytes in one exit, and all of them arrive in order."""
    text = bytes(range(100, 180))
    code = b"\xbe\x00\x30\xb9\x50\x00\xba\x80\x00\xf3\x6e" + HLT  # %si, %cx = 80, %dx; rep outsb
    with Bare(code) as bare:
        bare.memory.write(0x3000, text)
        got = b""
        while isinstance(found := bare.next_exit(), IoExit):
            assert found.size * found.count == len(found.data)
            got += found.data
        assert found == HltExit()
        assert got == text


def test_string_input_arrives_whole() -> None:
    """REP INSB: the answers of one exit fill as many elements as it asked for."""
    code = b"\xbf\x00\x30\xb9\x14\x00\xba\x80\x00\xf3\x6c" + HLT  # %di, %cx = 20, %dx; rep insb
    with Bare(code) as bare:
        given = b""
        while isinstance(found := bare.next_exit(), IoExit):
            answer = bytes(range(len(given), len(given) + found.count))
            bare.vcpu.view.answer_io(answer)
            given += answer
        assert bare.memory.read(0x3000, 20) == given == bytes(range(20))


@pytest.mark.needs("prot32")
def test_a_triple_fault_is_an_exit() -> None:
    """Without an IDT an exception shuts the CPU down."""
    with Bare(b"\x0f\x0b" + HLT) as bare:  # ud2
        for gpa, data in boot_structures(CpuMode.PROT32, BOOT, bare.memory.size_bytes).items():
            bare.memory.write(gpa, data)
        bare.vcpu.apply(initial_state(CpuMode.PROT32, START, boot=BOOT, stack=BOOT))
        assert bare.next_exit() == ShutdownExit()


@pytest.mark.needs("sync_regs")
def test_registers_lie_in_kvm_run_at_each_exit() -> None:
    """KVM_CAP_SYNC_REGS: no ioctl, the same values; the special ones on demand."""
    with Bare(b"\xb8\x34\x12" + out(0x80, 0x77) + HLT) as bare:
        bare.vcpu.sync_registers(special=True)
        bare.next_exit()
        synced = bare.vcpu.view.synced
        assert synced.regs.rax == 0x1277
        assert synced.regs.rip in (START + 5, START + 7)
        assert synced.sregs.cr0 == bare.vcpu.get_sregs().cr0


@pytest.mark.needs("kvm_run")
def test_finishing_an_access_shows_its_result_in_the_registers() -> None:
    """finish_io(): KVM completes the IN, and the guest does not go on."""
    with Bare(b"\x31\xc0" + IN_AL_80 + HLT) as bare:
        bare.next_exit()
        bare.vcpu.view.answer_io(b"\x5a")
        bare.vcpu.finish_io()
        assert bare.vcpu.get_regs()["rax"] & 0xFF == 0x5A
        assert bare.vcpu.get_regs()["rip"] == START + 4
        assert bare.next_exit() == HltExit()


def test_an_interrupt_can_be_queued_without_an_irqchip() -> None:
    """KVM_INTERRUPT: the guest takes the vector as soon as it can."""
    with Bare(b"\xfb" + NOP * 4 + out(0x81, 1) + HLT) as bare:
        bare.vector(0x40, out(0x80, 0x40) + HLT, 0x2000)
        bare.vcpu.interrupt(0x40)
        found = []
        while (exit_ := bare.next_exit()) != HltExit():
            found.append(exit_)
        assert IoExit(0x80, 1, 1, True, b"\x40") in found


def test_an_nmi_can_be_queued() -> None:
    """KVM_NMI: vector 2, whether interrupts are on or off."""
    with Bare(b"\xfa" + NOP * 4 + out(0x81, 1) + HLT) as bare:
        bare.vector(2, out(0x80, 2) + HLT, 0x2000)
        bare.vcpu.nmi()
        assert bare.next_exit() == IoExit(0x80, 1, 1, True, b"\x02")


@pytest.mark.needs("single_step")
def test_each_instruction_can_stop_the_guest() -> None:
    """KVM_GUESTDBG_SINGLESTEP: one exit per instruction, with where it stopped; off again, none."""
    with Bare(NOP * 3 + HLT) as bare:
        bare.vcpu.guest_debug(step=True)
        stops = [bare.next_exit() for _ in range(2)]
        assert [(s.exception, s.pc) for s in stops if isinstance(s, DebugExit)] == [
            (1, START + 1),
            (1, START + 2),
        ]
        bare.vcpu.guest_debug(enable=False)
        assert bare.next_exit() == HltExit()


@pytest.mark.needs("hw_breakpoint")
def test_breakpoints_stop_the_guest_where_they_are() -> None:
    """KVM_GUESTDBG_USE_HW_BP with two addresses: the guest stops before the instruction."""
    with Bare(NOP * 6 + HLT) as bare:
        bare.vcpu.guest_debug(breakpoints=[START + 2, START + 4])
        first = bare.next_exit()
        assert isinstance(first, DebugExit)
        assert (first.exception, first.pc) == (1, START + 2)
        bare.vcpu.guest_debug(breakpoints=[START + 4])
        second = bare.next_exit()
        assert isinstance(second, DebugExit)
        assert second.pc == START + 4
        bare.vcpu.guest_debug(enable=False)
        assert bare.next_exit() == HltExit()


def test_the_guest_s_tsc_has_a_frequency(vcpu: Vcpu) -> None:
    """KVM_GET_TSC_KHZ."""
    assert vcpu.tsc_khz() > 10_000


# ---- kicks and ticks


def test_a_kick_before_the_entry_is_not_lost() -> None:
    """enter() returns at once, once; the guest has not moved."""
    with Bare(SPIN) as bare:
        bare.vcpu.kick()
        bare.vcpu.kick()
        assert bare.vcpu.enter() == LoopResult.KICKED
        assert bare.next_exit(0.02) is None
        assert bare.vcpu.get_regs()["rip"] == START


def test_a_kick_ends_a_guest_that_never_exits() -> None:
    """From another thread, again and again; each kick is one return."""
    with Bare(SPIN) as bare:
        results: list[int] = []
        gate = threading.Semaphore(0)

        def run() -> None:
            for _ in range(50):
                results.append(bare.vcpu.enter())
                gate.release()

        thread = threading.Thread(target=run)
        thread.start()
        for _ in range(50):
            bare.vcpu.kick()
            assert gate.acquire(timeout=10), "a kick got lost"
        thread.join(10)
        assert set(results) <= {LoopResult.KICKED, LoopResult.SIGNAL}


@pytest.mark.needs("irqchip")
def test_a_kick_ends_a_sleep_in_the_kernel() -> None:
    """HLT with an in-kernel irqchip and interrupts off: the vCPU sleeps for good, and can be taken out."""
    with Bare(b"\xfa" + HLT, irqchip=True) as bare:
        thread = threading.Thread(target=bare.vcpu.enter)
        thread.start()
        bare.vcpu.kick()
        thread.join(10)
        assert not thread.is_alive()


def test_no_kick_gets_lost_between_exits() -> None:
    """A guest that exits all the time, kicked all the time: each kick is answered before the next."""
    with Bare(out(0x80, 1) + b"\xeb" + bytes([256 - 6])) as bare:  # 1: mov $1, %al; out %al, $0x80; jmp 1b
        answered = threading.Semaphore(0)
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                if bare.vcpu.enter() == LoopResult.KICKED:
                    answered.release()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            for _ in range(300):
                bare.vcpu.kick()
                assert answered.acquire(timeout=10), "a kick got lost"
        finally:
            over.set()
            bare.vcpu.kick()
            thread.join(10)


def test_ticks_take_the_thread_out_at_their_time() -> None:
    """Not before the first, then again and again, and not after the block."""
    with Bare(SPIN) as bare:
        began = time.monotonic()
        with Ticks(0.03, 0.01):
            assert bare.vcpu.enter() == LoopResult.SIGNAL
            assert time.monotonic() - began >= 0.01
            assert bare.vcpu.enter() == LoopResult.SIGNAL
        timers = Path("/proc/self/timers")
        assert not timers.exists() or timers.read_text() == ""


# ---- the end


def test_a_closed_vcpu_answers_with_errors_and_not_with_a_crash() -> None:
    """enter(), kick() and close() again are safe."""
    with Bare(HLT) as bare:
        vcpu = bare.vcpu
        vcpu.close()
        vcpu.close()
        vcpu.kick()
        assert vcpu.enter() == LoopResult.ERROR
        assert vcpu.loop.error == errno.EBADF
        with pytest.raises(KvmError):
            vcpu.get_regs()


def test_a_guest_without_memory_to_run_from_is_an_internal_error() -> None:
    """KVM's emulator can't fetch the instruction, and says so instead of running wild."""
    with Bare(HLT) as bare:
        bare.vm.delete_memory_slot(0)
        found = bare.next_exit()
        assert isinstance(found, InternalErrorExit)
        assert found.suberror == 1


def test_making_and_closing_leaves_nothing() -> None:
    """fds and mappings are as before."""
    with Bare(HLT):
        pass
    before = len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())  # noqa: PTH208
    for _ in range(10):
        with Bare(HLT) as bare:
            bare.next_exit()
    after = len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines())  # noqa: PTH208
    assert after[0] == before[0]
    assert after[1] <= before[1] + 2


def test_a_running_vcpu_is_not_closed_under_its_thread() -> None:
    """close() refuses, the guest runs on, and after a kick it can be closed."""
    with Bare(SPIN) as bare:
        thread = threading.Thread(target=bare.vcpu.enter)
        thread.start()
        while not bare.vcpu.loop.tid:
            os.sched_yield()
        with pytest.raises(ConfigError, match="is running"):
            bare.vcpu.close()
        bare.vcpu.kick()
        thread.join(10)
