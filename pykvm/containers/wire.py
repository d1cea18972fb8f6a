"""The frames between the host and the agent in a guest: bytes in, frames out, nothing else.

`guests/agent/protocol.h` draws them and says what each body holds; a test pins that both agree.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ANSWER_MOST",
    "DATA_MOST",
    "OUT_WINDOW",
    "PORT",
    "PROTOCOL",
    "REQUEST_MOST",
    "STREAM_ERR",
    "STREAM_IN",
    "STREAM_OUT",
    "WINDOW",
    "AgentFrame",
    "AgentWireError",
    "Decoder",
    "Kind",
    "encode",
    "encode_credit",
    "encode_json",
]

PORT = 1024
PROTOCOL = 1
WINDOW = 1 << 18
OUT_WINDOW = 1 << 20
DATA_MOST = 65524  # with its header one packet of a vsock
REQUEST_MOST = ANSWER_MOST = 1 << 20
STREAM_IN, STREAM_OUT, STREAM_ERR = range(3)

_HEADER = struct.Struct("<IBBHI")
_CREDIT = struct.Struct("<I")


class AgentWireError(PykvmError):
    """What came is no frame of this protocol."""


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = ord("H")
    REQUEST = ord("R")
    ANSWER = ord("A")
    EVENT = ord("E")
    DATA = ord("D")
    CREDIT = ord("W")
    CLOSE = ord("C")


_MOST = {Kind.DATA: DATA_MOST, Kind.CREDIT: _CREDIT.size, Kind.CLOSE: 0}


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """One frame; `id` is the request that it belongs to."""

    kind: Kind
    id: int = 0
    stream: int = 0
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body as an object; what is not UTF-8 in it comes as surrogates. Raises AgentWireError."""
        try:
            found = json.loads(self.body.decode(errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise AgentWireError(f"the agent's {self.kind.name}: {error}") from None
        if not isinstance(found, dict):
            raise AgentWireError(f"the agent's {self.kind.name}: no object")
        return found

    def credit(self) -> int:
        """How many bytes a CREDIT allows. Raises AgentWireError."""
        if len(self.body) != _CREDIT.size:
            raise AgentWireError(f"the agent's CREDIT: {len(self.body)} bytes")
        return int(_CREDIT.unpack(self.body)[0])


def encode(kind: Kind, id: int = 0, stream: int = 0, body: bytes = b"") -> bytes:  # noqa: A002 - the protocol's word
    """A frame's bytes. Raises AgentWireError for a body that is too large."""
    most = _MOST.get(kind, REQUEST_MOST)
    if len(body) > most:
        raise AgentWireError(f"a {kind.name} of {len(body)} bytes for the agent; the most is {most}")
    return _HEADER.pack(len(body), kind, stream, 0, id) + body


def encode_json(kind: Kind, id: int, about: Mapping[str, Any]) -> bytes:  # noqa: A002 - the protocol's word
    """A frame with an object. Surrogates become the bytes that they stand for. Raises AgentWireError."""
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return encode(kind, id, body=text.encode(errors="surrogateescape"))
    except UnicodeEncodeError as error:
        raise AgentWireError(f"text for the agent that no bytes stand for: {error.reason}") from None


def encode_credit(id: int, stream: int, more: int) -> bytes:  # noqa: A002 - the protocol's word
    """A CREDIT of `more` bytes."""
    return encode(Kind.CREDIT, id, stream, _CREDIT.pack(more))


class Decoder:
    """Frames out of a stream that comes in any pieces."""

    def __init__(self) -> None:
        self._held = b""

    @property
    def is_between(self) -> bool:
        """Whether what came ended with a whole frame."""
        return not self._held

    def feed(self, data: bytes) -> list[AgentFrame]:
        """The frames that are whole now. Raises AgentWireError for what is none."""
        held = memoryview(self._held + data if self._held else data)
        frames, at = [], 0
        while len(held) - at >= _HEADER.size:
            size, number, stream, zero, request = _HEADER.unpack_from(held, at)
            try:
                kind = Kind(number)
            except ValueError:
                raise AgentWireError(f"the agent sent a frame of unknown kind {number:#x}") from None
            if zero or stream > STREAM_ERR or size > _MOST.get(kind, ANSWER_MOST):
                raise AgentWireError(f"the agent sent a damaged {kind.name}: {size} bytes, stream {stream}")
            end = at + _HEADER.size + size
            if end > len(held):
                break
            frames.append(AgentFrame(kind, request, stream, bytes(held[at + _HEADER.size : end])))
            at = end
        self._held = bytes(held[at:])
        return frames
