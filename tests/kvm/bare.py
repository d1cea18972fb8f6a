"""A bare VM for tests of the KVM API: one vCPU in real mode at START, no devices, no board."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pykvm._native import ffi
from pykvm.exits import decode
from pykvm.kvm import Kvm
from pykvm.memory import GuestMemory
from pykvm.regs import CpuMode, initial_state
from pykvm.vcpu import LoopResult, Ticks, Vcpu
from pykvm.vm import Vm

if TYPE_CHECKING:
    from pykvm.exits import Exit

__all__ = ["PAGE", "START", "Bare", "out", "pic_setup", "word"]

PAGE = 4096
START = 0x1000
STACK = 0x8000
MEMORY_BYTES = 0x10000


def word(value: int) -> bytes:
    """A 16-bit immediate."""
    return value.to_bytes(2, "little")


def out(port: int, value: int) -> bytes:
    """mov $value, %al; out %al, $port"""
    return bytes([0xB0, value, 0xE6, port])


def pic_setup(vector_base: int = 0x20) -> bytes:
    """Initialise the first PIC so that IRQ n is vector `vector_base` + n, and unmask all of it."""
    return out(0x20, 0x11) + out(0x21, vector_base) + out(0x21, 4) + out(0x21, 1) + out(0x21, 0)


class Bare:
    """A VM with `code` at START; a context manager.

    Without an irqchip HLT comes out as an exit, with one it sleeps in the kernel.
    """

    def __init__(self, code: bytes, *, irqchip: bool = False, memory_bytes: int = MEMORY_BYTES) -> None:
        with ExitStack() as stack:
            self.kvm = stack.enter_context(Kvm())
            self.memory = stack.enter_context(GuestMemory(memory_bytes))
            self.vm = stack.enter_context(Vm(self.kvm))
            for number, slot in enumerate(self.memory.slots):
                self.vm.set_memory_slot(number, slot)
            self.vm.set_tss_address()
            self.vm.set_identity_map_address()
            if irqchip:
                self.vm.create_irqchip()
            self.vcpu: Vcpu = stack.enter_context(self.vm.create_vcpu(0))
            self.vcpu.set_cpuid(self.kvm.supported_cpuid())
            self.vcpu.share(ffi.new("struct loop_shared *"))
            self.memory.write(START, code)
            self.vcpu.apply(initial_state(CpuMode.REAL16, START, boot=0, stack=STACK))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def vector(self, number: int, code: bytes, at: int) -> None:
        """Put an interrupt's handler at `at` and its entry into the vector table at 0."""
        self.memory.write(number * 4, word(at) + word(0))
        self.memory.write(at, code)

    def next_exit(self, limit_s: float = 10.0) -> Exit | None:
        """Run the guest to its next exit; None if there is none within `limit_s`."""
        with Ticks(limit_s, 0):
            result = self.vcpu.enter()
        if result == LoopResult.SIGNAL:
            return None
        assert result == LoopResult.EXIT, (LoopResult(result), self.vcpu.loop.error)
        return decode(self.vcpu.view)
