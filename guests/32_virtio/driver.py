"""A driver for a virtio device, as small as it can be: one queue, one request at a time, no interrupts."""

from __future__ import annotations

import struct
from typing import Any

WRITE = 2  # the device may write to this buffer
DESCRIPTORS, AVAILABLE, USED, BUFFER = 0x1000, 0x2000, 0x3000, 0x4000
SIZE = 8


class Driver:
    """Drives the device behind `registers`, which has read() and write(), through `memory`."""

    def __init__(self, registers: Any, memory: Any) -> None:
        self.registers, self.memory, self.asked = registers, memory, 0
        if self.get(0) != 0x74726976:
            raise ValueError("every virtio device begins with `virt`")
        self.put(0x70, 1 | 2)  # status: I have seen you, I know how to drive you
        self.put(0x24, 1)  # features, bits 32 to 63:
        self.put(0x20, 1)  # version 1, and nothing else
        self.put(0x70, 1 | 2 | 8)  # status: these are the features I use
        self.put(0x38, SIZE)
        for register, at in ((0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xA0, USED)):
            self.put(register, at)
        self.put(0x44, 1)  # the queue is ready
        self.put(0x70, 1 | 2 | 8 | 4)  # status: go

    def get(self, register: int) -> int:
        """A register, of 4 bytes as all are."""
        return int.from_bytes(self.registers.read(register, 4), "little")

    def put(self, register: int, value: int) -> None:
        """The same the other way."""
        self.registers.write(register, struct.pack("<I", value))

    def ask(self, size: int) -> bytes:
        """Have `size` bytes of the device; what it has written of them."""
        self.memory.write(DESCRIPTORS, struct.pack("<QIHH", BUFFER, size, WRITE, 0))
        self.memory.write(AVAILABLE + 4 + 2 * (self.asked % SIZE), struct.pack("<H", 0))
        self.asked += 1
        self.memory.write(AVAILABLE + 2, struct.pack("<H", self.asked))
        self.put(0x50, 0)  # the doorbell: look at queue 0
        last = USED + 4 + 8 * ((self.asked - 1) % SIZE)
        _, written = struct.unpack("<II", self.memory.read(last, 8))
        return bytes(self.memory.read(BUFFER, written))
