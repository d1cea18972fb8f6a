"""One case: a device, and a driver of forty steps, many of them wrong. The same seed gives the same case."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import signal
import struct
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from pykvm.devices.virtio.mmio import PAGE_BYTES, Register, Status, Transport
from pykvm.memory import GuestMemory

from .subjects import SUBJECTS, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["LIMIT_S", "CaseResult", "FailedError", "run_case"]

_MEMORY_BYTES = 1 << 20
_RINGS_AT, _RING_BYTES, _BUFFERS_AT = 0x1_0000, 0x4000, 0x4_0000
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_STEPS = 40
_PUMPS = 20
LIMIT_S = 10
_AGAIN = 0.6  # how often a driver starts anew whose device demands a reset
_V1 = 1 << 32


class FailedError(Exception):
    """A case found something: the text says what."""


class CaseResult(NamedTuple):
    """What a case came to: steps done, chains that the device gave back, whether it demanded a reset."""

    steps: int
    used: int
    needs_reset: bool


def run_case(name: str, seed: str, folder: Path) -> CaseResult:
    """Run the case `seed` of the device `name` in `folder`, which is made and removed.

    Raises FailedError from whatever went wrong: an exception, a hang, a descriptor that stays open, something
    outside the guest that has changed.
    """
    rng = Random(f"{name}/{seed}")  # noqa: S311 - chance that can be repeated
    folder.mkdir()
    before = _descriptors()
    try:
        with _limit():
            result = _Hostile(name, rng, folder).run()
    except Exception as error:
        raise FailedError(f"{type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(folder)
    if _descriptors() != before:
        raise FailedError(f"{_descriptors() - before} file descriptors stay open")
    return result


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - thousands of times


@contextmanager
def _limit() -> Iterator[None]:
    def over(*_: object) -> None:
        raise TimeoutError(f"longer than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Hostile:
    """The driver."""

    def __init__(self, name: str, rng: Random, folder: Path) -> None:
        self.rng = rng
        self.memory = GuestMemory(_MEMORY_BYTES)
        self.subject = SUBJECTS[name](folder, self.memory, rng)
        self.device = self.subject.device
        self.transport = Transport(self.device, self.memory, interrupt=lambda: None)
        self.next = [0] * len(self.device.queue_sizes)
        self.seen = [0] * len(self.device.queue_sizes)
        self.sizes = [1] * len(self.device.queue_sizes)
        self.used = 0
        self.was_broken = False

    def run(self) -> CaseResult:
        rng = self.rng
        steps = rng.randrange(1, _STEPS)
        try:
            self.start(rng.random() < 0.1)
            for _ in range(steps):
                rng.choices(_ACTIONS, _WEIGHTS)[0](self)
                if self.transport.status & Status.NEEDS_RESET:
                    self.was_broken = True
                    if rng.random() < _AGAIN:
                        self.start()
            self.recover()
        finally:
            self.device.close()
            self.subject.close()
        self.subject.check(self.memory)
        self.memory.close()
        return CaseResult(steps, self.used, self.was_broken)

    def put(self, register: int, value: int) -> None:
        self.transport.write(register, struct.pack("<I", value & 0xFFFFFFFF))

    # ---- what it does

    def start(self, is_wild: bool = False) -> None:
        """Set the device up, more or less as one does."""
        rng = self.rng
        self.put(Register.STATUS, 0)
        self.put(Register.STATUS, 3)
        features = self.device.features | 1 << 28 | 1 << 29 | _V1 | 1 << 40
        chosen = (features & rng.getrandbits(64) if rng.random() < 0.7 else features) | _V1
        if is_wild:
            chosen = rng.getrandbits(64)
        for word in (0, 1):
            self.put(Register.DRIVER_FEATURES_SEL, word)
            self.put(Register.DRIVER_FEATURES, chosen >> 32 * word)
        self.put(Register.STATUS, 11)
        for queue in range(len(self.sizes)):
            self.set_up(queue, is_wild=is_wild)
        self.put(Register.STATUS, 15)

    def set_up(self, queue: int, *, is_wild: bool = False) -> None:
        """Give a queue its rings."""
        rng = self.rng
        size = min(1 << rng.randrange(9), self.device.queue_sizes[queue])
        at = _RINGS_AT + queue * _RING_BYTES
        places = [at, at + 0x1000, at + 0x2000]
        if is_wild or rng.random() < 0.03:
            places = [rng.randrange(_MEMORY_BYTES) & -16 for _ in places]
            size = number(rng, 16) if rng.random() < 0.3 else size
        self.memory.write(at, bytes(0x3000))
        self.put(Register.QUEUE_SEL, queue)
        self.put(Register.QUEUE_NUM, size)
        for register, gpa in zip((0x80, 0x90, 0xA0), places, strict=True):
            self.put(register, gpa)
            self.put(register + 4, gpa >> 32)
        self.put(Register.QUEUE_READY, 1)
        self.next[queue], self.seen[queue], self.sizes[queue] = 0, 0, max(size, 1)

    def ask(self) -> None:
        """Something that might be right, cut into buffers anyhow."""
        rng = self.rng
        queue = rng.randrange(len(self.sizes))
        out, room = self.subject.request(rng)
        if rng.random() < 0.1 and out:
            at = rng.randrange(len(out))
            out = out[:at] + rng.randbytes(1) + out[at + 1 :]
        pieces = [(len(part), 0) for part in self.cut(len(out))]
        pieces += [(len(part), _WRITE) for part in self.cut(room)]
        at = _BUFFERS_AT + rng.randrange(16) * 0x8000
        self.memory.write(at, out)
        rows = []
        for index, (length, flags) in enumerate(pieces):
            more = _NEXT if index + 1 < len(pieces) else 0
            rows.append([at, length, flags | more, index + 1])
            at += length
        if rng.random() < 0.1 and rows:
            rng.choice(rows)[rng.randrange(4)] = number(rng, 16)
        table = b"".join(struct.pack("<QIHH", *row) for row in rows)
        descriptors = _RINGS_AT + queue * _RING_BYTES
        if rng.random() < 0.2:
            self.memory.write(0x3_0000, table)
            table = struct.pack("<QIHH", 0x3_0000, len(table), _INDIRECT, 0)
        self.memory.write(descriptors, table[:4096])
        self.offer(queue, 0)
        self.notify(queue)

    def cut(self, size: int) -> list[range]:
        """`size` bytes in one to four pieces."""
        marks = sorted(self.rng.randrange(size) for _ in range(self.rng.randrange(4))) if size else []
        ends = [0, *marks, size]
        return [range(a, b) for a, b in itertools.pairwise(ends) if b > a]

    def offer(self, queue: int, head: int) -> None:
        """One more in the available ring; now and then the index jumps."""
        rng = self.rng
        at = _RINGS_AT + queue * _RING_BYTES + 0x1000
        self.memory.write(at + 4 + 2 * (self.next[queue] % self.sizes[queue]) % 2048, struct.pack("<H", head))
        step = 1 if rng.random() < 0.97 else rng.getrandbits(16)
        self.next[queue] = (self.next[queue] + step) & 0xFFFF
        self.memory.write(at + 2, struct.pack("<H", self.next[queue]))

    def notify(self, queue: int) -> None:
        self.put(Register.QUEUE_NOTIFY, queue)
        used = self.memory.read(_RINGS_AT + queue * _RING_BYTES + 0x2002, 2)
        index = int.from_bytes(used, "little")
        self.used += (index - self.seen[queue]) & 0xFF
        self.seen[queue] = index

    def scribble(self) -> None:
        """Descriptors, rings or anything else, overwritten."""
        rng = self.rng
        queue = rng.randrange(len(self.sizes))
        index = rng.randrange(self.sizes[queue])
        if rng.random() < 0.7:
            gpa = rng.randrange(_MEMORY_BYTES + 64) if rng.random() < 0.8 else number(rng)
            row = struct.pack("<QIHH", gpa, number(rng, 32), rng.randrange(8), rng.randrange(300))
            self.memory.write(_RINGS_AT + queue * _RING_BYTES + 16 * min(index, 255), row)
            self.offer(queue, rng.choice((index, number(rng, 16))))
            self.notify(queue)
        else:
            where = _RINGS_AT + queue * _RING_BYTES + rng.randrange(0x3000)
            self.memory.write(where, rng.randbytes(rng.randrange(1, 64)))

    def poke(self) -> None:
        """Any register, any value, any width."""
        rng = self.rng
        offset = int(rng.choice(list(Register))) if rng.random() < 0.8 else rng.randrange(PAGE_BYTES + 16)
        if offset == Register.STATUS and rng.random() < 0.8:
            return
        size = 4 if rng.random() < 0.9 else rng.choice((1, 2, 8))
        self.transport.write(offset, number(rng, 8 * size).to_bytes(size, "little"))

    def peek(self) -> None:
        """Read anything, past the end as well."""
        offset, size = self.rng.randrange(PAGE_BYTES + 16), self.rng.choice((1, 2, 4, 8))
        answer = self.transport.read(offset, size)
        assert len(answer) == size, f"{len(answer)} bytes for a read of {size}"

    def set_config(self) -> None:
        rng = self.rng
        size = rng.choice((1, 2, 4, 8))
        self.transport.write(Register.CONFIG + rng.randrange(72), rng.randbytes(size))

    def reset(self) -> None:
        """The device, or one queue of it while requests are in flight."""
        rng = self.rng
        if rng.random() < 0.4:
            self.start()
            return
        queue = rng.randrange(len(self.sizes))
        self.put(Register.QUEUE_SEL, queue)
        self.put(Register.QUEUE_RESET if rng.random() < 0.7 else Register.QUEUE_READY, rng.randrange(2))
        if rng.random() < 0.7:
            self.set_up(queue)

    def host(self) -> None:
        """The other side does something, and the device hears of it."""
        self.subject.host(self.rng)
        for _ in range(_PUMPS):
            poll = select.poll()
            for fd, mask in (self.device.watched() if self.transport.is_active else {}).items():
                poll.register(fd, mask)
            ready = poll.poll(0)
            if not ready:
                return
            for fd, _ in ready:
                if fd in self.device.watched():
                    self.transport.serve(lambda fd=fd: self.device.on_ready(fd))

    def recover(self) -> None:
        """Whatever was done to it: a reset makes the device well again."""
        for queue in range(len(self.sizes)):
            self.memory.write(_RINGS_AT + queue * _RING_BYTES, bytes(0x3000))
        self.put(Register.STATUS, 0)
        assert self.transport.status == 0
        self.put(Register.STATUS, 3)
        self.put(Register.DRIVER_FEATURES_SEL, 0)
        self.put(Register.DRIVER_FEATURES, 0)
        self.put(Register.DRIVER_FEATURES_SEL, 1)
        self.put(Register.DRIVER_FEATURES, 1)
        self.put(Register.STATUS, 11)
        self.put(Register.QUEUE_SEL, 0)
        self.put(Register.QUEUE_NUM, 4)
        for register, gpa in ((0x80, _RINGS_AT), (0x90, _RINGS_AT + 0x1000), (0xA0, _RINGS_AT + 0x2000)):
            self.put(register, gpa)
            self.put(register + 4, 0)
        self.put(Register.QUEUE_READY, 1)
        self.put(Register.STATUS, 15)
        assert self.transport.status == 15, f"status {self.transport.status!r} after a reset"
        assert self.transport.queues[0].is_ready, "queue 0 is not ready after a reset"


_ACTIONS: tuple[Callable[[_Hostile], None], ...] = (
    _Hostile.ask,
    _Hostile.scribble,
    _Hostile.poke,
    _Hostile.peek,
    _Hostile.set_config,
    _Hostile.reset,
    _Hostile.host,
)
_WEIGHTS = (50, 12, 5, 3, 3, 5, 22)
