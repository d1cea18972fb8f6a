"""The same Linux guest in pykvm and in QEMU's machines: its files, its command lines, and one run of it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.errors import ConfigError, ToolchainError
from pykvm.lab import cpio
from pykvm.lab.store import Store
from pykvm.linux.initramfs import Job, build_initramfs
from pykvm.linux.kit import kit

from .installed import pykvm_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["GUEST_BYTES", "MACHINES", "Devices", "LinuxFiles", "Process", "started"]

GUEST_BYTES = 256 << 20
MACHINES = ("pykvm", "QEMU microvm", "QEMU pc")
"""The microvm gets a clock chip (rtc=on): without one this kernel asks for it 20,000 times."""
_HERE = Path(__file__).parent
_CMDLINE = "console=ttyS0 quiet panic=-1 cryptomgr.notests tsc=nowatchdog"  # as `pykvm run linux` says, too
_PCI = {
    "pykvm": "pci=conf1",
    "QEMU microvm": "pci=off",
    "QEMU pc": "",
}  # where there is none, not to look for it
_TOLD = re.compile(rb"bench (\w+) (\d+) (\d+)")
_CHUNK = 1 << 16


class LinuxFiles:
    """Kernel, vmlinux and the guest's program in a folder; what is there is kept.

    Raises ToolchainError where the program can't be compiled, LabError where there is no kernel.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._kit = kit(Store(), lambda _text: None)
        self.bzimage, self.vmlinux = self._kit.kernel.image, self._kit.vmlinux
        self.program = folder / "linux_guest"
        if not self.program.exists():
            self._compile()

    def boot(self) -> Path:
        """An initramfs whose first process says so and ends the run."""
        console = cpio.device("dev/console", "c", 5, 1)
        init = cpio.file("init", self.program.read_bytes(), 0o755)
        return self._written("boot", cpio.pack([init, cpio.directory("dev"), console]))

    def work(self, command: str, *modules: str) -> Path:
        """One with busybox that runs `command`, whose program is /bench, and ends the run."""
        job = Job()
        job.add("tty", "/dev/ttyS0")
        job.add("plain")
        job.add("run", command)
        data = build_initramfs(self._kit, job, ["virtio_mmio", *modules])
        program = cpio.file("bench", self.program.read_bytes(), 0o755)
        return self._written("work", data + bytes(-len(data) % 4) + cpio.pack([program]))

    def _written(self, name: str, data: bytes) -> Path:
        path = self._folder / f"{name}.{os.getpid()}.cpio"
        path.write_bytes(data)
        return path

    def _compile(self) -> None:
        source = _HERE / "linux_guest.c"
        command = [
            "gcc",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            str(source),
            "-o",
            str(self.program),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            what = getattr(error, "stderr", None) or str(error)
            raise ToolchainError(f"{source.name}: {what.splitlines()[0]}") from None


class Devices(NamedTuple):
    """What the guest is to have beside its serial port."""

    disk: Path | None = None
    console: Path | None = None  # where a virtio console prints to
    net_fd: int = -1  # a socket of datagrams
    tap: str = ""


def command(name: str, files: LinuxFiles, initrd: Path, devices: Devices) -> list[str]:
    """The command line of the machine called `name`."""
    words = f"{_CMDLINE} {_PCI[name]}".rstrip()
    if name == "pykvm":
        argv = [*pykvm_command(), "run", str(files.vmlinux), "-q", "--memory", str(GUEST_BYTES)]
        argv += ["--initrd", str(initrd), "--append", words]
        return argv + _ours(devices)
    machine = "microvm,rtc=on" if name == "QEMU microvm" else "pc"
    argv = ["qemu-system-x86_64", "-machine", machine, "-accel", "kvm", "-cpu", "host", "-nodefaults"]
    argv += [
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-m",
        f"{GUEST_BYTES >> 20}M",
    ]
    argv += ["-kernel", str(files.bzimage), "-initrd", str(initrd), "-append", words]
    argv += ["-device", f"isa-debug-exit,iobase={layout.PLAIN_EXIT.start:#x},iosize=4"]
    return argv + _theirs(devices)


def _ours(devices: Devices) -> list[str]:
    argv = ["--disk", str(devices.disk)] if devices.disk else []
    argv += ["--net", f"fd={devices.net_fd}"] if devices.net_fd >= 0 else []
    return argv + (["--net", f"tap={devices.tap}"] if devices.tap else [])


def _theirs(devices: Devices) -> list[str]:
    argv = []
    if devices.disk:
        argv += [
            "-drive",
            f"file={devices.disk},if=none,id=disk,format=raw",
            "-device",
            "virtio-blk-device,drive=disk",
        ]
    if devices.console:
        argv += ["-device", "virtio-serial-device", "-chardev", f"file,id=console,path={devices.console}"]
        argv += ["-device", "virtconsole,chardev=console"]
    if devices.net_fd >= 0:
        argv += ["-netdev", f"dgram,id=net,local.type=fd,local.str={devices.net_fd}"]
    if devices.tap:
        argv += ["-netdev", f"tap,id=net,ifname={devices.tap},script=no,downscript=no"]
    if devices.net_fd >= 0 or devices.tap:
        argv += ["-device", "virtio-net-device,netdev=net"]
    return argv


class Process:
    """A machine that runs: its output so far, with times."""

    def __init__(
        self,
        argv: Sequence[str],
        limit_s: float,
        pass_fds: Sequence[int],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = argv[0]
        self._end = time.monotonic() + limit_s
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            env=env,
        )
        self.pid = self._process.pid
        assert self._process.stdout
        self._fd = self._process.stdout.fileno()
        self.output = b""

    def wait_for(self, what: bytes) -> float:
        """Read until `what` has come: when that was. Raises ConfigError if it doesn't."""
        while what not in self.output:
            if not self._read():
                raise ConfigError(f"{' '.join(self.name)}: ended without {what!r}: {self.output[-500:]!r}")
        return time.monotonic()

    def finish(self) -> float:
        """Read until its end: when that was. Raises ConfigError at the time limit."""
        while self._read():
            pass
        self._process.wait()
        return time.monotonic()

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._fd], [], [], max(self._end - time.monotonic(), 0))
        if not ready:
            raise ConfigError(f"{self.name}: no end in sight after {self.output[-300:]!r}")
        data = os.read(self._fd, _CHUNK)
        self.output += data
        return data

    def told(self, word: str, text: bytes | None = None) -> tuple[int, int]:
        """(count, ns) that /bench told of `word`. Raises ConfigError if it has not."""
        text = self.output if text is None else text
        for found, count, ns in _TOLD.findall(text):
            if found.decode() == word:
                return int(count), int(ns)
        raise ConfigError(f"{self.name}: the guest told nothing of {word}: {text[-300:]!r}")

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@contextmanager
def started(
    name: str, files: LinuxFiles, initrd: Path, devices: Devices | None = None, *, limit_s: float = 120
) -> Iterator[Process]:
    """The machine called `name` with these devices, started; ended with the block."""
    devices = devices or Devices()
    argv = command(name, files, initrd, devices)
    if name == "pykvm" and devices.console:  # the command has it with its own kernel alone
        argv = [sys.executable, str(_HERE / "linux_console.py"), str(files.vmlinux), str(initrd)]
        argv += [f"{_CMDLINE} {_PCI[name]}", str(devices.console)]
    process = Process(argv, limit_s, [devices.net_fd] if devices.net_fd >= 0 else [])
    try:
        yield process
    finally:
        process.stop()
