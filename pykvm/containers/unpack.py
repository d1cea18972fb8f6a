"""A layer's bytes unpacked as they are read: plain, gzip or zstd, told apart by how they begin."""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import IO, TYPE_CHECKING

from pykvm.errors import ImageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Unpacked", "packing_of"]

_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def packing_of(start: bytes) -> str:
    """The codec that a stream begins with, gzip or zstd, or "" for neither."""
    return "gzip" if start.startswith(_GZIP) else "zstd" if start.startswith(_ZSTD) else ""


class Unpacked(io.RawIOBase):
    """What a packed stream holds, read once and forward; wrap it into a BufferedReader.

    `digest()` is that of the unpacked bytes so far, or "" where nothing is packed: whoever reads the source
    hashes it anyway. More than `limit` bytes raise ImageError, as do damage and an early end.
    """

    def __init__(self, source: IO[bytes] | io.RawIOBase, limit: int, what: str) -> None:
        self._source = source
        self._limit = limit
        self._what = what
        self._hash = hashlib.sha256()
        self._left = memoryview(b"")
        self.size_bytes = 0
        start = self._read()
        while 0 < len(start) < 4 and (more := self._read()):
            start += more
        self.packing = packing_of(start)
        self._steps = {"": self._plain, "gzip": self._gzip, "zstd": self._zstd}[self.packing]
        self._start = start
        self._inflate = zlib.decompressobj(wbits=31)
        self._packed = start
        self._is_open = False
        self._is_ended = False

    def readable(self) -> bool:
        return True

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}" if self.packing else ""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._left and not self._is_ended:
            self._left = memoryview(self._more())
        count = min(len(self._left), len(view))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _more(self) -> bytes:
        """The next unpacked bytes, hashed and counted; empty only at the end."""
        data = self._steps()
        self._is_ended = not data
        self.size_bytes += len(data)
        if self.size_bytes > self._limit:
            raise ImageError(
                f"{self._what}: unpacks to more than the {self._limit} bytes allowed (--max-size)"
            )
        if self.packing:
            self._hash.update(data)
        return data

    def _read(self) -> bytes:
        return self._source.read(_CHUNK) or b""

    def _plain(self) -> bytes:
        data, self._start = self._start, b""
        return data or self._read()

    def _gzip(self) -> bytes:
        """One member after the other, as RFC 1952 section 2.2 has it; zeros may fill up the end."""
        while True:
            if not self._packed:
                self._packed = self._read()
                if not self._packed and self._is_open:
                    raise ImageError(f"{self._what}: its gzip stream ends too early")
            if not self._packed:
                return b""
            if not self._is_open:
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed:
                    continue
                self._inflate, self._is_open = zlib.decompressobj(wbits=31), True
            if data := self._inflated():
                return data

    def _inflated(self) -> bytes:
        try:
            data = self._inflate.decompress(self._packed, _CHUNK)
        except zlib.error as error:
            raise ImageError(f"{self._what}: its gzip stream is damaged: {error}") from None
        self._packed = self._inflate.unconsumed_tail
        if self._inflate.eof:
            self._packed, self._is_open = self._inflate.unused_data, False
        return data

    def _zstd(self) -> bytes:
        import zstandard  # noqa: PLC0415 - few layers need it

        if not self._is_open:
            whole = io.BufferedReader(_Joined(self._start, self._source))
            self._frames = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                whole, read_across_frames=True
            )
            self._is_open = True
        try:
            return self._frames.read(_CHUNK)
        except zstandard.ZstdError as error:
            raise ImageError(f"{self._what}: its zstd stream is damaged: {error}") from None


class _Joined(io.RawIOBase):
    """Bytes, then a stream."""

    def __init__(self, start: bytes, rest: IO[bytes] | io.RawIOBase) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._start[: len(view)] or self._rest.read(len(view)) or b""
        self._start = self._start[len(data) :]
        view[: len(data)] = data
        return len(data)
