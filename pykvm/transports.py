"""Which ways a machine offers to its guest for hypercalls, and what belongs to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.call_rings import CallRings, Doorbell
from pykvm.errors import ConfigError, GuestAddressError, KvmError
from pykvm.hypercall import HypercallPort, HypercallRegister, Hypercalls
from pykvm.spec import TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.bus import Bus
    from pykvm.exits import HypercallExit
    from pykvm.vcpu import Vcpu
    from pykvm.vm import Vm

__all__ = ["Marks", "Transports", "offers_vmcall"]

_BITS = {
    "out": lib.HC_HAS_OUT,
    "mmio": lib.HC_HAS_MMIO,
    "vmcall": lib.HC_HAS_VMCALL,
    "ring": lib.HC_HAS_RING,
}
_FULL_KVMS = ("kvm_intel", "kvm_amd")
_KVM_ENOSYS = 1000  # linux/kvm_para.h
_EXITS = {
    "io_exits": lib.KVM_EXIT_IO,
    "mmio_exits": lib.KVM_EXIT_MMIO,
    "hypercall_exits": lib.KVM_EXIT_HYPERCALL,
}
_MARKS_BYTES = 4096
_MARKS_MOST = 1 << 18  # what a guest can make us keep


def offers_vmcall(vm: Vm) -> bool:
    """Whether VMCALL number 12 comes to user space on this KVM.

    Others than those that use the CPU's virtualization may say so too, and never come back from it.
    """
    is_full = vm.kvm.module() in _FULL_KVMS
    return is_full and bool(vm.check_extension("KVM_CAP_EXIT_HYPERCALL") >> lib.HYPERCALL_VMCALL & 1)


class Marks:
    """The guest's marks, from C and from Python, in order of time; the first 262,144 of them.

    `lost` counts those that came later.
    """

    def __init__(self, ring: Any) -> None:
        """`ring` is the machine's `struct byte_ring` for structs guest_mark."""
        self._bytes = ffi.new("uint8_t[]", _MARKS_BYTES)
        self._scratch = ffi.new("struct guest_mark[]", _MARKS_BYTES // ffi.sizeof("struct guest_mark"))
        self._ring = ring
        self._found: list[tuple[int, int]] = []
        self.lost = 0
        ring.bytes, ring.capacity = self._bytes, _MARKS_BYTES

    def add(self, value: int) -> None:
        """A mark that Python sees; one thread at a time."""
        now = time.monotonic_ns()
        self._drain()
        self._keep([(value, now)])

    def _drain(self) -> None:
        size = ffi.sizeof(self._scratch)
        taken = lib.byte_ring_read(self._ring, ffi.cast("uint8_t *", self._scratch), size)
        count = taken // ffi.sizeof("struct guest_mark")
        self._keep([(mark.value, mark.time_ns) for mark in self._scratch[0:count]])

    def _keep(self, more: list[tuple[int, int]]) -> None:
        room = _MARKS_MOST - len(self._found)
        self._found += more[:room]
        self.lost += max(len(more) - room, 0)

    def warnings(self) -> tuple[str, ...]:
        """One line if marks were lost."""
        self._drain()
        kept = len(self._found)
        return (f"{self.lost} marks of the guest behind the first {kept} were not kept",) if self.lost else ()

    def all(self) -> list[tuple[int, int]]:
        """(value, CLOCK_MONOTONIC ns) of each so far."""
        self._drain()
        return sorted(self._found, key=lambda mark: mark[1])


class Transports:
    """The hypercall devices of one machine, and what HC_FEATURES, HC_STATS and HC_CALL_RING answer."""

    def __init__(
        self,
        vm: Vm,
        vcpus: Sequence[Vcpu],
        shared: Any,
        rings: CallRings,
        *,
        only: str | None,
        has_disk: bool,
    ) -> None:
        """`only` is a word of TRANSPORTS: offer that one alone, beside OUT, by which a guest asks first.

        Raises ConfigError if this KVM does not have it.
        """
        self._vm = vm
        self._vcpus = vcpus
        self._shared = shared
        self._only = only
        self.rings = rings
        self.calls: Hypercalls | None = None
        self._has_disk = has_disk
        if only == "vmcall" and not offers_vmcall(vm):
            raise ConfigError(
                "transport vmcall: this KVM does not hand VMCALL on (see `pykvm doctor`); "
                "use out, mmio or ring"
            )
        if only == "ring" and not vm.check_extension("KVM_CAP_IOEVENTFD"):
            raise ConfigError(
                "transport ring: this KVM has no doorbells (see `pykvm doctor`); use out or mmio"
            )

    def stop(self) -> None:
        """No vCPU runs any more: do what is still in rings."""
        self.rings.stop()

    def close(self) -> None:
        """Let go of guest memory and fds."""
        self.rings.close()

    def more_calls(self) -> dict[int, Callable[[Any], int]]:
        """The calls about transports, for the table of Hypercalls."""
        return {
            lib.HC_FEATURES: lambda _: self._features(),
            lib.HC_STATS: self._stats,
            lib.HC_CALL_RING: self._call_ring,
        }

    def attach(self, ports: Bus, mmio: Bus, calls: Hypercalls) -> None:
        """Put the devices of the transports that are offered on the machine's buses."""
        self.calls = calls
        ports.attach(layout.HYPERCALL, HypercallPort(calls))
        if self._is_offered("ring"):
            ports.attach(layout.HYPERCALL_DOORBELL, Doorbell(self.rings.ring_doorbell))
        if self._is_offered("mmio"):
            mmio.attach(layout.HYPERCALL_REGISTER, HypercallRegister(calls))
            self._shared.call_register = layout.HYPERCALL_REGISTER.start

    def on_vmcall(self, vcpu: Vcpu, exit_: HypercallExit) -> None:
        """Answer a VMCALL that C left to Python; KVM's own meaning of number 12 is not for our guests."""
        answer = -_KVM_ENOSYS
        if self.calls and (exit_.number, exit_.args[0]) == (lib.HYPERCALL_VMCALL, lib.HYPERCALL_VMCALL_KEY):
            try:
                self.calls.at(exit_.args[2])
                answer = 0
            except GuestAddressError:
                answer = lib.HC_EFAULT
        vcpu.view.hypercall.ret = answer % (1 << 64)

    # ---- the calls

    def _is_offered(self, name: str) -> bool:
        return self._only in (None, name)

    def _features(self) -> int:
        found = int(lib.HC_HAS_OUT)
        found |= sum(
            _BITS[name] for name in TRANSPORTS if name not in ("out", "vmcall") and self._is_offered(name)
        )
        if self._is_offered("vmcall") and self._enable_vmcall():
            found |= lib.HC_HAS_VMCALL
        if found & lib.HC_HAS_RING and not self._vm.check_extension("KVM_CAP_IOEVENTFD"):
            found &= ~lib.HC_HAS_RING
        if found & lib.HC_HAS_RING and self._vm.has_irqchip:
            found |= lib.HC_HAS_RING_INTERRUPT
        found |= lib.HC_HAS_DISK if self._has_disk else 0
        return int(found | _BITS[self._only or "out"] << lib.HC_PREFERRED_SHIFT)

    def _enable_vmcall(self) -> bool:
        """Have KVM hand VMCALL number 12 on, from when the guest asks what there is."""
        if not offers_vmcall(self._vm):
            return False
        try:
            self._vm.enable_cap("KVM_CAP_EXIT_HYPERCALL", 1 << lib.HYPERCALL_VMCALL)
        except KvmError:
            return False
        return True

    def _stats(self, request: Any) -> int:
        found = ffi.new("struct host_stats *")
        for vcpu in self._vcpus:
            found.entries += vcpu.loop.entries
            found.exits += vcpu.loop.exits
            found.fast_exits += vcpu.loop.fast_exits
            for name, reason in _EXITS.items():
                setattr(found, name, getattr(found, name) + vcpu.loop.by_reason[reason])
        found.ring_calls, found.ring_wakes = self.rings.worker.taken, self.rings.worker.wakes
        return self._calls().fill(request, bytes(ffi.buffer(found)))

    def _call_ring(self, request: Any) -> int:
        if not self._is_offered("ring"):
            return int(lib.HC_ENOSYS)
        return self.rings.open(request, self._calls())

    def _calls(self) -> Hypercalls:
        assert self.calls is not None  # noqa: S101 - for the type checker; attach() comes before any call
        return self.calls
