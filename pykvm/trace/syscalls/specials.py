"""Arguments whose meaning hangs on the arguments beside them, and a few with a spelling of their own.

A text of None means that the argument is not there: open has a mode only where it may make a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.ioctl_names import ioctl_text
from pykvm.trace.syscalls.numbers import number_in, signed_text_in
from pykvm.trace.syscalls.pointers import one_of, record, struct
from pykvm.trace.syscalls.scalars import device, hexadecimal, signal_name, signed32
from pykvm.trace.syscalls.strings import address, path, quote, string, strings
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

__all__ = ["SPECIALS"]

_U32 = 0xFFFF_FFFF
_CLONE_PIDFD, _CLONE_SETTLS = 0x1000, 0x8_0000
_CLONE_PARENT_SETTID, _CLONE_CHILD = 0x10_0000, 0x20_0000 | 0x100_0000
_MREMAP_TARGET = 2 | 4  # MREMAP_FIXED, MREMAP_DONTUNMAP
_FUTEX_PRIVATE, _FUTEX_CLOCK_REALTIME = 0x80, 0x100
_RESTART2 = 0xA1B2_C3D4
_O_CREAT = 0o100
_TASK_NAME_BYTES = 16


def _ioctl_request(_call: Call, value: int) -> str:
    return ioctl_text(value)


def _futex_op(_call: Call, value: int) -> str:
    """A command with its two modifiers: FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME."""
    names = value_sets()["futex_cmd"]
    value &= _U32
    command = value & ~(_FUTEX_PRIVATE | _FUTEX_CLOCK_REALTIME)
    if command not in names.names:
        return names.text(value)
    private = "_PRIVATE" if value & _FUTEX_PRIVATE else ""
    clock = "|FUTEX_CLOCK_REALTIME" if value & _FUTEX_CLOCK_REALTIME else ""
    return f"{names.names[command]}{private}{clock}"


def _futex_bitset(call: Call, value: int) -> str:
    return "FUTEX_BITSET_MATCH_ANY" if value & _U32 == _U32 else hexadecimal(call, value & _U32)


def _futex_wake_op(call: Call, value: int) -> str:
    """The operation packed into FUTEX_WAKE_OP's last argument (include/uapi/linux/futex.h)."""
    sets = value_sets()
    code, compare = value >> 28 & 0xF, value >> 24 & 0xF
    shifted = "FUTEX_OP_OPARG_SHIFT<<28|" if code & 8 else ""
    return (
        f"{shifted}{sets['futex_op_code'].text(code & 7)}<<28|{hexadecimal(call, value >> 12 & 0xFFF)}<<12"
        f"|{sets['futex_op_compare'].text(compare)}<<24|{hexadecimal(call, value & 0xFFF)}"
    )


def _mremap_target(call: Call, value: int) -> str | None:
    return address(value) if call.args[3] & _MREMAP_TARGET else None


def _node_device(call: Call, value: int) -> str | None:
    """The device of mknod, which only a device file has."""
    return device(call, value) if _is_device(call.args[1]) else None


def _nodeat_device(call: Call, value: int) -> str | None:
    """The same of mknodat, one argument further on."""
    return device(call, value) if _is_device(call.args[2]) else None


def _is_device(mode: int) -> bool:
    return mode & 0o170000 in (0o020000, 0o060000)


def _clone_tid(call: Call, value: int) -> str | None:
    """Where clone puts the new thread's number, or its pidfd."""
    if not call.args[0] & (_CLONE_PARENT_SETTID | _CLONE_PIDFD):
        return None
    return address(value) if call.result is None else one_of(4, signed_text_in)(call, value)


def _clone_tls(call: Call, value: int) -> str | None:
    return address(value) if call.args[0] & _CLONE_SETTLS else None


def _clone_ctid(call: Call, value: int) -> str | None:
    return address(value) if call.args[0] & _CLONE_CHILD else None


def _mq_attr_if_new(call: Call, value: int) -> str | None:
    return struct("mq_attr")(call, value) if call.args[1] & _O_CREAT else None


def _reboot_text(call: Call, value: int) -> str | None:
    return string(call, value) if call.args[2] & _U32 == _RESTART2 else None


def _syslog_action(_call: Call, value: int) -> str:
    value &= _U32
    return f"{value} /* {value_sets()['syslog_action'].names.get(value, 'SYSLOG_ACTION_???')} */"


def _io_priority(_call: Call, value: int) -> str:
    value &= _U32
    return f"IOPRIO_PRIO_VALUE({value_sets()['ioprio_class'].text(value >> 13)}, {value & 0x1FFF})"


def _keyring(call: Call, value: int) -> str:
    return value_sets()["keyring"].names.get(value & _U32) or signed32(call, value)


def _task_name(call: Call, gva: int) -> str:
    """A task's name, of which the kernel keeps 15 bytes."""
    found = call.string(gva, _TASK_NAME_BYTES) if gva else None
    if found is None:
        return address(gva)
    name, ended = found
    return quote(name[: _TASK_NAME_BYTES - 1], more=not ended)


def _seccomp_action(data: bytes) -> str:
    return value_sets()["seccomp_action"].text(number_in(data))


def _io_uring_params(call: Call, fields: Fields) -> str:
    """What the program asks for and, once it is there, what the ring has."""
    flags = flag_sets()
    text = (
        f"{{flags={flags['io_uring_setup_flags'].text(fields['flags'])}"
        f", sq_thread_cpu={fields['sq_thread_cpu']}, sq_thread_idle={fields['sq_thread_idle']}"
    )
    if call.result is None:
        return f"{text}}}"
    features = flags["io_uring_features"].text(fields["features"])
    entries = f"sq_entries={fields['sq_entries']}, cq_entries={fields['cq_entries']}"
    return f"{text}, {entries}, features={features}, ...}}"


def _persona(_call: Call, value: int) -> str:
    """A personality; all ones ask for the present one."""
    value &= _U32
    return f"{value:#x}" if value == _U32 else flag_sets()["personality"].text(value)


def _pages(_call: Call, value: int) -> str:
    """The offset of mmap2, which counts in pages of 4 KiB."""
    return hexadecimal(None, (value & _U32) << 12)


SPECIALS: dict[str, Callable[[Call, int], str | None]] = {
    "argv": strings,
    "ctid": _clone_ctid,
    "ptid": _clone_tid,
    "tls": _clone_tls,
    "futex_bitset": _futex_bitset,
    "futex_op": _futex_op,
    "futex_wake_op": _futex_wake_op,
    "io_uring_params": record("io_uring_params", _io_uring_params),
    "ioctl_request": _ioctl_request,
    "ioprio": _io_priority,
    "keyring": _keyring,
    "mq_attr_if_new": _mq_attr_if_new,
    "mremap_target": _mremap_target,
    "node_dev": _node_device,
    "nodeat_dev": _nodeat_device,
    "pages": _pages,
    "path": path,
    "personality": _persona,
    "reboot_text": _reboot_text,
    "seccomp_actionp": one_of(4, _seccomp_action),
    "signalp": one_of(4, lambda data: signal_name(number_in(data))),
    "str": string,
    "syslog_action": _syslog_action,
    "task_name": _task_name,
}
