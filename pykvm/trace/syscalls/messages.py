"""Messages of sockets: struct msghdr with its vector of buffers and its control data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.lists import MOST, bracketed, elements, iovec
from pykvm.trace.syscalls.numbers import number_in, signed_text_in
from pykvm.trace.syscalls.pointers import record
from pykvm.trace.syscalls.sockets import SOL_SOCKET, sockaddr
from pykvm.trace.syscalls.strings import address, quote
from pykvm.trace.syscalls.structs import layouts
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

__all__ = ["MESSAGES", "MESSAGE_LISTS"]

_CONTROL_BYTES = 1024
_U32 = 0xFFFF_FFFF
_SCM_RIGHTS, _SCM_CREDENTIALS = 1, 2


def _sent(call: Call, fields: Fields) -> str:
    """A struct msghdr as sendmsg takes it."""
    return _header(call, fields, None)


def _received(call: Call, fields: Fields) -> str:
    """A struct msghdr after recvmsg: as many bytes of data as it returned."""
    return _header(call, fields, call.result or 0)


def _header(call: Call, fields: Fields, received: int | None) -> str:
    control = ""
    if fields["controllen"]:
        control = f", msg_control={_control(call, fields['control'], fields['controllen'])}"
    return (
        f"{{msg_name={sockaddr(call, fields['name'], fields['namelen'])}"
        f", msg_namelen={fields.signed('namelen')}"
        f", msg_iov={iovec(call, fields['iov'], fields['iovlen'], received)}, msg_iovlen={fields['iovlen']}"
        f"{control}, msg_controllen={fields['controllen']}"
        f", msg_flags={flag_sets()['msg_flags'].text(fields['flags'])}}}"
    )


def _control(call: Call, gva: int, size_bytes: int) -> str:
    """The control messages in `size_bytes` at `gva`; their lengths are the program's claims."""
    data = call.exactly(gva, min(size_bytes, _CONTROL_BYTES)) if gva else None
    if data is None:
        return address(gva)
    word = call.word_bytes
    parts: list[str] = []
    at, head = 0, word + 8
    while at + head <= len(data) and len(parts) < MOST:
        length = number_in(data[at : at + word])
        if length < head:
            break
        parts.append(_control_text(length, data[at + word : at + head], data[at + head : at + length]))
        at += -(-length // word) * word
    return bracketed(parts)


def _control_text(length: int, kinds: bytes, data: bytes) -> str:
    level, kind = number_in(kinds[:4]), number_in(kinds[4:])
    if level != SOL_SOCKET:
        name, text = f"{kind:#x}", quote(data[:MOST], more=len(data) > MOST)
    else:
        name, text = value_sets()["cmsg_socket"].text(kind), _socket_control(kind, data)
    origin = value_sets()["sol"].text(level)
    return f"{{cmsg_len={length}, cmsg_level={origin}, cmsg_type={name}, cmsg_data={text}}}"


def _socket_control(kind: int, data: bytes) -> str:
    """Descriptors, credentials, or bytes."""
    if kind == _SCM_RIGHTS:
        fds = [signed_text_in(data[at : at + 4]) for at in range(0, len(data) - 3, 4)]
        return bracketed(fds[:MOST], more=len(fds) > MOST)
    if kind == _SCM_CREDENTIALS and len(data) >= 12:
        pid, uid, gid = (number_in(data[at : at + 4]) for at in (0, 4, 8))
        return f"{{pid={pid}, uid={uid}, gid={gid}}}"
    return quote(data[:MOST], more=len(data) > MOST)


def _all_sent(call: Call, gva: int, count: int) -> str:
    """What sendmmsg sends."""
    return _several(call, gva, count & _U32, is_received=False)


def _all_received(call: Call, gva: int, count: int) -> str:
    """What recvmmsg has received."""
    return _several(call, gva, count & _U32, is_received=True)


def _several(call: Call, gva: int, count: int, *, is_received: bool) -> str:
    layout = layouts(is_64bit=call.is_64bit)["mmsghdr"]
    found = elements(call, gva, count, layout.size_bytes) if gva else None
    if found is None:
        return address(gva)
    parts = []
    for fields in map(layout.fields, found):
        length = fields["len"]
        text = _header(call, fields, length if is_received else None)
        parts.append(
            f"{{msg_hdr={text}, msg_len={length}}}" if is_received or length else f"{{msg_hdr={text}}}"
        )
    return bracketed(parts, more=len(found) == MOST < count)


MESSAGES: dict[str, Callable[[Call, int], str]] = {
    "filled_message": record("msghdr", _received),
    "message": record("msghdr", _sent),
}

MESSAGE_LISTS: dict[str, Callable[[Call, int, int], str]] = {
    "filled_messages": _all_received,
    "messages": _all_sent,
}
