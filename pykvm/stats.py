"""KVM's binary statistics of a VM or a vCPU: what happened inside KVM without ever reaching us.

The statistics describe themselves: a header, descriptors (name, type, unit, size), values. Source: the
kernel's Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm._native import ffi
from pykvm.errors import KvmError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Stat", "StatsCounter", "StatsReader"]

_KINDS = ("cumulative", "instant", "peak", "linear histogram", "logarithmic histogram")
_UNITS = ("", "bytes", "seconds", "cycles", "boolean")
_MOST_BYTES = 1 << 20
_WORD = 8


class Stat(NamedTuple):
    """One statistic: its name in the kernel, how it counts, its unit and its values (a histogram has many).

    A value is multiplied by `base` ** `exponent` to be in its unit.
    """

    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    values: tuple[int, ...]

    @property
    def value(self) -> int:
        """The only value, or the sum of a histogram's."""
        return sum(self.values)


class _Descriptor(NamedTuple):
    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    at: int
    words: int


class StatsReader:
    """Reads the statistics behind an fd from Vm.stats_fd() or Vcpu.stats_fd(), again and again.

    The reader owns the fd; close() it. Raises KvmError if what the kernel says makes no sense.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.id, self._descriptors = _describe(os.pread(fd, _MOST_BYTES, 0))
        self._start = min((d.at for d in self._descriptors), default=0)
        self._end = max((d.at + d.words * _WORD for d in self._descriptors), default=0)

    def close(self) -> None:
        """Close the fd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self) -> dict[str, Stat]:
        """All statistics by name, as they are now: one system call."""
        data = os.pread(self.fd, self._end - self._start, self._start)
        if len(data) < self._end - self._start:
            raise KvmError(errno.EIO, "KVM_GET_STATS_FD", "the kernel gave fewer values than it described")
        found = {}
        for d in self._descriptors:
            values = struct.unpack_from(f"<{d.words}Q", data, d.at - self._start)
            found[d.name] = Stat(d.name, d.kind, d.unit, d.base, d.exponent, values)
        return found


class StatsCounter:
    """What several statistics have counted since this was made: those of a VM and its vCPUs, added by name.

    Only what counts events or sums is counted; levels, peaks and histograms are left out.
    """

    def __init__(self, fds: Iterable[int]) -> None:
        """Owns the fds. Raises KvmError and OSError as StatsReader does."""
        self._readers: list[StatsReader] = []
        self._begin: list[dict[str, Stat]] = []
        try:
            for fd in fds:
                self._readers.append(_reader(fd))
            self._begin = [reader.read() for reader in self._readers]
        except BaseException:
            self.close()
            raise

    def counts(self) -> dict[str, int]:
        """Name -> how much more it is now; what has not moved is left out."""
        found: dict[str, int] = {}
        for reader, begin in zip(self._readers, self._begin, strict=True):
            for name, stat in reader.read().items():
                more = stat.value - begin[name].value
                if stat.kind == "cumulative" and more:
                    found[name] = found.get(name, 0) + more
        return found

    def close(self) -> None:
        """Close the fds."""
        for reader in self._readers:
            reader.close()


def _reader(fd: int) -> StatsReader:
    try:
        return StatsReader(fd)
    except BaseException:
        os.close(fd)
        raise


def _describe(raw: bytes) -> tuple[str, list[_Descriptor]]:
    """The id and the descriptors at the beginning of the file."""
    size = ffi.sizeof("struct kvm_stats_desc")
    try:
        header = ffi.from_buffer("struct kvm_stats_header *", raw)
        name = _text(raw, header.id_offset, header.name_size)
        step = size + header.name_size
        return name, [
            _descriptor(raw, header.desc_offset + number * step, header) for number in range(header.num_desc)
        ]
    except (ValueError, struct.error, IndexError) as error:
        raise KvmError(errno.EINVAL, "KVM_GET_STATS_FD", f"its statistics can't be read: {error}") from None


def _descriptor(raw: bytes, at: int, header: Any) -> _Descriptor:
    size = ffi.sizeof("struct kvm_stats_desc")
    d = ffi.from_buffer("struct kvm_stats_desc *", raw[at : at + size])
    name_bytes, data_offset = header.name_size, header.data_offset
    if at + size + name_bytes > len(raw) or data_offset + d.offset + d.size * _WORD > _MOST_BYTES:
        raise ValueError(f"a descriptor at {at:#x} points outside")
    kind, unit, base = d.flags & 15, d.flags >> 4 & 15, d.flags >> 8 & 15
    return _Descriptor(
        name=_text(raw, at + size, name_bytes),
        kind=_KINDS[kind] if kind < len(_KINDS) else f"type {kind}",
        unit=_UNITS[unit] if unit < len(_UNITS) else f"unit {unit}",
        base=2 if base else 10,
        exponent=d.exponent,
        at=data_offset + d.offset,
        words=d.size,
    )


def _text(raw: bytes, at: int, size: int) -> str:
    return raw[at : at + size].partition(b"\0")[0].decode("ascii", "replace")
