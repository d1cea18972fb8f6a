"""How fast a Linux guest boots, what its devices move, what it costs; beside QEMU's machines.

Each sample measures the machines one after the other, so that a busy host slows them all. A figure "of
QEMU's" is the ratio of the medians; the promises are about those.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pykvm.devices.virtio.net import open_tap
from pykvm.errors import ConfigError

from .figures import Figure, in_turn, measured
from .linux_machines import GUEST_BYTES, MACHINES, Devices, LinuxFiles, Process, started
from .tracepoints import ExitCounts, FirstRun, can_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["LINUX_PARTS", "linux"]

_MEBI = 1 << 20
_OURS, _MICROVM, _PC = MACHINES
_DISK_BYTES = 64 * _MEBI
_PRINTED_BYTES = 10 * _MEBI
_IDLE_S = 10.0
_SETTLE_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
_LINE = re.compile(rb"^([0-9a-f]{63})\r*$", re.MULTILINE)
_GUEST_IP, _HOST_IP = "10.0.0.2", "10.0.0.1"
_TUNSETPERSIST = 0x400454CB


class _Bench:
    """What all parts share."""

    def __init__(
        self, files: LinuxFiles, scratch: Path, samples: int, progress: Callable[[str], None]
    ) -> None:
        self.files = files
        self.scratch = scratch
        self.samples = samples
        self._progress = progress

    def rounds(self, what: str, names: Sequence[str] = MACHINES, samples: int = 0) -> Iterator[str]:
        """Every machine's name, as often as there are samples, in turn."""
        return in_turn(f"linux: {what}", names, samples or self.samples, self._progress)


def _ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], limit: float, *, more: bool = False
) -> Figure:
    return Figure(name, median(ours) / median(theirs), "of QEMU's", limit, more)


# ---- boot


def boot(bench: _Bench) -> list[Figure]:
    """Seconds from the start of the command and of the guest to the first line of init, and to the end."""
    initrd = bench.files.boot()
    before: dict[str, list[float]] = {name: [] for name in MACHINES}
    init: dict[str, list[float]] = {name: [] for name in MACHINES}
    whole: dict[str, list[float]] = {name: [] for name in MACHINES}
    for name in bench.rounds("what all read for the first time", samples=1):
        with started(name, bench.files, initrd) as process:
            process.finish()
    for name in bench.rounds("boot"):
        with (
            FirstRun() if can_trace() else nullcontext() as trace,
            started(name, bench.files, initrd) as process,
        ):
            at_init = process.wait_for(b"init")
            whole[name].append(process.finish() - process.started_s)
            if trace and (entered := trace.at_s()) is not None:
                before[name].append(entered - process.started_s)
                init[name].append(at_init - entered)
    imports = [
        _seconds([sys.executable, "-c", "import pykvm.cli.run, pykvm.session"]) for _ in range(bench.samples)
    ]
    figures = [
        measured(f"boot, first KVM_RUN to init: {n}", values, "s") for n, values in init.items() if values
    ]
    if all(init.values()):
        peer = min((init[_MICROVM], init[_PC]), key=median)
        figures.append(_ratio("boot, first KVM_RUN to init: pykvm to the faster", init[_OURS], peer, 0.75))
    figures += [
        measured(f"boot, command before KVM_RUN: {n}", values, "s") for n, values in before.items() if values
    ]
    figures.append(measured("boot, of that Python's start and imports: pykvm", imports, "s"))
    figures += [measured(f"boot, whole command: {n}", values, "s") for n, values in whole.items()]
    figures.append(_ratio("boot, whole command: pykvm to microvm", whole[_OURS], whole[_MICROVM], 1.0))
    return figures


def _seconds(argv: Sequence[str]) -> float:
    start = time.monotonic()
    subprocess.run(argv, check=True)
    return time.monotonic() - start


def exits(bench: _Bench) -> list[Figure]:
    """Exits of one boot by reason, those that KVM answers among them, and what came out to user space."""
    if not can_trace():
        return []
    initrd, figures = bench.files.boot(), []
    for name in bench.rounds("exits", samples=1):
        with ExitCounts() as counts, started(name, bench.files, initrd) as process:
            process.finish()
            rows = counts.exits(), counts.returns()
        for what, found in zip(("exits of a boot", "returns of KVM_RUN in a boot"), rows, strict=True):
            figures.append(Figure(f"{what}: {name}", sum(found.values()), "exits"))
            figures += [
                Figure(f"{what}, {reason}: {name}", count, "exits") for reason, count in found.items()
            ]
    return figures


# ---- devices


def block(bench: _Bench) -> list[Figure]:
    """A disk read and written by 1 MiB, and read by 4 KiB at random, past the guest's page cache."""
    disk = bench.scratch / "disk.img"
    disk.write_bytes(os.urandom(_MEBI) * (_DISK_BYTES // _MEBI))
    does = "/bench read /dev/vda write /dev/vda random /dev/vda"
    initrd = bench.files.work(does, "virtio_blk")
    rates: dict[tuple[str, str], list[float]] = {}
    for name in bench.rounds("block", (_OURS, _MICROVM)):
        with started(name, bench.files, initrd, Devices(disk=disk)) as process:
            process.finish()
        for word in ("read", "write", "random"):
            count, ns = process.told(word)
            rate = count / ns * 1e9
            rates.setdefault((word, name), []).append(rate if word == "random" else rate / _MEBI)
    disk.unlink()
    figures = []
    for word, title, unit, limit in (
        ("read", "disk, 1 MiB reads", "MiB/s", 0.8),
        ("write", "disk, 1 MiB writes", "MiB/s", 0.8),
        ("random", "disk, random 4 KiB reads", "a second", 0.5),
    ):
        ours, theirs = rates[word, _OURS], rates[word, _MICROVM]
        figures += [
            measured(f"{title}: {_OURS}", ours, unit),
            measured(f"{title}: {_MICROVM}", theirs, unit),
        ]
        figures.append(_ratio(f"{title}: pykvm to microvm", ours, theirs, limit, more=True))
    return figures


def console(bench: _Bench) -> list[Figure]:
    """10 MiB on a virtio console: how fast, and how many of its lines did not come."""
    initrd = bench.files.work(f"/bench print /dev/hvc0 {_PRINTED_BYTES}", "virtio_console")
    out = bench.scratch / "console.out"
    rates: dict[str, list[float]] = {_OURS: [], _MICROVM: []}
    lost = []
    for name in bench.rounds("console", tuple(rates)):
        with started(name, bench.files, initrd, Devices(console=out)) as process:
            process.finish()
        text = out.read_bytes()
        count, ns = process.told("print", text if name == _OURS else None)
        rates[name].append(count / ns * 1e9 / _MEBI)
        wanted = [b"%063x" % line for line in range(_PRINTED_BYTES // 64)]
        if name == _OURS:
            lost.append(
                0.0 if _LINE.findall(text) == wanted else len(wanted) - len(set(_LINE.findall(text))) or 1.0
            )
    out.unlink()
    return [
        *(measured(f"console, 10 MiB printed: {name}", values, "MiB/s") for name, values in rates.items()),
        _ratio("console, 10 MiB printed: pykvm to microvm", rates[_OURS], rates[_MICROVM], 1.0, more=True),
        measured("console, lines lost or in disorder: pykvm", lost, "lines", 0.0),
    ]


def _up(address: str) -> str:
    return f"ip addr add {address}/24 dev eth0; ip link set eth0 up; "


def network(bench: _Bench) -> list[Figure]:
    """One stream of TCP from a guest to another by a pair of sockets, and to the host by a tap device."""
    sender = bench.files.work(f"{_up(_GUEST_IP)} /bench send {_HOST_IP}", "virtio_net")
    kept = sender.rename(sender.with_name("sender.cpio"))
    receiver = bench.files.work(f"{_up(_HOST_IP)} /bench receive", "virtio_net")
    between: dict[str, list[float]] = {_OURS: [], _MICROVM: []}
    to_host: dict[str, list[float]] = {_OURS: [], _MICROVM: []}
    for name in bench.rounds("network between guests", tuple(between)):
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with (
            one,
            other,
            started(name, bench.files, receiver, Devices(net_fd=one.fileno())) as hears,
            started(name, bench.files, kept, Devices(net_fd=other.fileno())) as sends,
        ):
            sends.finish()
            hears.finish()
        between[name].append(_rate(hears))
    if os.access("/dev/net/tun", os.W_OK):
        for name in bench.rounds("network to the host", tuple(to_host)):
            with (
                _tap() as tap,
                subprocess.Popen([bench.files.program, "receive"], stdout=subprocess.DEVNULL) as host,
            ):
                try:
                    with started(name, bench.files, kept, Devices(tap=tap)) as process:
                        process.finish()
                finally:
                    host.kill()
            count, ns = process.told("send")
            to_host[name].append(count / ns * 1e9 / _MEBI)
    figures = []
    for title, rates in (("between guests", between), ("guest to host", to_host)):
        figures += [
            measured(f"network, {title}: {n}", values, "MiB/s") for n, values in rates.items() if values
        ]
        if all(rates.values()):
            value = median(rates[_OURS]) / median(rates[_MICROVM])
            figures.append(Figure(f"network, {title}: pykvm to microvm", value, "of QEMU's"))
    return figures


def _rate(process: Process) -> float:
    count, ns = process.told("receive")
    return count / ns * 1e9 / _MEBI


@contextmanager
def _tap() -> Iterator[str]:
    """A tap device of the host with an address, gone at the end."""
    name = f"pb{os.getpid() % 1_000_000}"
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)
    try:
        with socket.socket() as sock:
            address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(_HOST_IP))
            mask = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("255.255.255.0"))
            for request, data in ((0x8916, address), (0x891C, mask), (0x8914, struct.pack("H14x", 0x41))):
                fcntl.ioctl(sock, request, struct.pack("16s16s8x", name.encode(), data))  # netdevice(7)
        yield name
    finally:
        fd = open_tap(name)
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
        os.close(fd)


# ---- what an idle one costs


def idle(bench: _Bench) -> list[Figure]:
    """CPU of the machine's process while its guest sleeps, and its memory beside the guest's."""
    initrd = bench.files.work(f"echo idle; sleep {int(_IDLE_S + _SETTLE_S + 3)}", "virtio_blk")
    disk = bench.scratch / "disk.img"
    disk.write_bytes(bytes(_MEBI))
    cpu: dict[str, list[float]] = {_OURS: [], _MICROVM: []}
    memory: dict[str, list[float]] = {_OURS: [], _MICROVM: []}
    for name in bench.rounds("idle", tuple(cpu), samples=1):
        with started(name, bench.files, initrd, Devices(disk=disk)) as process:
            process.wait_for(b"idle")
            time.sleep(_SETTLE_S)
            before = _cpu_s(process.pid)
            time.sleep(_IDLE_S)
            cpu[name].append((_cpu_s(process.pid) - before) / _IDLE_S * 100)
            memory[name].append(_resident_bytes(process.pid) / _MEBI)
    disk.unlink()
    return [
        measured(f"idle, CPU over {_IDLE_S:.0f} s: {_OURS}", cpu[_OURS], "%", 1.0),
        measured(f"idle, CPU over {_IDLE_S:.0f} s: {_MICROVM}", cpu[_MICROVM], "%"),
        measured(f"memory beside the guest's: {_OURS}", memory[_OURS], "MiB", 60.0),
        measured(f"memory beside the guest's: {_MICROVM}", memory[_MICROVM], "MiB"),
    ]


def _cpu_s(pid: int) -> float:
    """User and system time of all its threads, finer than ticks."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _resident_bytes(pid: int) -> int:
    """What is resident of all mappings but the guest's RAM, which is the only one of its size."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            size = int(found[2], 16) - int(found[1], 16)
        elif line.startswith("Rss:") and size < GUEST_BYTES:
            total += int(line.split()[1]) << 10
    return total


LINUX_PARTS: dict[str, Callable[[_Bench], list[Figure]]] = {
    "boot": boot,
    "exits": exits,
    "block": block,
    "console": console,
    "network": network,
    "idle": idle,
}
"""In the order in which they are measured."""


def linux(
    samples: int, folder: Path, progress: Callable[[str], None], only: Sequence[str] = ()
) -> list[Figure]:
    """All figures, or those of the parts in `only`. Raises ConfigError where QEMU is not there."""
    if not shutil.which("qemu-system-x86_64"):
        raise ConfigError("no qemu-system-x86_64 here to compare with: apt-get install qemu-system-x86")
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
        bench = _Bench(LinuxFiles(folder), Path(scratch), samples, progress)
        return [
            figure for name, part in LINUX_PARTS.items() if name in only or not only for figure in part(bench)
        ]
