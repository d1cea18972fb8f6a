"""Exit and its kinds: one return of KVM_RUN as a value; decode(kvm_run) -> Exit.

Each kind is named after its KVM_EXIT_*. Decoding is pure: it reads a kvm_run area, real or made by a
test, and needs no KVM. A reason that pykvm does not know becomes an UnknownExit, never an error.
Source: the kernel's Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure".
"""

from __future__ import annotations

from typing import Any

from pykvm._native import ffi, lib
from pykvm.value import value

__all__ = [
    "DebugExit",
    "EntryFailExit",
    "ExceptionExit",
    "Exit",
    "HltExit",
    "HypercallExit",
    "InternalErrorExit",
    "IoExit",
    "IoapicEoiExit",
    "IrqWindowExit",
    "MemoryFaultExit",
    "MmioExit",
    "MsrExit",
    "NmiExit",
    "RunView",
    "ShutdownExit",
    "SystemEventExit",
    "UnknownExit",
    "decode",
    "reason_name",
    "reason_names",
]


class Exit:
    """One return of KVM_RUN."""

    __slots__ = ()


@value
class IoExit(Exit):
    """The guest touched a port. `data` holds count * size bytes of a write, nothing of a read."""

    port: int
    size: int
    count: int
    is_write: bool
    data: bytes


@value
class MmioExit(Exit):
    """The guest touched guest-physical memory that no slot backs."""

    gpa: int
    size: int
    is_write: bool
    data: bytes


@value
class HltExit(Exit):
    """HLT, where no in-kernel irqchip takes it."""


@value
class ShutdownExit(Exit):
    """A triple fault, or another event that shuts a CPU down."""


@value
class HypercallExit(Exit):
    """VMCALL or VMMCALL that KVM was told to hand to us; `args` are up to six."""

    number: int
    args: tuple[int, ...]


@value
class DebugExit(Exit):
    """A breakpoint or a single step. `exception` is 1 (#DB) or 3 (#BP); `pc` is linear."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@value
class SystemEventExit(Exit):
    """The guest asked for shutdown, reset, or told of a crash (KVM_SYSTEM_EVENT_*)."""

    kind: int
    data: tuple[int, ...]


@value
class EntryFailExit(Exit):
    """The hardware refused to enter the guest; `hardware_reason` is VMX's or SVM's code."""

    hardware_reason: int
    cpu: int


@value
class InternalErrorExit(Exit):
    """KVM gave up; suberror 1: an instruction its emulator lacks, 2: a simultaneous exception, …"""

    suberror: int
    data: tuple[int, ...]


@value
class MsrExit(Exit):
    """An MSR access that KVM was told to hand to us; `why` is KVM_MSR_EXIT_REASON_*."""

    index: int
    is_write: bool
    data: int
    why: int


@value
class MemoryFaultExit(Exit):
    """KVM could not resolve a guest's access to [gpa, gpa + size_bytes)."""

    gpa: int
    size_bytes: int
    flags: int


@value
class ExceptionExit(Exit):
    """An exception that nobody in the guest could take."""

    exception: int
    error_code: int


@value
class IrqWindowExit(Exit):
    """The guest can take an interrupt now, as was asked for."""


@value
class IoapicEoiExit(Exit):
    """The guest ended an interrupt of a split irqchip."""

    vector: int


@value
class NmiExit(Exit):
    """An NMI of the host arrived while the guest ran."""


@value
class UnknownExit(Exit):
    """An exit that pykvm has no kind for: `reason` is its number, `name` the header's word for it."""

    reason: int
    name: str
    hardware_reason: int = 0


_IO_OUT: int = lib.KVM_EXIT_IO_OUT


class RunView:
    """A kvm_run area (a vCPU's mapping, or a test's bytes) with one typed view per exit reason.

    `area` is any writable buffer of at least the kernel's struct kvm_run; ValueError if it is smaller.
    """

    def __init__(self, area: Any) -> None:
        self.hold = ffi.from_buffer(area, require_writable=True)
        self.bytes = ffi.buffer(self.hold)  # slices of it are bytes
        if len(self.bytes) < ffi.sizeof("struct kvm_run"):
            raise ValueError(f"a kvm_run area has {ffi.sizeof('struct kvm_run')} bytes or more")
        base = ffi.cast("char *", self.hold)
        self.run = ffi.cast("struct kvm_run *", base)
        at = base + lib.RUN_UNION_OFFSET
        self.hw = ffi.cast("run_hw *", at)
        self.fail_entry = ffi.cast("run_fail_entry *", at)
        self.exception = ffi.cast("run_ex *", at)
        self.io = ffi.cast("run_io *", at)
        self.debug = ffi.cast("run_debug *", at)
        self.mmio = ffi.cast("run_mmio *", at)
        self.hypercall = ffi.cast("run_hypercall *", at)
        self.internal = ffi.cast("run_internal *", at)
        self.system_event = ffi.cast("run_system_event *", at)
        self.eoi = ffi.cast("run_eoi *", at)
        self.msr = ffi.cast("run_msr *", at)
        self.memory_fault = ffi.cast("run_memory_fault *", at)
        self.synced = ffi.cast("struct kvm_sync_regs *", base + lib.RUN_SYNC_REGS_OFFSET)
        self.mmio_at = lib.RUN_UNION_OFFSET + ffi.offsetof("run_mmio", "data")

    def answer_io(self, data: bytes) -> None:
        """Put the answer to a port read where KVM looks for it."""
        at = self.io.data_offset
        self.bytes[at : at + len(data)] = data

    def answer_mmio(self, data: bytes) -> None:
        """Put the answer to an MMIO read where KVM looks for it."""
        at = self.mmio_at
        self.bytes[at : at + len(data)] = data

    def release(self) -> None:
        """Let go of the area, so that its mapping can be closed."""
        hold = self.hold
        vars(self).clear()  # nobody can look at what is no longer there
        ffi.release(hold)


def _io(view: RunView) -> Exit:
    io = view.io
    size, count = io.size, io.count
    if io.direction != _IO_OUT:
        return IoExit(io.port, size, count, False, b"")
    at = io.data_offset
    return IoExit(io.port, size, count, True, view.bytes[at : at + size * count])


def _mmio(view: RunView) -> Exit:
    mmio = view.mmio
    size, is_write = min(mmio.len, 8), bool(mmio.is_write)
    data = view.bytes[view.mmio_at : view.mmio_at + size] if is_write else b""
    return MmioExit(mmio.phys_addr, size, is_write, data)


def _internal(view: RunView) -> Exit:
    error = view.internal
    return InternalErrorExit(error.suberror, tuple(error.data[i] for i in range(min(error.ndata, 16))))


def _system_event(view: RunView) -> Exit:
    event = view.system_event
    return SystemEventExit(event.type, tuple(event.data[i] for i in range(min(event.ndata, 16))))


def _msr(view: RunView) -> Exit:
    msr = view.msr
    return MsrExit(msr.index, view.run.exit_reason == lib.KVM_EXIT_X86_WRMSR, msr.data, msr.reason)


def _hypercall(view: RunView) -> Exit:
    return HypercallExit(view.hypercall.nr, tuple(view.hypercall.args[i] for i in range(6)))


def _debug(view: RunView) -> Exit:
    debug = view.debug
    return DebugExit(debug.exception, debug.pc, debug.dr6, debug.dr7)


_DECODERS: dict[int, Any] = {
    lib.KVM_EXIT_EXCEPTION: lambda v: ExceptionExit(v.exception.exception, v.exception.error_code),
    lib.KVM_EXIT_IO: _io,
    lib.KVM_EXIT_HYPERCALL: _hypercall,
    lib.KVM_EXIT_DEBUG: _debug,
    lib.KVM_EXIT_HLT: lambda _: HltExit(),
    lib.KVM_EXIT_MMIO: _mmio,
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: lambda _: IrqWindowExit(),
    lib.KVM_EXIT_SHUTDOWN: lambda _: ShutdownExit(),
    lib.KVM_EXIT_FAIL_ENTRY: lambda v: EntryFailExit(
        v.fail_entry.hardware_entry_failure_reason, v.fail_entry.cpu
    ),
    lib.KVM_EXIT_NMI: lambda _: NmiExit(),
    lib.KVM_EXIT_INTERNAL_ERROR: _internal,
    lib.KVM_EXIT_SYSTEM_EVENT: _system_event,
    lib.KVM_EXIT_IOAPIC_EOI: lambda v: IoapicEoiExit(v.eoi.vector),
    lib.KVM_EXIT_X86_RDMSR: _msr,
    lib.KVM_EXIT_X86_WRMSR: _msr,
    lib.KVM_EXIT_MEMORY_FAULT: lambda v: MemoryFaultExit(
        v.memory_fault.gpa, v.memory_fault.size, v.memory_fault.flags
    ),
}

# KVM_EXIT_IO_IN and the other constants below are no reasons: they share the prefix and small values.
_NOT_REASONS = ("KVM_EXIT_IO_IN", "KVM_EXIT_HYPERV_", "KVM_EXIT_XEN_", "KVM_EXIT_IO_OUT")
_NAMES: dict[int, str] = {
    getattr(lib, name): name.removeprefix("KVM_EXIT_")
    for name in dir(lib)
    if name.startswith("KVM_EXIT_") and not name.startswith(_NOT_REASONS)
}

_NAMES[lib.RECORD_BY_RING] = "RING"  # a record's, for a hypercall that no exit brought


def reason_name(reason: int) -> str:
    """The header's word for an exit reason, without its prefix: "IO", "HLT" …; "reason 99" for others."""
    return _NAMES.get(reason, f"reason {reason}")


def reason_names() -> tuple[str, ...]:
    """The words of all exit reasons, in order of their numbers."""
    return tuple(_NAMES[number] for number in sorted(_NAMES))


def decode(view: RunView) -> Exit:
    """The exit that a kvm_run area holds. Never raises, whatever the bytes."""
    reason = view.run.exit_reason
    decoder = _DECODERS.get(reason)
    if decoder is None:
        return UnknownExit(reason, reason_name(reason), view.hw.hardware_exit_reason)
    decoded: Exit = decoder(view)
    return decoded
