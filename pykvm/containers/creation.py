"""What the agent is asked for, to make a container: its config.json, layers, files, network, filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.containers.seccomp import compile_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.containers.records import ContainerStore, Record

__all__ = ["creation", "for_agent"]


def creation(store: ContainerStore, record: Record, *, explain: bool) -> dict[str, Any]:
    """The agent's `create` for a container."""
    config = store.config(record)
    config["process"] = for_agent(config["process"])
    profile = config["linux"].pop("seccomp", None)
    found: dict[str, Any] = {
        "name": record.short,
        "config": config,
        "layers": [
            key.removeprefix("sha256:")[:32]
            for key in [*record.layers, *([record.kept] if record.kept else [])]
        ],
        "files": _etc_files(config["hostname"], record.address),
        "network": _network(record),
        "stdin": not record.tty,
        "init": record.init,
        "start": True,
        "explain": explain,
    }
    if profile:
        found["seccomp"] = compile_filter(profile).hex()
    return found


def for_agent(process: Mapping[str, Any]) -> dict[str, Any]:
    """OCI's process with numbers that have a sign: no limit is -1."""
    limits = [
        {key: value if isinstance(value, str) or value < 1 << 63 else -1 for key, value in one.items()}
        for one in process["rlimits"]
    ]
    return {**process, "rlimits": limits}


def _network(record: Record) -> dict[str, Any]:
    if record.network != "bridge":
        return {"mode": record.network}
    return {
        "mode": "bridge",
        "bridge": "pykvm0",
        "address": f"{record.address}/16",
        "gateway": "10.88.0.1",
    }


def _etc_files(hostname: str, address: str) -> list[dict[str, Any]]:
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    own = f"{address or '127.0.1.1'}\t{hostname}\n"
    texts = {"/etc/hosts": hosts + own, "/etc/hostname": f"{hostname}\n", "/etc/resolv.conf": ""}
    return [{"path": path, "text": text, "mode": 0o644} for path, text in texts.items()]
