"""Reaches the agent in a guest by the Unix socket of its vsock."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from pykvm.containers.calls import AgentClient, AgentGoneError
from pykvm.containers.wire import PORT

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["connect_agent"]

_CONNECT_S = 120.0
_RETRY_S = 0.02


def connect_agent(path: str | Path, limit_s: float = _CONNECT_S) -> AgentClient:
    """A client of the agent behind a vsock's Unix socket, once it is there. Raises AgentGoneError."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return AgentClient(_dial(path))
        except (OSError, AgentGoneError) as error:
            if time.monotonic() > end or isinstance(error, FileNotFoundError):
                raise AgentGoneError(f"the agent in the guest can't be reached: {error}") from None
        time.sleep(_RETRY_S)


def _dial(path: str | Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(str(path))
        link.sendall(f"CONNECT {PORT}\n".encode())
        while (byte := link.recv(1)) != b"\n":
            _check(byte)
    except BaseException:
        link.close()
        raise
    return link


def _check(byte: bytes) -> None:
    if not byte:
        raise AgentGoneError("nobody listens yet")
