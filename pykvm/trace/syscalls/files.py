"""Structs about files: stat, statx, openat2's way to open, handles, interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.numbers import number_in, signed_in
from pykvm.trace.syscalls.pointers import behind, record
from pykvm.trace.syscalls.scalars import device, mode_text, octal, open_flags64
from pykvm.trace.syscalls.strings import address, quote

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

__all__ = ["FILES", "FILE_LISTS"]

_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000


def _stat(call: Call, fields: Fields) -> str:
    mode = fields["st_mode"]
    if mode & _S_IFMT in (_S_IFCHR, _S_IFBLK):
        return f"{{st_mode={mode_text(mode)}, st_rdev={device(call, fields['st_rdev'])}, ...}}"
    return f"{{st_mode={mode_text(mode)}, st_size={fields['st_size']}, ...}}"


def _statx(_call: Call, fields: Fields) -> str:
    flags = flag_sets()
    return (
        f"{{stx_mask={flags['statx_mask'].text(fields['stx_mask'])}"
        f", stx_attributes={flags['statx_attributes'].text(fields['stx_attributes'])}"
        f", stx_mode={mode_text(fields['stx_mode'])}, stx_size={fields['stx_size']}, ...}}"
    )


def _open_how(call: Call, fields: Fields) -> str:
    """How openat2 opens; the mode is left out where it is 0."""
    mode = f", mode={octal(call, fields['mode'])}" if fields["mode"] else ""
    resolve = flag_sets()["resolve_flags"].text(fields["resolve"])
    return f"{{flags={open_flags64(call, fields['flags'])}{mode}, resolve={resolve}}}"


def _handle_space(call: Call, gva: int) -> str:
    """A struct file_handle to be filled: how much room it has, then the handle."""
    size = call.exactly(gva, 4) if gva and call.result is None else None
    return _handle(call, gva) if size is None else f"{{handle_bytes={number_in(size)}}}"


def _handle(call: Call, gva: int) -> str:
    """A struct file_handle with its opaque bytes."""
    head = call.exactly(gva, 8) if gva else None
    if head is None:
        return address(gva)
    size_bytes = number_in(head[:4])
    opaque = _opaque(call, gva + 8, size_bytes)
    return f"{{handle_bytes={size_bytes}, handle_type={signed_in(head[4:])}, f_handle={opaque}}}"


def _opaque(call: Call, gva: int, size_bytes: int) -> str:
    """Bytes without meaning, in hexadecimal."""
    data = call.exactly(gva, min(size_bytes, call.string_bytes)) if gva and size_bytes > 0 else None
    if data is None:
        return address(gva)
    text = "".join([f"\\x{byte:02x}" for byte in data])
    return f'"{text}"{"..." * (size_bytes > call.string_bytes)}'


def _interface(data: bytes) -> str:
    """A struct ifreq: the name of an interface; the rest depends on the request."""
    return f"{{ifr_name={quote(data.partition(bytes(1))[0])}, ...}}"


FILES: dict[str, Callable[[Call, int], str]] = {
    "file_handle": _handle,
    "handle_space": _handle_space,
    "ifreq": behind(16, _interface),
    "open_how": record("open_how", _open_how),
    "stat": record("stat", _stat),
    "stat64": record("stat64", _stat),
    "statx": record("statx", _statx),
}

FILE_LISTS: dict[str, Callable[[Call, int, int], str]] = {"random": _opaque}
