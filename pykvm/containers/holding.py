"""Which of its limits held a container, and how often, by the kernel's own counters.

Source: the kernel's cgroup-v2 document (memory.events, pids.events, cpu.stat) and its document of pressure
stall information (io.pressure).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cpu_text", "held_by", "limit_text"]

_LEAST_WAIT_US = 10_000  # less is what any disk costs


def held_by(files: Mapping[str, object]) -> list[str]:
    """A line for each limit that held processes back, with the limit and its figures; none if none did."""
    found = []
    memory = limit_text("memory.max", files.get("memory.max"))
    kills, reached = (_count(files.get("memory.events"), key) for key in ("oom_kill", "max"))
    if kills:
        why = f"limit of {memory}" if memory else "the machine's memory"
        found.append(f"memory: {why} reached, {_many(kills, 'process')} killed")
    elif reached and memory:
        found.append(f"memory: limit of {memory} reached {_many(reached, 'time')}, nobody killed")
    if refused := _count(files.get("pids.events"), "max"):
        limit = limit_text("pids.max", files.get("pids.max"))
        found.append(f"pids: limit of {limit} reached, {_many(refused, 'fork')} refused")
    if times := _count(files.get("cpu.stat"), "nr_throttled"):
        seconds = _count(files.get("cpu.stat"), "throttled_usec") / 1e6
        limit = limit_text("cpu.max", files.get("cpu.max"))
        found.append(f"cpu: limit of {limit} reached, throttled {_many(times, 'time')} for {seconds:.3f} s")
    waited = _waited_us(files.get("io.pressure"))
    if (rates := limit_text("io.max", files.get("io.max"))) and waited >= _LEAST_WAIT_US:
        found.append(f"io: limit of {rates}, waited {waited / 1e6:.3f} s for disks")
    return found


def limit_text(file: str, value: object) -> str:
    """A limit's file for people: sizes with units, CPU time as CPUs; "" for no limit."""
    text = " ".join(str(value or "").split())
    if not text or text == "max" or text.startswith("max "):
        return ""
    if file in {"memory.max", "memory.swap.max", "memory.high", "memory.low"}:
        return _binary(text)
    if file == "cpu.max":
        return cpu_text(text)
    if file == "io.max":
        return _rates(str(value))
    return text


def cpu_text(text: str) -> str:
    """`20000 100000` is 0.2 CPUs."""
    quota, _, period = text.partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return text
    share = int(quota) / int(period)
    return f"{share:g} CPU{'' if share == 1 else 's'}"


def _binary(text: str) -> str:
    if not text.isdecimal():
        return text
    value, unit = int(text), 0
    while value >= 1024 and not value % 1024 and unit < 4:
        value, unit = value // 1024, unit + 1
    return f"{value}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


_WORDS = {"rbps": "B/s reading", "wbps": "B/s writing", "riops": "reads/s", "wiops": "writes/s"}


def _rates(text: str) -> str:
    """`254:16 rbps=max wbps=1048576 …`, a line for each device."""
    found = []
    for line in text.splitlines():
        device, *pairs = line.split()
        for key, _, rate in (pair.partition("=") for pair in pairs):
            if key in _WORDS and rate.isdecimal():
                number = _binary(rate) if key.endswith("bps") else rate
                found.append(
                    f"{number.removesuffix('B') if key.endswith('bps') else number}{_word(key)} of {device}"
                )
    return ", ".join(found)


def _word(key: str) -> str:
    return _WORDS[key] if key.endswith("bps") else f" {_WORDS[key]}"


def _many(count: int, what: str) -> str:
    plural = f"{what}{'es' if what.endswith('s') else 's'}"
    return f"{count} {what if count == 1 else plural}"


def _count(text: object, key: str) -> int:
    match = re.search(rf"^{key} (\d+)$", str(text or ""), re.MULTILINE)
    return int(match[1]) if match else 0


def _waited_us(text: object) -> int:
    match = re.search(r"^some .*\btotal=(\d+)", str(text or ""), re.MULTILINE)
    return int(match[1]) if match else 0
