"""The host's half of the paravirtual kernel: starts it with a program, hears of system calls and faults."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pykvm._native import ffi, lib
from pykvm.boot import load
from pykvm.boot.placement import Placement, place
from pykvm.errors import ImageError, ImageNotFoundError
from pykvm.guests import built_folder
from pykvm.paravirt.boot_info import RING_RECORDS, Wanted, place_program
from pykvm.paravirt.fault import FAULT_BYTES, fault_of
from pykvm.paravirt.program import symbols_of
from pykvm.paravirt.syscall_ring import SyscallRecord, SyscallRing, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pykvm.boot.image import Image, Symbol
    from pykvm.memory import GuestMemory
    from pykvm.paravirt.program import Program
    from pykvm.result import ProgramFault, RunResult
    from pykvm.trace.clock import TscClock
    from pykvm.vcpu import Vcpu
    from pykvm.vm import Vm

__all__ = ["Paravirt", "absent_syscalls", "kernel_path"]

_TSC_IS_STEADY = 1 << 1  # KVM_CLOCK_TSC_STABLE: no vCPU's TSC ever jumps
_KVM_FEATURES, _HAS_KVMCLOCK = 0x4000_0001, 1 << 3  # CPUID: KVM_FEATURE_CLOCKSOURCE2
_TRIES = 5
_SYSCALLS = 512
_TRACE_RECORDS_AT: int = ffi.offsetof("struct paravirt_boot", "trace_records")


def kernel_path() -> Path:
    """The file of the paravirtual kernel. Raises ImageNotFoundError if it has not been built."""
    path = built_folder() / "paravirt.elf"
    if not path.exists():
        raise ImageNotFoundError(
            "the paravirtual kernel has not been built; run `make guests` in the sources"
        )
    return path


def absent_syscalls(result: RunResult) -> list[str]:
    """The names of the system calls that a program made and the paravirtual kernel does not have."""
    numbers = (mark.value - lib.PARAVIRT_MARK_ENOSYS for mark in result.marks)
    if not (found := [number for number in numbers if 0 <= number < _SYSCALLS]):
        return []
    from pykvm.trace.syscalls import syscall_name  # noqa: PLC0415 - all names there are; most runs need none

    return [syscall_name(number) for number in found]


class Paravirt:
    """One program in the paravirtual kernel.

    Where the machine traces, the kernel tells of each system call: syscalls() iterates over those that came
    so far. Whoever wants them while the guest runs sets `on_drain`, a function that the vCPU's thread calls
    when the ring is full: it must call take_syscalls(), which may also be called at any other time, from any
    thread. decode() makes records of what that gives, and ns() is right for their times.
    """

    def __init__(self, memory: GuestMemory, wanted: Wanted) -> None:
        """Raises ConfigError and ImageError for what can't be run; `memory` is written by place()."""
        self.program: Program = wanted.program
        self.on_drain: Callable[[], None] | None = None
        self._memory = memory
        self._wanted = wanted
        self._boot_gpa = 0
        self._vcpu: Vcpu | None = None
        self._ring: SyscallRing | None = None
        self._is_traced = self._is_over = False
        self._raw_fault = b""
        self._kept: list[bytes] = []
        self._clock: TscClock | None = None
        self._vm: Vm | None = None
        self._uses_kvmclock = False
        self._offset = 0  # what is added to the host's TSC, or to CLOCK_MONOTONIC, to give the guest's time

    def place(self) -> tuple[Image, Placement]:
        """Put kernel, program and files into guest memory: the kernel's image, what vCPU 0 starts with."""
        image = load(kernel_path())
        placement = place(image, self._memory, cmdline="", modules=[])
        self._boot_gpa = place_program(self._memory, image.end, self._wanted)
        placement.state.regs["rdi"] = self._boot_gpa
        return image, placement

    def start(self, vm: Vm, vcpu: Vcpu, clock: TscClock, *, traced: bool) -> None:
        """The run is about to begin on `vcpu` of `vm`; `traced`: have the kernel tell of system calls.

        `clock` is that of the run's other records: of two clocks, each would have errors of its own.
        """
        self._vm, self._vcpu = vm, vcpu
        self._is_traced = traced
        self._clock = clock
        records = RING_RECORDS if traced else 0
        self._memory.write(self._boot_gpa + _TRACE_RECORDS_AT, records.to_bytes(8, "little"))

    def finish(self) -> None:
        """The run is over, and its clock is right."""
        self.drain()
        self._is_over = True

    def close(self) -> None:
        """Let guest memory go."""
        if self._ring:
            self._ring.close()

    # ---- what the kernel asks for

    def calls(self) -> dict[int, Callable[[Any], int]]:
        """The hypercalls beyond the common ones, each a function of the request to its result."""
        return {
            lib.HC_TRACE_RING: self._on_ring,
            lib.HC_TRACE_DRAIN: self._on_full,
            lib.HC_FAULT: self._on_fault,
        }

    def _on_ring(self, request: Any) -> int:
        vm, vcpu = self._vm, self._vcpu
        if not self._is_traced or self._ring or not vm or not vcpu:
            return int(lib.HC_EINVAL)
        try:
            self._ring = SyscallRing(self._memory, request.arg[0], request.arg[1])
        except ValueError:
            return int(lib.HC_EINVAL)
        if vm.get_clock().flags & _TSC_IS_STEADY or not _has_kvmclock(vcpu):
            self._offset = vcpu.tsc_offset()
            return int(lib.SYSCALL_CLOCK_TSC)
        self._uses_kvmclock, self._offset = True, _kvmclock_offset(vm)
        return int(lib.SYSCALL_CLOCK_KVM)

    def _on_full(self, _: Any) -> int:
        if not self._ring:
            return int(lib.HC_EINVAL)
        if self.on_drain:
            self.on_drain()
        else:
            self.drain()
        return 0

    def _on_fault(self, request: Any) -> int:
        if request.arg[1] < FAULT_BYTES:
            return int(lib.HC_EINVAL)
        self._raw_fault = self._raw_fault or self._memory.read(request.arg[0], FAULT_BYTES)
        return 0

    @property
    def fault(self) -> ProgramFault | None:
        """Why the kernel killed the program, None if it did not."""
        return fault_of(self._raw_fault, self.program, self.symbols()) if self._raw_fault else None

    def symbols(self) -> tuple[Symbol, ...]:
        """The program's symbols as its file has them; none if it was stripped or they are damaged."""
        try:
            return symbols_of(self.program)
        except ImageError:
            return ()

    # ---- system calls

    @property
    def trouble(self) -> str:
        """One line on what is wrong with the trace of system calls, "" if nothing is."""
        if self._is_traced and not self._ring:
            return "the paravirtual kernel has not told of its system calls"
        return self._ring.trouble if self._ring else ""

    def take_syscalls(self) -> bytes:
        """The `struct syscall_record`s that came since the last time, raw; from any thread."""
        return self._ring.take() if self._ring else b""

    def drain(self) -> None:
        """Keep what is in the ring for syscalls(), unless somebody else reads it."""
        if not self.on_drain:
            self._kept.append(self.take_syscalls())

    def syscalls(self) -> Iterator[SyscallRecord]:
        """The system calls so far, in order."""
        if self._clock and not self._is_over:
            self._clock.settle()
        for raw in self._kept:
            yield from decode(raw, self.ns)

    def ns(self, stamp: int, tsc_to_ns: Callable[[int], int] | None = None) -> int:
        """CLOCK_MONOTONIC ns of a time in a `struct syscall_record`.

        `tsc_to_ns` does it for a host's TSC value; by default it is the run's clock, right when it is over.
        """
        if self._uses_kvmclock:
            return stamp - self._offset
        convert = tsc_to_ns or (self._clock.ns if self._clock else int)
        return convert((stamp - self._offset) % (1 << 64))


def _has_kvmclock(vcpu: Vcpu) -> bool:
    return any(row[0] == _KVM_FEATURES and row[3] & _HAS_KVMCLOCK for row in vcpu.get_cpuid())


def _kvmclock_offset(vm: Vm) -> int:
    """kvmclock minus CLOCK_MONOTONIC, in ns, as near as a few tries get."""
    found = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        kvmclock: int = vm.get_clock().clock
        after = time.monotonic_ns()
        found.append((after - before, kvmclock - (before + after) // 2))
    return int(min(found)[1])
