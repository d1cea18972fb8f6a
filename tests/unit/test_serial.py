"""The serial port: what a driver, a terminal and an interrupt controller see of a 16550A."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.serial import Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr, Serial

if TYPE_CHECKING:
    from collections.abc import Callable

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
IDLE = Lsr.THR_EMPTY | Lsr.TRANSMITTER_EMPTY
QUEUE_BYTES = 65_536
FIFO = Fcr.ENABLE | Fcr.CLEAR_RECEIVER | Fcr.CLEAR_TRANSMITTER
TRIGGERS = {1: 0x00, 4: 0x40, 8: 0x80, 14: 0xC0}


class Line:
    """An interrupt line into an edge-triggered controller, which latches each rise."""

    def __init__(self) -> None:
        self.level = False
        self.latched = False

    def set_level(self, level: bool) -> None:
        assert level != self.level, "a line is driven only when it changes"
        self.level = level
        self.latched |= level

    def high(self) -> bool:
        return self.level


class Board:
    """A serial port as a guest sees it, and what came out at the other end."""

    def __init__(self, kind: type[Serial] = Serial) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.rooms = 0
        self.chip = kind(self.sent.extend, self.line, self._on_room)

    def _on_room(self) -> None:
        self.rooms += 1

    def get(self, offset: int) -> int:
        return self.chip.read(offset, 1)[0]

    def put(self, offset: int, value: int) -> None:
        self.chip.write(offset, bytes([value]))

    def poll(self) -> int | None:
        """A character if the guest finds one within two looks."""
        for _ in range(2):
            if self.get(LSR) & Lsr.DATA_READY:
                return self.get(RBR)
        return None

    def poll_all(self) -> bytes:
        """All that a polling guest gets."""
        got = bytearray()
        while (value := self.poll()) is not None:
            got.append(value)
        return bytes(got)

    def listen(self, enabled: int = Ier.RECEIVED_DATA, fcr: int = 0) -> None:
        """A driver's usual start: FIFOs, modem lines with OUT2, interrupts."""
        self.put(FCR, fcr)
        self.put(MCR, Mcr.DTR | Mcr.RTS | Mcr.OUT2)
        self.put(IER, enabled)

    def serve(self, handler: Callable[[], None], limit: int = 1_000_000) -> None:
        """Run the handler once for each latched interrupt, until the line rises no more."""
        while self.line.latched:
            self.line.latched = False
            handler()
            limit -= 1
            assert limit, "the line never rests"


@pytest.fixture
def board() -> Board:
    return Board()


# Registers


def test_after_power_on_a_byte_may_be_sent(board: Board) -> None:
    """Without any set-up the transmitter is empty, and what is written to THR comes out."""
    assert board.get(LSR) == IDLE
    for byte in b"hi\n":
        board.put(THR, byte)
    assert board.sent == b"hi\n"
    assert board.get(LSR) == IDLE
    assert board.get(IIR) == Iir.NONE
    assert board.get(MSR) == Msr.CTS | Msr.DSR | Msr.DCD


@given(st.integers(0, 255))
def test_plain_registers_read_back(value: int) -> None:
    """SCR and LCR keep eight bits, MCR five, IER four; LSR and MSR take none."""
    board = Board()
    board.put(SCR, value)
    board.put(IER, value)
    board.put(LCR, value & ~Lcr.DLAB)
    board.put(LSR, value)
    board.put(MSR, value)
    assert board.get(SCR) == value
    assert board.get(IER) == value & 0x0F
    assert board.get(LCR) == value & ~Lcr.DLAB
    assert board.get(LSR) == IDLE
    assert board.get(MSR) == Msr.CTS | Msr.DSR | Msr.DCD
    board.put(MCR, value)
    assert board.get(MCR) == value & 0x1F


@given(st.integers(0, 0xFFFF))
def test_dlab_switches_to_the_divisor(divisor: int) -> None:
    """With DLAB offsets 0 and 1 are the divisor, and nothing is sent or enabled."""
    board = Board()
    board.put(IER, 0x05)
    board.put(LCR, Lcr.DLAB | 3)
    board.put(DLL, divisor & 0xFF)
    board.put(DLM, divisor >> 8)
    assert (board.get(DLL), board.get(DLM)) == (divisor & 0xFF, divisor >> 8)
    board.put(LCR, 3)
    assert board.get(IER) == 0x05
    assert board.sent == b""


def test_a_wide_access_goes_to_successive_registers(board: Board) -> None:
    """A 16-bit write with DLAB sets the divisor; reads gather registers, all ones behind the last."""
    board.put(LCR, Lcr.DLAB)
    board.chip.write(DLL, b"\x34\x12")
    assert board.chip.read(DLL, 2) == b"\x34\x12"
    board.put(LCR, 0)
    board.put(SCR, 0x77)
    assert board.chip.read(MSR, 4) == bytes([Msr.CTS | Msr.DSR | Msr.DCD, 0x77, 0xFF, 0xFF])
    board.chip.write(SCR, b"\x55\x66\x77\x88")
    assert board.get(SCR) == 0x55
    board.chip.write(THR, b"A\x00")
    assert board.sent == b"A"


def test_it_is_recognised_as_a_16550a(board: Board) -> None:
    """A probe in the steps of Linux's 8250 driver ends at 16550A: FIFO of 16, no extension of later chips."""
    board.put(IER, 0)
    assert board.get(IER) & 0x0F == 0
    board.put(IER, 0x0F)
    assert board.get(IER) & 0x0F == 0x0F
    board.put(IER, 0)
    board.put(MCR, Mcr.LOOP | Mcr.OUT2 | Mcr.RTS)
    assert board.get(MSR) & 0xF0 == Msr.DCD | Msr.CTS
    board.put(MCR, 0)
    board.put(LCR, 0xBF)  # where a 16650 has its extended features
    board.put(FCR, 0)
    board.put(LCR, 0)
    board.put(FCR, Fcr.ENABLE)
    assert board.get(IIR) >> 6 == 3, "FIFOs that work"
    for mode in (0x80, 0xBF):
        board.put(LCR, mode)
        assert board.get(IIR) != 0, "no extended feature register"
    board.put(LCR, 0xE0)  # a National Super I/O shows MCR's loop bit here
    before = board.get(IIR)
    board.put(LCR, 0)
    board.put(MCR, Mcr.LOOP)
    board.put(LCR, 0xE0)
    assert not (board.get(IIR) ^ before) & Mcr.LOOP
    for mode in (0x00, 0x80):  # a 16750 has a FIFO of 64 behind this bit
        board.put(LCR, mode)
        board.put(FCR, Fcr.ENABLE | 0x20)
        assert board.get(IIR) >> 5 == 6
    board.put(LCR, 0)
    board.put(IER, 0x40)  # an XScale has a unit enable bit here
    assert board.get(IER) == 0
    board.put(FCR, FIFO)
    for value in range(256):
        board.put(THR, value)
    assert bytes(board.get(RBR) for _ in range(count_ready(board))) == bytes(range(16))


def count_ready(board: Board) -> int:
    """How many characters wait in the FIFO."""
    assert board.get(LSR) & Lsr.DATA_READY
    return len(board.chip._fifo)


# Loopback


@given(st.binary(max_size=16), st.sampled_from(sorted(TRIGGERS)))
def test_loopback_gives_back_what_was_sent(data: bytes, trigger: int) -> None:
    """Up to 16 bytes come back in order; none leaves the chip, and no error is seen."""
    board = Board()
    board.put(FCR, FIFO | TRIGGERS[trigger])
    board.put(MCR, Mcr.LOOP)
    for byte in data:
        board.put(THR, byte)
    got = bytearray()
    while (status := board.get(LSR)) & Lsr.DATA_READY:
        assert status == IDLE | Lsr.DATA_READY
        got.append(board.get(RBR))
    assert bytes(got) == data
    assert board.sent == b""


def test_a_trigger_level_without_fifos_is_none(board: Board) -> None:
    """With FCR's enable bit off its other bits do nothing: RBR holds one byte, and each interrupts."""
    board.listen(fcr=TRIGGERS[14])
    board.chip.receive(b"abc")
    assert len(board.chip._fifo) == 1
    assert board.get(IIR) == Iir.RECEIVED_DATA
    assert bytes(board.get(RBR) for _ in range(3)) == b"abc"


def test_a_full_fifo_keeps_what_it_has(board: Board) -> None:
    """The seventeenth byte overruns: it is lost, the first sixteen stay, and LSR says so once."""
    board.put(FCR, FIFO)
    board.put(MCR, Mcr.LOOP)
    for byte in b"0123456789abcdefX":
        board.put(THR, byte)
    assert board.get(LSR) == IDLE | Lsr.DATA_READY | Lsr.OVERRUN
    assert board.get(LSR) == IDLE | Lsr.DATA_READY
    assert bytes(board.get(RBR) for _ in range(16)) == b"0123456789abcdef"
    assert board.get(LSR) == IDLE


def test_without_fifos_the_new_byte_overruns_the_old(board: Board) -> None:
    """RBR holds one byte: the second takes its place, and LSR says so once."""
    board.put(MCR, Mcr.LOOP)
    board.put(THR, 0x41)
    board.put(THR, 0x42)
    assert board.get(LSR) == IDLE | Lsr.DATA_READY | Lsr.OVERRUN
    assert board.get(RBR) == 0x42
    assert board.get(LSR) == IDLE


def test_switching_the_fifos_clears_them(board: Board) -> None:
    """On, off, and by the clear bit: what was in the FIFO is gone."""
    board.put(MCR, Mcr.LOOP)
    for fcr in (Fcr.ENABLE, Fcr.ENABLE | Fcr.CLEAR_RECEIVER, 0):
        board.put(THR, 0x55)
        assert board.get(LSR) & Lsr.DATA_READY
        board.put(FCR, fcr)
        assert board.get(LSR) == IDLE
    board.put(FCR, Fcr.ENABLE)
    board.put(THR, 0x55)
    board.put(FCR, Fcr.ENABLE | TRIGGERS[8])
    assert board.get(RBR) == 0x55, "a new trigger level alone clears nothing"


@given(st.integers(0, 15))
def test_loopback_turns_the_modem_lines_round(outputs: int) -> None:
    """RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD."""
    board = Board()
    board.put(MCR, Mcr.LOOP | outputs)
    expected = {Mcr.RTS: Msr.CTS, Mcr.DTR: Msr.DSR, Mcr.OUT1: Msr.RI, Mcr.OUT2: Msr.DCD}
    assert board.get(MSR) & 0xF0 == sum(line for output, line in expected.items() if outputs & output)


def test_modem_changes_are_told_once(board: Board) -> None:
    """Deltas are set by a change (RI's by its fall alone) and cleared by reading."""
    board.put(MCR, Mcr.LOOP)
    board.get(MSR)
    board.put(MCR, Mcr.LOOP | Mcr.OUT1)
    assert board.get(MSR) == Msr.RI
    board.put(MCR, Mcr.LOOP | Mcr.RTS)
    assert board.get(MSR) == Msr.CTS | Msr.TRAILING_RI | Msr.DELTA_CTS
    assert board.get(MSR) == Msr.CTS
    board.put(MCR, 0)
    assert board.get(MSR) == Msr.CTS | Msr.DSR | Msr.DCD | Msr.DELTA_DSR | Msr.DELTA_DCD


def test_the_other_end_may_hang_up(board: Board) -> None:
    """A lost carrier is seen in MSR and interrupts if that is enabled."""
    board.listen(Ier.MODEM_STATUS)
    board.chip.set_modem_lines(Msr.CTS | Msr.DSR)
    assert board.line.high()
    assert board.get(IIR) == Iir.MODEM_STATUS
    assert board.get(MSR) == Msr.CTS | Msr.DSR | Msr.DELTA_DCD
    assert not board.line.high()
    assert board.get(IIR) == Iir.NONE


# Interrupts


def test_out2_lets_the_line_through(board: Board) -> None:
    """Without OUT2, and in loopback, the interrupt is pending in IIR but the line is low."""
    board.put(IER, Ier.THR_EMPTY)
    assert not board.line.high()
    board.put(MCR, Mcr.OUT2)
    assert board.line.high()
    board.put(MCR, Mcr.OUT2 | Mcr.LOOP)
    assert not board.line.high()
    assert board.get(IIR) == Iir.THR_EMPTY


def test_the_empty_transmitter_interrupts_until_iir_tells_it(board: Board) -> None:
    """Enabling raises it, reading IIR as its source clears it, a new byte or enabling raises it again."""
    board.listen(Ier.THR_EMPTY)
    assert board.line.high()
    assert board.get(IIR) == Iir.THR_EMPTY
    assert not board.line.high()
    assert board.get(IIR) == Iir.NONE
    board.put(THR, 0x41)
    assert board.get(IIR) == Iir.THR_EMPTY
    board.put(IER, 0)
    assert board.get(IIR) == Iir.NONE
    board.put(IER, Ier.THR_EMPTY)
    assert board.get(IIR) == Iir.THR_EMPTY
    board.put(IER, Ier.THR_EMPTY | Ier.MODEM_STATUS)
    assert board.get(IIR) == Iir.NONE, "it was enabled already"


def test_reading_iir_for_another_source_leaves_the_transmitters(board: Board) -> None:
    """Only when IIR names the transmitter is its interrupt cleared."""
    board.listen(Ier.THR_EMPTY | Ier.RECEIVED_DATA)
    board.chip.receive(b"x")
    assert board.get(IIR) == Iir.RECEIVED_DATA
    board.get(RBR)
    assert board.get(IIR) == Iir.THR_EMPTY


def test_the_highest_priority_is_told_first(board: Board) -> None:
    """Line status, received data, empty transmitter, modem status: in that order."""
    board.put(MCR, Mcr.LOOP)
    board.put(IER, 0x0F)
    board.put(THR, 0x41)
    board.put(THR, 0x42)
    board.put(MCR, Mcr.LOOP | Mcr.RTS)
    assert board.get(IIR) == Iir.LINE_STATUS
    assert board.get(LSR) & Lsr.OVERRUN
    assert board.get(IIR) == Iir.RECEIVED_DATA
    assert board.get(RBR) == 0x42
    assert board.get(IIR) == Iir.THR_EMPTY
    assert board.get(IIR) == Iir.MODEM_STATUS
    assert board.get(MSR) & Msr.DELTA_CTS
    assert board.get(IIR) == Iir.NONE


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_trigger_level_tells_data_from_a_time_out(board: Board, trigger: int) -> None:
    """From the trigger level on it is received data, below it the character time-out; never nothing."""
    board.put(FCR, FIFO | TRIGGERS[trigger])
    board.put(MCR, Mcr.LOOP)
    board.put(IER, Ier.RECEIVED_DATA)
    for count in range(1, 17):
        board.put(THR, count)
        expected = Iir.RECEIVED_DATA if count >= trigger else Iir.CHARACTER_TIMEOUT
        assert board.get(IIR) == 0xC0 | expected
    for count in range(15, 0, -1):
        board.get(RBR)
        expected = Iir.RECEIVED_DATA if count >= trigger else Iir.CHARACTER_TIMEOUT
        assert board.get(IIR) == 0xC0 | expected
    board.get(RBR)
    assert board.get(IIR) == 0xC0 | Iir.NONE


fifo_settings = st.sampled_from([0, *(FIFO | level for level in TRIGGERS.values())])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), fifo_settings)
@settings(deadline=None, max_examples=50)
def test_a_handler_that_reads_one_character_gets_all(chunks: list[bytes], fcr: int) -> None:
    """One RBR read an interrupt, on an edge-triggered controller: every byte arrives, in order."""
    board, got = Board(), bytearray()
    board.listen(fcr=fcr)
    for chunk in chunks:
        board.chip.receive(chunk)
        board.serve(lambda: got.append(board.get(RBR)))
    assert got == b"".join(chunks)
    assert not board.line.high()


@given(st.binary(max_size=100), fifo_settings)
@settings(deadline=None, max_examples=50)
def test_a_handler_that_drains_gets_all(data: bytes, fcr: int) -> None:
    """The usual driver, which reads IIR and then RBR while LSR has data, gets every byte, in order."""
    board, got = Board(), bytearray()

    def handler() -> None:
        while board.get(IIR) & 0x0F != Iir.NONE:
            while board.get(LSR) & Lsr.DATA_READY:
                got.append(board.get(RBR))

    board.listen(fcr=fcr)
    board.chip.receive(data)
    board.serve(handler)
    assert got == data
    assert not board.line.high()


@pytest.mark.parametrize("reads_iir", [False, True])
@pytest.mark.parametrize("burst", [1, 16])
def test_a_transmitter_driven_by_interrupts_sends_all(board: Board, reads_iir: bool, burst: int) -> None:
    """A handler that writes when interrupted gets one interrupt after each, whether it reads IIR or not."""
    data = bytearray(b"the quick brown fox jumps over the lazy dog")
    rest = bytearray(data)

    def handler() -> None:
        if reads_iir:
            assert board.get(IIR) & 0x0F == Iir.THR_EMPTY
        for byte in rest[:burst]:
            board.put(THR, byte)
        if not rest:
            board.put(IER, 0)
        del rest[:burst]

    board.listen(Ier.THR_EMPTY, FIFO)
    board.serve(handler, limit=100)
    assert board.sent == data
    assert not board.line.high()


# Terminal input


def test_a_polling_guest_gets_what_was_typed(board: Board) -> None:
    """With nothing but LSR and RBR, any amount comes in order, with the FIFOs on or off."""
    data = bytes(range(256)) * 4
    board.chip.receive(data)
    assert board.poll_all() == data
    board.put(FCR, FIFO | TRIGGERS[14])
    board.chip.receive(data)
    assert board.poll_all() == data
    assert board.get(LSR) == IDLE


@pytest.mark.parametrize("types_before", [False, True])
def test_a_driver_that_tests_its_chip_swallows_no_input(board: Board, types_before: bool) -> None:
    """What was typed ahead survives a driver's usual start: print, clear FIFOs, test by loopback."""
    if types_before:
        board.chip.receive(b"typed ")
    for byte in b"booting\n":
        while not board.get(LSR) & Lsr.THR_EMPTY:
            pass
        board.put(THR, byte)
    if not types_before:
        board.chip.receive(b"typed ")
    board.put(IER, 0)
    board.put(LCR, Lcr.DLAB)
    board.chip.write(DLL, b"\x01\x00")
    board.put(LCR, 3)
    board.put(FCR, FIFO | TRIGGERS[14])
    board.put(MCR, Mcr.LOOP | Mcr.RTS | Mcr.OUT1 | Mcr.OUT2)
    board.put(THR, 0xAE)
    assert board.get(RBR) == 0xAE
    board.put(MCR, Mcr.DTR | Mcr.RTS | Mcr.OUT1 | Mcr.OUT2)
    for offset in (LSR, RBR, IIR, MSR):  # "clear the interrupt registers"
        board.get(offset)
    board.put(IER, Ier.RECEIVED_DATA)
    board.chip.receive(b"ahead")
    got = bytearray()
    board.serve(lambda: got.append(board.get(RBR)))
    assert got == b"typed ahead"


@pytest.mark.parametrize(
    ("offset", "value"),
    [(THR, None), (IER, 0), (FCR, 0), (LCR, 3), (MCR, 0), (SCR, 1), (MSR, None), (IIR, None)],
)
def test_two_looks_count_only_in_a_row(board: Board, offset: int, value: int | None) -> None:
    """Any access between two reads of LSR, but sending, starts the count again: that is a driver at work."""
    board.chip.receive(b"x")
    for _ in range(3):
        assert board.get(LSR) == IDLE
        board.get(offset) if value is None else board.put(offset, value)
    assert board.get(LSR) == IDLE
    assert board.get(LSR) == IDLE | Lsr.DATA_READY


def test_sending_between_two_looks_does_not_matter(board: Board) -> None:
    """A guest that prints while it waits for input gets it."""
    board.chip.receive(b"x")
    assert board.get(LSR) == IDLE
    board.put(THR, 0x2E)
    assert board.get(LSR) == IDLE | Lsr.DATA_READY


def test_a_look_before_the_input_came_does_not_count(board: Board) -> None:
    """The first look after input came starts the count."""
    board.chip.receive(b"x")
    assert board.get(LSR) == IDLE
    board.chip.receive(b"y")
    assert board.get(LSR) == IDLE
    assert board.get(LSR) == IDLE | Lsr.DATA_READY


def test_disabling_the_interrupt_stops_listening(board: Board) -> None:
    """A driver that masks its interrupts to print is not a guest that polls for input."""
    board.put(IER, Ier.RECEIVED_DATA)
    board.put(IER, 0)
    board.chip.receive(b"x")
    assert board.get(LSR) == IDLE
    board.put(IER, 0)
    assert board.get(LSR) == IDLE
    board.put(IER, Ier.RECEIVED_DATA)
    assert board.get(LSR) == IDLE | Lsr.DATA_READY


def test_interest_in_input_is_remembered(board: Board) -> None:
    """Printing shows none; enabling the interrupt or polling does, and masking takes nothing back."""
    for byte in b"hi":
        board.get(LSR)
        board.put(THR, byte)
    assert not board.chip.is_listening
    board.chip.receive(b"x")
    board.get(LSR)
    listened: list[bool] = [board.chip.is_listening]
    board.get(LSR)
    listened.append(board.chip.is_listening)
    driver = Board()
    driver.put(IER, Ier.RECEIVED_DATA)
    driver.put(IER, 0)
    listened.append(driver.chip.is_listening)
    assert listened == [False, True, True]


def test_in_loopback_the_terminal_is_cut_off(board: Board) -> None:
    """Input waits until loopback ends, however the guest listens or looks."""
    board.put(IER, Ier.RECEIVED_DATA)
    board.put(MCR, Mcr.LOOP)
    board.chip.receive(b"x")
    assert [board.get(LSR) for _ in range(3)] == [IDLE] * 3
    board.put(IER, 0)
    assert [board.get(LSR) for _ in range(3)] == [IDLE] * 3
    board.put(MCR, 0)
    assert board.get(LSR) == IDLE, "looks in loopback were not for input"
    assert board.poll() == ord("x")


def test_clearing_the_fifo_gives_input_back_to_the_queue(board: Board) -> None:
    """Characters from outside come again after a clear, once and in order; looped ones don't."""
    board.put(FCR, FIFO | TRIGGERS[14])
    board.chip.receive(b"abcdefghijklmnopqrst")
    assert board.poll() == ord("a")
    board.put(MCR, Mcr.LOOP)
    board.put(THR, 0x00)
    board.put(MCR, 0)
    board.put(FCR, FIFO | TRIGGERS[14])
    assert board.get(LSR) == IDLE
    assert board.poll_all() == b"bcdefghijklmnopqrst"


def test_an_ignored_queue_is_bounded_and_refuses(board: Board) -> None:
    """64 KiB are kept for a guest that does not read; the rest is refused, and room is announced once."""
    assert board.chip.receive(bytes(QUEUE_BYTES - 10)) == QUEUE_BYTES - 10
    assert board.chip.room == 10
    assert board.chip.receive(b"x" * 100) == 10
    assert board.chip.receive(b"y") == 0
    board.chip.receive_break()
    assert board.chip.room == 0
    got = bytearray()
    while not board.rooms:
        value = board.poll()
        assert value is not None
        got.append(value)
    assert board.chip.room == QUEUE_BYTES // 2
    got += board.poll_all()
    assert bytes(got) == bytes(QUEUE_BYTES - 10) + b"x" * 10
    assert board.rooms == 1


def test_room_is_announced_only_to_who_was_refused(board: Board) -> None:
    """A queue that never refused is emptied in silence."""
    board.chip.receive(bytes(QUEUE_BYTES))
    board.listen()
    board.serve(lambda: (board.get(RBR), None)[1])
    assert board.rooms == 0
    assert board.chip.room == QUEUE_BYTES


def test_a_break_arrives_in_its_place(board: Board) -> None:
    """A break is a NUL whose line status is shown when it is the next character, and then cleared."""
    board.put(FCR, FIFO | TRIGGERS[14])
    board.chip.receive(b"a")
    board.chip.receive_break()
    board.chip.receive(b"b")
    board.listen(Ier.RECEIVED_DATA | Ier.LINE_STATUS, FIFO | TRIGGERS[14])
    assert board.get(LSR) == IDLE | Lsr.DATA_READY | Lsr.FIFO_ERROR
    assert board.get(RBR) == ord("a")
    assert board.get(IIR) & 0x0F == Iir.LINE_STATUS
    assert board.get(LSR) == IDLE | Lsr.DATA_READY | Lsr.BREAK | Lsr.FIFO_ERROR
    assert board.get(LSR) == IDLE | Lsr.DATA_READY
    assert board.get(RBR) == 0
    assert board.get(RBR) == ord("b")
    assert board.get(LSR) == IDLE


def test_a_break_on_a_quiet_line_interrupts_at_once(board: Board) -> None:
    """Without FIFOs too; there bit 7 of LSR stays clear."""
    board.listen(Ier.RECEIVED_DATA | Ier.LINE_STATUS)
    board.chip.receive_break()
    assert board.line.high()
    assert board.get(IIR) == Iir.LINE_STATUS
    assert board.get(LSR) == IDLE | Lsr.DATA_READY | Lsr.BREAK
    assert board.get(IIR) == Iir.RECEIVED_DATA
    assert board.get(RBR) == 0


def test_an_overrun_is_told_after_the_data_was_read(board: Board) -> None:
    """The error stays in LSR until LSR is read."""
    board.put(MCR, Mcr.LOOP)
    board.put(THR, 0x41)
    board.put(THR, 0x42)
    board.get(RBR)
    assert board.get(LSR) == IDLE | Lsr.OVERRUN
    assert board.get(LSR) == IDLE


# Any guest


class Slow(Serial):
    """The same chip without its short paths."""

    def _settle(self) -> None:
        super()._settle()
        self._sends_directly = self._idle = False


reads = st.tuples(st.just("read"), st.integers(0, 8), st.sampled_from([1, 1, 1, 2, 4, 8]))
writes = st.tuples(st.just("write"), st.integers(0, 8), st.binary(min_size=1, max_size=4))
modes = st.tuples(
    st.just("write"),
    st.sampled_from([IER, FCR, MCR]),
    st.sampled_from([b"\x00", b"\x01", b"\x0f", b"\x0b", b"\x1f", b"\xc7"]),
)
polls = st.sampled_from([("read", LSR, 1), ("read", RBR, 1), ("write", THR, b"A")])
inputs = st.tuples(st.just("receive"), st.just(0), st.binary(max_size=40))
others = st.tuples(st.sampled_from(["break", "lines"]), st.integers(0, 255), st.just(0))
sequences = st.lists(st.one_of(polls, modes, inputs, reads, writes, others), max_size=40)
Step = tuple[str, int, int | bytes]


def do(chip: Serial, step: Step) -> bytes | int | None:
    """One step of a sequence; what the guest or the terminal gets."""
    name, number, more = step
    if name == "read":
        assert isinstance(more, int)
        return chip.read(number, more)
    if name == "break":
        chip.receive_break()
    elif name == "lines":
        chip.set_modem_lines(Msr(number))
    elif name == "receive":
        assert isinstance(more, bytes)
        return chip.receive(more)
    else:
        assert isinstance(more, bytes)
        chip.write(number, more)
    return None


@given(sequences)
def test_any_guest_is_answered(sequence: list[Step]) -> None:
    """For any accesses and input: the asked size, bounds kept, LSR, IIR and the line in step."""
    board = Board()
    chip = board.chip
    for step in sequence:
        answer = do(chip, step)
        assert step[0] != "read" or len(answer) == step[2]  # type: ignore[arg-type]  # a read answers bytes
        assert len(chip._fifo) <= (16 if chip._fifos_on else 1)
        source = chip._interrupt()
        assert source in set(Iir)
        assert board.line.high() == (source != Iir.NONE and chip._mcr & (Mcr.OUT2 | Mcr.LOOP) == Mcr.OUT2)
        assert chip.room + len(chip._queue) == QUEUE_BYTES
    ready = bool(chip._fifo)
    status = board.get(LSR)
    assert status & IDLE == IDLE
    assert bool(status & Lsr.DATA_READY) >= ready


@given(sequences)
def test_the_short_paths_change_nothing(sequence: list[Step]) -> None:
    """A chip with its short paths and one without give the same answers, output and line."""
    fast, slow = Board(), Board(Slow)
    for step in sequence:
        assert do(fast.chip, step) == do(slow.chip, step)
        assert (fast.line.high(), fast.sent, fast.chip.room) == (slow.line.high(), slow.sent, slow.chip.room)
