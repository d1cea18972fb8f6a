"""Hypercalls in the bench: the transports beside each other, and the console beside the serial port."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from pykvm.machine import Machine
from pykvm.result import EndReason
from pykvm.transports import offers_vmcall

from .figures import Figure, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .floor import Programs

__all__ = ["calls"]

_BATCH = 32  # BATCH and TEXT_BYTES of calls.c
_TEXT_BYTES = 4096
_FIXED_EXITS = 4  # HC_FEATURES, two marks, the end
_LIMIT_S = 300


class _Way(NamedTuple):
    """One thing that the guest can do: its number in calls.c, and the exits that it needs beforehand."""

    number: int
    more_exits: int = 0


_WAYS = {
    "OUT": _Way(0),
    "MMIO": _Way(1),
    "VMCALL": _Way(2),
    "ring, batches of 32": _Way(3, 1),
    "ring, one by one": _Way(4, 1),
}
_CONSOLE, _UART = _Way(5), _Way(6)


class _Sample(NamedTuple):
    """What one run took: ns and exits for each call, or byte of the console."""

    ns: float
    exits: float


class _Guest:
    """The guest of calls.c, as `Programs` has compiled it."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def has(self, name: str) -> bool:
        """Whether this KVM has the transport."""
        if name != "VMCALL":
            return True
        with Machine("2M") as machine:
            machine.load(self.image)
            return machine.vm is not None and offers_vmcall(machine.vm)

    def run(self, way: _Way, rounds: int, per_round: int) -> _Sample:
        """One run of `rounds`, each of `per_round` calls or bytes."""
        with Machine("2M") as machine:
            machine.load(self.image)
            vcpu = machine.vcpus[0]
            vcpu.set_regs({**vcpu.get_regs(), "rdi": way.number, "rsi": rounds})
            result = machine.run(timeout=_LIMIT_S)
        if result.reason != EndReason.EXIT or result.exit_code != 0:
            raise RuntimeError(f"the bench's guest ended with {result}")
        first, last = result.marks
        exits = result.stats.exits - _FIXED_EXITS - way.more_exits
        count = rounds * per_round
        return _Sample((last.time_ns - first.time_ns) / count, exits / count)

    def rounds(self, way: _Way, seconds: float, per_round: int) -> int:
        """How many rounds take about so long."""
        few = 8
        ns = self.run(way, few, per_round).ns * per_round
        return max(int(seconds * 1e9 / ns), few)


def calls(programs: Programs, samples: int, seconds: float, progress: Callable[[str], None]) -> list[Figure]:
    """µs and exits for each call by each transport, taking turns; text by hypercall and by the UART."""
    guest = _Guest(programs.calls)
    ways = {name: way for name, way in _WAYS.items() if guest.has(name)}
    rounds = {name: guest.rounds(way, seconds, _BATCH) for name, way in ways.items()}
    found: dict[str, list[_Sample]] = {name: [] for name in ways}
    text_rounds = guest.rounds(_CONSOLE, seconds, _TEXT_BYTES)
    uart_rounds = guest.rounds(_UART, seconds, _BATCH)
    text, uart = [], []
    for i in range(samples):
        progress(f"hypercalls, round {i + 1} of {samples}")
        for name, way in ways.items():
            found[name].append(guest.run(way, rounds[name], _BATCH))
        text.append(guest.run(_CONSOLE, text_rounds, _TEXT_BYTES).ns)
        uart.append(guest.run(_UART, uart_rounds, _BATCH).ns)
    return [*_transports(found), *_console(text, uart)]


def _transports(found: dict[str, list[_Sample]]) -> list[Figure]:
    figures = []
    for name, runs in found.items():
        figures.append(measured(f"a call by {name}", [run.ns / 1e3 for run in runs], "µs"))
        figures.append(measured(f"a call by {name}: exits", [run.exits for run in runs], "exits"))
    pairs = zip(found["OUT"], found["ring, batches of 32"], strict=True)
    ratio = [out.ns / ring.ns for out, ring in pairs]
    name = "calls by ring in batches of 32, rate against OUT"
    return [*figures, Figure(name, median(ratio), "ratio", 3, True, min(ratio), max(ratio), len(ratio))]


def _console(text: Sequence[float], uart: Sequence[float]) -> list[Figure]:
    """Bytes per second from ns per byte."""
    ratio = [u / t for t, u in zip(text, uart, strict=True)]
    name = "console write of 4 KiB, bytes per second against the UART"
    return [
        measured(name, ratio, "ratio", 50, more=True),
        measured("text by console writes of 4 KiB", [1e3 / ns for ns in text], "MB/s"),
        measured("text by the UART, polled", [1e6 / ns for ns in uart], "kB/s"),
    ]
