"""The seccomp profile of containers that name none, in docker's format: what it keeps from them, and why.

Two questions decide about a syscall. Does it reach more than the container itself: the guest's clock, its
kernel, its devices, other containers' memory, things that no namespace divides? Then it needs the capability
that the kernel asks for, or never passes. Is it much kernel code for few programs? Then it stays out. All
others pass. The kernel checks its callers as well: this is the second lock.

A syscall that is not in our tables is ENOSYS, so a newer kernel opens nothing by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pykvm.containers.seccomp import syscall_numbers

__all__ = ["default_profile"]


class _Group(NamedTuple):
    why: str
    names: str
    caps: tuple[str, ...] = ()
    """Any of these lets the calls pass; with none, they never do."""


_KEPT = (
    _Group(
        "changes which files everybody sees, or enters other namespaces",
        "mount umount umount2 pivot_root fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr "
        "mount_setattr setns unshare sethostname setdomainname quotactl quotactl_fd fanotify_init "
        "lookup_dcookie",
        ("CAP_SYS_ADMIN",),
    ),
    _Group("runs programs in the kernel", "bpf", ("CAP_SYS_ADMIN", "CAP_BPF")),
    _Group("sees what others do on this CPU", "perf_event_open", ("CAP_SYS_ADMIN", "CAP_PERFMON")),
    _Group("takes other processes' files, and compares them", "pidfd_getfd kcmp", ("CAP_SYS_PTRACE",)),
    _Group("opens files past every directory", "open_by_handle_at", ("CAP_DAC_READ_SEARCH",)),
    _Group(
        "sets the clock, which all containers share",
        "settimeofday stime clock_settime clock_settime64 clock_adjtime clock_adjtime64",
        ("CAP_SYS_TIME",),
    ),
    _Group("is hardware", "iopl ioperm", ("CAP_SYS_RAWIO",)),
    _Group("reads the guest kernel's messages, addresses among them", "syslog", ("CAP_SYSLOG",)),
    _Group("writes a record of every process' end to a file", "acct", ("CAP_SYS_PACCT",)),
    _Group("hangs terminals up", "vhangup", ("CAP_SYS_TTY_CONFIG",)),
    _Group("ends or restarts", "reboot", ("CAP_SYS_BOOT",)),
    _Group("is a way to other roots", "chroot", ("CAP_SYS_CHROOT",)),
    _Group(
        "moves memory between nodes, also of others",
        "mbind set_mempolicy set_mempolicy_home_node move_pages migrate_pages",
        ("CAP_SYS_NICE",),
    ),
    _Group(
        "puts code into the kernel, or another kernel in its place",
        "init_module finit_module delete_module create_module kexec_load kexec_file_load",
    ),
    _Group("is swap space of the whole guest", "swapon swapoff"),
    _Group("is kept in keyrings, which containers would share", "add_key request_key keyctl"),
    _Group("stops the kernel in the midst of a copy: makes races in it easy to win", "userfaultfd"),
    _Group(
        "does what other calls do where no filter sees it, and is much code",
        "io_uring_setup io_uring_enter io_uring_register",
    ),
    _Group(
        "is what no program of today needs",
        "nfsservctl uselib _sysctl sysfs ustat get_kernel_syms query_module vm86 vm86old vserver afs_syscall "
        "tuxcall security getpmsg putpmsg bdflush",
    ),
)
_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEW* but NEWTIME, whose bit is one of the signal's
_FAMILIES = (38, 40)  # AF_ALG: the kernel's ciphers; AF_VSOCK: the host
_PERSONALITIES = (
    0,
    0x8,
    0x20000,
    0x20008,
    0xFFFF_FFFF,
)  # 32 bits, an old version's number; the last one asks
_OWN_RULES = frozenset({"clone", "clone3", "socket", "personality"})


def default_profile() -> dict[str, Any]:
    """The profile; every rule has a `comment`."""
    kept = {name for group in _KEPT for name in group.names.split()}
    known = {*syscall_numbers("SCMP_ARCH_X86_64"), *syscall_numbers("SCMP_ARCH_X86")}
    plain = sorted(known - kept - _OWN_RULES)
    rules = [_allow(plain, "stay within the container")]
    for group in _KEPT:
        for cap in group.caps:
            names = sorted(known.intersection(group.names.split()))
            rules.append(_allow(names, group.why, includes={"caps": [cap]}))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {
                "architecture": "SCMP_ARCH_X86_64",
                "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            }
        ],
        "syscalls": rules + _rules_on_arguments(),
    }


def _rules_on_arguments() -> list[dict[str, Any]]:
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    no_namespace = [_condition("MASKED_EQ", _NEW_NAMESPACES, 0)]
    first, last = _FAMILIES
    families = [_condition("LT", first), _condition("EQ", first + 1), _condition("GT", last)]
    return [
        _allow(["clone"], "makes no namespaces: its flags say so", args=no_namespace, excludes=admin),
        _allow(["clone", "clone3"], "may make namespaces", includes=admin),
        {
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
            "comment": "its flags are in memory, where no filter looks: ENOSYS makes programs take clone",
            "excludes": admin,
        },
        _allow(["socket"], "is neither AF_ALG nor AF_VSOCK (i386's socketcall may be)", args=families),
        _allow(
            ["personality"],
            "is a personality of ordinary programs",
            args=[_condition("EQ", value) for value in _PERSONALITIES],
        ),
    ]


def _allow(names: list[str], why: str, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "comment": why, **more}


def _condition(op: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": 0, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": value_two}
