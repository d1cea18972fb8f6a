"""An OCI bundle as a machine and its agent need it: which folders are shared, what the container is to be.

Folders of the host come into the machine by virtio-fs, the root among them; a file comes by the folder that
it is in. Source: the OCI runtime specification, bundle and config.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pykvm.containers.limits import JSON_BYTES
from pykvm.containers.seccomp import compile_filter
from pykvm.memory import parse_size
from pykvm.oci.state import OciError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Bundle", "Share", "hex_filter", "read_bundle", "resources_of"]

_ROOT_TAG = "root"
_SHARES_MOST = 12  # a machine has 16 virtio devices, and needs some itself
_MEMORY, _VCPUS = "pykvm.memory", "pykvm.vcpus"
_OWN_MIB = 256  # the kernel, the agent, and what the container's files take in the page cache
_DEFAULT_MIB = 512
_RUNTIME_S = {"tmpcopyup", "notmpcopyup"}  # of a tmpfs, to runtimes that copy the image's files there
_MADE_HERE = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}


class Share(NamedTuple):
    """A folder of the host under a tag."""

    tag: str
    folder: Path
    read_only: bool


class Bundle(NamedTuple):
    """What a container needs. `create` are the words of the agent's request, but for its name.

    `places` are where mounts go in its root, each with whether it is a file.
    """

    path: Path
    root: Path
    is_read_only: bool
    places: list[tuple[str, bool]]
    create: dict[str, Any]
    shares: list[Share]
    memory_bytes: int
    vcpus: int
    annotations: dict[str, str]
    hooks: dict[str, list[dict[str, Any]]]

    @property
    def has_terminal(self) -> bool:
        """Whether the process wants one."""
        return bool(self.create["config"]["process"].get("terminal"))


def read_bundle(path: Path) -> Bundle:
    """The bundle in a directory. Raises OciError in one line for what is missing or wrong."""
    where = path / "config.json"
    config = _read(where)
    if not str(config.get("ociVersion", "")).startswith("1."):
        raise OciError(f"{where}: ociVersion is {config.get('ociVersion')!r}, not 1.x")
    process = _object(config, "process", where)
    args = process.get("args")
    if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
        raise OciError(f"{where}: process.args: a list of words is needed")
    root = _object(config, "root", where)
    folder = path / str(root.get("path") or "")
    if not root.get("path") or not folder.is_dir():
        raise OciError(f"{where}: root.path: {folder} is no directory")
    linux = _object(config, "linux", where) if "linux" in config else {}
    shares = _Shares(where)
    is_read_only = bool(root.get("readonly"))
    shares.tags[folder.resolve(), is_read_only] = _ROOT_TAG
    mounts = [shares.mount(mount) for mount in config.get("mounts") or []]
    taken = {
        key: value for key, value in linux.items() if key not in ("seccomp", "cgroupsPath", "namespaces")
    }
    taken["namespaces"] = _namespaces(linux)
    create: dict[str, Any] = {
        "config": {**config, "mounts": mounts, "linux": taken},
        "rootfs": _ROOT_TAG,
        "network": {"mode": "none" if _has_network(linux) else "host"},
        "stdin": not process.get("terminal"),
    }
    if profile := linux.get("seccomp"):
        create["seccomp"] = hex_filter(profile)
    annotations = {str(key): str(value) for key, value in (config.get("annotations") or {}).items()}
    memory, vcpus = _size(linux, annotations)
    hooks = {str(name): list(found) for name, found in (config.get("hooks") or {}).items()}
    return Bundle(
        path,
        folder,
        is_read_only,
        shares.places,
        create,
        shares.all(),
        memory,
        vcpus,
        annotations,
        hooks,
    )


def hex_filter(profile: Mapping[str, Any]) -> str:
    """OCI's linux.seccomp as the agent takes it."""
    return compile_filter(dict(profile)).hex()


def resources_of(file: IO[bytes]) -> dict[str, Any]:
    """OCI's linux.resources from a file. Raises OciError."""
    return _parsed(file, getattr(file, "name", "resources"))


def _read(where: Path) -> dict[str, Any]:
    try:
        with where.open("rb") as file:
            return _parsed(file, where)
    except OSError as error:
        raise OciError(f"{where}: {error.strerror}; give the bundle's directory with --bundle") from None


def _parsed(file: IO[bytes], where: object) -> dict[str, Any]:
    data = file.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        raise OciError(f"{where}: it is larger than {JSON_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OciError(f"{where}: it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise OciError(f"{where}: it is no object")
    return found


def _object(config: Mapping[str, Any], key: str, where: Path) -> dict[str, Any]:
    found = config.get(key)
    if not isinstance(found, dict):
        raise OciError(f"{where}: {key}: an object is needed")
    return found


def _namespaces(linux: Mapping[str, Any]) -> list[dict[str, str]]:
    """The namespaces, made anew: those of the host, which a path means, are not in the machine."""
    return [{"type": str(one.get("type"))} for one in linux.get("namespaces") or []]


def _has_network(linux: Mapping[str, Any]) -> bool:
    return any(one["type"] == "network" for one in _namespaces(linux))


def _size(linux: Mapping[str, Any], annotations: Mapping[str, str]) -> tuple[int, int]:
    """Bytes of memory and number of vCPUs: by annotation, else as much as the container may have."""
    limit = ((linux.get("resources") or {}).get("memory") or {}).get("limit") or 0
    usual = max(_DEFAULT_MIB << 20, limit + (_OWN_MIB << 20)) if 0 < limit < 1 << 50 else _DEFAULT_MIB << 20
    try:
        return parse_size(annotations.get(_MEMORY, usual)), int(annotations.get(_VCPUS, 1))
    except ValueError:
        raise OciError(f"annotation {_VCPUS}: {annotations[_VCPUS]!r} is no number") from None


class _Shares:
    """Gives each folder that mounts need a tag."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self.tags: dict[tuple[Path, bool], str] = {}
        self.places: list[tuple[str, bool]] = []

    def all(self) -> list[Share]:
        return [Share(tag, folder, read_only) for (folder, read_only), tag in self.tags.items()]

    def mount(self, mount: Any) -> dict[str, Any]:
        """One of config.mounts, as the agent takes it. Raises OciError."""
        if not isinstance(mount, dict) or not str(mount.get("destination", "")).startswith("/"):
            raise OciError(f"{self._where}: mounts: {mount!r}: an absolute destination is needed")
        options = [str(option) for option in mount.get("options") or []]
        kind = str(mount.get("type") or "bind")
        if kind in _MADE_HERE and not {"bind", "rbind"} & set(options):
            self.places.append((mount["destination"], False))
            return {**mount, "options": [option for option in options if option not in _RUNTIME_S]}
        if kind not in ("bind", "none", "virtiofs"):
            raise OciError(f"{self._where}: mounts: {mount['destination']}: the type {kind!r} is unknown")
        source = Path(os.path.join(self._where.parent, str(mount.get("source") or ""))).resolve()  # noqa: PTH118
        if not source.exists():
            raise OciError(f"{self._where}: mounts: {mount['destination']}: {source} does not exist")
        folder, below = (source, "") if source.is_dir() else (source.parent, f"/{source.name}")
        self.places.append((mount["destination"], bool(below)))
        key = folder, "ro" in options
        tag = self.tags.setdefault(key, f"share{len(self.tags)}")
        if len(self.tags) > _SHARES_MOST:
            raise OciError(f"{self._where}: mounts: more than {_SHARES_MOST} folders of the host")
        return {**mount, "type": "virtiofs", "source": f"{tag}{below}", "options": options}
