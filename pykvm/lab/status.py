"""What of the labs is there: the host's programs, and the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.lab.launch import LABS, backend_for
from pykvm.lab.store import DamageError, Entry, Store
from pykvm.lab.tools import missing_tools, packages_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["needed_packages", "status"]


def needed_packages(cpus: list[str], *, missing_only: bool = False) -> list[str]:
    """The Debian packages that these labs need of the host, sorted."""
    tools = [tool for cpu in cpus for tool in backend_for(cpu).tools]
    return packages_of(missing_tools(tools) if missing_only else tools)


def status(store: Store | None = None) -> dict[str, Any]:
    """Everything there is, as json has it; every file of the cache is compared with its checksum.

    `cache` is its path, `size_bytes` its size, `running` the number of labs that run now; `labs` says per
    lab whether its programs are there and which kernel it boots; `entries` is what the cache holds.
    """
    store = store or Store()
    entries = list(_entries(store))
    return {
        "cache": str(store.root),
        "size_bytes": sum(entry["size_bytes"] for entry in entries),
        "running": store.rooms(),
        "labs": {cpu: _lab(cpu, entries) for cpu in LABS},
        "entries": entries,
    }


def _entries(store: Store) -> Iterator[dict[str, Any]]:
    for kind in store.kinds():
        for entry in store.entries(kind):
            if isinstance(entry, Entry):
                yield {
                    "kind": kind,
                    "key": entry.key,
                    "size_bytes": entry.size_bytes,
                    "about": dict(entry.about),
                    "damage": _damage(entry),
                }
            else:
                yield {"kind": kind, "key": "", "size_bytes": 0, "about": {}, "damage": str(entry)}


def _damage(entry: Entry) -> str | None:
    try:
        entry.check()
    except DamageError as damage:
        return str(damage)
    return None


def _lab(cpu: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    backend = backend_for(cpu)
    missing = missing_tools(backend.tools)
    kernels = [
        entry
        for entry in entries
        if entry["kind"] == "kernels"
        and entry["about"].get("flavour") == backend.flavour
        and not entry["damage"]
    ]
    return {
        "programs_missing": [tool.program for tool in missing],
        "packages_missing": packages_of(missing),
        "kernel": kernels[-1]["about"] if kernels else None,
    }
