"""What the bench measures. Floor and pykvm take turns, so that a busy host disturbs both alike."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pykvm.machine import Machine
from pykvm.result import EndReason

from .figures import Figure, measured
from .floor import EXITS_PER_ROUND
from .installed import pykvm_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pykvm.result import RunResult

    from .floor import Programs

__all__ = ["command", "exits", "leaks", "lifecycle", "memory"]

_FAST_PORT = 0xE9  # the debug console: the C loop appends to a byte ring
_DEVICE_PORT = 0x600
_MEMORY = "2M"
_GUEST = "01_hello"


class _Null:
    """A device that does nothing, so that only the way to it and back is left."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass


@contextmanager
def _machine(programs: Programs, port: int, rounds: int, *, trace: bool = False) -> Iterator[Machine]:
    """A machine with the bench's guest, which writes 64 * `rounds` bytes to `port`."""
    with Machine(_MEMORY, trace=trace) as machine:
        machine.ports.attach(range(_DEVICE_PORT, _DEVICE_PORT + 1), _Null())
        machine.load(programs.exits)
        vcpu = machine.vcpus[0]
        vcpu.set_regs({**vcpu.get_regs(), "rcx": rounds, "rdx": port})
        yield machine


def _run(programs: Programs, port: int, rounds: int, *, trace: bool = False) -> RunResult:
    with _machine(programs, port, rounds, trace=trace) as machine:
        result = machine.run(timeout=600)
    if result.reason != EndReason.EXIT or result.stats.exits != rounds * EXITS_PER_ROUND + 1:
        raise RuntimeError(f"the bench's guest ended with {result} after {result.stats.exits} exits")
    return result


def _rounds(programs: Programs, seconds: float) -> int:
    """How many rounds the floor does in about `seconds`; a power of two, so that runs can be compared."""
    with _machine(programs, _FAST_PORT, 8) as machine:
        ns, exits = programs.run("run", programs.start_file(machine, "few"))[0]
    wanted = max(int(seconds * 1e9 / (ns / exits) / EXITS_PER_ROUND), 1)
    return max(1 << wanted.bit_length() - 1, 8)


def exits(programs: Programs, samples: int, seconds: float, progress: Callable[[str], None]) -> list[Figure]:
    """The cost of an exit: answered in C, with and without trace, and by a device in Python."""
    rounds = _rounds(programs, seconds)
    with _machine(programs, _FAST_PORT, rounds) as machine:
        start = programs.start_file(machine, "many")
    floor_ns, fast_ns, traced_ns, device_ns, own, own_traced = ([0.0] * samples for _ in range(6))
    for i in range(samples):
        progress(f"exits, round {i + 1} of {samples}")
        ns, count = programs.run("run", start)[0]
        floor_ns[i] = ns / count
        fast = _run(programs, _FAST_PORT, rounds).stats
        fast_ns[i], own[i] = fast.wall_ns / fast.exits, fast.own_ns_per_exit
        traced = _run(programs, _FAST_PORT, rounds, trace=True).stats
        traced_ns[i], own_traced[i] = traced.wall_ns / traced.exits, traced.own_ns_per_exit
        device = _run(programs, _DEVICE_PORT, rounds).stats
        device_ns[i] = device.wall_ns / device.exits

    def ratio(ours: list[float]) -> list[float]:
        return [f / o for f, o in zip(floor_ns, ours, strict=True)]

    above = [d - f for d, f in zip(device_ns, floor_ns, strict=True)]
    return [
        measured("fast port, rate against the floor", ratio(fast_ns), "ratio", 0.95, more=True),
        measured("fast port traced, rate against the floor", ratio(traced_ns), "ratio", 0.90, more=True),
        measured("own time per exit", own, "ns", 60),
        measured("own time per exit, traced", own_traced, "ns", 150),
        measured("Python device and back, above the floor", above, "ns", 3000),
        measured("an exit of the floor", floor_ns, "ns"),
        measured("an exit to a fast port", fast_ns, "ns"),
        measured("an exit to a fast port, traced", traced_ns, "ns"),
        measured("an exit to a Python device", device_ns, "ns"),
        measured("exits per run", [rounds * EXITS_PER_ROUND + 1], "exits"),
    ]


def _whole_ns() -> int:
    began = time.perf_counter_ns()
    with Machine(_MEMORY) as machine:
        machine.load(_GUEST)
        machine.run(timeout=60)
    return time.perf_counter_ns() - began


def lifecycle(programs: Programs, samples: int, progress: Callable[[str], None]) -> list[Figure]:
    """Create, load, run hello to its end, tear down; in a warm process."""
    with Machine(_MEMORY) as machine:
        machine.load(_GUEST)
        start = programs.start_file(machine, "hello")
    times, warm = 10, 3
    ours, floor = [], []
    for i in range(samples):
        progress(f"whole machines, round {i + 1} of {samples}")
        floor.append(median(ns for ns, _ in programs.run("whole", start, times + warm)[warm:]) / 1e6)
        ours.append(median([_whole_ns() for _ in range(times + warm)][warm:]) / 1e6)
    ratios = [o / f for o, f in zip(ours, floor, strict=True)]
    return [
        measured("create, load, run, tear down against the floor", ratios, "ratio", 1.3),
        measured("create, load, run, tear down", ours, "ms"),
        measured("create, load, run, tear down, the floor", floor, "ms"),
    ]


def _command_ms(command: list[str], caches: str) -> float:
    """Wall time of a command as an installed one has it: with its bytecode compiled."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": caches}
    began = time.perf_counter_ns()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=env)
    return (time.perf_counter_ns() - began) / 1e6


def command(samples: int, progress: Callable[[str], None]) -> list[Figure]:
    """`pykvm run 01_hello` beside a Python that does nothing."""
    nothing = [sys.executable, "-c", "pass"]
    hello = [*pykvm_command(), "run", "--quiet", _GUEST]
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as caches:
        _command_ms(hello, caches)
        pairs = []
        for i in range(samples):
            progress(f"commands, round {i + 1} of {samples}")
            pairs.append((_command_ms(nothing, caches), _command_ms(hello, caches)))
    return [
        measured("`pykvm run 01_hello` above `python -c pass`", [h - n for n, h in pairs], "ms", 80),
        measured("`pykvm run 01_hello`", [h for _, h in pairs], "ms"),
        measured("`python -c pass`", [n for n, _ in pairs], "ms"),
    ]


_RESIDENT = """
import re, sys
from pathlib import Path
from pykvm.cli import main
status = main(["run", "--quiet", sys.argv[1]])
sys.stderr.write(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def memory() -> list[Figure]:
    """The most that a process which does the command had resident, guest pages included: they are few.

    It says so itself: what wait4() tells begins with the size of the process that started it.
    """
    child = [sys.executable, "-c", _RESIDENT, _GUEST]
    done = subprocess.run(child, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return [Figure("resident memory of `pykvm run 01_hello`", int(done.stderr) / 1024, "MiB", 40)]


def _held() -> dict[str, int]:
    """What this process holds: fds, mappings, threads, and resident KiB."""
    status = Path("/proc/self/status").read_text()
    words = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "threads": int(words["Threads"]),
        "KiB": int(words["VmRSS"].split()[0]),
    }


def leaks(machines: int, progress: Callable[[str], None]) -> list[Figure]:
    """Machines made, run and closed in one process: what stays behind of them."""
    for _ in range(20):
        _whole_ns()
    before = _held()
    for i in range(machines):
        if i % 50 == 0:
            progress(f"machines, {i} of {machines}")
        _whole_ns()
    after = _held()
    more = {what: after[what] - before[what] for what in before}
    return [
        Figure(f"fds left by {machines} machines", more["fds"], "fds", 0),
        Figure(f"mappings left by {machines} machines", max(more["mappings"], 0), "mappings", 0),
        Figure(f"threads left by {machines} machines", more["threads"], "threads", 0),
        Figure(f"resident memory more after {machines} machines", more["KiB"], "KiB"),
    ]
