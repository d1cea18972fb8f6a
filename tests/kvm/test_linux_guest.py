"""A stock Debian kernel on the board that our ACPI tables describe, with our initramfs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.command import CMDLINE
from pykvm.linux.initramfs import Job, build_initramfs
from pykvm.linux.kit import Kit, cached_kit
from pykvm.linux.options import add_devices
from pykvm.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.result import RunResult

pytestmark = pytest.mark.needs("ring3_syscall", "msr_filter", "irqchip")
TIMEOUT_S = 300


@pytest.fixture(scope="session")
def kit() -> Kit:
    """What a Linux guest is made of, from the cache: a lab has no network."""
    found = cached_kit(Store())
    if not found:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    return found


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system in an image."""
    image = tmp_path_factory.mktemp("disk") / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    program = shutil.which("mke2fs") or "/sbin/mke2fs"
    subprocess.run([program, "-q", "-t", "ext4", str(image)], check=True, timeout=60)
    return image


def run(kit: Kit, command: str, **options: object) -> RunResult:
    job = Job()
    job.add("run", command)
    with Machine(memory="256M") as machine:
        modules = add_devices(machine, options, job)
        initrd = build_initramfs(kit, job, modules)
        machine.load(kit.kernel.image, initrd=initrd, cmdline=f"{CMDLINE} quiet")
        return machine.run(timeout=TIMEOUT_S)


@pytest.mark.parametrize(("command", "reason"), [("poweroff", "power-off"), ("reboot", "reset")])
def test_power_off_and_restart_are_different_ends(kit: Kit, command: str, reason: str) -> None:
    """By S5 of ACPI, and by the jump into the BIOS of a hardware-reduced machine."""
    result = run(kit, f"{command}; sleep 100")
    assert str(result.reason) == reason, result.text


_WRITE = """
mount -t ext4 /dev/vda /mnt
echo kept > /mnt/file
sync
cat /sys/block/vda/serial
dd if=/dev/vda of=/dev/null bs=4k count=300 iflag=direct 2>&1 | head -1
dd if=/dev/hwrng of=/dev/null bs=16 count=4 2>&1 | head -1
echo c > /proc/sysrq-trigger
"""

_READ = """
grep -c ^processor /proc/cpuinfo
uname -r
tty
ls /sys/bus/acpi/devices | grep -c PNP0C0C
mount -t ext4 -o ro /dev/vda /mnt
cat /mnt/file
exit 7
"""


def test_a_disk_keeps_what_was_synced_before_a_panic(kit: Kit, disk: Path) -> None:
    """Killed hard, its panic reported; and 300 requests cost the vCPU no exit to user space.

    The next guest, of two CPUs by `pykvm run linux --init`, finds the file; its output is the command's, its
    status too.
    """
    result = run(kit, _joined(_WRITE), disks=[f"{disk},serial=pykvm-1"], rng=True)
    assert str(result.reason) == "panic", result.text
    assert "Kernel panic" in result.text
    for line in ("pykvm-1", "300+0 records in", "4+0 records in"):
        assert line in result.text
    assert result.exits.get("MMIO", 0) < 100, result.exits
    assert not result.warnings

    command = [
        sys.executable,
        "-m",
        "pykvm",
        "run",
        "linux",
        "-q",
        "--smp",
        "2",
        "--disk",
        f"{disk},snapshot",
    ]
    done = subprocess.run(
        [*command, "--timeout", str(TIMEOUT_S), "--init", _joined(_READ)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S + 60,
    )
    assert done.stdout.split() == ["2", kit.kernel.release, "/dev/ttyS0", "1", "kept"], (
        done.stdout + done.stderr
    )
    assert (done.returncode, done.stderr) == (7, "")


def _joined(lines: str) -> str:
    return lines.strip().replace("\n", "; ")
