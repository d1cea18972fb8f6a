"""The PC's clock and its battery-backed memory: an MC146818 with 128 bytes.

Source: Motorola MC146818A datasheet; the uses of the memory bytes are those of the IBM PC AT and of
today's firmware (SeaBIOS, QEMU).
"""

from __future__ import annotations

import time
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pykvm.devices.rtc_time import TimeFormat, next_alarm, seconds_from_registers, time_registers

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.irq import IrqLine

__all__ = ["Cmos", "RegA", "RegB", "RegC", "RegD", "Rtc"]


class Cmos(IntEnum):
    """What lives at which byte; the registers of time stand in `rtc_time`."""

    REG_A = 0x0A
    REG_B = 0x0B
    REG_C = 0x0C
    REG_D = 0x0D
    SHUTDOWN_STATUS = 0x0F  # what a firmware does after the next reset
    EQUIPMENT = 0x14
    BASE_MEMORY = 0x15  # KiB below 640 KiB, two bytes
    EXTENDED_MEMORY = 0x17  # KiB above 1 MiB, two bytes, at most 65535
    CHECKSUM = 0x2E  # of bytes 0x10 to 0x2D, high byte first
    EXTENDED_MEMORY_POST = 0x30  # as EXTENDED_MEMORY, found by the power-on self-test
    MEMORY_ABOVE_16M = 0x34  # in 64 KiB, two bytes, up to 4 GiB
    MEMORY_ABOVE_4G = 0x5B  # in 64 KiB, three bytes


class RegA(IntFlag):
    """Register A."""

    RATE = 0x0F
    DIVIDER = 0x70
    UPDATE_IN_PROGRESS = 1 << 7


class RegB(IntFlag):
    """Register B: how time is shown, and what interrupts."""

    DAYLIGHT_SAVING = 1 << 0
    HOURS_24 = 1 << 1
    BINARY = 1 << 2
    SQUARE_WAVE = 1 << 3
    UPDATE_INTERRUPT = 1 << 4
    ALARM_INTERRUPT = 1 << 5
    PERIODIC_INTERRUPT = 1 << 6
    SET = 1 << 7  # time stands still and may be written


class RegC(IntFlag):
    """Register C: what has happened since it was last read. Reading clears it."""

    UPDATE = 1 << 4
    ALARM = 1 << 5
    PERIODIC = 1 << 6
    INTERRUPT = 1 << 7


class RegD(IntFlag):
    """Register D."""

    VALID = 1 << 7  # the battery is good


_SECOND_NS = 1_000_000_000
_CRYSTAL_HZ = 32_768
_SIZE_BYTES = 128
_DIVIDER_RUNS = 0x20  # the divider's setting for a crystal of 32,768 Hz
_RATE_1024_HZ = 0x06
# From UPDATE_IN_PROGRESS to the update's end: 244 µs of warning and 1,984 µs of update.
_UPDATE_NS = 2_228_000
_EQUIPMENT = 0x02  # a floating-point unit; no floppy drive, no mouse
_TIME = frozenset(time_registers(0, TimeFormat(binary=True, hours_24=True)))
# Plain numbers: arithmetic on flags takes microseconds, and firmware polls register A.
_REG_A, _REG_B, _REG_C, _REG_D = range(0x0A, 0x0E)
_RATE, _DIVIDER, _UPDATING = int(RegA.RATE), int(RegA.DIVIDER), int(RegA.UPDATE_IN_PROGRESS)
_HOURS_24, _BINARY, _SET = int(RegB.HOURS_24), int(RegB.BINARY), int(RegB.SET)
_INTERRUPT = int(RegC.INTERRUPT)
_UPDATE, _ALARM, _PERIODIC = int(RegC.UPDATE), int(RegC.ALARM), int(RegC.PERIODIC)
_FLAGS = _UPDATE | _ALARM | _PERIODIC  # the same bits enable them in register B


class Rtc:
    """The clock and memory, at an index port (offset 0, write only) and a data port (offset 1).

    The guest's time is the given clock's plus what the guest has set: the host's time is never
    touched. The registers move at whole seconds. Setting what is no date takes the nearest one.

    What has happened is found when the guest or `tick` looks, so a guest that polls register C misses
    nothing. The chip starts no thread: interrupts come at these looks and at no others, so a machine
    calls `tick` at `next_event_ns`, and is told by `changed` when that may be another time. Several
    periodic ticks between two looks make one interrupt. Daylight saving and the square wave are remembered
    and do nothing.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        irq: IrqLine | None = None,
        *,
        low_memory_bytes: int = 0,
        high_memory_bytes: int = 0,
        changed: Callable[[], None] | None = None,
    ) -> None:
        """`clock_ns` gives nanoseconds since 1970 (UTC); the sizes are of RAM below and above 4 GiB."""
        self._clock_ns = clock_ns
        self._irq = irq
        self._changed = changed
        self._level = False
        self.nmi_disabled = False
        self._index = 0
        self._offset_ns = 0  # guest time less host time
        self._weekday_shift = 0  # the weekday is a counter of its own; days off the real one
        self._bytes = bytearray(_SIZE_BYTES)
        self._bytes[_REG_A] = _DIVIDER_RUNS | _RATE_1024_HZ
        self._bytes[_REG_B] = _HOURS_24
        self._bytes[_REG_D] = RegD.VALID
        self._describe_board(low_memory_bytes, high_memory_bytes)
        self._seen_ns = self._now_ns()

    # The bus's side

    def read(self, offset: int, size: int) -> bytes:
        """Answer the selected byte at the data port, all ones elsewhere."""
        return bytes(self._read_selected() if at == 1 else 0xFF for at in range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        """Select a byte (bit 7 masks the NMI), or write the selected one."""
        for at, value in enumerate(data, start=offset):
            if at == 0:
                self._index = value & (_SIZE_BYTES - 1)
                self.nmi_disabled = value >= _SIZE_BYTES
            elif at == 1:
                self._write_selected(value)

    # The machine's side

    @property
    def shutdown_status(self) -> int:
        """What the guest asks its firmware to do after a reset (byte 0x0F)."""
        return self._bytes[Cmos.SHUTDOWN_STATUS]

    def tick(self) -> None:
        """Find what has happened up to now and drive the interrupt line."""
        self._catch_up()
        self._drive()

    def next_event_ns(self) -> int | None:
        """When, on the given clock, the next enabled interrupt is due.

        None if none is, or if the guest has yet to answer one. Between two events the answer changes
        only when the guest speaks to the chip.
        """
        if self._level:
            return None
        now, enabled, due = self._now_ns(), self._bytes[_REG_B], []
        if enabled & _PERIODIC and (period := self._period()):
            ticks = (_ticks(now) // period + 1) * period
            due.append(-(-ticks * _SECOND_NS // _CRYSTAL_HZ))
        if enabled & _UPDATE and not self._frozen():
            due.append((now // _SECOND_NS + 1) * _SECOND_NS)
        if enabled & _ALARM and not self._frozen():
            alarm = next_alarm(self._bytes, self._format(), now // _SECOND_NS)
            due += [] if alarm is None else [alarm * _SECOND_NS]
        return min(due) - self._offset_ns if due else None

    # Registers

    def _read_selected(self) -> int:
        index = self._index
        if index in _TIME and not self._frozen():
            return self._time()[index]
        if index == _REG_A:
            return self._bytes[index] | (_UPDATING if self._updates() else 0)
        if index == _REG_C:
            return self._read_reg_c()
        return self._bytes[index]

    def _read_reg_c(self) -> int:
        self._catch_up()
        flags = self._bytes[_REG_C]
        self._bytes[_REG_C] = 0
        self._drive()
        self._tell()
        return flags | (_INTERRUPT if flags & self._bytes[_REG_B] else 0)

    def _write_selected(self, value: int) -> None:
        index = self._index
        self._catch_up()
        if index in _TIME and not self._frozen():
            self._stop_clock()
            self._bytes[index] = value
            self._start_clock()
        elif index in (_REG_A, _REG_B):
            self._write_control(index, value)
        elif index not in (_REG_C, _REG_D):
            self._bytes[index] = value
        self._drive()
        self._tell()

    def _write_control(self, index: int, value: int) -> None:
        """Register B's SET and register A's divider make time stop and go on."""
        was_frozen, divider_ran = self._frozen(), self._divider_runs()
        if not was_frozen:
            self._stop_clock()
        if index == _REG_A:
            value &= ~_UPDATING
        elif value & _SET:
            value &= ~_UPDATE
        self._bytes[index] = value
        if self._divider_runs() and not divider_ran:
            # The chip makes its first update half a second after the divider is let go.
            self._move_clock(_SECOND_NS // 2 - self._now_ns() % _SECOND_NS)
        if was_frozen and not self._frozen():
            self._start_clock()

    # Time

    def _now_ns(self) -> int:
        return self._clock_ns() + self._offset_ns

    def _format(self) -> TimeFormat:
        control = self._bytes[_REG_B]
        return TimeFormat(binary=bool(control & _BINARY), hours_24=bool(control & _HOURS_24))

    def _time(self) -> dict[int, int]:
        return time_registers(self._now_ns() // _SECOND_NS, self._format(), self._weekday_shift)

    def _divider_runs(self) -> bool:
        return self._bytes[_REG_A] & _DIVIDER == _DIVIDER_RUNS

    def _frozen(self) -> bool:
        return bool(self._bytes[_REG_B] & _SET) or not self._divider_runs()

    def _updates(self) -> bool:
        return not self._frozen() and self._now_ns() % _SECOND_NS >= _SECOND_NS - _UPDATE_NS

    def _stop_clock(self) -> None:
        """Put the time into the registers, where it stays."""
        for index, value in self._time().items():
            self._bytes[index] = value

    def _start_clock(self) -> None:
        """Go on from the time in the registers; the phase within a second stays."""
        wanted, self._weekday_shift = seconds_from_registers(self._bytes, self._format())
        self._move_clock((wanted - self._now_ns() // _SECOND_NS) * _SECOND_NS)

    def _move_clock(self, by_ns: int) -> None:
        self._offset_ns += by_ns
        self._seen_ns = self._now_ns()

    # What happens by itself

    def _catch_up(self) -> None:
        """Set the flags of all that has happened since the last look."""
        seen, now = self._seen_ns, self._now_ns()
        self._seen_ns = now
        flags, period = 0, self._period()
        if period and _ticks(now) // period > _ticks(seen) // period:
            flags |= _PERIODIC
        if not self._frozen() and now // _SECOND_NS > seen // _SECOND_NS:
            alarm = next_alarm(self._bytes, self._format(), seen // _SECOND_NS)
            rings = alarm is not None and alarm <= now // _SECOND_NS
            flags |= _UPDATE | (_ALARM if rings else 0)
        self._bytes[_REG_C] |= flags

    def _period(self) -> int:
        """Ticks of the crystal from one periodic event to the next; 0 if there is none."""
        rate = self._bytes[_REG_A] & _RATE
        if not rate or not self._divider_runs():
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)  # 256 and 128 Hz are there twice

    def _drive(self) -> None:
        wanted = bool(self._bytes[_REG_C] & self._bytes[_REG_B] & _FLAGS)
        if self._irq is not None and wanted != self._level:
            self._irq.set_level(wanted)
        self._level = wanted

    def _tell(self) -> None:
        """Have the machine ask for the next event: the guest wants interrupts, and may just have said so."""
        if self._changed is not None and self._bytes[_REG_B] & _FLAGS:
            self._changed()

    # Memory

    def _describe_board(self, low_bytes: int, high_bytes: int) -> None:
        kib, chunk = 1 << 10, 1 << 16
        extended = min(max(low_bytes - 1024 * kib, 0) // kib, 0xFFFF)
        above_16m = min(max(low_bytes - 16 * 1024 * kib, 0) // chunk, 0xFFFF)
        self._bytes[Cmos.EQUIPMENT] = _EQUIPMENT
        self._put(Cmos.BASE_MEMORY, min(low_bytes // kib, 640), 2)
        self._put(Cmos.EXTENDED_MEMORY, extended, 2)
        self._put(Cmos.EXTENDED_MEMORY_POST, extended, 2)
        self._put(Cmos.MEMORY_ABOVE_16M, above_16m, 2)
        self._put(Cmos.MEMORY_ABOVE_4G, min(high_bytes // chunk, 0xFF_FFFF), 3)
        checksum = sum(self._bytes[0x10 : Cmos.CHECKSUM])
        self._bytes[Cmos.CHECKSUM : Cmos.CHECKSUM + 2] = checksum.to_bytes(2, "big")

    def _put(self, index: int, value: int, size: int) -> None:
        self._bytes[index : index + size] = value.to_bytes(size, "little")


def _ticks(guest_ns: int) -> int:
    """How often the crystal has swung."""
    return guest_ns * _CRYSTAL_HZ // _SECOND_NS
