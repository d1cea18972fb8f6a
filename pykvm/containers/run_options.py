"""What `container run` was asked for, and how docker's spellings of sizes, shares and limits are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DeviceRate",
    "Limits",
    "Publish",
    "RunOptions",
    "Volume",
    "limits_of",
    "parse_bytes",
    "parse_env",
    "parse_hostname",
    "parse_publish",
    "parse_rate",
    "parse_tmpfs",
    "parse_ulimit",
    "parse_volume",
]

_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(["", "k", "m", "g", "t", "p"])}
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
_LEAST_MEMORY = 6 << 20  # docker's, below which no program starts
_PERIOD_US = 100_000
_ULIMITS = (
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)


class Volume(NamedTuple):
    """A directory of the host in the container."""

    source: str
    target: str
    read_only: bool


class Publish(NamedTuple):
    """A port of the host that leads to one of the container's."""

    address: str
    host_port: int
    container_port: int


class DeviceRate(NamedTuple):
    """At most so many bytes (or operations) a second, reading or writing a device of the guest."""

    device: str
    rate: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use; None is no limit. `cpus` are whole CPUs' worth of time."""

    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    pids: int | None = None
    write_bps: tuple[DeviceRate, ...] = ()
    read_bps: tuple[DeviceRate, ...] = ()

    def resources(self) -> dict[str, Any]:
        """As OCI's linux.resources."""
        memory = _present({"limit": self.memory, "swap": self._swap()})
        quota = round(self.cpus * _PERIOD_US) if self.cpus else None
        cpu = _present(
            {
                "shares": self.cpu_shares,
                "quota": quota,
                "period": _PERIOD_US if quota else None,
                "cpus": self.cpuset_cpus or None,
            }
        )
        found: dict[str, Any] = {"memory": memory, "cpu": cpu}
        if self.pids is not None:
            found["pids"] = {"limit": self.pids}
        return {key: value for key, value in found.items() if value}

    def _swap(self) -> int | None:
        """Memory and swap together: unless told otherwise, a limit on memory leaves no swap."""
        return self.memory_swap if self.memory_swap is not None else self.memory


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `container run`, read and checked; the image's settings are not in it."""

    command: tuple[str, ...] = ()
    tty: bool = False
    interactive: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    group_add: tuple[str, ...] = ()
    hostname: str = ""
    entrypoint: str | None = None
    read_only: bool = False
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: Mapping[str, Any] | None = None
    """A profile; None is the default one, an empty one is unconfined."""
    ulimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    network: str = "none"
    init: bool = False
    volumes: tuple[Volume, ...] = ()
    publish: tuple[Publish, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    shm_bytes: int = 64 << 20

    def as_json(self) -> dict[str, Any]:
        """For a container's record."""
        from dataclasses import asdict  # noqa: PLC0415 - only records need it

        return asdict(self)


def parse_bytes(text: str, what: str) -> int:
    """Docker's sizes: 64m, 1.5g, 4096; b, k, m, g, t and p are powers of 1024. Raises ConfigError."""
    if text == "-1":
        return -1
    match = _BYTES.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"invalid argument {text!r} for {what}: give a size like 64m or 1g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def limits_of(given: Mapping[str, Any], cpus_there: int) -> Limits:
    """The limits that options name, by docker's rules; `cpus_there` is how many CPUs the guest has.

    Raises ConfigError for what can't hold.
    """
    memory, swap = given.get("memory"), given.get("memory_swap")
    found = Limits(
        memory=parse_bytes(memory, "--memory") if memory else None,
        memory_swap=parse_bytes(swap, "--memory-swap") if swap else None,
        cpus=given.get("cpus"),
        cpu_shares=given.get("cpu_shares"),
        cpuset_cpus=given.get("cpuset_cpus") or "",
        pids=_pids(given.get("pids_limit")),
        write_bps=tuple(parse_rate(one, "--device-write-bps") for one in given.get("device_write_bps") or ()),
        read_bps=tuple(parse_rate(one, "--device-read-bps") for one in given.get("device_read_bps") or ()),
    )
    if found.memory is not None and 0 <= found.memory < _LEAST_MEMORY:
        raise ConfigError("Minimum memory limit allowed is 6MB.")
    if found.memory_swap is not None and found.memory is None:
        raise ConfigError("You should always set the Memory limit when using Memoryswap limit, see usage.")
    if found.memory is not None and 0 <= (found.memory_swap or found.memory) < found.memory:
        raise ConfigError(
            "Minimum memoryswap limit should be larger than memory limit, see usage: it counts both."
        )
    if found.cpus is not None and not 0.01 <= found.cpus <= cpus_there:
        raise ConfigError(
            f"Range of CPUs is from 0.01 to {cpus_there}.00, as there are only {cpus_there} CPUs available"
        )
    _check_cpuset(found.cpuset_cpus, cpus_there)
    if found.cpu_shares is not None and not 2 <= found.cpu_shares <= 262_144:
        raise ConfigError(f"--cpu-shares: {found.cpu_shares} is not from 2 to 262144")
    return found


def _pids(number: int | None) -> int | None:
    """Docker's 0 and -1: no limit."""
    return number if number is None or number > 0 else -1


def _check_cpuset(text: str, cpus_there: int) -> None:
    if not text:
        return
    if not _CPUS.fullmatch(text):
        raise ConfigError(f"Invalid value {text} for cpuset cpus")
    if max(map(int, re.findall(r"\d+", text))) >= cpus_there:
        raise ConfigError(
            f"Requested CPUs are not available - requested {text}, available: 0-{cpus_there - 1}"
        )


def parse_hostname(text: str) -> str:
    """A name that /etc/hosts and the kernel take. Raises ConfigError."""
    if text and not _HOSTNAME.fullmatch(text):
        raise ConfigError(f"invalid hostname format: {text}")
    return text


def parse_rate(text: str, what: str) -> DeviceRate:
    """DEVICE:RATE, as in /dev/vdb:1mb. Raises ConfigError."""
    device, colon, rate = text.rpartition(":")
    if not colon or not device.startswith("/dev/"):
        raise ConfigError(f"bad format: {text} for {what}: give DEVICE:RATE, as in /dev/vdb:1mb")
    return DeviceRate(device, parse_bytes(rate, what))


def parse_env(texts: tuple[str, ...], here: Mapping[str, str]) -> dict[str, str]:
    """NAME=VALUE, or NAME as it is here, if it is. Raises ConfigError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or "\0" in text:
            raise ConfigError(f"invalid environment variable: {text}")
        if equals:
            found[name] = value
        elif name in here:
            found[name] = here[name]
    return found


def parse_tmpfs(text: str) -> tuple[str, str]:
    """PATH[:OPTIONS]: where, and its mount options. Raises ConfigError."""
    path, _, options = text.partition(":")
    return _absolute(path, "--tmpfs"), options


def parse_ulimit(text: str) -> tuple[str, tuple[int, int]]:
    """NAME=SOFT[:HARD]; -1 is no limit. Raises ConfigError."""
    name, equals, numbers = text.partition("=")
    soft, colon, hard = numbers.partition(":")
    if name not in _ULIMITS:
        raise ConfigError(f"invalid ulimit type: {name}; there are {', '.join(_ULIMITS)}")
    try:
        both = int(soft), int(hard if colon else soft)
    except ValueError:
        raise ConfigError(f"invalid ulimit argument: {text}; give NAME=SOFT[:HARD]") from None
    if not equals or min(both) < -1:
        raise ConfigError(f"invalid ulimit argument: {text}; give NAME=SOFT[:HARD]")
    if both[1] != -1 and (both[0] == -1 or both[0] > both[1]):
        raise ConfigError(
            f"ulimit soft limit must be less than or equal to hard limit: {both[0]} > {both[1]}"
        )
    return name, both


def parse_volume(text: str) -> Volume:
    """SOURCE:TARGET[:ro|rw], a directory of the host. Raises ConfigError."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not rest or not source.startswith(("/", ".")):
        raise ConfigError(f"invalid volume specification: {text!r}; give /HOST/DIRECTORY:/PATH[:ro]")
    if mode not in {"", "ro", "rw"}:
        raise ConfigError(f"invalid mode: {mode}; a volume is ro or rw")
    return Volume(source, _absolute(target, f"invalid volume specification: {text!r}"), mode == "ro")


def parse_publish(text: str) -> Publish:
    """[ADDRESS:]HOST_PORT:CONTAINER_PORT[/tcp]. Raises ConfigError."""
    rest, _, kind = text.partition("/")
    *addresses, host, container = rest.rsplit(":", 2) if rest.count(":") else ["", rest]
    if kind not in {"", "tcp"}:
        raise ConfigError(f"-p {text}: only tcp can be published")
    try:
        ports = int(host), int(container)
    except ValueError:
        raise ConfigError(f"invalid containerPort: {text}; give HOST_PORT:CONTAINER_PORT") from None
    if not 0 <= ports[0] < 65536 or not 0 < ports[1] < 65536:
        raise ConfigError(f"invalid port specification: {text!r}")
    return Publish(addresses[0].strip("[]") if addresses and addresses[0] else "0.0.0.0", *ports)  # noqa: S104 - docker's


def _absolute(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ConfigError(f"{what}: invalid mount path: {path!r} mount path must be absolute")
    if not path.strip("/"):
        raise ConfigError(f"{what}: destination can't be '/'")
    return path


def _present(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value is not None}
