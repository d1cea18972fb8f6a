"""The MC146818's way to write time down: registers to seconds and back, and when an alarm rings.

Pure: no chip, no clock. Seconds count from 1970 (UTC).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CENTURY",
    "DAY_OF_MONTH",
    "DAY_OF_WEEK",
    "HOURS",
    "HOURS_ALARM",
    "MINUTES",
    "MINUTES_ALARM",
    "MONTH",
    "SECONDS",
    "SECONDS_ALARM",
    "YEAR",
    "TimeFormat",
    "next_alarm",
    "seconds_from_registers",
    "time_registers",
    "weekday",
]

SECONDS, SECONDS_ALARM = 0x00, 0x01
MINUTES, MINUTES_ALARM = 0x02, 0x03
HOURS, HOURS_ALARM = 0x04, 0x05
DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR = 0x06, 0x07, 0x08, 0x09
CENTURY = 0x32

_PM = 0x80
_DONT_CARE = 0xC0  # an alarm register with both bits set rings at every value
# The Gregorian calendar repeats after 400 years: any year is computed as one of 2000 to 2399.
_CYCLE_YEARS, _CYCLE_S, _CYCLE_START = 400, 146_097 * 86_400, 2000


class TimeFormat(NamedTuple):
    """How numbers stand in the registers: binary or BCD, hours to 24 or twice to 12 with a PM bit."""

    binary: bool
    hours_24: bool

    def encode(self, value: int) -> int:
        """The register's byte for a number of 0 to 99."""
        return value if self.binary else value // 10 << 4 | value % 10

    def decode(self, byte: int) -> int:
        """The number in a register; more than 99 if the byte is no number of this format."""
        return byte if self.binary else (byte >> 4) * 10 + (byte & 0x0F)

    def encode_hour(self, hour: int) -> int:
        """The byte of the hours register for 0 to 23."""
        if self.hours_24:
            return self.encode(hour)
        return self.encode(hour % 12 or 12) | (_PM if hour >= 12 else 0)

    def decode_hour(self, byte: int) -> int:
        """The hour, 0 to 23; 24 or more if the byte is none."""
        if self.hours_24:
            return self.decode(byte)
        hour = self.decode(byte & ~_PM)
        return (hour % 12 if 1 <= hour <= 12 else 24) + (12 if byte & _PM else 0)


def weekday(seconds: int) -> int:
    """The number of the weekday that it really is: 1 is Sunday, 7 Saturday."""
    return (seconds // 86_400 + 4) % 7 + 1


def time_registers(seconds: int, form: TimeFormat, weekday_shift: int = 0) -> dict[int, int]:
    """The bytes of the registers that time moves; `weekday_shift` days are added to the real weekday."""
    now = time.gmtime(seconds)
    return {
        SECONDS: form.encode(now.tm_sec),
        MINUTES: form.encode(now.tm_min),
        HOURS: form.encode_hour(now.tm_hour),
        DAY_OF_WEEK: form.encode((weekday(seconds) - 1 + weekday_shift) % 7 + 1),
        DAY_OF_MONTH: form.encode(now.tm_mday),
        MONTH: form.encode(now.tm_mon),
        YEAR: form.encode(now.tm_year % 100),
        CENTURY: form.encode(now.tm_year // 100 % 100),
    }


def seconds_from_registers(registers: Sequence[int], form: TimeFormat) -> tuple[int, int]:
    """The time that the registers hold, and how many days their weekday is off the real one.

    What is no date or time (a guest may write anything) is taken as the nearest one, unit by unit.
    """
    import calendar  # noqa: PLC0415 - brings datetime along; few guests set their clock

    def field(index: int, low: int, high: int) -> int:
        return min(max(form.decode(registers[index]), low), high)

    year = field(CENTURY, 0, 99) * 100 + field(YEAR, 0, 99)
    cycles, year = divmod(year - _CYCLE_START, _CYCLE_YEARS)
    year += _CYCLE_START
    month = field(MONTH, 1, 12)
    day = field(DAY_OF_MONTH, 1, calendar.monthrange(year, month)[1])
    hour = min(form.decode_hour(registers[HOURS]), 23)
    moment = (year, month, day, hour, field(MINUTES, 0, 59), field(SECONDS, 0, 59))
    seconds = calendar.timegm(moment) + cycles * _CYCLE_S
    return seconds, field(DAY_OF_WEEK, 1, 7) - weekday(seconds)


def next_alarm(registers: Sequence[int], form: TimeFormat, after: int) -> int | None:
    """The first second behind `after` at which the alarm rings; None if it is set to no time of day."""
    second = _alarm_values(registers[SECONDS_ALARM], form.decode(registers[SECONDS_ALARM]), 60)
    minute = _alarm_values(registers[MINUTES_ALARM], form.decode(registers[MINUTES_ALARM]), 60)
    hour = _alarm_values(registers[HOURS_ALARM], form.decode_hour(registers[HOURS_ALARM]), 24)
    if not (second and minute and hour):
        return None
    # From the smallest unit up: where a larger unit has to move on, the smaller ones start again.
    at = after + 1
    at += _ahead(at, second, 60)
    if minutes := _ahead(at // 60, minute, 60):
        at = (at // 60 + minutes) * 60 + second.start
    if hours := _ahead(at // 3600, hour, 24):
        at = (at // 3600 + hours) * 3600 + minute.start * 60 + second.start
    return at


def _alarm_values(byte: int, value: int, span: int) -> range:
    """The values that an alarm register rings at: all, one, or none."""
    if byte & _DONT_CARE == _DONT_CARE:
        return range(span)
    return range(value, value + 1) if value < span else range(0)


def _ahead(at: int, values: range, span: int) -> int:
    """How many steps after `at` the next of the values comes; 0 if `at` is one."""
    return (values.start - at) % span if len(values) == 1 else 0
