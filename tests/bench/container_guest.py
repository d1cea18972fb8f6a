"""What containers in a Linux guest cost, beside crun and runc in the same guest; to be run in the AMD lab.

Each sample measures all of them one after the other, so that a busy host slows them all. crun and runc get
the same config.json, and a root that is mounted already, which the agent's own runtime does in its time.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pykvm.containers.runtimes import RUNTIMES
from pykvm.guests import built_folder

from .container_machine import BenchGuest, ContainerFiles
from .figures import Figure, in_turn, measured
from .linux_machines import Process, started
from .tracepoints import FirstRun, can_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["GUEST_PARTS", "container_guest"]

_STARTS = 5  # as many as there are samples, times this
_STREAM_BYTES = 8 << 20
_EVENTS = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
_HIST = "hist:keys=common_pid.execname,common_pid"
_COUNT = re.compile(r"common_pid: (.+?) +\[ *\d+\].*?hitcount: *(\d+)")
_LIMIT_S = 180.0


class _Bench:
    """What all parts share; the guest is made when the first of them needs it."""

    def __init__(self, files: ContainerFiles, samples: int, progress: Callable[[str], None]) -> None:
        self.files = files
        self.samples = samples
        self.progress = progress
        self._guest: BenchGuest | None = None

    @property
    def guest(self) -> BenchGuest:
        """The one guest."""
        if not self._guest:
            self.progress("containers: the guest boots")
            self._guest = BenchGuest(self.files).__enter__()
        return self._guest

    def close(self) -> None:
        """End it."""
        guest, self._guest = self._guest, None
        if guest:
            guest.__exit__()

    def rounds(self, what: str, names: Sequence[str], samples: int) -> Iterator[str]:
        """Every name, as often as there are samples, in turn."""
        return in_turn(f"containers: {what}", names, samples, self.progress)


# ---- in the one guest


def starts(bench: _Bench) -> list[Figure]:
    """Milliseconds from the request, or from the start of crun or runc, to the first step of its program."""
    guest = bench.guest
    took: dict[str, list[float]] = {name: [] for name in ("pykvm", *RUNTIMES)}
    for name in took:  # what is read or made for the first time
        guest.run(["/bench", "now"]) if name == "pykvm" else guest.run_by(name)
    for name in bench.rounds("start", list(took), bench.samples * _STARTS):
        if name == "pykvm":
            done = guest.run(["/bench", "now"])
            begun = int(done.answer["at_ns"])
        else:
            done = guest.run_by(name)
            begun = done.told("from")[0]
        took[name].append((done.told("now")[0] - begun) / 1e6)
    figures = [
        measured(f"run of a warm image to exec: {name}", values, "ms") for name, values in took.items()
    ]
    for name, limit in (("crun", 0.5), ("runc", None)):
        ratio = median(took["pykvm"]) / median(took[name])
        figures.append(Figure(f"run of a warm image to exec: pykvm to {name}", ratio, f"of {name}'s", limit))
    return figures


def syscalls(bench: _Bench) -> list[Figure]:
    """All that the guest counts at raw_syscalls:sys_enter from the request to the end of a container.

    Those that the agent needs for the processes that count are counted in a round without a container, and
    taken off. A container made by crun or runc is deleted by them within the round.
    """
    guest = bench.guest
    found: dict[str, int] = {}
    for name in bench.rounds("system calls", ("", "pykvm", *RUNTIMES), 1):
        guest.shell(f"mount -t tracefs t /sys/kernel/tracing; echo {_HIST} > {_EVENTS}/trigger")
        held = guest.start(["/bench", "now"]) if name == "pykvm" else ""
        if name in RUNTIMES:
            guest.run_by(name)
        end = f"cat {_EVENTS}/hist; echo '!{_HIST}' > {_EVENTS}/trigger; umount /sys/kernel/tracing"
        rows = [(comm.strip(), int(count)) for comm, count in _COUNT.findall(guest.shell(end))]
        found[name] = sum(count for comm, count in rows if _is_of(comm, name or "pykvm"))
        if held:
            guest.delete(held)
    found["pykvm"] -= found.pop("")
    limits = {"pykvm": 400}
    return [
        Figure(f"system calls of one container: {name}", count, "calls", limits.get(name))
        for name, count in found.items()
    ]


def _is_of(comm: str, runtime: str) -> bool:
    """Whether a process is the runtime, or one of its making until it executes the container's program."""
    if runtime == "pykvm":
        return comm == "init"
    return comm not in {"init", "bench", "sh", "cat", "mount", "umount"}


def size(bench: _Bench) -> list[Figure]:
    """The agent, which is the runtime; and what the others bring."""
    del bench
    agent = (built_folder() / "agent").stat().st_size
    return [Figure("the agent, static, runtime and all", agent / 1000, "kB", 150)]


def layers(bench: _Bench) -> list[Figure]:
    """Every file of a layer read, as erofs on the disk of layers and as ext4 on a disk of its own."""
    guest = bench.guest
    partition = len(guest.layers)
    devices = {"erofs": f"/dev/vda{partition}", "ext4": "/dev/vdb"}
    took: dict[str, list[float]] = {kind: [] for kind in devices}
    read = 0
    for kind in bench.rounds("a layer read", list(devices), bench.samples):
        guest.shell(f"echo 3 > /proc/sys/vm/drop_caches; mount -t {kind} -o ro {devices[kind]} /mnt/{kind}")
        done = guest.process(["/mnt/program/bench", "tree", f"/mnt/{kind}"])
        guest.shell(f"umount /mnt/{kind}")
        read, ns = done.told("tree")
        took[kind].append(ns / 1e9)
    title = f"a layer of {read / 1e6:.0f} MB read"
    ratio = median(took["erofs"]) / median(took["ext4"])
    return [
        *(measured(f"{title}: {kind}", values, "s") for kind, values in took.items()),
        Figure(f"{title}: erofs to ext4", ratio, "of ext4's", 1.3),
    ]


def streams(bench: _Bench) -> list[Figure]:
    """A container's output and input through the agent, as fast as both sides go."""
    guest = bench.guest
    out, into = [], []
    for _ in bench.rounds("streams", ("both",), bench.samples):
        done = guest.run(["/bench", "fill", str(_STREAM_BYTES)])
        out.append(len(done.out) / done.seconds / 1e6)
        count, ns = guest.run(["/bench", "drain"], bytes(_STREAM_BYTES)).told("drain")
        into.append(count / ns * 1e3)
    return [
        measured("output of a container, at the host", out, "MB/s"),
        measured("input from the host to a container", into, "MB/s"),
    ]


# ---- whole commands


def cold(bench: _Bench) -> list[Figure]:
    """To the first line that comes out: a machine with a container, and a Linux guest with nothing.

    From the machine's first KVM_RUN, where tracepoints tell of it, and from the start of the whole command.
    """
    bench.close()  # an idle guest takes some time, too
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
        data = Path(scratch, "data")
        shutil.copytree(bench.files.data, data)
        env = {**os.environ, "PYKVM_DATA": str(data), "XDG_RUNTIME_DIR": scratch}
        alone: list[tuple[float, float]] = []
        container: list[tuple[float, float]] = []
        for sample in range(bench.samples + 1):
            for name in bench.rounds("cold", ("Linux alone", "a container"), 1):
                found = _cold_alone(bench) if name == "Linux alone" else _cold_container(env)
                if sample:  # the first round reads everything from the disk
                    (alone if name == "Linux alone" else container).append(found)
    figures = []
    for at, what in enumerate(("from KVM_RUN to the first line", "whole command to the first line")):
        rows = {"Linux alone": [one[at] for one in alone], "a container": [one[at] for one in container]}
        more = [one - other for one, other in zip(rows["a container"], rows["Linux alone"], strict=True)]
        figures += [measured(f"cold, {what}: {name}", found, "s") for name, found in rows.items()]
        figures.append(measured(f"cold, {what}: more than Linux alone", more, "s", None if at else 1.0))
    return figures


def _cold_alone(bench: _Bench) -> tuple[float, float]:
    initrd = bench.files.linux.boot()
    with _first_run() as trace, started("pykvm", bench.files.linux, initrd) as process:
        came = process.wait_for(b"init")
        process.finish()
        return came - _entered(trace, process), came - process.started_s


def _cold_container(env: Mapping[str, str]) -> tuple[float, float]:
    argv = [sys.executable, "-m", "pykvm", "container", "run", "--rm", "busybox", "echo", "first line"]
    with _first_run() as trace:
        process = Process(argv, _LIMIT_S, [], env)
        try:
            came = process.wait_for(b"first line")
            process.finish()
            return came - _entered(trace, process), came - process.started_s
        finally:
            process.stop()


def _first_run() -> AbstractContextManager[FirstRun | None]:
    return FirstRun() if can_trace() else nullcontext()


def _entered(trace: FirstRun | None, process: Process) -> float:
    found = trace.at_s() if trace else None
    return process.started_s if found is None else found


GUEST_PARTS: dict[str, Callable[[_Bench], list[Figure]]] = {
    "size": size,
    "starts": starts,
    "syscalls": syscalls,
    "layers": layers,
    "streams": streams,
    "cold": cold,
}
"""In the order in which they are measured."""


def container_guest(
    samples: int, folder: Path, progress: Callable[[str], None], only: Sequence[str] = ()
) -> list[Figure]:
    """All figures, or those of the parts in `only`."""
    bench = _Bench(ContainerFiles(folder), samples, progress)
    try:
        return [
            figure for name, part in GUEST_PARTS.items() if name in only or not only for figure in part(bench)
        ]
    finally:
        bench.close()
