"""One vCPU: its registers, its kick, and the entry into the C exit loop. The vCPU fd.

Source: the kernel's Documentation/virt/kvm/api.rst, "vcpu ioctls".
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Self

from pykvm._native import ffi, lib
from pykvm.errors import ConfigError, KvmError
from pykvm.exits import RunView
from pykvm.ioctls import call, call_sized
from pykvm.kvm import cpuid_row, get_msrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pykvm.regs import CpuState

__all__ = ["GENERAL_REGISTERS", "LoopResult", "Ticks", "Vcpu"]

GENERAL_REGISTERS = (
    "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"  # as in struct kvm_regs
).split()
_TICK_S = 0.01
_LONGEST_S = 1e9
_MSR_TSC = 0x10
_TSC_TRIES = 5
SEGMENTS = "cs ds es fs gs ss tr ldt".split()


class LoopResult(enum.IntEnum):
    """Why the C exit loop returned; the values are enum loop_result of vcpu_run.h."""

    EXIT = lib.LOOP_EXIT
    KICKED = lib.LOOP_KICKED
    SIGNAL = lib.LOOP_SIGNAL
    TRACE_FULL = lib.LOOP_TRACE_FULL
    CONSOLE_FULL = lib.LOOP_CONSOLE_FULL
    ERROR = lib.LOOP_ERROR


@cache
def _kick_signal() -> int:
    signal: int = lib.kick_signal_install()
    if signal < 0:
        raise KvmError(-signal, "sigaction")
    return signal


class Ticks:
    """Takes the thread that enters it out of KVM_RUN now and then: Vcpu.enter() returns LoopResult.SIGNAL.

    First after `first_s` seconds or `interval_s`, whichever is less, then every `interval_s`. No first
    and no interval: never. A tick that falls between two entries is lost; the next one comes.
    """

    def __init__(self, first_s: float | None, interval_s: float) -> None:
        self._times_s = first_s, interval_s
        self._timer = -1

    def __enter__(self) -> Self:
        self.restart(*self._times_s)
        return self

    def restart(self, first_s: float | None, interval_s: float) -> None:
        """Tick by these times from now on; only in the thread that has entered."""
        self._stop()
        if first_s is None and not interval_s > 0:
            return
        _kick_signal()  # or the first tick ends the process
        first_s = min(t for t in (first_s, interval_s or None, _LONGEST_S) if t is not None)
        self._timer = lib.tick_start(max(int(first_s * 1e9), 1), int((interval_s or _TICK_S) * 1e9))
        if self._timer < 0:
            raise KvmError(-self._timer, "timer_create")

    def _stop(self) -> None:
        if self._timer >= 0:
            lib.tick_stop(self._timer)
        self._timer = -1

    def __exit__(self, *exc: object) -> None:
        self._stop()


class Vcpu:
    """A vCPU's fd, its kvm_run mapping, and its `struct exit_loop`."""

    def __init__(self, fd: int, number: int, run_bytes: int) -> None:
        """`fd` comes from KVM_CREATE_VCPU, `run_bytes` from KVM_GET_VCPU_MMAP_SIZE."""
        _kick_signal()
        self.fd = fd
        self.number = number
        try:
            self._map = mmap.mmap(fd, run_bytes)
        except OSError as error:
            os.close(fd)
            raise KvmError(error.errno or 0, "mmap of a vCPU") from None
        self.view = RunView(self._map)
        self.thread = 0  # threading.get_ident() of who runs it
        self.loop = ffi.new("struct exit_loop *", {"fd": fd, "vcpu": number, "run_bytes": run_bytes})
        self.loop.run = self.view.run
        self.enter: Callable[[], int] = partial(lib.exit_loop_run, self.loop)
        """Runs the guest in the calling thread until Python is needed: a LoopResult.

        Python's lock is free meanwhile. On LoopResult.ERROR, `loop.error` is the errno of KVM_RUN.
        """
        self._keep: list[object] = []  # what `loop` points to

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the vCPU back.

        Raises ConfigError while a thread is in enter(), which would go on without its memory.
        """
        if self.loop.tid:
            raise ConfigError(f"vCPU {self.number} is running: kick it, and wait for its thread, first")
        if self.fd >= 0:
            self.loop.run = ffi.NULL
            self.view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    # ---- running

    def share(self, shared: Any) -> None:
        """Use a machine's `struct loop_shared`: its fast ports and slots."""
        self.loop.shared = shared
        self._keep.append(shared)

    def sync_registers(self, *, special: bool = False) -> None:
        """Let KVM copy the general registers, and the `special` ones, into kvm_run at every exit."""
        self.view.run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS | (lib.KVM_SYNC_X86_SREGS if special else 0)

    def kick(self) -> None:
        """Make enter() return LoopResult.KICKED now or, if it is not inside, at its next call.

        From any thread. It never gets lost, and two kicks before a return count as one.
        """
        lib.exit_loop_kick(self.loop)

    def is_halted_for_good(self) -> bool:
        """Whether the vCPU waits for what can't come by itself: HLT with interrupts off, or no SIPI yet.

        Right after a kick only: kvm_run tells the interrupt flag of the last return.
        """
        state = self.get_mp_state()
        if state == lib.KVM_MP_STATE_HALTED:
            return not self.view.run.if_flag
        return state in (lib.KVM_MP_STATE_UNINITIALIZED, lib.KVM_MP_STATE_INIT_RECEIVED)

    def finish_io(self) -> None:
        """Let KVM complete the last I/O, so that registers read from now on show its result."""
        self.view.run.immediate_exit = 1
        try:
            call(self.fd, "KVM_RUN")
        except KvmError as error:
            if error.errno != errno.EINTR:
                raise
        finally:
            self.view.run.immediate_exit = 0

    # ---- registers

    def get_regs(self) -> dict[str, int]:
        """KVM_GET_REGS: the general registers, rip and rflags by name."""
        regs = self._get("KVM_GET_REGS", "struct kvm_regs")
        return {name: getattr(regs, name) for name in GENERAL_REGISTERS}

    def set_regs(self, values: Mapping[str, int]) -> None:
        """KVM_SET_REGS: the given registers; all others become 0."""
        call(self.fd, "KVM_SET_REGS", ffi.new("struct kvm_regs *", dict(values)))

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS as struct kvm_sregs: segments, tables, control registers, EFER."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs")

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        call(self.fd, "KVM_SET_SREGS", sregs)

    def apply(self, state: CpuState) -> None:
        """Put the vCPU into a start state (see `pykvm.regs`); what the state does not name stays."""
        sregs = self.get_sregs()
        for name, segment in state.segments.items():
            target = getattr(sregs, name)
            for field in ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g"):
                setattr(target, field, getattr(segment, field))
            target.unusable = 0 if segment.present else 1
        for name, (base, limit) in state.tables.items():
            table = getattr(sregs, name)
            table.base, table.limit = base, limit
        for name, value in state.control.items():
            setattr(sregs, name, value)
        self.set_sregs(sregs)
        self.set_regs(state.regs)

    def get_fpu(self) -> Any:
        """KVM_GET_FPU as struct kvm_fpu."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu")

    def set_fpu(self, fpu: Any) -> None:
        """KVM_SET_FPU."""
        call(self.fd, "KVM_SET_FPU", fpu)

    def reset_fpu(self) -> None:
        """Put the FPU as FNINIT leaves it, with fcw 0x37f and empty registers; MXCSR stays.

        KVM_SET_FPU has a field for MXCSR and does not look at it: a new vCPU has 0x1f80, XSAVE can change it.
        """
        self.set_fpu(ffi.new("struct kvm_fpu *", {"fcw": 0x37F}))

    def get_xsave(self) -> Any:
        """KVM_GET_XSAVE as struct kvm_xsave, 4096 bytes."""
        return self._get("KVM_GET_XSAVE", "struct kvm_xsave")

    def set_xsave(self, xsave: Any) -> None:
        """KVM_SET_XSAVE."""
        call(self.fd, "KVM_SET_XSAVE", xsave)

    def get_xcrs(self) -> dict[int, int]:
        """KVM_GET_XCRS: XCR number -> value."""
        xcrs = self._get("KVM_GET_XCRS", "struct kvm_xcrs")
        return {xcrs.xcrs[i].xcr: xcrs.xcrs[i].value for i in range(xcrs.nr_xcrs)}

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_XCRS."""
        xcrs = ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(values)})
        for slot, (number, value) in zip(xcrs.xcrs, values.items(), strict=False):
            slot.xcr, slot.value = number, value
        call(self.fd, "KVM_SET_XCRS", xcrs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: index -> value, of those that KVM lets us read."""
        return get_msrs(self.fd, list(indices))

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS; a KvmError names the first that KVM refused."""
        entries = [{"index": index, "data": data} for index, data in values.items()]
        msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
        done = call(self.fd, "KVM_SET_MSRS", msrs)
        if done < len(entries):
            raise KvmError(errno.EINVAL, "KVM_SET_MSRS", f"KVM refused MSR {entries[done]['index']:#x}")

    def get_cpuid(self) -> list[tuple[int, ...]]:
        """KVM_GET_CPUID2 as (function, index, flags, eax, ebx, ecx, edx) rows."""
        found = call_sized(self.fd, "KVM_GET_CPUID2", "struct kvm_cpuid2", "nent", 128)
        rows = [cpuid_row(found.entries[i]) for i in range(found.nent)]
        while rows and not any(rows[-1]):  # kernels up to 6.2 leave `nent` as we gave it
            rows.pop()
        return rows

    def set_cpuid(self, rows: Iterable[tuple[int, ...]]) -> None:
        """KVM_SET_CPUID2 from rows as get_cpuid() gives them; before the first run."""
        entries = list(rows)  # in the order of struct kvm_cpuid_entry2
        table = ffi.new("struct kvm_cpuid2 *", {"nent": len(entries), "entries": entries})
        call(self.fd, "KVM_SET_CPUID2", table)

    def get_lapic(self) -> bytearray:
        """KVM_GET_LAPIC: the 1024 bytes of the local APIC's register page."""
        state = self._get("KVM_GET_LAPIC", "struct kvm_lapic_state")
        return bytearray(ffi.buffer(state))

    def set_lapic(self, registers: bytes | bytearray) -> None:
        """KVM_SET_LAPIC: the 1024 bytes of the register page."""
        state = ffi.new("struct kvm_lapic_state *")
        ffi.buffer(state)[:] = bytes(registers)
        call(self.fd, "KVM_SET_LAPIC", state)

    def get_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS as struct kvm_vcpu_events."""
        return self._get("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events")

    def set_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS."""
        call(self.fd, "KVM_SET_VCPU_EVENTS", events)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_RUNNABLE, _UNINITIALIZED, _HALTED …"""
        return int(self._get("KVM_GET_MP_STATE", "struct kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        call(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)))

    def get_debugregs(self) -> Any:
        """KVM_GET_DEBUGREGS as struct kvm_debugregs."""
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs")

    def set_debugregs(self, registers: Any) -> None:
        """KVM_SET_DEBUGREGS."""
        call(self.fd, "KVM_SET_DEBUGREGS", registers)

    # ---- debugging and events

    def guest_debug(
        self,
        *,
        step: bool = False,
        software: bool = False,
        breakpoints: Iterable[int] = (),
        enable: bool = True,
    ) -> None:
        """KVM_SET_GUEST_DEBUG: single step, INT3 as an exit, and up to four execution breakpoints.

        `breakpoints` are linear addresses (SDM vol. 3, 18.2: DR0-DR3, enabled in DR7).
        """
        debug = ffi.new("struct kvm_guest_debug *")
        addresses = list(breakpoints)
        if enable:
            debug.control = lib.KVM_GUESTDBG_ENABLE
            debug.control |= lib.KVM_GUESTDBG_SINGLESTEP if step else 0
            debug.control |= lib.KVM_GUESTDBG_USE_SW_BP if software else 0
            debug.control |= lib.KVM_GUESTDBG_USE_HW_BP if addresses else 0
        for number, address in enumerate(addresses):
            debug.arch.debugreg[number] = address
            debug.arch.debugreg[7] |= 2 << (number * 2)  # G0-G3; length and type 0: execution
        call(self.fd, "KVM_SET_GUEST_DEBUG", debug)

    def translate(self, gva: int) -> int | None:
        """KVM_TRANSLATE: the gpa behind a gva by the vCPU's current tables, None if it is not mapped."""
        request = ffi.new("struct kvm_translation *", {"linear_address": gva})
        call(self.fd, "KVM_TRANSLATE", request)
        return int(request.physical_address) if request.valid else None

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: queue an external interrupt; only without an in-kernel irqchip."""
        call(self.fd, "KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt."""
        call(self.fd, "KVM_NMI")

    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's TSC frequency."""
        return call(self.fd, "KVM_GET_TSC_KHZ")

    def tsc_offset(self) -> int:
        """The guest's TSC minus the host's, in ticks modulo 2**64; from the vCPU's thread, or before it runs.

        KVM tells it exactly (KVM_VCPU_TSC_OFFSET, since Linux 5.16); of an older one it is measured.
        """
        value = ffi.new("__u64 *")
        attribute = {"group": 0, "attr": 0, "addr": int(ffi.cast("uintptr_t", value))}  # KVM_VCPU_TSC_CTRL
        try:
            call(self.fd, "KVM_GET_DEVICE_ATTR", ffi.new("struct kvm_device_attr *", attribute))
        except KvmError:
            return self._measured_tsc_offset()
        return int(value[0])

    def _measured_tsc_offset(self) -> int:
        found = []
        for _ in range(_TSC_TRIES):
            before = lib.tsc_now()
            guest: int = self.get_msrs([_MSR_TSC])[_MSR_TSC]
            after = lib.tsc_now()
            found.append((after - before, (guest - (before + after) // 2) % (1 << 64)))
        return int(min(found)[1])

    def stats_fd(self) -> int:
        """KVM_GET_STATS_FD: an fd of the vCPU's binary statistics; the caller closes it."""
        return call(self.fd, "KVM_GET_STATS_FD")

    def _get(self, name: str, kind: str) -> Any:
        target = ffi.new(f"{kind} *")
        call(self.fd, name, target)
        return target
