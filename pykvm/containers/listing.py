"""Containers in docker's words: lines of `ps`, states, `inspect`, `stats`, `top`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pykvm.containers.views import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.containers.records import Record

__all__ = ["duration", "inspect", "instant", "ps_row", "state_text", "stats_of", "stats_row", "top_rows"]

_HERTZ = 100
_KILLED = 137
_NEVER = "0001-01-01T00:00:00Z"


def duration(seconds: float) -> str:
    """A length of time as docker says it: `About an hour`, `5 minutes`."""
    whole, hours = int(seconds), int(seconds / 3600 + 0.5)
    if whole < 2:
        return "1 second" if whole == 1 else "Less than a second"
    if whole < 120:
        return f"{whole} seconds" if whole < 60 else "About a minute"
    if whole < 3600 or hours < 2:
        return f"{whole // 60} minutes" if whole < 3600 else "About an hour"
    for below, per, unit in (
        (48, 1, "hours"),
        (336, 24, "days"),
        (1440, 168, "weeks"),
        (17_520, 720, "months"),
    ):
        if hours < below:
            return f"{hours // per} {unit}"
    return f"{hours // 8760} years"


def state_text(record: Record, now_ns: int | None = None) -> str:
    """STATUS of `ps`: docker's words, and why it ended where it did not end by itself."""
    now = time.time_ns() if now_ns is None else now_ns
    if record.state == "created":
        return "Created"
    if record.is_live:
        paused = " (Paused)" if record.state == "paused" else ""
        return f"Up {duration((now - record.started_ns) / 1e9)}{paused}"
    ago = f"Exited ({record.status}) {duration((now - record.finished_ns) / 1e9)} ago"
    if record.error.startswith("its machine"):
        return f"{ago}, machine ended"
    return f"{ago}, out of memory" if record.oom_kills and record.status == _KILLED else ago


def ps_row(record: Record, *, whole: bool, now_ns: int | None = None) -> list[str]:
    """CONTAINER ID, IMAGE, COMMAND, CREATED, STATUS, PORTS, NAMES, MACHINE."""
    now = time.time_ns() if now_ns is None else now_ns
    command = '"' + " ".join(record.command) + '"'
    if not whole and len(command) > 20:
        command = command[:19] + '…"'
    ports = ", ".join(f"{address}:{host}->{inside}/tcp" for address, host, inside in record.ports)
    return [
        record.id if whole else record.short,
        record.image,
        command,
        f"{duration((now - record.created_ns) / 1e9)} ago",
        state_text(record, now),
        ports,
        record.name,
        record.vm,
    ]


def instant(time_ns: int) -> str:
    """A time in RFC 3339, to the nanosecond; docker's year 1 for what has not been."""
    if not time_ns:
        return _NEVER
    whole = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{time_ns % 10**9:09}Z"


def inspect(record: Record, config: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a container, under docker's keys as far as docker has them."""
    process = config["process"]
    memory, cpu = record.resources.get("memory") or {}, record.resources.get("cpu") or {}
    return {
        "Id": record.id,
        "Created": instant(record.created_ns),
        "Path": process["args"][0],
        "Args": process["args"][1:],
        "State": {
            "Status": record.state,
            "Running": record.is_live,
            "Paused": record.state == "paused",
            "OOMKilled": record.oom_kills > 0,
            "HeldBy": record.held,
            "Dead": False,
            "Pid": record.pid,
            "ExitCode": record.status,
            "Error": record.error,
            "StartedAt": instant(record.started_ns),
            "FinishedAt": instant(record.finished_ns),
        },
        "Image": record.image_id,
        "Name": f"/{record.name}",
        "Driver": "overlay",
        "HostConfig": {
            "Memory": memory.get("limit", 0),
            "MemorySwap": memory.get("swap", 0),
            "CpuShares": cpu.get("shares", 0),
            "CpuQuota": cpu.get("quota", 0),
            "CpuPeriod": cpu.get("period", 0),
            "CpusetCpus": cpu.get("cpus", ""),
            "PidsLimit": (record.resources.get("pids") or {}).get("limit"),
            "NetworkMode": record.network,
            "AutoRemove": record.auto_remove,
            "ReadonlyRootfs": config["root"]["readonly"],
            "Init": record.init,
            "CapBounding": process["capabilities"]["bounding"],
        },
        "Config": {
            "Hostname": config["hostname"],
            "User": f"{process['user']['uid']}:{process['user']['gid']}",
            "Tty": record.tty,
            "Env": process["env"],
            "Cmd": record.command,
            "Image": record.image,
            "WorkingDir": process["cwd"],
            "Labels": record.labels,
        },
        "NetworkSettings": {
            "IPAddress": record.address,
            "Ports": {
                f"{inside}/tcp": [{"HostIp": address, "HostPort": str(host)}]
                for address, host, inside in record.ports
            },
        },
        "Machine": {"Name": record.vm, "Own": record.own_vm, "StartedAt": instant(record.vm_started_ns)},
        "Layers": record.layers,
    }


def stats_of(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the agent's `stats`; `before` is an older one, for the share of CPU time (100: one CPU)."""
    files, older = now["files"], (before or now)["files"]
    used_us = _field(files.get("cpu.stat"), "usage_usec")
    passed_us = (int(now["at_ns"]) - int((before or now)["at_ns"])) / 1000
    share = (
        100 * (used_us - _field(older.get("cpu.stat"), "usage_usec")) / passed_us if passed_us > 0 else 0.0
    )
    received, sent = _network(str(files.get("net.dev") or ""))
    read, written = (_sum(files.get("io.stat"), key) for key in ("rbytes", "wbytes"))
    memory = _number(files.get("memory.current"))
    return {
        "cpu_percent": round(share, 2),
        "cpu_us": used_us,
        "throttled": _field(files.get("cpu.stat"), "nr_throttled"),
        "throttled_us": _field(files.get("cpu.stat"), "throttled_usec"),
        "memory_bytes": memory - _field(files.get("memory.stat"), "inactive_file"),
        "memory_limit_bytes": _number(files.get("memory.max")),
        "oom_kills": _field(files.get("memory.events"), "oom_kill"),
        "pids": _number(files.get("pids.current")),
        "pids_limit": _number(files.get("pids.max")),
        "received_bytes": received,
        "sent_bytes": sent,
        "read_bytes": read,
        "written_bytes": written,
    }


def stats_row(record: Record, found: Mapping[str, Any]) -> list[str]:
    """CONTAINER ID, NAME, CPU %, MEM USAGE / LIMIT, MEM %, NET I/O, BLOCK I/O, PIDS."""
    limit = found["memory_limit_bytes"]
    share = 100 * found["memory_bytes"] / limit if limit > 0 else 0.0
    return [
        record.short,
        record.name,
        f"{found['cpu_percent']:.2f}%",
        f"{_binary(found['memory_bytes'])} / {_binary(limit) if limit >= 0 else 'no limit'}",
        f"{share:.2f}%",
        f"{size(found['received_bytes'])} / {size(found['sent_bytes'])}",
        f"{size(found['read_bytes'])} / {size(found['written_bytes'])}",
        str(found["pids"]),
    ]


def top_rows(found: Mapping[str, Any], uptime_s: float, first_id: int) -> list[list[str]]:
    """UID, PID, PPID, C, STIME, TTY, TIME, CMD of every process; ids and pids are the guest's."""
    rows = []
    for process in found.get("processes") or []:
        if not {"stat", "status"} <= process.keys():
            continue  # it ended while it was looked at
        stat = str(process["stat"])
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        words = stat[stat.rindex(")") + 2 :].split()
        ticks = int(words[11]) + int(words[12])
        age = max(uptime_s - int(words[19]) / _HERTZ, 0.01)
        began = datetime.fromtimestamp(time.time() - age).astimezone().strftime("%H:%M")
        uid = int((re.search(r"^Uid:\s+(\d+)", str(process["status"]), re.MULTILINE) or ["", "0"])[1])
        command = str(process.get("cmdline") or "").replace("\0", " ").strip() or f"[{name}]"
        seconds = ticks // _HERTZ
        rows.append(
            [
                "root" if uid == first_id else str(uid),
                str(process["pid"]),
                words[1],
                str(int(100 * ticks / _HERTZ / age)),
                began,
                "?" if words[4] == "0" else _terminal(int(words[4])),
                f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
                command,
            ]
        )
    return rows


def _terminal(number: int) -> str:
    major, minor = number >> 8 & 0xFFF, number & 0xFF
    return f"pts/{minor}" if major == 136 else f"{major}:{minor}"


def _binary(size_bytes: int) -> str:
    """As docker writes memory: powers of 1024, four digits."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < 4:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _number(text: object) -> int:
    """What a cgroup file holds; -1 for `max` and for nothing."""
    word = str(text or "").strip()
    return int(word) if word.isdecimal() else -1


def _field(text: object, name: str) -> int:
    """The value behind `name` in a file of pairs; 0 where it is not."""
    for line in str(text or "").splitlines():
        words: Sequence[str] = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return 0


def _sum(text: object, key: str) -> int:
    """The sum over all devices in io.stat."""
    return sum(map(int, re.findall(rf"\b{key}=(\d+)", str(text or ""))))


def _network(text: str) -> tuple[int, int]:
    """Bytes received and sent, of /proc/net/dev without the loopback."""
    received = sent = 0
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and name.strip() != "lo" and len(words) >= 9:
            received, sent = received + int(words[0]), sent + int(words[8])
    return received, sent
