"""Classic BPF programs, put together from their end, so that where a jump goes is always known.

Source: Linux's Documentation/networking/filter.rst, include/uapi/linux/filter.h and seccomp_data in
include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from pykvm.errors import ConfigError

__all__ = ["MOST_INSTRUCTIONS", "Assembler", "Code", "Instruction"]

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_FARTHEST = 255
_ENCODED = struct.Struct("<HBBI")


class Code(IntEnum):
    """The operations that a filter needs. A is the accumulator, K the instruction's number."""

    LOAD = 0x20  # A = the 32-bit word at K
    AND = 0x54  # A &= K
    JUMP = 0x05  # forward by K
    EQUAL = 0x15  # A == K
    GREATER = 0x25  # A > K, unsigned
    AT_LEAST = 0x35  # A >= K, unsigned
    RETURN = 0x06  # K


class Instruction(NamedTuple):
    """struct sock_filter: `if_true` and `if_false` are how many instructions a test goes forward."""

    code: int
    if_true: int
    if_false: int
    k: int


class Assembler:
    """A program from its last instruction to its first; a label is how many stand from there on."""

    def __init__(self) -> None:
        self._reversed: list[Instruction] = []
        self._returns: dict[int, int] = {}

    def result(self, value: int) -> int:
        """The label of an instruction that ends the filter with `value`; there is one for each value."""
        if value not in self._returns:
            self._returns[value] = self._add(Code.RETURN, k=value)
        return self._returns[value]

    def load(self, offset: int, then: int) -> int:
        """A = the word at `offset`; go on at `then`."""
        self._next_is(then)
        return self._add(Code.LOAD, k=offset)

    def mask(self, value: int, then: int) -> int:
        """A &= value; go on at `then`."""
        self._next_is(then)
        return self._add(Code.AND, k=value)

    def test(self, code: Code, value: int, yes: int, no: int) -> int:
        """Go on at `yes` if A compares so with `value`, else at `no`."""
        far = [label for label in {yes, no} if len(self._reversed) + 1 - label > _FARTHEST]
        for label in far:  # a test goes 255 far, a jump wherever it likes
            near = self._add(Code.JUMP, k=len(self._reversed) - label)
            yes, no = (near if yes == label else yes), (near if no == label else no)
        here = len(self._reversed)
        return self._add(code, here - yes, here - no, value)

    def encoded(self, first: int) -> bytes:
        """The program that starts at `first`, for the kernel. Raises ConfigError if it is too long."""
        self._next_is(first)
        if len(self._reversed) > MOST_INSTRUCTIONS:
            raise ConfigError(
                f"the seccomp filter needs {len(self._reversed)} instructions; "
                f"Linux takes {MOST_INSTRUCTIONS}"
            )
        return b"".join(_ENCODED.pack(*one) for one in reversed(self._reversed))

    def _next_is(self, label: int) -> None:
        if label != len(self._reversed):
            self._add(Code.JUMP, k=len(self._reversed) - label)

    def _add(self, code: Code, if_true: int = 0, if_false: int = 0, k: int = 0) -> int:
        self._reversed.append(Instruction(code, if_true, if_false, k))
        return len(self._reversed)
