"""Every number that has a name, and every field of every struct, is where the kernel's headers have it.

The C compiler is asked: the kernel's user headers first, the C library's for what is only there. Names
that are newer than the machine's headers stand in NEWER, so that a misspelled one can't hide among them.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.ioctl_names import ioctl_numbers
from pykvm.trace.syscalls.structs import layouts
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KERNEL = """
asm/signal.h asm/siginfo.h asm/termbits.h asm/ioctls.h asm/prctl.h asm/mman.h asm/poll.h asm/socket.h
asm/stat.h asm/statfs.h asm/termios.h asm/ldt.h linux/aio_abi.h linux/blkpg.h linux/bpf.h linux/capability.h
linux/cdrom.h linux/close_range.h linux/eventpoll.h linux/falloc.h linux/fanotify.h linux/fcntl.h
linux/fiemap.h linux/fs.h linux/futex.h linux/hdreg.h linux/if_ether.h linux/if_packet.h linux/if_tun.h
linux/in.h linux/in6.h linux/inotify.h linux/io_uring.h linux/ioprio.h linux/ipc.h linux/kcmp.h linux/kd.h
linux/kexec.h linux/keyctl.h linux/kvm.h linux/landlock.h linux/loop.h linux/magic.h linux/membarrier.h
linux/memfd.h linux/mempolicy.h linux/mman.h linux/module.h linux/mount.h linux/mqueue.h linux/msg.h
linux/net.h linux/netlink.h linux/nsfs.h linux/openat2.h linux/perf_event.h linux/personality.h
linux/pidfd.h linux/prctl.h linux/ptrace.h linux/random.h linux/reboot.h linux/resource.h linux/rseq.h
linux/rtc.h linux/sched.h linux/sched/types.h linux/seccomp.h linux/securebits.h linux/sem.h linux/shm.h
linux/signalfd.h linux/sockios.h linux/stat.h linux/sysinfo.h linux/tcp.h linux/time.h linux/time_types.h
linux/timerfd.h linux/times.h linux/timex.h linux/tty.h linux/userfaultfd.h linux/utime.h linux/utsname.h
linux/vhost.h linux/vt.h linux/wait.h linux/xattr.h linux/filter.h
"""
LIBRARY = """
dirent.h fcntl.h netinet/in.h netinet/tcp.h poll.h sched.h scsi/sg.h signal.h sys/epoll.h sys/eventfd.h
sys/ipc.h sys/mman.h sys/mount.h sys/msg.h sys/personality.h sys/ptrace.h sys/random.h sys/resource.h
sys/sem.h sys/shm.h sys/socket.h sys/statvfs.h sys/swap.h sys/timex.h sys/wait.h sys/prctl.h unistd.h
linux/vm_sockets.h
"""
# numbers of the kernel that its user headers give no name, or that only i386 has
NO_HEADER = """
CLOCK_SGI_CYCLE EPOLLNVAL F_EXLCK F_GETLK64 F_GETOWNER_UIDS F_SETLK64 F_SETLKW64 F_SHLCK MAP_FILE MSG_PROBE
MS_NOSYMFOLLOW O_LARGEFILE POLLREMOVE RUSAGE_BOTH SA_INTERRUPT SCHED_ISO SCM_SECURITY SI_DETHREAD SOL_ICMPV6
SOL_SCTP SOL_TCP SOL_UDP SS_AUTODISARM ST_VALID F_CANCELLK S_IFBLK SYSLOG_ACTION_CLEAR SYSLOG_ACTION_CLOSE
SYSLOG_ACTION_CONSOLE_LEVEL SYSLOG_ACTION_CONSOLE_OFF SYSLOG_ACTION_CONSOLE_ON SYSLOG_ACTION_OPEN
SYSLOG_ACTION_READ SYSLOG_ACTION_READ_ALL SYSLOG_ACTION_READ_CLEAR SYSLOG_ACTION_SIZE_BUFFER
SYSLOG_ACTION_SIZE_UNREAD MQUEUE_MAGIC SUID_DUMP_DISABLE SUID_DUMP_ROOT SUID_DUMP_USER SEMOP SEMGET SEMCTL
SEMTIMEDOP MSGSND MSGRCV MSGGET MSGCTL SHMAT SHMDT SHMGET SHMCTL
""".split()
# newer than Linux 6.1, the oldest kernel whose headers pykvm is built with
NEWER = """
ARCH_ENABLE_TAGGED_ADDR ARCH_FORCE_TAGGED_SVA ARCH_GET_MAX_TAG_BITS ARCH_GET_UNTAG_MASK ARCH_SHSTK_DISABLE
ARCH_SHSTK_ENABLE ARCH_SHSTK_LOCK ARCH_SHSTK_STATUS ARCH_SHSTK_UNLOCK AT_HANDLE_FID FUTEX2_NUMA
FUTEX2_PRIVATE FUTEX2_SIZE_U16 FUTEX2_SIZE_U32 FUTEX2_SIZE_U64 FUTEX2_SIZE_U8 F_CREATED_QUERY F_DUPFD_QUERY
F_SEAL_EXEC KEXEC_FILE_DEBUG LANDLOCK_ACCESS_FS_IOCTL_DEV LANDLOCK_ACCESS_FS_TRUNCATE
MEMBARRIER_CMD_GET_REGISTRATIONS MFD_EXEC MFD_NOEXEC_SEAL MOVE_MOUNT_BENEATH MPOL_WEIGHTED_INTERLEAVE
PIDFD_SIGNAL_PROCESS_GROUP PIDFD_SIGNAL_THREAD PIDFD_SIGNAL_THREAD_GROUP PIDFD_THREAD PR_GET_MDWE
PR_GET_MEMORY_MERGE PR_SET_MDWE PR_SET_MEMORY_MERGE SCHED_EXT SCM_PIDFD SHADOW_STACK_SET_MARKER
SHADOW_STACK_SET_TOKEN SOL_VSOCK SO_PASSPIDFD SO_PEERPIDFD STATX_MNT_ID_UNIQUE STATX_SUBVOL
STATX_WRITE_ATOMIC ST_NOSYMFOLLOW
""".split()


def program(headers: str, body: str) -> str:
    """C source: these headers, then `body`."""
    return "".join(f"#include <{name}>\n" for name in headers.split()) + body


def compiled(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What gcc says of `source`, in English."""
    command = ["gcc", "-w", "-fmax-errors=0", "-D_GNU_SOURCE", "-x", "c", "-", *options]
    environ = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False, env=environ)


def numbers_in(headers: str, names: Iterable[str], into: Path) -> dict[str, int]:
    """The number of each name that these headers have, as 64 unsigned bits."""
    wanted = sorted(names)
    while True:
        rows = "".join(f'{{"{name}", (unsigned long long)({name})}},\n' for name in wanted)
        body = (
            f"struct row {{ const char *name; unsigned long long number; }} rows[] = {{ {rows} }};\n"
            "extern int printf(const char *, ...);\n"
            "int main(void) { for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)\n"
            '    printf("%s %llu\\n", rows[i].name, rows[i].number); return 0; }\n'
        )
        said = compiled(program(headers, body), "-o", str(into))
        if said.returncode == 0:
            break
        unknown = set(re.findall(r"'(\w+)' undeclared", said.stderr)) & set(wanted)
        assert unknown, said.stderr
        wanted = [name for name in wanted if name not in unknown]
    lines = subprocess.run([into], text=True, capture_output=True, check=True).stdout.splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


@cache
def named() -> dict[str, set[int]]:
    """Every name in the sets, with the numbers that they give it, as 64 unsigned bits."""
    found: dict[str, set[int]] = {}
    for flags in flag_sets().values():
        pairs = [(name, bit) for bit, name in flags.bits]
        pairs += [(name, value) for _, names in flags.fields for value, name in names.items()]
        for name, number in pairs:
            found.setdefault(name, set()).add(number)
    for values in value_sets().values():
        for number, name in values.names.items():
            found.setdefault(name, set()).add(number)
    for name, number in ioctl_numbers().items():
        found.setdefault(name, set()).add(number)
    return found


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The headers' number for every name that they have."""
    into = tmp_path_factory.mktemp("headers") / "numbers"
    found = numbers_in(KERNEL, named(), into)
    return found | numbers_in(LIBRARY, set(named()) - set(found), into)


def test_every_name_has_the_headers_number(headers: dict[str, int]) -> None:
    """A flag, a value, a request of ioctl: each number is the C compiler's (the low 32 bits count)."""
    low = 0xFFFF_FFFF
    only_i386 = {"F_GETLK64", "F_SETLK64", "F_SETLKW64", "O_LARGEFILE"}
    wrong = {
        name: (sorted(map(hex, mine)), hex(headers[name]))
        for name, mine in named().items()
        if name in headers
        and name not in only_i386
        and {number & low for number in mine} != {headers[name] & low}
    }
    assert wrong == {}


def test_every_name_is_the_headers_or_known_to_be_newer(headers: dict[str, int]) -> None:
    """What this machine's headers lack is on a list, and what the lists say is used."""
    assert sorted(set(named()) - set(headers) - set(NO_HEADER) - set(NEWER)) == []
    assert sorted({*NO_HEADER, *NEWER} - set(named())) == []


# our name of a struct -> C's, where they differ
C_NAMES = {
    "cap_header": "struct __user_cap_header_struct",
    "flock_pid": "struct flock",
    "flock64_pid": "struct flock64",
    "fprog": "struct sock_fprog",
    "fsid": "__kernel_fsid_t",
    "itimerspec64": "struct __kernel_itimerspec",
    "landlock_path": "struct landlock_path_beneath_attr",
    "landlock_ruleset": "struct landlock_ruleset_attr",
    "msg_stat": "struct msqid64_ds",
    "sched_attr_clamp": "struct sched_attr",
    "sem_stat": "struct semid64_ds",
    "shm_stat": "struct shmid64_ds",
    "sigaltstack": "stack_t",
    "siginfo": "siginfo_t",
    "timespec64": "struct __kernel_timespec",
    "timex64": "struct __kernel_timex",
    "utsname": "struct new_utsname",
}
# structs that the kernel's user headers don't have, or have in another order of words
NOT_IN_C = {
    *("cachestat", "cachestat_range", "mnt_id_req", "file_attr", "xattr_args", "futex_waitv", "mmsghdr"),
    *(
        "msghdr",
        "ucred",
        "linger",
        "old_sigaction",
        "time_pair",
        "time_pair64",
        "ipc_owner",
        "timex64",
        "ustat",
    ),
}
# fields that we leave out at the end: the struct of ours is the first part of C's
FIRST_PART = {"clone_args", "landlock_ruleset", "perf_event_attr", "sched_attr", "sigevent", "sysinfo"}
# no structs of 64-bit programs
ONLY_32BIT = {"stat64", "statfs64"}
# the header of i386 has that of its first syscall, old_sigaction of ours, with the mask before the flags
ONLY_64BIT = {"sigaction"}
# fields that C has as bits, which have no offset
BITS = {"user_desc.flags"}


# where Debian has the headers for x86 of either width
AFTER = ("-idirafter", "/usr/include/x86_64-linux-gnu")


def claims(name: str, *, is_64bit: bool) -> str:
    """Static assertions: size, and offset of each field that both sides name."""
    layout = layouts(is_64bit=is_64bit)[name]
    c_name = C_NAMES.get(name, f"struct {name}")
    what = f'"{name}'
    lines = []
    if name not in FIRST_PART:
        lines.append(f'_Static_assert(sizeof({c_name}) == {layout.size_bytes}, {what}: size");')
    for field, (start, _) in layout.places.items():
        if field[0] != "_" and f"{name}.{field}" not in BITS:
            lines.append(
                f'_Static_assert(__builtin_offsetof({c_name}, {field}) == {start}, {what}.{field}");'
            )
    return "\n".join(lines)


@pytest.mark.parametrize("is_64bit", [True, False], ids=["x86-64", "i386"])
def test_every_struct_lies_as_the_headers_have_it(is_64bit: bool, tmp_path: Path) -> None:
    """Sizes and offsets are the C compiler's, for 64-bit and for 32-bit programs."""
    skipped = NOT_IN_C | (ONLY_32BIT if is_64bit else ONLY_64BIT)
    names = [name for name in layouts(is_64bit=is_64bit) if name not in skipped]
    assert len(names) > 50
    body = "\n".join(claims(name, is_64bit=is_64bit) for name in names)
    # a 64-bit system may lack this file, which the C library's headers ask for; nothing is needed of it
    stubs = tmp_path / "gnu" / "stubs-32.h"
    stubs.parent.mkdir()
    stubs.touch()
    options = ("-m64",) if is_64bit else ("-m32", f"-I{tmp_path}", *AFTER)
    said = compiled(program(KERNEL, body), "-fsyntax-only", *options)
    assert [line for line in said.stderr.splitlines() if "error" in line] == []
