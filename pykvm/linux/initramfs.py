"""The initramfs of a Linux guest: our first process, busybox, the modules it needs, and what it is to do.

The kernel unpacks several archives one after the other: the large one is kept in the cache, and a small one
with `/pykvm.conf` (see guests/linux_init/init.c) is made for each run.
"""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm.errors import ConfigError, LabError
from pykvm.lab import cpio
from pykvm.lab.modules import ModuleTree, without_signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pykvm.linux.kit import Kit

__all__ = ["BASE_MODULES", "Job", "applets", "build_initramfs"]

BASE_MODULES = ("pvpanic_mmio",)
_KEPT = 8
_NAME = "initramfs.cpio"
_KIND = "linux-initramfs"
_CONF = "pykvm.conf"
_DHCP = b"""#!/bin/sh
case $1 in
deconfig)
    ip link set "$interface" up ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf ;;
esac
"""
_MOST_CONF_BYTES = 65_536  # CONF_MAX of the first process


class Job:
    """What the first process does: one directive a line. Each method adds one."""

    def __init__(self) -> None:
        self.lines: list[str] = [f"exit_port {layout.PLAIN_EXIT.start}"]

    def add(self, directive: str, *words: object) -> None:
        """Add a directive. Raises ConfigError for a word that would break its line."""
        line = " ".join([directive, *map(str, words)])
        if "\n" in line or "\0" in line:
            raise ConfigError(f"{line!r}: a directive for the guest's first process is one line")
        self.lines.append(line)

    def entry(self, modules: Sequence[str]) -> cpio.Entry:
        """`/pykvm.conf`, with the modules to load before everything else."""
        lines = [*(f"module /modules/{name}.ko" for name in modules), *self.lines]
        data = "".join(f"{line}\n" for line in lines).encode()
        if len(data) > _MOST_CONF_BYTES:
            raise ConfigError(f"a job of {len(data)} bytes for the guest's first process; the most is 64 KiB")
        return cpio.file(_CONF, data)


def build_initramfs(kit: Kit, job: Job, modules: Iterable[str]) -> bytes:
    """The archives for a run with `modules` and what they depend on. Raises LabError if one is missing."""
    wanted = sorted({*BASE_MODULES, *modules})

    def build(where: Path) -> Mapping[str, Any]:
        found = ModuleTree(kit.kernel.modules).in_order(wanted)
        members = list(_members(kit.init.read_bytes(), kit.busybox))
        members.append(cpio.directory("modules"))
        members += [cpio.file(f"modules/{m.name}.ko", without_signature(m.image)) for m in found]
        (where / _NAME).write_bytes(cpio.pack(members))
        return {"kernel": kit.kernel.release, "modules": [module.name for module in found]}

    digest = hashlib.sha256(kit.init.read_bytes() + _DHCP)
    digest.update("\0".join([kit.kernel.key, kit.busybox.parent.name, *wanted]).encode())
    entry = kit.store.obtain(_KIND, digest.hexdigest()[:32], build, lambda _text: None, keep=_KEPT)
    conf = cpio.pack([job.entry([str(name) for name in entry.about["modules"]])])
    return (entry.path / _NAME).read_bytes() + conf


def _members(init: bytes, busybox: Path) -> Iterable[cpio.Entry]:
    yield cpio.file("init", init, 0o755)
    for name in ("bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr"):
        yield cpio.directory(name)
    yield cpio.device("dev/console", "c", 5, 1)
    yield cpio.directory("usr/bin")
    yield cpio.directory("usr/sbin")
    yield cpio.file("etc/udhcpc.script", _DHCP, 0o755)
    yield cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    yield cpio.file("etc/group", b"root:x:0:\n")
    yield cpio.file("bin/busybox", busybox.read_bytes(), 0o755)
    for path in applets(busybox):
        yield cpio.symlink(path, "/bin/busybox")


def applets(busybox: Path) -> list[str]:
    """The paths of busybox's applets, as it tells them itself. Raises LabError if it does not run here."""
    try:
        done = subprocess.run(
            [busybox, "--list-full"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{busybox}: it does not run here: {error}") from None
    places = ("bin/", "sbin/", "usr/bin/", "usr/sbin/")
    names = {line for line in done.stdout.split() if line.startswith(places) and line != "bin/busybox"}
    return sorted(names | {"bin/sh"})
