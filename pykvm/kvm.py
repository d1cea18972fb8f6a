"""/dev/kvm: the API version, capabilities, what this KVM supports, and new VMs. The system fd.

Source: the kernel's Documentation/virt/kvm/api.rst, "System ioctls".
"""

from __future__ import annotations

import errno
import os
from functools import cache
from pathlib import Path
from typing import Any, Self

from pykvm._native import ffi, lib
from pykvm.errors import KvmError, KvmUnavailableError
from pykvm.ioctls import call, call_sized

__all__ = ["Kvm", "capability_names"]

_PATH = "/dev/kvm"
_UNAVAILABLE = {
    errno.ENOENT: "this host has no KVM: enable virtualization in the BIOS setup and load kvm_intel or "
    "kvm_amd; in a container pass --device /dev/kvm; or run in `pykvm lab`",
    errno.EACCES: "you may not use it: join the group that owns it (often `sudo usermod -aG kvm $USER`) "
    "and log in again",
    errno.EPERM: "the container or sandbox does not let you use it",
    errno.ENODEV: "the kernel has /dev/kvm but no KVM module is loaded: `sudo modprobe kvm_intel` or kvm_amd",
    errno.EBUSY: "another hypervisor is using the CPU's extensions",
    errno.ENXIO: "no KVM module is loaded: `sudo modprobe kvm_intel` or kvm_amd",
}


def capability_names() -> dict[str, int]:
    """Every KVM_CAP_* of the kernel header that pykvm was compiled against, with its number."""
    return {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_CAP_")}


class Kvm:
    """An open /dev/kvm.

    Raises KvmUnavailableError, which says the next step, if there is none that can be used. Use as a
    context manager, or close().
    """

    def __init__(self, path: str = _PATH) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            raise KvmUnavailableError(code, path, _UNAVAILABLE.get(code, "")) from None
        self._path = path
        try:
            version = self.api_version()
            self.run_bytes = call(self.fd, "KVM_GET_VCPU_MMAP_SIZE")
        except KvmError as error:  # a file, a pipe, another device
            self.close()
            raise KvmUnavailableError(error.errno or 0, path, "this is not KVM's device") from None
        if version != lib.KVM_API_VERSION:
            self.close()
            hint = f"its API version is {version}, pykvm needs {lib.KVM_API_VERSION}"
            raise KvmUnavailableError(errno.ENOTSUP, path, hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the fd; its VMs live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every kernel of this century."""
        return call(self.fd, "KVM_GET_API_VERSION")

    def check_extension(self, capability: str | int) -> int:
        """KVM_CHECK_EXTENSION for "KVM_CAP_…" or its number: 0 where KVM lacks it, else 1 or its value."""
        number = getattr(lib, capability) if isinstance(capability, str) else capability
        return call(self.fd, "KVM_CHECK_EXTENSION", number)

    def create_vm(self, machine_type: int = 0) -> int:
        """KVM_CREATE_VM: the fd of a new VM. See `pykvm.vm.Vm`, which owns one."""
        while True:
            try:
                return call(self.fd, "KVM_CREATE_VM", machine_type)
            except KvmError as error:
                if error.errno != errno.EINTR:  # a signal while KVM set its threads up
                    raise

    def supported_cpuid(self) -> list[tuple[int, ...]]:
        """KVM_GET_SUPPORTED_CPUID as (function, index, flags, eax, ebx, ecx, edx) rows.

        It takes KVM a quarter of a millisecond and is the same each time: asked once per process.
        """
        return list(_supported_cpuid(self._path))

    def emulated_cpuid(self) -> list[tuple[int, ...]]:
        """KVM_GET_EMULATED_CPUID: what KVM emulates although the hardware lacks it."""
        found = call_sized(self.fd, "KVM_GET_EMULATED_CPUID", "struct kvm_cpuid2", "nent", 16)
        return [cpuid_row(found.entries[i]) for i in range(found.nent)]

    def msr_indices(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that can be read and set."""
        found = call_sized(self.fd, "KVM_GET_MSR_INDEX_LIST", "struct kvm_msr_list", "nmsrs", 256)
        return [found.indices[i] for i in range(found.nmsrs)]

    def msr_feature_indices(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe features."""
        found = call_sized(self.fd, "KVM_GET_MSR_FEATURE_INDEX_LIST", "struct kvm_msr_list", "nmsrs", 64)
        return [found.indices[i] for i in range(found.nmsrs)]

    def feature_msrs(self) -> dict[int, int]:
        """The feature MSRs that KVM lets us read, by KVM_GET_MSRS on the system fd."""
        return get_msrs(self.fd, self.msr_feature_indices())

    def module(self) -> str:
        """Which KVM this is: "kvm_intel", "kvm_amd", "kvm_pvm" …, or "unknown"."""
        return _module()


@cache
def _supported_cpuid(path: str) -> tuple[tuple[int, ...], ...]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        found = call_sized(fd, "KVM_GET_SUPPORTED_CPUID", "struct kvm_cpuid2", "nent", 256)
    finally:
        os.close(fd)
    return tuple(cpuid_row(found.entries[i]) for i in range(found.nent))


@cache
def _module() -> str:
    loaded = [name for name in ("kvm_intel", "kvm_amd", "kvm_pvm") if Path("/sys/module", name).exists()]
    used = [name for name in loaded if _refcount(name) != "0"]
    return (used or loaded or ["unknown"])[0]


def _refcount(module: str) -> str:
    try:
        return Path("/sys/module", module, "refcnt").read_text().strip()
    except OSError:
        return ""  # built in


def cpuid_row(entry: Any) -> tuple[int, ...]:
    """One struct kvm_cpuid_entry2 as (function, index, flags, eax, ebx, ecx, edx)."""
    return (entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)


def get_msrs(fd: int, indices: list[int]) -> dict[int, int]:
    """KVM_GET_MSRS on a system or vCPU fd: MSR index -> value, of those that could be read.

    KVM stops at the first it can't read and says how many it did; we go on behind that one.
    """
    values: dict[int, int] = {}
    rest = list(indices)
    while rest:
        msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(rest), "entries": [{"index": i} for i in rest]})
        done = call(fd, "KVM_GET_MSRS", msrs)
        values.update((msrs.entries[i].index, msrs.entries[i].data) for i in range(done))
        rest = rest[done + 1 :]
    return values
