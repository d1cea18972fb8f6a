"""A stock Debian kernel on the board that our ACPI tables describe, with our initramfs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.command import CMDLINE
from pykvm.linux.initramfs import Job, build_initramfs
from pykvm.linux.kit import Kit, cached_kit
from pykvm.machine import Machine

if TYPE_CHECKING:
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


def run(kit: Kit, command: str, *, cmdline: str = "", vcpus: int = 1) -> RunResult:
    job = Job()
    job.add("run", command)
    with Machine(memory="256M", vcpus=vcpus) as machine:
        initrd = build_initramfs(kit, job, (), lambda _text: None)
        machine.load(kit.kernel.image, initrd=initrd, cmdline=f"{CMDLINE} quiet {cmdline}")
        return machine.run(timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("command", "reason"),
    [("poweroff", "power-off"), ("reboot", "reset"), ("echo c > /proc/sysrq-trigger", "panic")],
)
def test_power_off_restart_and_panic_are_different_ends(kit: Kit, command: str, reason: str) -> None:
    """By S5 of ACPI, by the jump into the BIOS of a hardware-reduced machine, by the panic port."""
    result = run(kit, f"{command}; sleep 100")
    assert str(result.reason) == reason, result.text
    assert ("Kernel panic" in result.text) == (reason == "panic")


_INSIDE = """
grep -c ^processor /proc/cpuinfo
uname -r
tty
ls /sys/bus/acpi/devices | grep -c PNP0C0C
exit 7
"""


def test_a_command_in_a_guest_of_two_cpus(kit: Kit) -> None:
    """`pykvm run linux --init`: ACPI shows both CPUs, the output is the command's, the status too."""
    command = [sys.executable, "-m", "pykvm", "run", "linux", "-q", "--smp", "2"]
    done = subprocess.run(
        [*command, "--timeout", str(TIMEOUT_S), "--init", _INSIDE.strip().replace("\n", "; ")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S + 60,
    )
    assert done.stdout.split() == ["2", kit.kernel.release, "/dev/ttyS0", "1"], done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (7, "")
