"""What a kernel's payload may be packed with, unpacked on the host: the guest need not do it slowly.

Each stream may be followed by other bytes (its unpacked size, padding); they are left alone. Sources: the
kernel's Documentation/arch/x86/boot.rst, "payload_offset"; LZ4's legacy frame is that of lz4's
doc/lz4_Frame_format.md.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["codec_of", "unpack"]

_LZ4_BLOCK_BYTES = 8 << 20
_MOST_BYTES = 1 << 30


def codec_of(payload: bytes) -> str:
    """The payload's codec: gzip, xz, lzma, bzip2, lz4, zstd, elf (not packed), or "" if unknown."""
    return next((name for magic, name in _MAGICS if payload.startswith(magic)), "")


def unpack(payload: bytes) -> bytes:
    """The unpacked payload. Raises ValueError with one line if it is damaged, too large or unknown."""
    name = codec_of(payload)
    if not name:
        raise ValueError(f"its payload begins with {payload[:4].hex(' ')}, which is no codec of Linux")
    try:
        data = _CODECS[name](payload)
    except (OSError, EOFError, struct.error, RuntimeError) as error:
        raise ValueError(f"its {name} payload is damaged: {error}") from None
    if len(data) > _MOST_BYTES:
        raise ValueError(f"its {name} payload unpacks to more than {_MOST_BYTES >> 20} MiB")
    return data


def _lz4_legacy(payload: bytes) -> bytes:
    """Blocks of at most 8 MiB, each behind its packed size; a size that can't be ends them."""
    import lz4.block  # noqa: PLC0415 - only kernels need it

    at, parts, total = 4, [], 0
    while at + 4 < len(payload):
        (size,) = struct.unpack_from("<I", payload, at)
        at += 4
        if not size or size > len(payload) - at:
            break
        try:
            parts.append(lz4.block.decompress(payload[at : at + size], uncompressed_size=_LZ4_BLOCK_BYTES))
        except lz4.block.LZ4BlockError as error:
            raise OSError(str(error)) from None
        at, total = at + size, total + len(parts[-1])
        if len(parts[-1]) < _LZ4_BLOCK_BYTES or total > _MOST_BYTES:
            break
    return b"".join(parts)


def _zstd(payload: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - as above

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from None


def _xz(payload: bytes) -> bytes:
    import lzma  # noqa: PLC0415 - as above

    try:
        return lzma.LZMADecompressor().decompress(payload, _MOST_BYTES + 1)
    except lzma.LZMAError as error:
        raise OSError(str(error)) from None


def _gzip(payload: bytes) -> bytes:
    import zlib  # noqa: PLC0415 - as above

    try:
        return zlib.decompressobj(wbits=31).decompress(payload, _MOST_BYTES + 1)
    except zlib.error as error:
        raise OSError(str(error)) from None


def _bzip2(payload: bytes) -> bytes:
    import bz2  # noqa: PLC0415 - as above

    return bz2.BZ2Decompressor().decompress(payload, _MOST_BYTES + 1)


_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x7fELF", "elf"),
)
_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "xz": _xz,
    "lzma": _xz,
    "bzip2": _bzip2,
    "lz4": _lz4_legacy,
    "zstd": _zstd,
    "elf": lambda payload: payload,
}
