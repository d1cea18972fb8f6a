"""`pykvm run linux`: from the command's options to a machine with Debian's cloud kernel and our initramfs."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from pykvm.errors import ConfigError
from pykvm.lab.store import Store
from pykvm.linux.initramfs import Job, build_initramfs
from pykvm.linux.kit import kit
from pykvm.linux.marks import LinuxMark
from pykvm.linux.options import add_devices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.machine import Machine

__all__ = ["CMDLINE", "NAME", "linux_machine"]

NAME = "linux"
# The kernel's tests of its own ciphers are more than half of a boot, and no guest's business. Its watchdog of
# the TSC would wake an idle guest twice a second, whose clock is KVM's.
CMDLINE = "console=ttyS0 panic=-1 pci=conf1 8250.nr_uarts=1 cryptomgr.notests tsc=nowatchdog"
_MEMORY = "256M"
# a shell on a terminal would show a prompt, and edit lines; busybox' cat would hold the pipe while it waits
_READER = "dd bs=4k 2>/dev/null | /bin/sh"
_NOT_HERE = {
    "mode": "--mode",
    "address": "--address",
    "entry": "--entry",
    "initrds": "--initrd",
    "board": "--board",
    "read_only": "--read-only",
    "snapshot": "--snapshot",
}


def linux_machine(
    options: Mapping[str, Any], given: Mapping[str, Any], *, show: bool
) -> tuple[dict[str, Any], Callable[[Machine], object]]:
    """The arguments for Machine, and what loads it. `given` are those of them that the user said.

    `options` are those of `pykvm run`. Fetches what the cache has not. Raises ConfigError and LabError.
    """
    for name, word in _NOT_HERE.items():
        if options.get(name):
            raise ConfigError(f"{word} is not for `{NAME}`, which brings its own kernel and initramfs")
    parts = kit(Store(), _say)
    job = Job()
    job.add("name", NAME)
    is_virtio = options.get("console") != "serial"
    job.add("tty", "/dev/hvc0" if is_virtio else "/dev/ttyS0")
    size = os.terminal_size((0, 0))
    if show and sys.stdout and sys.stdout.isatty():
        size = shutil.get_terminal_size()
        job.add("window", size.lines, size.columns)
    command = options.get("init")
    is_detached = bool(options.get("detach"))
    if command is None and not show and not is_detached:
        raise ConfigError("a shell needs a terminal or its input; say what to run with --init COMMAND")
    if command is None and not is_detached and sys.stdin and not sys.stdin.isatty():
        command = _READER
    if command is not None:
        job.add("plain")
        job.add("run", command)
    cmdline = f"{CMDLINE} {'' if options.get('verbose') else 'quiet'} {options.get('cmdline') or ''}"

    def load(machine: Machine) -> None:
        wanted = add_devices(machine, options, job)
        if is_virtio:
            machine.add_console(columns=size.columns, rows=size.lines, hold=True)
            wanted += ["virtio_mmio", "virtio_console"]
        wanted += options.get("modules") or ()
        initrd = build_initramfs(parts, job, wanted)
        boot = options.get("boot") or "elf"
        kernel = parts.kernel.image if boot == "packed" else parts.vmlinux
        if "init=" not in cmdline:  # with another first process nobody would say that it has begun
            machine.panics_before = LinuxMark.KERNEL_READY
        machine.load(kernel, initrd=initrd, cmdline=" ".join(cmdline.split()), boot=boot)
        machine.has_tty = command is None

    return {"memory": _MEMORY, "vcpus": 1} | dict(given), load


def _say(text: str) -> None:
    if sys.stderr:
        sys.stderr.write(f"pykvm: {text}\n")
        sys.stderr.flush()
