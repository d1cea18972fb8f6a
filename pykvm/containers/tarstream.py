"""tarfile made safe: damaged headers are errors, headers are bounded, and streams need not go back."""

from __future__ import annotations

import io
import struct
import tarfile
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Self

from pykvm.containers.limits import HEADER_BYTES
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

__all__ = ["SKIPPED_BYTES", "Forward", "HeaderGuard", "Sink", "StrictInfo", "buffered"]

SKIPPED_BYTES = 1 << 20
_CHUNK = 1 << 18
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X")
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s88s155s12x")  # POSIX.1-2017, pax, "ustar Interchange Format"


class StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive; here it is an error. So is a huge one."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise ImageError(f"a header is damaged: {error}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictInfo:
        return cls._strict(buf, encoding, errors, super().frombuf)

    @classmethod
    def _frombuf(
        cls, buf: bytes | bytearray, encoding: str, errors: str, *, dircheck: bool = True
    ) -> StrictInfo:
        """What tarfile calls instead since its repairs of 2024, in whatever version of Python they are."""
        theirs: Any = super()._frombuf  # type: ignore[misc]
        return cls._strict(buf, encoding, errors, partial(theirs, dircheck=dircheck))

    @classmethod
    def _strict(
        cls,
        buf: bytes | bytearray,
        encoding: str,
        errors: str,
        theirs: Callable[[bytes | bytearray, str, str], Self],
    ) -> Self:
        try:
            info = cls._plain(bytes(buf), encoding, errors) or theirs(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) not in {0, tarfile.BLOCKSIZE} or buf.strip(b"\0"):
                raise ImageError(f"a header is damaged or cut short ({error})") from None
            raise
        if info.type in _HEADERS and info.size > HEADER_BYTES:
            raise ImageError(f"an extended header of {info.size} bytes")
        if info.size < 0:
            raise ImageError("an entry with a size below zero")
        return info

    @classmethod
    def _plain(cls, buf: bytes, encoding: str, errors: str) -> Self | None:
        """A header as nearly all are, read in a quarter of the time; None leaves it to tarfile."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] not in _PLAIN_TYPES or buf[257:262] != b"ustar":
            return None
        fields = _HEADER.unpack(buf)
        try:
            numbers = [int(field.strip(b" \0") or b"0", 8) for field in fields[1:7]]
        except ValueError:  # numbers to the base of 256
            return None
        mode, uid, gid, size, mtime, checksum = numbers
        if checksum != sum(buf) - sum(buf[148:156]) + 256:
            return None
        info = cls((fields[0].partition(b"\0")[0]).decode(encoding, errors))
        info.mode, info.uid, info.gid, info.size, info.mtime = mode, uid, gid, size, mtime
        info.chksum, info.type = checksum, fields[7]
        info.linkname = fields[8].partition(b"\0")[0].decode(encoding, errors)
        if info.type == tarfile.DIRTYPE:
            info.name = info.name.rstrip("/")
        if prefix := fields[10].partition(b"\0")[0]:
            info.name = f"{prefix.decode(encoding, errors)}/{info.name}"
        return info


class HeaderGuard:
    """A file for tarfile to read, with a bound on what it reads for one entry's headers.

    Sparse files bring maps, and headers come in chains; tarfile keeps all. Call `next_entry` before each
    entry, and `no_bound` before data are read.
    """

    def __init__(self, file: IO[bytes] | io.BufferedIOBase) -> None:
        self._file = file
        self._left: int | None = None

    def next_entry(self) -> None:
        self._left = 2 * HEADER_BYTES

    def no_bound(self) -> None:
        self._left = None

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ImageError(f"an entry with more than {2 * HEADER_BYTES} bytes of headers")
        return data


class Forward(HeaderGuard):
    """The same over a stream that can't go back."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        super().__init__(stream)
        self._at = 0

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence or offset < self._at:
            raise ImageError("an entry that points back")
        left = self._left
        self._left = None
        while self._at < offset and self.read(min(offset - self._at, SKIPPED_BYTES)):
            pass
        self._left = left
        return self._at


class Sink:
    """What tarfile needs to write into a stream that can't go back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0

    def tell(self) -> int:
        return self._at

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._at += len(data)
        return len(data)


def buffered(file: IO[bytes]) -> io.BufferedReader:
    """A reader of what a LayerReader takes; the file stays open when it goes."""
    return io.BufferedReader(_Lent(file), _CHUNK)


class _Lent(io.RawIOBase):
    """A file that is somebody else's to close."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)
