"""Arguments that point to several things: vectors of buffers, numbers, structs, directory entries.

`count` comes from the program and is a claim: of each list at most 32 elements are printed, as strace
does it, and no more than that is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.trace.syscalls.errnos import errno_name
from pykvm.trace.syscalls.numbers import (
    hexadecimal_in,
    number_in,
    pointer_in,
    signed_in,
    signed_text_in,
    unsigned_text_in,
)
from pykvm.trace.syscalls.pointers import one_of
from pykvm.trace.syscalls.scalars import identity, whole_64bit
from pykvm.trace.syscalls.strings import address, buffer
from pykvm.trace.syscalls.structs import layouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pykvm.trace.syscalls.call import Call

__all__ = ["LISTS", "MOST", "POINTED", "array", "bracketed", "elements", "iovec"]

MOST = 32
_MOST_VARIABLES = 1024
_DIRENT_BYTES = 1 << 15
_MASK_BITS = 1 << 20
_PAGE_BYTES = 4096


def bracketed(texts: Iterable[str], *, more: bool = False) -> str:
    """[a, b] or, where there is `more`, [a, b, ...]."""
    return f"[{', '.join([*texts, '...'] if more else texts)}]"


def elements(call: Call, gva: int, count: int, size_bytes: int) -> list[bytes] | None:
    """The first elements of an array, at most 32; None where not even the first can be read."""
    wanted = min(count, MOST, call.elements_left)
    data = call.up_to(gva, wanted * size_bytes)
    call.elements_left -= max(wanted, 0)
    found = [data[at : at + size_bytes] for at in range(0, len(data) - size_bytes + 1, size_bytes)]
    return found if found or count <= 0 else None


def array(call: Call, gva: int, count: int, size_bytes: int, text: Callable[[bytes], str]) -> str:
    """`count` elements of `size_bytes` at `gva`; an address in a comment says where they end too soon."""
    if not gva:
        return "NULL"
    if count <= 0:
        return "[]"
    found = elements(call, gva, count, size_bytes)
    if found is None:
        return address(gva)
    parts = [text(element) for element in found]
    if len(found) < min(count, MOST):
        parts.append(f"... /* {gva + len(found) * size_bytes:#x} */")
    return bracketed(parts, more=len(found) == MOST < count)


def iovec(call: Call, gva: int, count: int, transferred: int | None = None) -> str:
    """A vector of buffers with what is in them.

    `transferred` bytes of it hold data, first buffer first (what a read has filled); None: all.
    """
    left = transferred

    def text(vector: bytes) -> str:
        nonlocal left
        base, size_bytes = number_in(vector[: call.word_bytes]), number_in(vector[call.word_bytes :])
        filled = size_bytes if left is None else min(size_bytes, left)
        left = None if left is None else left - filled
        return f"{{iov_base={buffer(call, base, filled)}, iov_len={size_bytes}}}"

    return array(call, gva, count, 2 * call.word_bytes, text)


def _whole_iovec(call: Call, gva: int, count: int) -> str:
    return iovec(call, gva, count)


def _filled_iovec(call: Call, gva: int, count: int) -> str:
    """A vector that the kernel fills, with as many bytes as it has returned."""
    return _iovec_addresses(call, gva, count) if call.result is None else iovec(call, gva, count, call.result)


def _iovec_addresses(call: Call, gva: int, count: int) -> str:
    """A vector of buffers in another program's memory, or of such that hold nothing yet."""
    half = call.word_bytes
    return array(
        call,
        gva,
        count,
        2 * half,
        lambda vector: f"{{iov_base={pointer_in(vector[:half])}, iov_len={number_in(vector[half:])}}}",
    )


def _structs(name: str) -> Callable[[Call, int, int], str]:
    """What prints an array of the struct `name`."""

    def text(call: Call, gva: int, count: int) -> str:
        layout = layouts(is_64bit=call.is_64bit)[name]
        return array(call, gva, count, layout.size_bytes, lambda data: layout.text(call, data))

    return text


def _numbers(size_bytes: int, text: Callable[[bytes], str]) -> Callable[[Call, int, int], str]:
    """What prints an array of numbers; a size of 0 is the program's word."""

    def numbers(call: Call, gva: int, count: int) -> str:
        return array(call, gva, count, size_bytes or call.word_bytes, text)

    return numbers


def _entries(call: Call, gva: int, size_bytes: int) -> str:
    """How many entries getdents64 has filled in; a linux_dirent64 has its length at 16."""
    return _entry_count(call, gva, size_bytes, 16)


def _old_entries(call: Call, gva: int, size_bytes: int) -> str:
    """The same of getdents, whose entries have their length behind two longs."""
    return _entry_count(call, gva, size_bytes, 2 * call.word_bytes)


def _entry_count(call: Call, gva: int, size_bytes: int, length_at: int) -> str:
    data = call.up_to(gva, min(size_bytes, _DIRENT_BYTES))
    at = count = 0
    while at + length_at + 2 <= len(data):
        step = number_in(data[at + length_at : at + length_at + 2])
        if step == 0:
            break
        at, count = at + step, count + 1
    return f"{address(gva)} /* {count} entries */"


def _environment(call: Call, gva: int) -> str:
    """How many strings an environment has, without reading them."""
    pointers = call.words(gva, _MOST_VARIABLES) if gva else []
    if not pointers:
        return address(gva)
    count = next((i for i, pointer in enumerate(pointers) if not pointer), None)
    if count is None:
        return f"{gva:#x} /* {len(pointers)} vars, unterminated */"
    return f"{gva:#x} /* {count} var{'s' * (count != 1)} */"


def _id(data: bytes) -> str:
    return identity(None, number_in(data))


def _page_status(data: bytes) -> str:
    """A page's node after move_pages, or its error."""
    value = signed_in(data)
    name = errno_name(-value) if value < 0 else ""
    return f"-{name}" if name else str(value)


def _page_states(call: Call, gva: int, size_bytes: int) -> str:
    """Which pages mincore found in memory: one byte a page of the `size_bytes` asked about."""
    return array(call, gva, -(-size_bytes // _PAGE_BYTES), 1, lambda data: str(data[0] & 1))


def _nodes(call: Call, gva: int, bits: int) -> str:
    """A mask of memory nodes, word by word in hexadecimal."""
    word = call.word_bytes
    count = -(-min(bits, _MASK_BITS) // (8 * word))
    return array(call, gva, count, word, lambda data: f"0x{number_in(data):0{2 * word}x}")


# behind a pointer lies one thing
POINTED: dict[str, Callable[[Call, int], str]] = {
    "environment": _environment,
    "fd_pair": lambda call, gva: array(call, gva, 2, 4, signed_text_in),
    "hexp": one_of(0, hexadecimal_in),
    "i64p": one_of(8, signed_text_in),
    "id16p": one_of(2, unsigned_text_in),
    "idp": one_of(4, _id),
    "intp": one_of(4, signed_text_in),
    "longp": one_of(0, signed_text_in),
    "ptrp": one_of(0, pointer_in),
    "uintp": one_of(4, unsigned_text_in),
    "ulongp": one_of(0, unsigned_text_in),
}

# behind a pointer lie as many things as another argument says
LISTS: dict[str, Callable[[Call, int, int], str]] = {
    "buf": buffer,
    "dirents": _old_entries,
    "dirents64": _entries,
    "fds": _numbers(4, signed_text_in),
    "filled_iovec": _filled_iovec,
    "ids": _numbers(4, _id),
    "ids16": _numbers(2, unsigned_text_in),
    "io_events": _structs("io_event"),
    "iovec": _whole_iovec,
    "iovec_addresses": _iovec_addresses,
    "long_pair": whole_64bit,
    "nodes": _nodes,
    "page_states": _page_states,
    "page_status": _numbers(4, _page_status),
    "ptrs": _numbers(0, pointer_in),
    "sembufs": _structs("sembuf"),
    "waiters": _structs("futex_waitv"),
}
