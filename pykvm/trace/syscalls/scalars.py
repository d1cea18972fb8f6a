"""Arguments that are numbers: descriptors, sizes, modes, identities, signals, limits.

Each function takes the call and the argument as an unsigned word, and answers its text.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.strings import address
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.constants import FlagSet, ValueSet

__all__ = [
    "device",
    "hexadecimal",
    "mode_text",
    "octal",
    "open_flags64",
    "pointer",
    "scalar",
    "signal_name",
    "signal_set",
    "signed32",
    "signed_word",
    "unsigned_word",
    "whole_64bit",
]

_U32 = 0xFFFF_FFFF
_AT_FDCWD = -100
_MAKES_A_FILE = 0o100 | 0o20000000  # O_CREAT, or the bit that O_TMPFILE does not share with O_DIRECTORY
_SIGNALS = (
    "0 SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE "
    "SIGALRM SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ "
    "SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS SIGRTMIN"
).split()
_LAST_SIGNAL = 64


def signed32(_call: Call | None, value: int) -> str:
    """C's int."""
    value &= _U32
    return str(value - (1 << 32) if value >> 31 else value)


def unsigned32(_call: Call | None, value: int) -> str:
    """C's unsigned int."""
    return str(value & _U32)


def signed_word(call: Call, value: int) -> str:
    """C's long, of the program's own width."""
    if call.is_64bit:
        return str(value - (1 << 64) if value >> 63 else value)
    return signed32(call, value)


def unsigned_word(_call: Call | None, value: int) -> str:
    """C's unsigned long, and sizes."""
    return str(value)


def hexadecimal(_call: Call | None, value: int) -> str:
    """A number of which the bits matter; 0 stays 0."""
    return f"{value:#x}" if value else "0"


def hexadecimal32(_call: Call | None, value: int) -> str:
    """The same, of 32 bits."""
    return hexadecimal(None, value & _U32)


def pointer(_call: Call | None, value: int) -> str:
    """An address that is not followed."""
    return address(value)


def directory(call: Call | None, value: int) -> str:
    """A descriptor of a directory to start at, or AT_FDCWD."""
    text = signed32(call, value)
    return "AT_FDCWD" if text == str(_AT_FDCWD) else text


def octal(_call: Call | None, value: int) -> str:
    """Permission bits: 0644, 000."""
    return _octal(value & 0xFFFF)


def _octal(bits: int) -> str:
    return f"0{bits:o}" if bits > 7 else f"00{bits:o}"


@lru_cache(1024)
def mode_text(mode: int) -> str:
    """st_mode: S_IFREG|0644, S_IFDIR|S_ISVTX|0777."""
    kind = value_sets()["file_type"].names.get(mode & 0o170000)
    parts = [kind] if kind else [_octal(mode & 0o170000)] if mode & 0o170000 else []
    parts += [
        name for bit, name in ((0o4000, "S_ISUID"), (0o2000, "S_ISGID"), (0o1000, "S_ISVTX")) if mode & bit
    ]
    return "|".join([*parts, _octal(mode & 0o777)])


def mode(_call: Call | None, value: int) -> str:
    """A file's type and permission."""
    return mode_text(value & 0xFFFF)


def node_mode(_call: Call | None, value: int) -> str:
    """The mode of a new node: a type of 0 means a regular file and is not printed."""
    bits = value & 0xFFFF
    return mode_text(bits) if bits & 0o170000 else _octal(bits)


def open_mode(call: Call, value: int) -> str | None:
    """The mode of open, which is only there where the flags before it can make a file."""
    return octal(call, value) if call.args[1] & _MAKES_A_FILE else None


def openat_mode(call: Call, value: int) -> str | None:
    """The same of openat, one argument further on."""
    return octal(call, value) if call.args[2] & _MAKES_A_FILE else None


def identity(call: Call | None, value: int) -> str:
    """A user or group; -1 says that it stays."""
    return "-1" if value & _U32 == _U32 else unsigned32(call, value)


def identity16(_call: Call | None, value: int) -> str:
    """The same of i386's first syscalls, with 16 bits."""
    return "-1" if value & 0xFFFF == 0xFFFF else str(value & 0xFFFF)


@lru_cache(1024)
def _device_text(number: int) -> str:
    major = number >> 8 & 0xFFF | number >> 32 & ~0xFFF
    minor = number & 0xFF | number >> 12 & ~0xFF & _U32
    return f"makedev({hexadecimal(None, major)}, {hexadecimal(None, minor)})"


def device(_call: Call | None, value: int) -> str:
    """A device number, as its major and minor parts."""
    return _device_text(value)


def signal_name(number: int) -> str:
    """SIGINT for 2, SIGRT_1 for 33; a number that is no signal stays one."""
    if 0 <= number < len(_SIGNALS):
        return _SIGNALS[number]
    if number <= _LAST_SIGNAL and number > 0:
        return f"SIGRT_{number - 32}"
    return str(number)


def signal(_call: Call | None, value: int) -> str:
    """A signal."""
    value &= _U32
    return signal_name(value - (1 << 32) if value >> 31 else value)


@lru_cache(1024)
def signal_set(bits: int) -> str:
    """A set of signals, bit 0 for number 1: [INT CHLD], or ~[KILL STOP] where most are in it."""
    sign = ""
    if bits.bit_count() >= _LAST_SIGNAL * 2 // 3:
        sign, bits = "~", bits ^ (1 << _LAST_SIGNAL) - 1
    names = [signal_name(i + 1).removeprefix("SIG") for i in range(_LAST_SIGNAL) if bits >> i & 1]
    return f"{sign}[{' '.join(names)}]"


def rlimit(_call: Call | None, value: int) -> str:
    """A limit of getrlimit, of the program's own word."""
    return "RLIM_INFINITY" if value == _U32 else _in_kib(value)


def rlimit64(_call: Call | None, value: int) -> str:
    """A limit of prlimit64: 8192*1024, RLIM64_INFINITY."""
    return "RLIM64_INFINITY" if value == (1 << 64) - 1 else _in_kib(value)


def _in_kib(value: int) -> str:
    return f"{value // 1024}*1024" if value > 1024 and not value % 1024 else str(value)


def word_rlimit(call: Call, value: int) -> str:
    """A limit as the program's word has room for it."""
    return rlimit64(call, value) if call.is_64bit else rlimit(call, value)


def clone_flags(_call: Call | None, value: int) -> str:
    """CLONE_… and, in the low byte, the signal that the parent gets when the child ends."""
    return _clone_text(value)


@lru_cache(1024)
def _clone_text(value: int) -> str:
    number = value & 0xFF
    parts = []
    if value & ~0xFF:
        parts.append(flag_sets()["clone_flags"].text(value & ~0xFF))
    if number or not parts:
        parts.append(signal_name(number))
    return "|".join(parts)


def map_flags(_call: Call | None, value: int) -> str:
    """MAP_…; bits 26 to 31 are the size of a huge page, as a power of 2."""
    huge = value >> 26 & 0x3F
    text = flag_sets()["mapflags"].text(value & ~(0x3F << 26))
    return f"{text}|{huge}<<MAP_HUGE_SHIFT" if huge else text


def open_flags64(_call: Call | None, value: int) -> str:
    """O_… of openat2, where all 64 bits count."""
    high = value >> 32 << 32
    text = flag_sets()["oflags"].text(value)
    return f"{text}|{high:#x}" if high else text


def ipc_key(_call: Call | None, value: int) -> str:
    """A System V IPC key."""
    return hexadecimal32(None, value) if value & _U32 else "IPC_PRIVATE"


def _with_mode(kind: str) -> Callable[[Call | None, int], str]:
    """Flags whose low nine bits are permissions, as IPC_CREAT|0600."""

    def text(_call: Call | None, value: int) -> str:
        flags, bits = value & _U32 & ~0o777, value & 0o777
        return f"{flag_sets()[kind].text(flags)}|{_octal(bits)}" if flags else _octal(bits)

    return text


def clock_or_cpu(call: Call | None, value: int) -> str:
    """A clock; a negative number holds the complement of a pid, or of a descriptor (posix-timers.h)."""
    number = value & _U32
    if not number >> 31:
        return value_sets()["clockid"].text(number)
    of = ("PROF", "VIRT", "SCHED")
    who = ~(number | ~_U32) >> 3
    if number & 7 == 3:
        return f"FD_TO_CLOCKID({signed32(call, who)})"
    if number & 3 == 3:
        return signed32(call, value)
    kind = "THREAD" if number & 4 else "PROCESS"
    return f"MAKE_{kind}_CPUCLOCK({who}, CPUCLOCK_{of[number & 3]})"


def whole_64bit(_call: Call | None, low: int, high: int) -> str:
    """A signed 64-bit number that a 32-bit program passes as two words."""
    value = (high & _U32) << 32 | low & _U32
    return str(value - (1 << 64) if value >> 63 else value)


_SCALARS: dict[str, Callable[[Call, int], str | None]] = {
    "clock": clock_or_cpu,
    "clone_flags": clone_flags,
    "dev": device,
    "dirfd": directory,
    "fd": signed32,
    "hex": hexadecimal,
    "hex32": hexadecimal32,
    "id": identity,
    "id16": identity16,
    "int": signed32,
    "ipc_key": ipc_key,
    "long": signed_word,
    "mapflags": map_flags,
    "mode": octal,
    "node_mode": node_mode,
    "omode": open_mode,
    "openat_mode": openat_mode,
    "pid": signed32,
    "ptr": pointer,
    "rlim64": rlimit64,
    "sem_get_flags": _with_mode("ipc_flags"),
    "shm_get_flags": _with_mode("shm_flags"),
    "signal": signal,
    "size": unsigned_word,
    "st_mode": mode,
    "uint": unsigned32,
    "word_rlim": word_rlimit,
}


@cache
def scalar(kind: str) -> Callable[[Call, int], str | None] | None:
    """What puts a number of this kind into words; None for a kind that is no number."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    names = flag_sets().get(kind) or value_sets().get(kind)
    return None if names is None else _by_name(names)


def _by_name(names: FlagSet | ValueSet) -> Callable[[Call, int], str]:
    text = names.text

    def named(_call: Call, value: int) -> str:
        return text(value)

    return named
