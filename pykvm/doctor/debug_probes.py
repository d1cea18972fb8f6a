"""Probes of KVM_SET_GUEST_DEBUG: single step, hardware and software breakpoints."""

from __future__ import annotations

from pykvm.doctor.outcome import Outcome, differs, fails, works
from pykvm.doctor.rig import Rig
from pykvm.exits import DebugExit, IoExit, ShutdownExit

__all__ = ["hw_breakpoint", "single_step", "sw_breakpoint"]

_DB, _BP = 1, 3


def single_step() -> Outcome:
    """Every instruction becomes KVM_EXIT_DEBUG."""
    with Rig("step") as rig:
        rig.vcpu.guest_debug(step=True)
        for step in (1, 2, 3):
            exit_ = rig.enter()
            if isinstance(exit_, IoExit):
                return fails("the guest runs on")
            if not isinstance(exit_, DebugExit):
                raise rig.unexpected(exit_)
            if (exit_.exception, exit_.pc) != (_DB, rig.entry + step):
                return differs(f"step {step} stops with exception {exit_.exception} at {exit_.pc:#x}")
        rig.vcpu.guest_debug(enable=False)
        return rig.finish({})


def hw_breakpoint() -> Outcome:
    """An execution breakpoint in DR0 becomes KVM_EXIT_DEBUG, and the guest can go on behind it."""
    with Rig("step") as rig:
        at = rig.entry + 2
        rig.vcpu.guest_debug(breakpoints=[at])
        exit_ = rig.enter()
        if isinstance(exit_, IoExit):
            return fails("the guest runs past it")
        if not isinstance(exit_, DebugExit):
            raise rig.unexpected(exit_)
        if (exit_.exception, exit_.pc) != (_DB, at):
            return differs(f"it stops with exception {exit_.exception} at {exit_.pc:#x}")
        rig.vcpu.guest_debug(enable=False)
        return rig.finish({})


def sw_breakpoint() -> Outcome:
    """INT3 becomes KVM_EXIT_DEBUG when user space asks for it."""
    with Rig("int3") as rig:
        rig.vcpu.guest_debug(software=True)
        rig.run_to_stage(1)
        exit_ = rig.enter()
        if isinstance(exit_, (IoExit, ShutdownExit)):
            return differs("it goes to the guest as #BP")
        if not isinstance(exit_, DebugExit):
            raise rig.unexpected(exit_)
        pc = exit_.pc - rig.entry
        if exit_.exception != _BP or rig.memory.read(exit_.pc, 1) != b"\xcc":
            return differs(f"it stops with exception {exit_.exception} at the guest's offset {pc:#x}")
    return works()
