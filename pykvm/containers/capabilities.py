"""Linux's capabilities by name, and those a container's processes have.

Source: include/uapi/linux/capability.h and capabilities(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ALL", "DEFAULT", "chosen", "names_of", "number_of"]

ALL = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
"""By number: ALL[21] is CAP_SYS_ADMIN."""

DEFAULT = frozenset(
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID "
        "SETPCAP SETUID SYS_CHROOT"
    ).split()
)
"""Those a container has unless it is told otherwise: docker's."""


def names_of(mask: int) -> list[str]:
    """The names of a mask's bits, as in /proc/PID/status; those of a newer kernel are left out."""
    return [name for number, name in enumerate(ALL) if mask >> number & 1]


def number_of(name: str) -> int:
    """The number of a capability that `ALL` names."""
    return ALL.index(name)


def chosen(add: Sequence[str] = (), drop: Sequence[str] = (), *, privileged: bool = False) -> list[str]:
    """The capabilities that --cap-add and --cap-drop leave, by number; ALL stands for all of them.

    As docker has it: what is added by name stays although all are dropped, and what is dropped by name goes
    although all are added. Raises ConfigError for a name that there is not.
    """
    added, dropped = {_canonical(name) for name in add}, {_canonical(name) for name in drop}
    found: frozenset[str] | set[str]
    if privileged or "ALL" in added:
        found = set(ALL) - dropped
    elif "ALL" in dropped:
        found = added
    else:
        found = (DEFAULT - dropped) | added
    return [name for name in ALL if name in found]


def _canonical(name: str) -> str:
    upper = name.upper()
    full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    if full != "ALL" and full not in ALL:
        raise ConfigError(f"invalid capability: {name!r}; capabilities(7) lists them, as in NET_ADMIN")
    return full
