"""The host under the KVM: which module, device, CPU and kernel, and what to do where there is no KVM."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host", "next_step", "survey"]

_DMI = Path("/sys/class/dmi/id")
_MODULES = {
    "kvm_intel": "VT-x",
    "kvm_amd": "AMD-V",
    "kvm_pvm": "no VT-x or AMD-V: ring 3 of a guest runs natively, ring 0 in KVM's instruction emulator",
}


@dataclass(frozen=True, slots=True)
class Host:
    """What the host says of itself; plain values.

    `flag` is "vmx", "svm" or "": what /proc/cpuinfo shows of hardware virtualization. `is_guest` means that
    the host is itself a virtual machine. `nested` is the module's parameter of that name: whether guests
    may be hypervisors in turn; None where the module has none. `device` is "mode owner:group" of /dev/kvm.
    """

    kernel: str
    cpu_vendor: str
    cpu_model: str
    cpus: int
    flag: str
    is_guest: bool
    machine: str
    module: str
    nested: bool | None
    device: str

    @property
    def kind(self) -> str:
        """What the KVM module builds on, in words."""
        return _MODULES.get(self.module, "of an unknown kind")


def survey(module: str, *, device: Path = Path("/dev/kvm"), root: Path = Path("/")) -> Host:
    """Look at the host; `module` is what Kvm.module() says. `root` is where /proc and /sys are."""
    cpu = _cpuinfo(root / "proc/cpuinfo")
    flags = cpu.get("flags", "").split()
    return Host(
        kernel=platform.release(),
        cpu_vendor=cpu.get("vendor_id", "unknown"),
        cpu_model=cpu.get("model name", "unknown"),
        cpus=os.cpu_count() or 1,
        flag=next((flag for flag in ("vmx", "svm") if flag in flags), ""),
        is_guest="hypervisor" in flags,
        machine=" ".join(
            filter(None, map(_text, (root / "sys/class/dmi/id" / n for n in ("sys_vendor", "product_name"))))
        ),
        module=module,
        nested=_parameter(root / "sys/module" / module / "parameters/nested"),
        device=_device(device),
    )


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first CPU's lines of /proc/cpuinfo."""
    first = _text(path).split("\n\n", 1)[0]
    rows = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _parameter(path: Path) -> bool | None:
    value = _text(path)
    return value in ("Y", "1") if value else None


def _device(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{stat.filemode(found.st_mode)} {_user(found.st_uid)}:{_group(found.st_gid)}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def next_step(host: Host) -> str:
    """What to do where there is no /dev/kvm, judged by the CPU's flags."""
    if host.flag:
        module = {"vmx": "kvm_intel", "svm": "kvm_amd"}[host.flag]
        return (
            f"the CPU has {host.flag}: load the module (sudo modprobe {module}); "
            "in a container, pass --device /dev/kvm"
        )
    where = "on the host below this virtual machine" if host.is_guest else "in the firmware's setup"
    return f"the CPU shows neither vmx nor svm: switch virtualization on {where}; or use `pykvm lab`"
