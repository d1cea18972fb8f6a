"""One syscall while it is put into words: its arguments, and the only door to the program's memory."""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PAGE_BYTES", "Call"]

PAGE_BYTES = 4096
_READS = 128  # for one call: a message of 32 vectors of 32 bytes is well below
_BYTES = 1 << 16
_ELEMENTS = 256
_FIRST_BYTES = 256  # most paths are shorter: one step, seldom over the end of a page


class Call:
    """The arguments of one syscall, its result once it has one, and what may still be read for it.

    All that the program says is a claim. A pointer may lead nowhere, a count may be 2**64 - 1, a list
    may lead back to itself: after 128 reads, 64 KiB or 256 elements of lists no more is read, and what is
    left is printed as addresses.
    """

    __slots__ = (
        "_bytes_left",
        "_read",
        "_reads_left",
        "args",
        "elements_left",
        "is_64bit",
        "result",
        "string_bytes",
        "word_bytes",
    )

    def __init__(
        self,
        args: Sequence[int],
        read: Callable[[int, int], bytes],
        *,
        is_64bit: bool = True,
        result: int | None = None,
        string_bytes: int = 32,
    ) -> None:
        """`args` are six unsigned words; `result` is signed, and None until the call has returned.

        Of a string or a buffer `string_bytes` are printed.
        """
        self.args = args
        self.result = result
        self.is_64bit = is_64bit
        self.word_bytes = 8 if is_64bit else 4
        self.string_bytes = string_bytes
        self.elements_left = _ELEMENTS
        self._read = read
        self._reads_left = _READS
        self._bytes_left = _BYTES

    def up_to(self, gva: int, size_bytes: int) -> bytes:
        """As many of the bytes at `gva` as there are, at most `size_bytes`; b"" for none. Never raises."""
        size_bytes = min(size_bytes, self._bytes_left)
        if size_bytes <= 0 or self._reads_left <= 0:
            return b""
        self._reads_left -= 1
        self._bytes_left -= size_bytes
        try:
            return bytes(self._read(gva, size_bytes)[:size_bytes])
        except Exception:  # noqa: BLE001 - the reader is the caller's: a bad address must not end the trace
            return b""

    def exactly(self, gva: int, size_bytes: int) -> bytes | None:
        """The `size_bytes` bytes at `gva`, or None where one is missing or too many were asked for."""
        found = self.up_to(gva, size_bytes)
        return found if len(found) == size_bytes else None

    def word(self, gva: int) -> int | None:
        """The unsigned word (pointer or long) at `gva`."""
        found = self.exactly(gva, self.word_bytes)
        return None if found is None else int.from_bytes(found, "little")

    def words(self, gva: int, count: int) -> list[int]:
        """The unsigned words from `gva` on, up to `count` or the first that is not there."""
        size_bytes = count * self.word_bytes
        found = b""
        while len(found) < size_bytes:
            at = gva + len(found)
            step = min(PAGE_BYTES - at % PAGE_BYTES, size_bytes - len(found))
            piece = self.up_to(at, step)
            found += piece
            if len(piece) < step:
                break
        whole = len(found) // self.word_bytes
        return list(unpack_from(f"<{whole}{'Q' if self.is_64bit else 'I'}", found))

    def string(self, gva: int, limit: int) -> tuple[bytes, bool] | None:
        """The string at `gva` without its NUL, and whether the NUL was seen within `limit` bytes.

        None where the memory ends first. It is read in steps that don't cross a page, since the page
        behind the string need not be there.
        """
        found = b""
        while len(found) < limit:
            at = gva + len(found)
            step = min(
                PAGE_BYTES - at % PAGE_BYTES, limit - len(found), PAGE_BYTES if found else _FIRST_BYTES
            )
            piece = self.up_to(at, step)
            end = piece.find(0)
            if end >= 0:
                return found + piece[:end], True
            if len(piece) < step:
                return None
            found += piece
        return found, False
