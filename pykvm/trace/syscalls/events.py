"""What programs wait for: poll, select and epoll, and sets of descriptors, CPUs and signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.flags import flag_sets
from pykvm.trace.syscalls.lists import array, bracketed, elements
from pykvm.trace.syscalls.numbers import number_in, signed_in
from pykvm.trace.syscalls.pointers import behind
from pykvm.trace.syscalls.scalars import signal_set
from pykvm.trace.syscalls.strings import address

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call

__all__ = ["EVENTS", "EVENT_LISTS", "fd_set_text", "poll_results"]

_U32 = 0xFFFF_FFFF
_SET_BYTES = 128  # an fd_set, and the CPU masks of most programs
_SIGSET_BYTES = 8
_POLLFD_BYTES, _EPOLL_BYTES = 8, 12


def _polled(call: Call, gva: int, count: int) -> str:
    """What poll is asked to watch; a negative descriptor is passed over."""

    def text(data: bytes) -> str:
        fd = signed_in(data[:4])
        return f"{{fd={fd}}}" if fd < 0 else f"{{fd={fd}, events={_poll_events(data[4:6])}}}"

    return array(call, gva, count & _U32, _POLLFD_BYTES, text)


def poll_results(call: Call, gva: int, count: int) -> str:
    """What poll has found: the descriptors with events."""
    found = elements(call, gva, count & _U32, _POLLFD_BYTES) or []
    return bracketed(
        f"{{fd={signed_in(data[:4])}, revents={_poll_events(data[6:8])}}}" for data in found if any(data[6:8])
    )


def _poll_events(data: bytes) -> str:
    return flag_sets()["poll_events"].text(number_in(data))


def _epoll_list(call: Call, gva: int, count: int) -> str:
    """What epoll_wait has found."""
    return array(call, gva, count, _EPOLL_BYTES, _epoll_event)


def _epoll_event(data: bytes) -> str:
    """A struct epoll_event, packed on x86; its data is a union: the two readings that are used most."""
    events = flag_sets()["epoll_events"].text(number_in(data[:4]))
    return f"{{events={events}, data={{u32={number_in(data[4:8])}, u64={number_in(data[4:])}}}}}"


def fd_set_text(call: Call, gva: int, count: int) -> str:
    """The descriptors below `count` in an fd_set: [3 4]."""
    if not gva:
        return "NULL"
    count &= _U32
    count = 0 if count >> 31 else min(count, _SET_BYTES * 8)
    data = call.exactly(gva, -(-count // (8 * call.word_bytes)) * call.word_bytes)
    return address(gva) if data is None else _bit_numbers(number_in(data) & (1 << count) - 1)


def _cpus(call: Call, gva: int, size_bytes: int) -> str:
    """The CPUs of an affinity mask."""
    data = call.exactly(gva, min(size_bytes, _SET_BYTES)) if gva and size_bytes > 0 else None
    return address(gva) if data is None else _bit_numbers(number_in(data))


def _bit_numbers(bits: int) -> str:
    return f"[{' '.join([str(i) for i in range(bits.bit_length()) if bits >> i & 1])}]"


def _signals(call: Call, gva: int, size_bytes: int) -> str:
    """A sigset_t; the kernel takes none of another size than 8 bytes."""
    data = call.exactly(gva, _SIGSET_BYTES) if gva and size_bytes == _SIGSET_BYTES else None
    return address(gva) if data is None else signal_set(number_in(data))


EVENTS: dict[str, Callable[[Call, int], str]] = {
    "epoll_event": behind(_EPOLL_BYTES, _epoll_event),
    "old_sigset": behind(4, lambda data: signal_set(number_in(data))),
}

EVENT_LISTS: dict[str, Callable[[Call, int, int], str]] = {
    "cpus": _cpus,
    "epoll_list": _epoll_list,
    "fd_set": fd_set_text,
    "pollfds": _polled,
    "sigset": _signals,
}
