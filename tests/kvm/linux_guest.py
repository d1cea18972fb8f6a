"""A stock Debian kernel and a first process of our own: what the tests that need a whole Linux boot.

Where a lab can't compile or fetch, the files come from a directory that PYKVM_LINUX_FILES names; prepare(),
and this file as a program, fill one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pykvm.lab import cpio
from pykvm.lab.packages import cached_kernel, fetch_kernel
from pykvm.lab.store import Store

__all__ = ["CMDLINE", "FILES", "initrd", "prepare"]

CMDLINE = "console=ttyS0 quiet acpi=off reboot=k panic=-1"
FILES = "PYKVM_LINUX_FILES"
_FLAVOUR = "cloud-amd64"
_SOURCE = Path(__file__).with_name("tap_init.c")
_FLAGS = "-O1 -static -nostdlib -fno-stack-protector -fno-builtin -fcf-protection=none".split()


def prepare(folder: Path, *, fetch: bool = False) -> str:
    """Put `vmlinuz` and `init` into `folder`; "" or why that could not be done."""
    given = os.environ.get(FILES)
    if given and Path(given) != folder:
        if not Path(given, "init").exists():
            return f"{given} (from {FILES}) has none; this program fills it: tests/kvm/linux_guest.py"
        for name in ("vmlinuz", "init"):
            shutil.copyfile(Path(given) / name, folder / name)
        return ""
    if not shutil.which("gcc"):
        return "there is no gcc to build its first process"
    store = Store()
    kernel = cached_kernel(_FLAVOUR, store)
    if kernel is None and fetch:
        kernel = fetch_kernel(_FLAVOUR, store, lambda _text: None)
    if kernel is None:
        return "the lab's cache has no cloud kernel; `pykvm lab setup --cpu intel` fetches it"
    shutil.copyfile(kernel.image, folder / "vmlinuz")
    subprocess.run(["gcc", *_FLAGS, str(_SOURCE), "-o", str(folder / "init")], check=True, timeout=120)
    return ""


def initrd(folder: Path) -> bytes:
    """An initramfs with the first process and the console."""
    init = (folder / "init").read_bytes()
    console = cpio.device("dev/console", "c", 5, 1)
    return cpio.pack([cpio.file("init", init, 0o755), cpio.directory("dev"), console])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    sys.exit(prepare(place, fetch=True) or 0)
