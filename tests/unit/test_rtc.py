"""The clock and its memory: time in every format, events without a thread, memory sizes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pykvm.devices import rtc_time
from pykvm.devices.rtc import Cmos, RegA, RegB, RegC, RegD, Rtc
from pykvm.devices.rtc_time import TimeFormat

S, MS, US = 1_000_000_000, 1_000_000, 1_000
FORMATS = [TimeFormat(binary, hours_24) for binary in (False, True) for hours_24 in (False, True)]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 11, 23, 21, 59, 58, tzinfo=UTC)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

formats = st.sampled_from(FORMATS)
moments = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 58)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)


class Line:
    """An interrupt line that counts its rises."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set_level(self, level: bool) -> None:
        assert level != self.level, "a line is driven only when it changes"
        self.level = level
        self.rises += level

    def high(self) -> bool:
        return self.level


class Board:
    """A clock as a guest sees it, with a host whose time stands still until told."""

    def __init__(self, start: datetime = START, **sizes: int) -> None:
        self.ns = int((start - EPOCH).total_seconds()) * S
        self.line = Line()
        low, high = sizes.get("low_memory_bytes", 0), sizes.get("high_memory_bytes", 0)
        self.chip = Rtc(lambda: self.ns, self.line, low_memory_bytes=low, high_memory_bytes=high)

    def get(self, index: int) -> int:
        self.chip.write(0, bytes([index]))
        return self.chip.read(1, 1)[0]

    def put(self, index: int, value: int) -> None:
        self.chip.write(0, bytes([index]))
        self.chip.write(1, bytes([value]))

    def control(self, form: TimeFormat, more: int = 0) -> None:
        """Write register B."""
        self.put(
            Cmos.REG_B, more | (RegB.BINARY if form.binary else 0) | (RegB.HOURS_24 if form.hours_24 else 0)
        )

    def set_time(self, moment: datetime, form: TimeFormat) -> None:
        """As the datasheet asks: stop, write, go on."""
        self.control(form, RegB.SET)
        self.put(rtc_time.SECONDS, form.encode(moment.second))
        self.put(rtc_time.MINUTES, form.encode(moment.minute))
        self.put(rtc_time.HOURS, form.encode_hour(moment.hour))
        self.put(rtc_time.DAY_OF_WEEK, form.encode(moment.isoweekday() % 7 + 1))
        self.put(rtc_time.DAY_OF_MONTH, form.encode(moment.day))
        self.put(rtc_time.MONTH, form.encode(moment.month))
        self.put(rtc_time.YEAR, form.encode(moment.year % 100))
        self.put(rtc_time.CENTURY, form.encode(moment.year // 100))
        self.control(form)

    def time(self, form: TimeFormat) -> datetime:
        """The time as the guest reads it."""
        return datetime(
            form.decode(self.get(rtc_time.CENTURY)) * 100 + form.decode(self.get(rtc_time.YEAR)),
            form.decode(self.get(rtc_time.MONTH)),
            form.decode(self.get(rtc_time.DAY_OF_MONTH)),
            form.decode_hour(self.get(rtc_time.HOURS)),
            form.decode(self.get(rtc_time.MINUTES)),
            form.decode(self.get(rtc_time.SECONDS)),
            tzinfo=UTC,
        )


def test_at_power_on_the_clock_shows_the_hosts_time_in_bcd() -> None:
    """The registers read as anybody would write the time down."""
    board = Board()
    names = (rtc_time.CENTURY, rtc_time.YEAR, rtc_time.MONTH, rtc_time.DAY_OF_MONTH)
    assert [board.get(name) for name in names] == [0x20, 0x26, 0x11, 0x23]
    assert [board.get(name) for name in (rtc_time.HOURS, rtc_time.MINUTES, rtc_time.SECONDS)] == [
        0x21,
        0x59,
        0x58,
    ]
    assert board.get(rtc_time.DAY_OF_WEEK) == 2, "a Monday"
    assert board.get(Cmos.REG_A) == 0x26
    assert board.get(Cmos.REG_B) == RegB.HOURS_24
    assert board.get(Cmos.REG_D) == RegD.VALID


@pytest.mark.parametrize(
    ("hour", "byte"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)]
)
def test_twelve_hours_with_pm(hour: int, byte: int) -> None:
    """Midnight is 12 AM, noon 12 PM; PM is bit 7."""
    assert TimeFormat(binary=False, hours_24=False).encode_hour(hour) == byte


@pytest.mark.parametrize(("form", "byte"), [(FORMATS[0], 0x00), (FORMATS[0], 0x13), (FORMATS[1], 0x24)])
def test_what_is_no_hour_is_beyond_the_day(form: TimeFormat, byte: int) -> None:
    """On a twelve-hour clock there is no hour 0."""
    assert form.decode_hour(byte) >= 24


@given(formats, st.integers(0, 99), st.integers(0, 23))
def test_numbers_survive_their_format(form: TimeFormat, number: int, hour: int) -> None:
    """Decoding what was encoded gives the number again, for each format."""
    assert form.decode(form.encode(number)) == number
    assert form.decode_hour(form.encode_hour(hour)) == hour


@given(formats, formats, moments, st.integers(0, 400 * 86_400))
@settings(deadline=None, max_examples=60)
def test_the_clock_keeps_the_time_it_is_given(
    written: TimeFormat, read: TimeFormat, moment: datetime, later_s: int
) -> None:
    """A time set in one format reads back in any other, and moves on with the host's."""
    assume(moment <= datetime(9998, 1, 1, tzinfo=UTC))
    board = Board()
    board.set_time(moment, written)
    assert board.time(written) == moment
    board.ns += later_s * S
    board.control(read)
    assert board.time(read) == moment + timedelta(seconds=later_s)
    wanted = (moment + timedelta(seconds=later_s)).isoweekday() % 7 + 1
    assert read.decode(board.get(rtc_time.DAY_OF_WEEK)) == wanted


def test_the_year_0_and_the_end_of_the_calendar() -> None:
    """The century's two digits wrap: after 9999 comes 0000, which is a leap year like 2000."""
    form = TimeFormat(binary=True, hours_24=True)
    board = Board()
    board.set_time(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), form)
    board.ns += S
    assert [board.get(name) for name in (rtc_time.CENTURY, rtc_time.YEAR, rtc_time.MONTH)] == [0, 0, 1]
    for index, value in ((rtc_time.MONTH, 2), (rtc_time.DAY_OF_MONTH, 29)):
        board.put(index, value)
    assert board.get(rtc_time.DAY_OF_MONTH) == 29


@given(
    moments, st.sampled_from([rtc_time.SECONDS, rtc_time.MINUTES, rtc_time.DAY_OF_WEEK]), st.integers(0, 59)
)
@settings(deadline=None, max_examples=40)
def test_a_register_may_be_written_while_time_runs(moment: datetime, index: int, value: int) -> None:
    """Without SET a write changes that register and no other."""
    if index == rtc_time.DAY_OF_WEEK:
        value = value % 7 + 1
    form = TimeFormat(binary=True, hours_24=True)
    board = Board(moment)
    board.control(form)
    before = {at: board.get(at) for at in rtc_time.time_registers(0, form)}
    board.put(index, value)
    assert {at: board.get(at) for at in before} == before | {index: value}


@given(formats, st.binary(min_size=8, max_size=8))
@settings(deadline=None, max_examples=60)
def test_what_is_no_date_becomes_one(form: TimeFormat, written: bytes) -> None:
    """Any bytes in the time registers read back while SET is on, and are a date once time runs."""
    board = Board()
    board.control(form, RegB.SET)
    indexes = list(rtc_time.time_registers(0, form))
    for index, value in zip(indexes, written, strict=True):
        board.put(index, value)
    assert bytes(board.get(index) for index in indexes) == written
    board.control(form)
    if board.get(rtc_time.CENTURY) or board.get(rtc_time.YEAR):  # Python's calendar has no year 0
        board.time(form)
    assert 1 <= form.decode(board.get(rtc_time.DAY_OF_WEEK)) <= 7


def test_set_stops_time_and_the_update_interrupt() -> None:
    """While SET is on the registers stand still; time goes on from what they hold."""
    board = Board()
    board.control(FORMATS[0], RegB.UPDATE_INTERRUPT | RegB.SET)
    assert board.get(Cmos.REG_B) == RegB.SET
    board.ns += 1_000 * S
    assert board.get(rtc_time.SECONDS) == 0x58
    assert not board.get(Cmos.REG_C) & RegC.UPDATE
    form = FORMATS[1]
    board.control(form)
    assert board.time(form) == START
    board.ns += S
    assert board.time(form) == START + timedelta(seconds=1)


def test_setting_the_time_makes_no_event() -> None:
    """A clock that is set past its alarm, by hours, has neither rung nor updated."""
    board = Board()
    for index, value in (
        (rtc_time.SECONDS_ALARM, 0),
        (rtc_time.MINUTES_ALARM, 0),
        (rtc_time.HOURS_ALARM, 0x22),
    ):
        board.put(index, value)
    board.get(Cmos.REG_C)
    board.set_time(START + timedelta(hours=1), FORMATS[1])
    assert not board.get(Cmos.REG_C) & (RegC.ALARM | RegC.UPDATE)
    board.put(rtc_time.HOURS, 0x20)
    board.put(rtc_time.HOURS, 0x23)
    assert not board.get(Cmos.REG_C) & (RegC.ALARM | RegC.UPDATE)


def test_the_31st_of_february_is_its_last_day() -> None:
    """What is no date becomes the nearest one."""
    board = Board()
    board.control(FORMATS[1], RegB.SET)
    board.put(rtc_time.MONTH, 0x02)
    board.put(rtc_time.DAY_OF_MONTH, 0x31)
    board.control(FORMATS[1])
    assert (board.get(rtc_time.MONTH), board.get(rtc_time.DAY_OF_MONTH)) == (0x02, 0x28)


def test_time_starts_half_a_second_after_the_divider() -> None:
    """Released from reset the divider makes its first update after 500 ms (Linux relies on it)."""
    board = Board()
    board.ns += 123 * MS
    board.put(Cmos.REG_A, 0x70 | 0x06)
    board.ns += 7 * S
    board.put(rtc_time.SECONDS, 0x30)
    board.put(Cmos.REG_A, 0x26)
    assert board.get(rtc_time.SECONDS) == 0x30
    board.ns += 499 * MS
    assert board.get(rtc_time.SECONDS) == 0x30
    board.ns += MS
    assert board.get(rtc_time.SECONDS) == 0x31


def test_update_in_progress_warns_before_each_second() -> None:
    """The bit is on for 2,228 µs before the second changes, at least 244 of which are a warning."""
    board = Board()
    board.ns += S - 2_229 * US
    assert not board.get(Cmos.REG_A) & RegA.UPDATE_IN_PROGRESS
    board.ns += US
    assert board.get(Cmos.REG_A) & RegA.UPDATE_IN_PROGRESS
    before = board.get(rtc_time.SECONDS)
    board.ns += 2_228 * US - 1
    assert board.get(Cmos.REG_A) & RegA.UPDATE_IN_PROGRESS
    assert board.get(rtc_time.SECONDS) == before
    board.ns += 1
    assert not board.get(Cmos.REG_A) & RegA.UPDATE_IN_PROGRESS
    assert board.get(rtc_time.SECONDS) == before + 1


def test_update_in_progress_can_not_be_written_and_rests_while_time_does() -> None:
    """Bit 7 of register A is the chip's own."""
    board = Board()
    board.put(Cmos.REG_A, 0xA6)
    assert board.get(Cmos.REG_A) == 0x26
    board.ns += S - US
    board.control(FORMATS[0], RegB.SET)
    assert board.get(Cmos.REG_A) == 0x26


def test_register_c_tells_once() -> None:
    """Flags appear without being enabled, without the interrupt bit, and reading clears them."""
    board = Board()
    board.get(Cmos.REG_C)
    board.ns += S
    flags = board.get(Cmos.REG_C)
    assert flags & RegC.UPDATE
    assert flags & RegC.PERIODIC
    assert not flags & RegC.INTERRUPT
    assert board.get(Cmos.REG_C) == 0
    assert board.line.rises == 0


def test_a_stopped_divider_makes_no_event() -> None:
    """With the divider held in reset there is neither an update nor a periodic event."""
    board = Board()
    board.put(Cmos.REG_A, 0x76)
    board.control(FORMATS[1], RegB.PERIODIC_INTERRUPT | RegB.UPDATE_INTERRUPT)
    board.get(Cmos.REG_C)
    board.ns += 10 * S
    assert board.get(Cmos.REG_C) == 0
    assert board.chip.next_event_ns() is None


@pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(rate: int, hz: int) -> None:
    """A guest that polls register C counts the rate that the datasheet gives."""
    board = Board()
    board.put(Cmos.REG_A, 0x20 | rate)
    board.get(Cmos.REG_C)
    count = 0
    for _ in range(hz * 2):
        board.ns += S // (hz * 2)
        count += bool(board.get(Cmos.REG_C) & RegC.PERIODIC)
    assert abs(count - hz) <= 1


def test_rate_0_is_no_rate() -> None:
    """With the rate bits clear there is no periodic event."""
    board = Board()
    board.put(Cmos.REG_A, 0x20)
    board.control(FORMATS[0], RegB.PERIODIC_INTERRUPT)
    board.get(Cmos.REG_C)
    board.ns += 10 * S
    assert not board.get(Cmos.REG_C) & RegC.PERIODIC
    assert board.chip.next_event_ns() is None


def test_the_line_is_high_until_register_c_is_read() -> None:
    """An enabled event raises the line at the next look; the flags say which it was."""
    board = Board()
    board.control(FORMATS[1], RegB.UPDATE_INTERRUPT)
    board.get(Cmos.REG_C)
    board.ns += S
    board.chip.tick()
    assert board.line.high()
    board.ns += S
    board.chip.tick()
    assert board.line.rises == 1
    assert board.get(Cmos.REG_C) & (RegC.INTERRUPT | RegC.UPDATE) == RegC.INTERRUPT | RegC.UPDATE
    assert not board.line.high()


def test_disabling_the_interrupt_releases_the_line() -> None:
    """The line is flag and enable; the flag stays for a reader."""
    board = Board()
    board.control(FORMATS[1], RegB.UPDATE_INTERRUPT)
    board.ns += S
    board.chip.tick()
    board.control(FORMATS[1])
    assert not board.line.high()
    assert board.get(Cmos.REG_C) & RegC.UPDATE


def alarm_registers(form: TimeFormat, second: int | None, minute: int | None, hour: int | None) -> bytearray:
    """Registers with this alarm; None rings at any."""
    registers = bytearray(128)
    registers[rtc_time.SECONDS_ALARM] = 0xC0 if second is None else form.encode(second)
    registers[rtc_time.MINUTES_ALARM] = 0xFF if minute is None else form.encode(minute)
    registers[rtc_time.HOURS_ALARM] = 0xC3 if hour is None else form.encode_hour(hour)
    return registers


minutes = st.none() | st.integers(0, 59)


@given(formats, minutes, minutes, st.none() | st.integers(0, 23), st.integers(-86_400, 200_000))
@settings(deadline=None, max_examples=50)
def test_the_next_alarm_is_the_first_second_that_matches(
    form: TimeFormat, second: int | None, minute: int | None, hour: int | None, after: int
) -> None:
    """The computed second is the one that counting up finds."""

    def rings(at: int) -> bool:
        return (
            (second is None or at % 60 == second)
            and (minute is None or at // 60 % 60 == minute)
            and (hour is None or at // 3600 % 24 == hour)
        )

    counted = next(at for at in range(after + 1, after + 86_401) if rings(at))
    assert rtc_time.next_alarm(alarm_registers(form, second, minute, hour), form, after) == counted


@pytest.mark.parametrize("index", [rtc_time.SECONDS_ALARM, rtc_time.MINUTES_ALARM, rtc_time.HOURS_ALARM])
def test_an_alarm_at_no_time_never_rings(index: int) -> None:
    """A register that holds no second, minute or hour keeps the alarm silent."""
    board = Board()
    for at in (rtc_time.SECONDS_ALARM, rtc_time.MINUTES_ALARM, rtc_time.HOURS_ALARM):
        board.put(at, 0x7A if at == index else 0xC0)
    board.control(FORMATS[1], RegB.ALARM_INTERRUPT)
    board.get(Cmos.REG_C)
    board.ns += 2 * 86_400 * S
    board.chip.tick()
    assert not board.line.high()
    assert board.chip.next_event_ns() is None


@given(
    st.sampled_from([RegB.PERIODIC_INTERRUPT, RegB.UPDATE_INTERRUPT, RegB.ALARM_INTERRUPT]),
    st.integers(1, 15),
    st.integers(0, 3 * S),
    st.integers(0, 59),
)
@settings(deadline=None, max_examples=60)
def test_the_next_event_comes_when_it_is_promised(
    enable: RegB, rate: int, phase_ns: int, second: int
) -> None:
    """A nanosecond before `next_event_ns` the line is low, at it it is high, for each kind of event."""
    board = Board()
    board.ns += phase_ns
    board.put(Cmos.REG_A, 0x20 | rate)
    board.put(rtc_time.SECONDS_ALARM, FORMATS[1].encode(second))
    board.put(rtc_time.MINUTES_ALARM, 0xFF)
    board.put(rtc_time.HOURS_ALARM, 0xFF)
    board.control(FORMATS[1], enable)
    for _ in range(3):
        board.get(Cmos.REG_C)
        due = board.chip.next_event_ns()
        assert due is not None
        assert due > board.ns
        board.ns = due - 1
        board.chip.tick()
        assert not board.line.high()
        board.ns = due
        board.chip.tick()
        assert board.line.high()
        assert board.chip.next_event_ns() is None, "the guest has to answer first"


@pytest.mark.parametrize(
    ("low", "high", "base_kib", "extended_kib", "above_16m", "above_4g"),
    [
        (64 * KIB, 0, 64, 0, 0, 0),
        (MIB, 0, 640, 0, 0, 0),
        (2 * MIB, 0, 640, 1024, 0, 0),
        (64 * MIB, 0, 640, 63 * 1024, 48 * 16, 0),
        (65 * MIB, 0, 640, 65535, 49 * 16, 0),
        (3 * GIB, 0, 640, 65535, (3 * 1024 - 16) * 16, 0),
        (3 * GIB, 13 * GIB, 640, 65535, (3 * 1024 - 16) * 16, 13 * 1024 * 16),
        (3 * GIB, 1 << 52, 640, 65535, (3 * 1024 - 16) * 16, 0xFFFFFF),
    ],
)
def test_the_memory_tells_the_ram_size(
    low: int, high: int, base_kib: int, extended_kib: int, above_16m: int, above_4g: int
) -> None:
    """The size bytes are those that firmware and old kernels read, each at its limit."""
    board = Board(low_memory_bytes=low, high_memory_bytes=high)

    def number(index: int, size: int) -> int:
        return int.from_bytes(bytes(board.get(index + at) for at in range(size)), "little")

    assert number(0x15, 2) == base_kib
    assert number(0x17, 2) == extended_kib
    assert number(0x30, 2) == extended_kib
    assert number(0x34, 2) == above_16m
    assert number(0x5B, 3) == above_4g
    assert sum(board.get(at) for at in range(0x10, 0x2E)) == board.get(0x2E) << 8 | board.get(0x2F)


def test_the_rest_is_memory() -> None:
    """Every byte that is no register keeps what is written; registers C and D don't."""
    board = Board()
    registers = {*rtc_time.time_registers(0, FORMATS[0]), *range(Cmos.REG_A, Cmos.REG_D + 1)}
    plain = [index for index in range(128) if index not in registers]
    for index in plain:
        board.put(index, 255 - index)
    assert [board.get(index) for index in plain] == [255 - index for index in plain]
    assert board.chip.shutdown_status == 255 - Cmos.SHUTDOWN_STATUS
    board.put(Cmos.REG_C, 0xFF)
    board.put(Cmos.REG_D, 0x00)
    assert board.get(Cmos.REG_C) == 0
    assert board.get(Cmos.REG_D) == RegD.VALID


def test_bit_7_of_the_index_masks_the_nmi() -> None:
    """The index has 7 bits; the eighth is the NMI's, and the index port can't be read."""
    board = Board()
    board.chip.write(0, bytes([0x80 | Cmos.REG_D]))
    assert board.chip.nmi_disabled
    assert board.chip.read(1, 1) == b"\x80"
    assert board.chip.read(0, 1) == b"\xff"
    board.chip.write(0, bytes([Cmos.REG_D]))
    assert not board.chip.nmi_disabled


def test_a_wide_write_selects_and_writes() -> None:
    """16 bits at the index port are the index and the data; wider bytes go nowhere."""
    board = Board()
    board.chip.write(0, bytes([Cmos.SHUTDOWN_STATUS, 0x0A]))
    assert board.chip.shutdown_status == 0x0A
    board.chip.write(0, bytes([Cmos.SHUTDOWN_STATUS, 0x05, 0x77, 0x88]))
    assert board.chip.shutdown_status == 0x05
    assert board.chip.read(0, 4) == b"\xff\x05\xff\xff"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.integers(0, 127)),
        st.tuples(st.just("put"), st.integers(0, 127), st.integers(0, 255)),
        st.tuples(st.just("put"), st.integers(0, 13), st.integers(0, 255)),
        st.tuples(st.just("pass"), st.integers(-10 * S, 100 * S)),
        st.tuples(st.just("raw"), st.integers(0, 1), st.binary(min_size=1, max_size=4)),
    ),
    max_size=30,
)


@given(steps)
def test_any_guest_is_answered(sequence: list[tuple[str, int] | tuple[str, int, int | bytes]]) -> None:
    """For any accesses, and a host clock that may jump back: no error, and line and flags agree."""
    board = Board()
    for name, first, *rest in sequence:
        if name == "get":
            board.get(first)
        elif name == "put":
            board.put(first, *rest)  # type: ignore[arg-type]  # what the strategy gives
        elif name == "raw":
            board.chip.write(first, *rest)  # type: ignore[arg-type]  # what the strategy gives
            assert len(board.chip.read(first, 4)) == 4
        else:
            board.ns += first
            board.chip.tick()
        due = board.chip.next_event_ns()
        assert due is None or due > board.ns
        pending = board.chip._bytes[Cmos.REG_C] & board.chip._bytes[Cmos.REG_B] & 0x70
        assert board.line.high() == bool(pending)
