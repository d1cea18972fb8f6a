"""What socket calls take beside messages: addresses, protocols, options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.lists import bracketed
from pykvm.trace.syscalls.numbers import hexadecimal_in, number_in, signed_text_in
from pykvm.trace.syscalls.pointers import one_of, struct
from pykvm.trace.syscalls.scalars import hexadecimal, signed32
from pykvm.trace.syscalls.strings import address, buffer, quote
from pykvm.trace.syscalls.structs import layouts
from pykvm.trace.syscalls.values import value_sets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call

__all__ = ["SOCKETS", "SOCKET_LISTS", "SOL_SOCKET", "sockaddr"]

SOL_SOCKET = 1
_SOCKADDR_BYTES = 128  # sizeof(struct sockaddr_storage)
_U32 = 0xFFFF_FFFF
_UNIX, _INET, _INET6, _NETLINK, _PACKET, _VSOCK = 1, 2, 10, 16, 17, 40
_PROTOCOLS = {_INET: "ipproto", _INET6: "ipproto", _NETLINK: "netlink_family"}
_LEVELS = {0: "so_ip", 1: "so_socket", 6: "so_tcp", 41: "so_ipv6", 263: "so_packet", 270: "so_netlink"}
# SO_LINGER, SO_PEERCRED, SO_RCVTIMEO, SO_SNDTIMEO, SO_ATTACH_FILTER
_OPTION_STRUCTS = {13: "linger", 17: "ucred", 20: "timeval", 21: "timeval", 26: "fprog"}
_STRING_OPTIONS = ((SOL_SOCKET, 25), (6, 13), (6, 31))  # SO_BINDTODEVICE, TCP_CONGESTION, TCP_ULP


def _unix(data: bytes) -> str:
    """A path, or a name without a file that starts with a NUL."""
    name = data[2:]
    if not name:
        return ""
    return f", sun_path={quote(name.partition(bytes(1))[0])}" if name[0] else f", sun_path=@{quote(name[1:])}"


def _inet(data: bytes) -> str:
    return f', sin_port={_port(data)}, sin_addr=inet_addr("{".".join(map(str, data[4:8]))}")'


def _inet6(data: bytes) -> str:
    from socket import AF_INET6, inet_ntop  # noqa: PLC0415 - its import takes longer than all of this package's

    return (
        f", sin6_port={_port(data)}, sin6_flowinfo=htonl({int.from_bytes(data[4:8], 'big')})"
        f', inet_pton(AF_INET6, "{inet_ntop(AF_INET6, data[8:24])}", &sin6_addr)'
        f", sin6_scope_id={number_in(data[24:28])}"
    )


def _port(data: bytes) -> str:
    return f"htons({int.from_bytes(data[2:4], 'big')})"


def _netlink(data: bytes) -> str:
    groups = number_in(data[8:12])
    return f", nl_pid={number_in(data[4:8])}, nl_groups={f'{groups:#08x}' if groups else '00000000'}"


def _packet(data: bytes) -> str:
    hardware = bracketed([f"{byte:#x}" for byte in data[12 : 12 + min(data[11], 8)]])
    return (
        f", sll_protocol={_ethernet(data[2:4])}, sll_ifindex={signed_text_in(data[4:8])}"
        f", sll_hatype={hexadecimal_in(data[8:10])}, sll_pkttype={value_sets()['packet_type'].text(data[10])}"
        f", sll_halen={data[11]}, sll_addr={hardware}"
    )


def _ethernet(data: bytes) -> str:
    """An Ethernet protocol, in network byte order."""
    return f"htons({value_sets()['ethernet'].text(int.from_bytes(data, 'big'))})"


def _vsock(data: bytes) -> str:
    cid = value_sets()["vsock_cid"].names.get(number_in(data[8:12])) or hexadecimal_in(data[8:12])
    return f", svm_cid={cid}, svm_port={hexadecimal_in(data[4:8])}, svm_flags={hexadecimal(None, data[12])}"


# family -> the least size of its address, and what prints what comes after the family
_ADDRESSES: dict[int, tuple[int, Callable[[bytes], str]]] = {
    _UNIX: (2, _unix),
    _INET: (8, _inet),
    _INET6: (28, _inet6),
    _NETLINK: (12, _netlink),
    _PACKET: (12, _packet),
    _VSOCK: (16, _vsock),
}


def sockaddr(call: Call, gva: int, size_bytes: int) -> str:
    """An address of `size_bytes`, as bind, connect and sendto take it."""
    size_bytes = min(size_bytes & _U32, _SOCKADDR_BYTES)
    data = call.exactly(gva, size_bytes) if gva and size_bytes >= 2 else None
    if data is None:
        return address(gva)
    family = number_in(data[:2])
    least, text = _ADDRESSES.get(family, (_SOCKADDR_BYTES + 1, _unix))
    rest = text(data) if len(data) >= least else f", sa_data={quote(data[2:])}"
    return f"{{sa_family={value_sets()['family'].text(family)}{rest}}}"


def _filled_sockaddr(call: Call, gva: int, size_at: int) -> str:
    """An address that the kernel has filled in; its size stands where `size_at` points to."""
    size = call.exactly(size_at, 4) if size_at else None
    return address(gva) if size is None else sockaddr(call, gva, number_in(size))


def _protocol(call: Call, value: int) -> str:
    """The third argument of socket, whose names depend on the family."""
    family = call.args[0] & _U32
    if family == _PACKET:
        return _ethernet((value & 0xFFFF).to_bytes(2, "little"))
    kind = _PROTOCOLS.get(family)
    return value_sets()[kind].text(value) if kind else signed32(call, value)


def _option(call: Call, value: int) -> str:
    """The option of setsockopt, whose names depend on the level."""
    kind = _LEVELS.get(call.args[1] & _U32)
    return value_sets()[kind].text(value) if kind else signed32(call, value)


def _option_value(call: Call, gva: int, size_bytes: int) -> str:
    """The value of an option: a struct where one is known, a number where it is one, or bytes."""
    size_bytes &= _U32
    level, name = call.args[1] & _U32, call.args[2] & _U32
    kind = _OPTION_STRUCTS.get(name) if level == SOL_SOCKET else None
    if kind and size_bytes >= layouts(is_64bit=call.is_64bit)[kind].size_bytes:
        return struct(kind)(call, gva)
    if size_bytes == 4 and (level, name) not in _STRING_OPTIONS:
        return one_of(4, signed_text_in)(call, gva)
    return buffer(call, gva, size_bytes)


def _filled_option(call: Call, gva: int, size_at: int) -> str:
    """The same after getsockopt; the size stands where `size_at` points to."""
    size = call.exactly(size_at, 4) if size_at else None
    return address(gva) if size is None else _option_value(call, gva, number_in(size))


# how many words each call of i386's socketcall takes, from SYS_SOCKET on (include/uapi/linux/net.h)
_SOCKETCALL_WORDS = (0, 3, 3, 3, 2, 3, 3, 3, 4, 4, 4, 6, 6, 2, 5, 5, 3, 3, 4, 5, 4)


def _socketcall_words(call: Call, gva: int) -> str:
    """The arguments of the call that socketcall's first argument names, as they lie in memory."""
    number = call.args[0]
    wanted = _SOCKETCALL_WORDS[number] if number < len(_SOCKETCALL_WORDS) else 0
    words = call.words(gva, wanted) if gva and wanted else []
    return (
        bracketed([hexadecimal(None, word) for word in words]) if len(words) == wanted > 0 else address(gva)
    )


SOCKETS: dict[str, Callable[[Call, int], str]] = {
    "lenp": one_of(4, signed_text_in),
    "protocol": _protocol,
    "so_option": _option,
    "socket_args": _socketcall_words,
}

SOCKET_LISTS: dict[str, Callable[[Call, int, int], str]] = {
    "filled_option": _filled_option,
    "filled_sockaddr": _filled_sockaddr,
    "option_value": _option_value,
    "sockaddr": sockaddr,
}
