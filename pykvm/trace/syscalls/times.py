"""Times that a program sets: with the date in a comment, as strace adds it. Dates are UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pykvm.trace.syscalls.numbers import signed_in
from pykvm.trace.syscalls.pointers import behind, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.syscalls.call import Call
    from pykvm.trace.syscalls.layout import Fields

__all__ = ["TIMES", "when"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_SECONDS = 200_000_000_000  # the year 8307; datetime ends with 9999
_UTIME_WORDS = {(1 << 30) - 1: "UTIME_NOW", (1 << 30) - 2: "UTIME_OMIT"}


def when(seconds: int, fraction: str = "") -> str:
    """The date in a comment, /* 2024-05-06T07:08:09+0000 */; nothing where no calendar has one."""
    if not 0 <= seconds < _MOST_SECONDS:
        return ""
    return f" /* {_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}{fraction}+0000 */"


def _time(seconds: int, fraction: int, unit: str, digits: int) -> str:
    if unit == "nsec" and fraction in _UTIME_WORDS:
        return _UTIME_WORDS[fraction]
    comment = when(seconds, f".{fraction:0{digits}}") if 0 <= fraction < 10**digits else ""
    return f"{{tv_sec={seconds}, tv_{unit}={fraction}}}{comment}"


def _pair(unit: str, digits: int) -> Callable[[Call, Fields], str]:
    """The times of last access and last change, as utimensat and utimes set them."""

    def text(_call: Call, fields: Fields) -> str:
        access = _time(fields.signed("access"), fields.signed("access_part"), unit, digits)
        change = _time(fields.signed("change"), fields.signed("change_part"), unit, digits)
        return f"[{access}, {change}]"

    return text


def _utimbuf(_call: Call, fields: Fields) -> str:
    access, change = fields.signed("actime"), fields.signed("modtime")
    return f"{{actime={access}{when(access)}, modtime={change}{when(change)}}}"


def _seconds(data: bytes) -> str:
    """What time(2) fills in."""
    seconds = signed_in(data)
    return f"[{seconds}{when(seconds)}]"


TIMES: dict[str, Callable[[Call, int], str]] = {
    "time": behind(0, _seconds),
    "timespecs": record("time_pair", _pair("nsec", 9)),
    "timespecs64": record("time_pair64", _pair("nsec", 9)),
    "timevals": record("time_pair", _pair("usec", 6)),
    "utimbuf": record("utimbuf", _utimbuf),
}
