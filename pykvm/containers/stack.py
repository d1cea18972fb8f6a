"""What a container stands on, from its process down to the host, gathered and drawn.

::

    container process → overlay layers → namespaces → cgroup → guest kernel → machine → host

The agent tells what the guest's kernel says (`info`); the host adds what it knows of layers and machine.
"""

from __future__ import annotations

import os
import platform
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.capabilities import ALL, names_of
from pykvm.containers.holding import held_by, limit_text
from pykvm.containers.layer_disk import partition_name
from pykvm.containers.layer_files import LayerFile
from pykvm.containers.listing import stats_of
from pykvm.containers.views import layer_rows, short, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.containers.documents import Image
    from pykvm.containers.records import Record
    from pykvm.containers.store import ImageStore

__all__ = ["drawn", "stack_of", "which_layer"]

_NAMESPACES = "user mnt pid net ipc uts cgroup time".split()
_LIMITS = {
    "memory.max": "memory",
    "memory.swap.max": "swap",
    "pids.max": "pids",
    "cpu.max": "cpu",
    "cpu.weight": "cpu weight",
    "cpuset.cpus": "cpuset",
    "io.max": "io",
}


def host_namespaces() -> dict[str, int]:
    """The inode numbers of this process' own namespaces."""
    found = {}
    for name in _NAMESPACES:
        try:
            found[name] = Path(f"/proc/self/ns/{name}").stat().st_ino
        except OSError:
            continue
    return found


def stack_of(
    store: ImageStore,
    image: Image,
    record: Record,
    config: Mapping[str, Any],
    info: Mapping[str, Any] | None,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it as plain values; `info` and what follows from it is missing where the container has ended.

    `machine` is what the machine says of itself (pykvm.registry).
    """
    found: dict[str, Any] = {
        "container": {
            "id": record.id,
            "name": record.name,
            "state": record.state,
            "args": config["process"]["args"],
        },
        "layers": _layers(store, image, record, info),
    }
    if info is not None:
        files = info.get("files") or {}
        status = _status(str(info.get("process") or ""))
        found["container"] |= {"guest_pid": info.get("pid"), "status": status}
        host = host_namespaces()
        inside, guest = info.get("namespaces") or {}, info.get("guest") or {}
        found["namespaces"] = [
            {"name": name, "container": inside.get(name), "guest": guest.get(name), "host": host.get(name)}
            for name in _NAMESPACES
            if name in inside
        ]
        found["id_map"] = {"uid": info.get("uid_map"), "gid": info.get("gid_map")}
        found["cgroup"] = {
            "path": info.get("cgroup"),
            "limits": {
                word: str(files[name]).strip()
                for name, word in _LIMITS.items()
                if str(files.get(name) or "").strip()
            },
            "usage": stats_of(None, {"files": files, "at_ns": 0}),
        }
        found["mounts"] = _mounts(str(info.get("mounts") or ""))
    files = (info or {}).get("files")
    found["held"] = record.held if files is None else held_by(files)
    found["machine"] = {
        "name": record.vm,
        "pid": machine.get("pid"),
        "vcpus": machine.get("vcpus"),
        "memory_bytes": machine.get("memory_bytes"),
        "guest_kernel": machine.get("kernel"),
    }
    found["host"] = {"kernel": platform.release(), "node": platform.node(), "pid": os.getpid()}
    return found


def _layers(
    store: ImageStore, image: Image, record: Record, info: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """From the top: what the container writes to, then the image's layers, highest first."""
    in_guest = {str(one.get("name")): one for one in (info or {}).get("layers") or []}
    found: list[dict[str, Any]] = []
    history = [step for step in image.settings.get("history") or [] if not step.get("empty_layer")]
    for at, (row, key) in enumerate(zip(layer_rows(store, image), record.layers, strict=True)):
        path = store.root / "erofs" / f"{key.removeprefix('sha256:')}.erofs"
        made_by = str(history[at].get("created_by", "")) if at < len(history) else ""
        found.append(
            _row("image layer", key, row["size_bytes"], path, in_guest)
            | {"diff_id": row["diff_id"], "created_by": made_by}
        )
    found.reverse()
    if record.kept:
        path = store.root / "containers" / record.id / "upper.erofs"
        size_bytes = path.stat().st_size if path.exists() else 0
        found.insert(0, _row("earlier runs", record.kept, size_bytes, path, in_guest))
    return [
        {"kind": "upper", "guest_path": (info or {}).get("upper"), "root": (info or {}).get("rootfs")},
        *found,
    ]


def _row(
    kind: str, key: str, size_bytes: int, path: Path, in_guest: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    there = in_guest.get(partition_name(LayerFile(key, key, path, 0))) or {}
    return {
        "kind": kind,
        "diff_id": key,
        "size_bytes": size_bytes,
        "created_by": "",
        "host_path": str(path),
        "guest_device": there.get("device"),
        "guest_path": there.get("path"),
    }


def _status(text: str) -> dict[str, str]:
    """What /proc/PID/status says of rights."""
    wanted = "Name Uid Gid NSpid CapBnd CapEff NoNewPrivs Seccomp Threads VmRSS".split()
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs if name in wanted}


def _mounts(text: str) -> list[dict[str, str]]:
    """/proc/PID/mountinfo: where, what, how."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.split()
        if len(words) >= 6 and len(kind) >= 2:
            found.append(
                {"target": _unescaped(words[4]), "type": kind[0], "source": kind[1], "options": words[5]}
            )
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def drawn(stack: Mapping[str, Any]) -> str:
    """The stack in lines, the container's process on top."""
    lines: list[str] = []
    container = stack["container"]
    status = container.get("status") or {}
    pid = f"pid {container['guest_pid']} in the guest" if container.get("guest_pid") else container["state"]
    pids = status.get("NSpid", "").split()
    inside = f", {pids[-1]} in the container" if len(pids) > 1 else ""
    _box(lines, f"container {container['name']}", f"{_cut(' '.join(container['args']))}   ({pid}{inside})")
    lines += [f"│    {line}" for line in _rights(status)]
    _draw_layers(lines, stack["layers"])
    if "namespaces" in stack:
        _draw_namespaces(lines, stack)
        _draw_cgroup(lines, stack["cgroup"])
    elif stack["held"]:
        _box(lines, "cgroup", "as it was at the end")
    lines += [f"│    held by {line}" for line in stack["held"]]
    machine, host = stack["machine"], stack["host"]
    if machine["guest_kernel"]:
        _box(lines, "guest kernel", f"Linux {machine['guest_kernel']}")
    memory = f"{int(machine['memory_bytes']) >> 20} MiB" if machine.get("memory_bytes") else "?"
    process = f"process {machine['pid']} of the host" if machine.get("pid") else "not running"
    vcpus = machine["vcpus"] or "?"
    sizes = f"{vcpus} vCPU{'' if vcpus == 1 else 's'}, {memory}, {process}" if machine.get("pid") else process
    _box(lines, f"machine {machine['name']}", sizes)
    _box(lines, "host", f"Linux {host['kernel']} on {host['node']}")
    lines.append("└─")
    return "\n".join(lines)


def _cut(text: str, most: int = 60) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _rights(status: Mapping[str, str]) -> list[str]:
    """Capabilities by name, the filter, the flag: lines of at most 100 columns."""
    lines = []
    if "CapEff" in status:
        names = [one.removeprefix("CAP_") for one in names_of(int(status["CapEff"], 16))]
        text = f"{len(names)} of {len(ALL)}: {' '.join(names)}" if 0 < len(names) < len(ALL) else ""
        text = text or ("all" if names else "none")
        head, *rest = textwrap.wrap(text, 80)
        lines.append(f"capabilities       {head}")
        lines += [f"{'':<18} {line}" for line in rest]
    if "Seccomp" in status:
        mode = {"0": "none", "1": "strict", "2": "on"}.get(status["Seccomp"], status["Seccomp"])
        lines.append(f"seccomp filter     {mode}")
    if "NoNewPrivs" in status:
        lines.append(f"no new privileges  {'yes' if status['NoNewPrivs'] == '1' else 'no'}")
    return lines


def _box(lines: list[str], name: str, text: str) -> None:
    lines.append(f"{'├' if lines else '┌'}─ {name}: {text}")


def _draw_layers(lines: list[str], layers: list[Mapping[str, Any]]) -> None:
    upper, *rest = layers
    _box(lines, "overlay", upper.get("root") or "its layers, from the top")
    lines.append(f"│    {'upper':<14} {'':>9}  {upper.get('guest_path') or 'kept in upper.tar'}")
    for layer in rest:
        place = "in no machine"
        if layer.get("guest_device"):
            place = f"{layer['guest_device']} → {layer.get('guest_path') or ''}"
        name = short(layer["diff_id"]) if layer["kind"] == "image layer" else layer["kind"]
        lines.append(f"│    {name:<14} {size(layer['size_bytes']):>9}  {place}")
        if layer["created_by"]:
            lines.append(f"│    {'':<14} {'':>9}  {_cut(layer['created_by'], 76)}")
        lines.append(f"│    {'':<14} {'':>9}  ← {layer['host_path']}")


def _draw_namespaces(lines: list[str], stack: Mapping[str, Any]) -> None:
    _box(lines, "namespaces", "inode numbers; the guest's and the host's kernel number their own")
    lines.append(f"│    {'':<8} {'container':<12} {'guest':<12} {'host'}")
    for one in stack["namespaces"]:
        same = "shared with the guest" if one["container"] == one["guest"] else "its own"
        lines.append(
            f"│    {one['name']:<8} {one['container']!s:<12} {one['guest']!s:<12} {one['host']!s:<12} {same}"
        )
    mapped = " ".join(str(stack["id_map"].get("uid") or "").split())
    if mapped:
        lines.append(f"│    user ids {mapped}   (in the container, in the guest, how many)")


def _draw_cgroup(lines: list[str], cgroup: Mapping[str, Any]) -> None:
    usage = cgroup["usage"]
    _box(lines, "cgroup", str(cgroup["path"]))
    files = {word: file for file, word in _LIMITS.items()}
    texts = {word: limit_text(files[word], text) for word, text in cgroup["limits"].items()}
    lines += [f"│    limit {word:<12} {text}" for word, text in texts.items() if text]
    if free := [word for word, text in texts.items() if not text]:
        lines.append(f"│    no limit of {', '.join(free)}")
    processes = "1 process" if usage["pids"] == 1 else f"{usage['pids']} processes"
    lines.append(
        f"│    uses {size(max(usage['memory_bytes'], 0))} of memory, {processes}, "
        f"{usage['cpu_us'] / 1e6:.3f} s of CPU; "
        f"read {size(usage['read_bytes'])}, wrote {size(usage['written_bytes'])}"
    )


def which_layer(answer: Mapping[str, Any], record: Record) -> tuple[str, list[tuple[str, str]]]:
    """Where a path comes from, and what every layer says of it, from the top: (its name, kind).

    A layer's name is its key; "upper" is what the container writes, "earlier runs" what it wrote in these.
    """
    said = [("upper", str(answer.get("upper") or "absent"))]
    keys = [*record.layers, *(["earlier runs"] if record.kept else [])]
    said += list(zip(keys, map(str, answer.get("layers") or []), strict=False))[::-1]
    for name, kind in said:
        if kind == "whiteout":
            return "", said
        if kind != "absent":
            return name, said
    return "", said
