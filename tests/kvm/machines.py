"""Machines for tests: a few bytes of 16-bit code, a device that fails, and what a process holds."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.result import RunResult

__all__ = [
    "FREE_PORT",
    "HLT",
    "SPIN",
    "TIMEOUT_S",
    "Broken",
    "held",
    "leave",
    "leaving_nothing",
    "loop",
    "out8",
    "run16",
]

FREE_PORT = 0x600
TIMEOUT_S = 20

HLT = b"\xf4"
SPIN = b"\xeb\xfe"


def out8(port: int, value: int) -> bytes:
    """mov $port, %dx; mov $value, %al; out %al, %dx"""
    return b"\xba" + port.to_bytes(2, "little") + bytes([0xB0, value, 0xEE])


def loop(count: int, body: bytes) -> bytes:
    """mov $count, %ecx; 1: body; dec %ecx; jnz 1b"""
    back = -(len(body) + 2 + 2) & 0xFF
    return b"\x66\xb9" + count.to_bytes(4, "little") + body + b"\x66\x49\x75" + bytes([back])


def leave(code: int = 0) -> bytes:
    """mov $PLAIN_EXIT, %dx; mov $code, %eax; out %eax, %dx"""
    port = layout.PLAIN_EXIT.start.to_bytes(2, "little")
    return b"\xba" + port + b"\x66\xb8" + code.to_bytes(4, "little") + b"\x66\xef"


def run16(code: bytes, *, timeout: float = TIMEOUT_S, **options: Any) -> RunResult:
    """Run a few bytes of 16-bit code, loaded at 0x8000."""
    with Machine(**{"memory": "1M", **options}) as machine:
        machine.load(code, mode="real16")
        return machine.run(timeout=timeout)


def held() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    return {
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
    }


def leaving_nothing() -> Iterator[None]:
    """The body of a fixture: the test leaves no fd and no thread behind."""
    before = held()
    yield
    after = held()
    assert (after["fds"], after["threads"]) == (before["fds"], before["threads"])


class Broken:
    """A device that fails."""

    def read(self, offset: int, size: int) -> bytes:
        raise ZeroDivisionError

    def write(self, offset: int, data: bytes) -> None:
        raise ZeroDivisionError
