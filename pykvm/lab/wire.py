"""The frames that the host and a lab's init exchange; drawn in the docstring of `pykvm.lab`.

Pure: bytes in, frames out. The other side of it is `init.c`; a test pins that both agree.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "MAX_PAYLOAD",
    "PORT_PREAMBLE",
    "PROTOCOL",
    "WINDOW",
    "ChannelError",
    "Decoder",
    "Ending",
    "Frame",
    "How",
    "Kind",
    "encode",
    "encode_job",
]

PROTOCOL = 1
PORT_PREAMBLE = b"\npykvm lab\n"  # what the init writes before its first frame to an I/O port
MAX_PAYLOAD = 16 * 1024
WINDOW = 256 * 1024

_HEADER = struct.Struct("<BBH")


class Kind(enum.IntEnum):
    """What a frame is; its first byte."""

    HELLO = ord("H")
    STAGE = ord("L")
    FAIL = ord("F")
    DATA = ord("D")
    WINDOW = ord("W")
    EXIT = ord("X")
    PING = ord("P")
    JOB = ord("J")
    SIGNAL = ord("S")
    SIZE = ord("Z")


class How(enum.IntEnum):
    """How the command ended; the first byte of EXIT."""

    EXITED = 0
    SIGNALLED = 1
    NOT_STARTED = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `stream` is 0, 1 or 2 as in stdin, stdout, stderr."""

    kind: Kind
    stream: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """How the command ended: `value` is an exit status, a signal number, or an errno."""

    how: How
    value: int
    text: str

    @classmethod
    def decode(cls, payload: bytes) -> Ending:
        """Read the payload of an EXIT frame. Raises LabError if it is none."""
        if len(payload) < 2 or payload[0] not in set(How):
            raise LabError(f"the lab's init reported an end that makes no sense: {payload[:16]!r}")
        return cls(How(payload[0]), payload[1], payload[2:].decode(errors="surrogateescape"))

    @property
    def exit_status(self) -> int:
        """The status a shell would give: 127 not found, 126 not executable, 128+n killed by signal n."""
        match self.how:
            case How.EXITED:
                return self.value
            case How.SIGNALLED:
                return 128 + self.value
            case How.NOT_STARTED:
                return 127 if self.value == 2 else 126


def encode(kind: Kind, payload: bytes = b"", stream: int = 0) -> bytes:
    """One frame as bytes. Raises ValueError if the payload is longer than MAX_PAYLOAD."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame holds at most {MAX_PAYLOAD} bytes, not {len(payload)}")
    return _HEADER.pack(kind, stream, len(payload)) + payload


def encode_job(
    argv: Iterable[bytes], env: Mapping[bytes, bytes], cwd: bytes, extra: Mapping[bytes, bytes]
) -> Iterator[bytes]:
    """The frames that tell the init what to run; `extra` holds share, tty, merge."""
    items = [(b"arg", arg) for arg in argv]
    items += [(b"env", name + b"=" + value) for name, value in env.items()]
    items += [(b"cwd", cwd), *extra.items()]
    whole = b"".join(key + b"=" + value + b"\0" for key, value in items)
    for at in range(0, len(whole), MAX_PAYLOAD):
        yield encode(Kind.JOB, whole[at : at + MAX_PAYLOAD])
    yield encode(Kind.JOB)


class ChannelError(LabError):
    """What comes over the channel is no frame."""


class Decoder:
    """Cuts a stream of bytes, in pieces of any size, into frames.

    The first frame comes at once, or with `preamble` after these bytes: what others wrote before is dropped.
    """

    def __init__(self, preamble: bytes = b"") -> None:
        self._rest = bytearray()
        self._preamble = preamble

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take `data` and give the frames that are complete.

        Raises ChannelError if the stream is none of ours: a byte was lost or somebody else wrote to it.
        """
        self._rest += data
        if self._preamble and not self._begin():
            return
        while len(self._rest) >= _HEADER.size:
            number, stream, length = _HEADER.unpack_from(self._rest)
            if number not in set(Kind) or stream > 2 or length > MAX_PAYLOAD:
                raise ChannelError(
                    f"the channel to the lab is damaged: {bytes(self._rest[:16])!r} is no frame"
                )
            end = _HEADER.size + length
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_HEADER.size : end])
            del self._rest[:end]
            yield Frame(Kind(number), stream, payload)

    def _begin(self) -> bool:
        """Drop what comes before the first frame, as far as it is there; whether that was all."""
        at = self._rest.find(self._preamble)
        if at < 0:
            del self._rest[: -len(self._preamble)]
            return False
        del self._rest[: at + len(self._preamble)]
        self._preamble = b""
        return True
