"""From an image's settings and the options of a run to the OCI runtime's config.json, by docker's rules.

Source: the OCI runtime specification 1.1 (config, config-linux); docker's documentation of `docker run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.containers import capabilities
from pykvm.containers.seccomp import resolve
from pykvm.containers.seccomp_default import default_profile
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.containers.run_options import RunOptions
    from pykvm.containers.users import User

__all__ = ["Place", "command_of", "environment_of", "oci_config", "process_of"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ID_COUNT = 65_536
_MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug "
    "/proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware"
).split()
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()
_NAMESPACES = "mount pid ipc uts cgroup user".split()


class Place(NamedTuple):
    """What a container gets of its guest: an ID, a range of users, and the kernel's version."""

    id: str
    first_id: int
    kernel: tuple[int, int]


def command_of(settings: Mapping[str, Any], options: RunOptions) -> list[str]:
    """The program and its arguments. Raises ConfigError if nobody says any.

    What the user says takes the place of the image's CMD; a new entry point takes the place of both.
    """
    entrypoint = _words(settings, "Entrypoint")
    command = list(options.command)
    if options.entrypoint is None:
        command = command or _words(settings, "Cmd")
    else:
        entrypoint = [options.entrypoint] if options.entrypoint else []
    if not (found := [*entrypoint, *command]):
        raise ConfigError("no command specified")
    return found


def environment_of(settings: Mapping[str, Any], options: RunOptions, hostname: str, home: str) -> list[str]:
    """NAME=VALUE: a path and the host's name, over these the image's, over these the user's."""
    found = {"PATH": _PATH, "HOSTNAME": hostname}
    if options.tty:
        found["TERM"] = "xterm"
    for line in _words(settings, "Env"):
        name, equals, value = line.partition("=")
        if equals:
            found[name] = value
    found |= options.env
    if not found.get("HOME"):
        found["HOME"] = home or "/"
    return [f"{name}={value}" for name, value in found.items()]


def process_of(
    args: Sequence[str], env: Sequence[str], cwd: str, user: User, options: RunOptions
) -> dict[str, Any]:
    """OCI's process: what is run, as whom, with what."""
    caps = capabilities.chosen(options.cap_add, options.cap_drop)
    held = caps if user.uid == 0 else []  # as the kernel does it at execve
    ids = {"uid": user.uid, "gid": user.gid, "umask": 0o022}
    return {
        "terminal": options.tty,
        "user": ids | ({"additionalGids": list(user.groups)} if user.groups else {}),
        "args": list(args),
        "env": list(env),
        "cwd": cwd,
        "capabilities": {"bounding": caps, "effective": held, "permitted": held, "inheritable": []},
        "rlimits": [
            {"type": f"RLIMIT_{name.upper()}", "soft": _limit(soft), "hard": _limit(hard)}
            for name, (soft, hard) in options.ulimits.items()
        ],
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": 0,
    }


def oci_config(settings: Mapping[str, Any], options: RunOptions, user: User, place: Place) -> dict[str, Any]:
    """The whole config.json. `settings` are those of the image's configuration. Raises ConfigError."""
    hostname = options.hostname or place.id[:12]
    args = command_of(settings, options)
    env = environment_of(settings, options, hostname, user.home)
    cwd = options.workdir or str(settings.get("WorkingDir") or "/")
    if not cwd.startswith("/"):
        raise ConfigError(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
    process = process_of(args, env, cwd, user, options)
    mapping = [{"containerID": 0, "hostID": place.first_id, "size": _ID_COUNT}]
    spaces = _NAMESPACES + ([] if options.network == "host" else ["network"])
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in spaces],
        "uidMappings": mapping,
        "gidMappings": mapping,
        "resources": options.limits.resources(),
        "maskedPaths": _MASKED,
        "readonlyPaths": _READ_ONLY,
    }
    profile = default_profile() if options.seccomp is None else options.seccomp
    if profile:
        caps = process["capabilities"]["bounding"]
        linux["seccomp"] = resolve(profile, caps, place.kernel)
    return {
        "ociVersion": "1.1.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": options.read_only},
        "hostname": hostname,
        "mounts": _mounts(options),
        "linux": linux,
    }


def _mounts(options: RunOptions) -> list[dict[str, Any]]:
    plain = ["nosuid", "noexec", "nodev"]
    found = [
        _mount("/proc", "proc", "proc", plain),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", *plain]),
        _mount("/dev/mqueue", "mqueue", "mqueue", plain),
        _mount("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", f"size={options.shm_bytes}"]),  # noqa: S108 - a mount
    ]
    for path, words in options.tmpfs.items():
        wanted = [word for word in words.split(",") if word]
        found.append(_mount(path, "tmpfs", "tmpfs", [*plain, *wanted]))
    return found


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _words(settings: Mapping[str, Any], key: str) -> list[str]:
    """A list of the image's; what is none counts as empty."""
    found = settings.get(key) or []
    return [str(word) for word in found] if isinstance(found, list) else []


def _limit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1
