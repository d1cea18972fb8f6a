"""Builds what is not Python: the C extension `pykvm._native`, the guests, and the firmware.

Only the packaging tools import this file. The extension is cffi's API mode: the C compiler takes every
layout and number from the kernel's own <linux/kvm.h>, so no struct is typed by hand. The compiled guests
and the firmware go to `pykvm/_guests/` and travel in the wheel; their sources travel in the sdist.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

__all__ = ["BuildExt", "SourceDist", "make_ffi"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pykvm"
INCLUDE = ROOT / "guests" / "include"
C_SOURCES = (
    *("vcpu_run.c", "fast_call.c", "call_ring.c", "trace_record.c", "guest_bytes.c"),
    *("syscall_tap.c", "detached_mount.c", "virtqueue.c"),
)
OWN_HEADERS = (
    *(INCLUDE / "hypercall_abi.h", INCLUDE / "paravirt_boot.h"),
    *(PACKAGE / "vcpu_run.h", PACKAGE / "syscall_tap.h", PACKAGE / "call_ring.h"),
    *(PACKAGE / "detached_mount.h", PACKAGE / "virtqueue.h"),
)
# the members of kvm_run's union that Python looks at
RUN_VIEWS = "hw fail_entry ex io debug.arch mmio hypercall internal system_event eoi msr".split()

# What the header lacks where it is older than the kernels that pykvm may meet.
PRELUDE = """
#include <errno.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>
#include "hypercall_abi.h"
#include "paravirt_boot.h"
#include "vcpu_run.h"
#include "syscall_tap.h"
#include "call_ring.h"
#include "detached_mount.h"
#include "virtqueue.h"
#define RUN_UNION_OFFSET offsetof(struct kvm_run, hw)
#define RUN_SYNC_REGS_OFFSET offsetof(struct kvm_run, s)
#define ROUTING_UNION_OFFSET offsetof(struct kvm_irq_routing_entry, u)
typedef __typeof__(((struct kvm_irq_routing_entry *)0)->u.irqchip) routing_irqchip;
typedef __typeof__(((struct kvm_irq_routing_entry *)0)->u.msi) routing_msi;
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
typedef struct { __u64 flags, gpa, size; } run_memory_fault; /* newer than many distributions' headers */

/* One ioctl; its result, or -errno. Runs without Python's lock. */
static long kvm_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}
"""


def _header_macros() -> list[str]:
    """The names of all macros KVM_CAP_* and KVM_EXIT_* in the kernel's header, and of the ioctls we use."""
    text = subprocess.run(
        ["cc", "-E", "-dM", "-include", "linux/kvm.h", "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    numbers = re.findall(
        r"^#define (KVM_(?:CAP|EXIT|INTERNAL_ERROR)_\w+) (?:0x[0-9a-fA-F]+|\d+)$", text, re.MULTILINE
    )
    ioctls = re.findall(r'^    \("(KVM_\w+)", ', (PACKAGE / "ioctls.py").read_text(), re.MULTILINE)
    return sorted({*numbers, *ioctls, "KVM_EXIT_MEMORY_FAULT"} - {"KVM_EXIT_IO_OUT"})


def _declarations(header: Path) -> str:
    """A header of ours as cffi reads it: constants by name, structs as they stand, no other directive."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    constants = re.findall(r"^#define (\w+) +\S", text, re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"__attribute__\(\(\w+\(\d+\)\)\)", "", text)
    text = re.sub(r"\[[A-Z][^\]]*\]", "[...]", text)  # sizes by name: the C compiler knows them
    return "\n".join(f"#define {name} ..." for name in constants) + text


def make_ffi() -> Any:
    """The cffi builder of `pykvm._native`."""
    from cffi import FFI  # noqa: PLC0415 - needed only while building

    ffi = FFI()
    ffi.cdef((PACKAGE / "kvm_api.cdef").read_text())
    ffi.cdef("".join(f"#define {name} ...\n" for name in _header_macros()))
    for header in OWN_HEADERS:
        ffi.cdef(_declarations(header))
    ffi.cdef("long kvm_ioctl(int fd, unsigned long request, void *argument);")
    views = "".join(
        f"typedef __typeof__(((struct kvm_run *)0)->{v}) run_{v.split('.')[0]};\n" for v in RUN_VIEWS
    )
    ffi.set_source("pykvm._native", PRELUDE + views)
    return ffi


def _build_guests(out: Path) -> None:
    """Build the guests with pykvm's own tool chain, which needs nothing that is not built yet."""
    sys.path.insert(0, str(ROOT))
    try:
        toolchain = importlib.import_module("pykvm.toolchain")
    finally:
        sys.path.remove(str(ROOT))
    toolchain.build_all(ROOT, out)


class BuildExt(build_ext):
    """`build_ext` that generates the extension's C first, and builds guests and firmware after it."""

    def run(self) -> None:
        generated = Path(self.build_temp) / "_native.c"
        generated.parent.mkdir(parents=True, exist_ok=True)
        make_ffi().emit_c_code(str(generated))
        (extension,) = self.extensions
        extension.sources = [str(generated), *(f"pykvm/{name}" for name in C_SOURCES)]
        extension.depends = [str(header.relative_to(ROOT)) for header in OWN_HEADERS]
        extension.depends += ["pykvm/kvm_api.cdef"]
        extension.include_dirs = [str(PACKAGE), str(INCLUDE)]
        extension.extra_compile_args = [
            "-O2",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Wno-missing-field-initializers",
        ]
        super().run()
        package = PACKAGE if self.inplace else Path(self.build_lib) / "pykvm"
        _build_guests(package / "_guests")


class SourceDist(sdist):
    """`sdist` that takes along what the tree has beside the package: guests, firmware, tests, documents."""

    def make_distribution(self) -> None:
        """Add them to the list, which `egg_info` has made, and write the archive."""
        for folder in ("guests", "firmware", "tests", "docs"):
            found = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
            self.filelist.extend(sorted(str(p.relative_to(ROOT)) for p in found))
        self.filelist.extend(["Makefile", "CHANGELOG.md", "pykvm/kvm_api.cdef"])
        super().make_distribution()
