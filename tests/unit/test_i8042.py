"""The keyboard controller and system control port A."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.i8042 import I8042, A20Gate, Config, OutputPort, Status, SystemControlA

if TYPE_CHECKING:
    from pykvm.bus import Device


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
    """A controller as a guest sees it, with system control port A on the same A20 gate."""

    def __init__(self) -> None:
        self.resets = 0
        self.a20 = A20Gate()
        self.line = Line()
        self.chip = I8042(self._reset, self.a20, self.line)
        self.port_92 = SystemControlA(self._reset, self.a20)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, *values: int) -> None:
        """A command and the bytes that go with it."""
        assert not self.status() & Status.INPUT_FULL
        self.chip.command_port.write(0, bytes(values[:1]))
        for value in values[1:]:
            self.chip.data_port.write(0, bytes([value]))

    def status(self) -> Status:
        return Status(self.chip.command_port.read(0, 1)[0])

    def answer(self) -> int:
        """The byte that waits in the output buffer."""
        assert self.status() & Status.OUTPUT_FULL
        value = self.chip.data_port.read(0, 1)[0]
        assert not self.status() & Status.OUTPUT_FULL
        return value

    def ask(self, *values: int) -> int:
        self.command(*values)
        return self.answer()


@pytest.fixture
def board() -> Board:
    return Board()


def test_a_pulse_of_the_reset_line_resets(board: Board) -> None:
    """Command 0xFE is the reset of every PC; 0xFF pulses no line."""
    board.command(0xFF)
    assert board.resets == 0
    board.command(0xFE)
    assert board.resets == 1


def test_any_pulse_that_names_bit_0_resets(board: Board) -> None:
    """Commands 0xF0 to 0xFF pull the lines whose bits are 0: every even one resets."""
    for command in range(0xF0, 0x100):
        board.command(command)
    assert board.resets == 8


def test_the_output_port_resets_when_bit_0_goes_low(board: Board) -> None:
    """Reading the output port and writing it back without bit 0 resets; with it, nothing happens."""
    value = board.ask(0xD0)
    assert value & OutputPort.NOT_RESET
    board.command(0xD1, value)
    assert board.resets == 0
    board.command(0xD1, value & ~1)
    assert board.resets == 1


def test_a20_is_one_gate_for_both_chips(board: Board) -> None:
    """What one chip sets, the other reads; the gate starts open."""
    assert board.ask(0xD0) & OutputPort.A20
    assert board.port_92.read(0, 1)[0] & 2
    board.command(0xDD)
    assert not board.port_92.read(0, 1)[0] & 2
    assert not board.ask(0xD0) & OutputPort.A20
    board.port_92.write(0, b"\x02")
    assert board.ask(0xD0) & OutputPort.A20
    for command, enabled in [((0xD1, 0xDD), False), ((0xD1, 0xDF), True), ((0xDD,), False), ((0xDF,), True)]:
        board.command(*command)
        assert board.a20.enabled == enabled
    assert board.resets == 0


def test_the_controller_tests_well(board: Board) -> None:
    """Self-test answers 0x55 and sets the system flag; the keyboard's lines are good."""
    assert not board.status() & Status.SYSTEM
    assert board.ask(0xAA) == 0x55
    assert board.status() & Status.SYSTEM
    assert board.ask(0xAB) == 0x00


def test_status_tells_commands_from_data(board: Board) -> None:
    """Status.COMMAND is that of the last write; nothing is ever left in the input buffer."""
    board.command(0xAE)
    assert board.status() & Status.COMMAND
    board.chip.data_port.write(0, b"\x00")
    assert not board.status() & (Status.COMMAND | Status.INPUT_FULL)
    assert board.status() & Status.NOT_LOCKED


@given(st.integers(0, 255))
@settings(deadline=None)
def test_the_configuration_byte_reads_back(value: int) -> None:
    """All eight bits are kept, through both commands."""
    board = Board()
    board.command(0x60, value)
    assert board.ask(0x20) == value


@given(st.integers(0, 255))
@settings(deadline=None)
def test_enabling_and_disabling_touches_one_bit(value: int) -> None:
    """The keyboard's and the mouse's commands change their own bit of the configuration alone."""
    board = Board()
    for command, bit, on in [
        (0xAD, 0x10, True),
        (0xAE, 0x10, False),
        (0xA7, 0x20, True),
        (0xA8, 0x20, False),
    ]:
        board.command(0x60, value)
        board.command(command)
        assert board.ask(0x20) == (value | bit if on else value & ~bit)


def test_the_controllers_memory_has_32_bytes(board: Board) -> None:
    """Commands 0x60-0x7F write them, 0x20-0x3F read them."""
    for at in range(0x20):
        board.command(0x60 + at, 0xE0 | at)
    assert [board.ask(0x20 + at) for at in range(0x20)] == [0xE0 | at for at in range(0x20)]


def test_a_byte_for_the_keyboard_times_out_at_once(board: Board) -> None:
    """With no keyboard the answer is 0xFE with the time-out bit, and reading it clears that."""
    board.chip.data_port.write(0, b"\xf2")
    assert board.status() & Status.TIMEOUT
    assert not board.status() & Status.AUX_OUTPUT_FULL
    assert board.answer() == 0xFE
    assert not board.status() & Status.TIMEOUT


def test_a_byte_for_the_keyboard_enables_it(board: Board) -> None:
    """Writing to a disabled keyboard clears its disable bit."""
    board.command(0xAD)
    board.chip.data_port.write(0, b"\xf4")
    board.answer()
    assert not board.ask(0x20) & Config.KEYBOARD_DISABLED


def test_the_output_port_shows_a_waiting_byte(board: Board) -> None:
    """The interrupt bit of the output port is that of the buffer before the answer."""
    assert not board.ask(0xD0) & OutputPort.KEYBOARD_INTERRUPT
    board.command(0xD2, 0x1E)
    assert board.ask(0xD0) & OutputPort.KEYBOARD_INTERRUPT


def test_there_is_no_mouse(board: Board) -> None:
    """What a driver tries to find a mouse fails without a wait: loop unmarked, test bad, byte unanswered."""
    board.command(0xD3, 0x5A)
    assert not board.status() & Status.AUX_OUTPUT_FULL
    assert board.answer() == 0x5A
    assert board.ask(0xA9) not in (0x00, 0xFA, 0xFF)
    board.command(0xD4, 0xF2)
    assert board.status() & Status.TIMEOUT
    assert board.status() & Status.AUX_OUTPUT_FULL
    assert board.answer() == 0xFE


def test_the_keyboards_interrupt_follows_the_buffer(board: Board) -> None:
    """With the interrupt enabled the line is high exactly while a byte waits."""
    board.command(0x60, Config.KEYBOARD_INTERRUPT)
    board.command(0xD2, 0x1E)
    assert board.line.high()
    assert board.answer() == 0x1E
    assert not board.line.high()
    board.command(0x60, 0)
    board.command(0xD2, 0x1E)
    assert not board.line.high()
    assert board.line.rises == 1


def test_a_command_that_waits_for_data_is_dropped_by_the_next(board: Board) -> None:
    """A command in place of the awaited byte is a command, and the byte after it is the keyboard's."""
    board.command(0xD1)
    board.command(0xAE)
    board.chip.data_port.write(0, b"\x00")
    assert board.resets == 0
    assert board.answer() == 0xFE


def test_fast_reset_is_a_rise_and_stays_visible(board: Board) -> None:
    """Port 0x92 resets when bit 0 rises, once, and the bit stays set."""
    assert not board.port_92.read(0, 1)[0] & 1
    board.port_92.write(0, b"\x03")
    board.port_92.write(0, b"\x03")
    assert board.resets == 1
    assert board.port_92.read(0, 1) == b"\x03"
    board.port_92.write(0, b"\x02")
    board.port_92.write(0, b"\x03")
    assert board.resets == 2


accesses = st.lists(
    st.tuples(
        st.sampled_from(["data", "command", "port_92"]),
        st.sampled_from([1, 2, 4]),
        st.none() | st.binary(min_size=1, max_size=4),
    )
)


@given(accesses)
@settings(deadline=None)
def test_any_guest_is_answered(steps: list[tuple[str, int, bytes | None]]) -> None:
    """For any accesses: no error, the asked size, status in step with the line."""
    board = Board()
    ports: dict[str, Device] = {
        "data": board.chip.data_port,
        "command": board.chip.command_port,
        "port_92": board.port_92,
    }
    for name, size, data in steps:
        if data is None:
            assert len(ports[name].read(0, size)) == size
        else:
            ports[name].write(0, data)
        waits = board.status() & (Status.OUTPUT_FULL | Status.AUX_OUTPUT_FULL) == Status.OUTPUT_FULL
        assert board.line.high() == bool(waits and board.chip._memory[0] & Config.KEYBOARD_INTERRUPT)
