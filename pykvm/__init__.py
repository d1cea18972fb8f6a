"""pykvm: a minimal KVM hypervisor in Python, to see, teach and test virtualization."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.errors import PykvmError
    from pykvm.kvm import Kvm
    from pykvm.machine import Machine
    from pykvm.memory import GuestMemory
    from pykvm.result import EndReason, RunResult
    from pykvm.vcpu import Vcpu
    from pykvm.vm import Vm

__all__ = [
    "EndReason",
    "GuestMemory",
    "Kvm",
    "Machine",
    "MachineSpec",
    "PykvmError",
    "RunResult",
    "Vcpu",
    "Vm",
]

# Loaded at first use: a command pays only for what it needs, and the build can import
# pykvm.toolchain before the C extension exists.
_HOMES = {
    "EndReason": "result",
    "GuestMemory": "memory",
    "Kvm": "kvm",
    "Machine": "machine",
    "MachineSpec": "spec",
    "PykvmError": "errors",
    "RunResult": "result",
    "Vcpu": "vcpu",
    "Vm": "vm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pykvm' has no attribute {name!r}")
    return getattr(import_module(f"pykvm.{_HOMES[name]}"), name)
