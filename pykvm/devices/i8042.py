"""The keyboard controller and system control port A: two chips that share the A20 gate and the reset line.

Source: IBM PC AT and PS/2 technical references, keyboard controller and system control port A.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.irq import IrqLine

__all__ = ["I8042", "A20Gate", "CommandPort", "Config", "DataPort", "OutputPort", "Status", "SystemControlA"]


class Status(IntFlag):
    """The status register, read at the command port."""

    OUTPUT_FULL = 1 << 0
    INPUT_FULL = 1 << 1
    SYSTEM = 1 << 2  # the self-test has passed
    COMMAND = 1 << 3  # the last byte came through the command port
    NOT_LOCKED = 1 << 4  # the keyboard's lock is open
    AUX_OUTPUT_FULL = 1 << 5
    TIMEOUT = 1 << 6  # the device did not answer
    PARITY = 1 << 7


class Config(IntFlag):
    """The configuration byte, number 0 of the controller's memory."""

    KEYBOARD_INTERRUPT = 1 << 0
    AUX_INTERRUPT = 1 << 1
    SYSTEM = 1 << 2  # appears as Status.SYSTEM
    KEYBOARD_DISABLED = 1 << 4
    AUX_DISABLED = 1 << 5
    TRANSLATE = 1 << 6


class OutputPort(IntFlag):
    """The controller's output port: lines to the board."""

    NOT_RESET = 1 << 0
    A20 = 1 << 1
    KEYBOARD_INTERRUPT = 1 << 4
    CLOCK = 1 << 6
    DATA = 1 << 7


_NO_ANSWER = 0xFE  # what the controller puts into its buffer when a device does not answer
_MEMORY_BYTES = 0x20
# Plain numbers: the complement of a flag has only the named bits, and the guest may set others.
_COMMAND = int(Status.COMMAND)
_SYSTEM, _KEYBOARD_INTERRUPT = int(Config.SYSTEM), int(Config.KEYBOARD_INTERRUPT)
_AUX_FULL = int(Status.AUX_OUTPUT_FULL)


class A20Gate:
    """The state of address line 20, as the guest set it.

    Memory takes no notice: the line is always through. Guests read the bit back, and that works.
    """

    def __init__(self) -> None:
        self.enabled = True


class I8042:
    """A keyboard controller with nothing plugged in: it tests well, gates A20, and resets the CPUs.

    It shows itself at two ports, `data_port` (0x60) and `command_port` (0x64). A byte for the keyboard
    or the mouse is answered as the chip does when the device is silent: 0xFE with Status.TIMEOUT, so
    a driver gives up at once. Commands take no time: Status.INPUT_FULL is never seen. The output buffer
    holds one byte; a newer answer takes an older one's place.
    """

    def __init__(
        self, on_reset: Callable[[], None], a20: A20Gate | None = None, irq: IrqLine | None = None
    ) -> None:
        """`on_reset` is called by each pulse of the CPUs' reset line; `irq` is the keyboard's."""
        self.data_port = DataPort(self)
        self.command_port = CommandPort(self)
        self._on_reset = on_reset
        self._a20 = a20 or A20Gate()
        self._irq = irq
        self._level = False
        self._status = int(Status.NOT_LOCKED)
        self._output = 0  # the output buffer's byte stays after it was read, as on the chip
        self._full = 0  # the status bits of a byte that waits in the output buffer
        self._awaiting: Callable[[int], None] | None = None  # what takes the next byte at the data port
        self._memory = bytearray(_MEMORY_BYTES)
        self._memory[0] = Config.TRANSLATE
        self._commands = self._command_table()

    def read_data(self) -> int:
        """The next byte of the output buffer, or the last one again if it is empty."""
        self._full = 0
        self._drive()
        return self._output

    def read_status(self) -> int:
        """The status register."""
        return self._status | self._memory[0] & _SYSTEM | self._full

    def write_data(self, value: int) -> None:
        """A byte for the command that waits for one, otherwise for the keyboard."""
        self._status &= ~_COMMAND
        take, self._awaiting = self._awaiting or self._keyboard, None
        take(value)

    def write_command(self, value: int) -> None:
        """A command; unknown ones do nothing, as on the chip."""
        self._status |= _COMMAND
        self._awaiting = None
        if value >= 0xF0:
            self._pulse(value)
        elif value < 0x40 and value & 0x20:
            self._answer(self._memory[value & 0x1F])
        elif 0x60 <= value < 0x80:
            self._awaiting = lambda byte: self._store(value & 0x1F, byte)
        elif value in self._commands:
            self._commands[value]()

    def _command_table(self) -> dict[int, Callable[[], None]]:
        return {
            0xA7: lambda: self._configure(Config.AUX_DISABLED, on=True),
            0xA8: lambda: self._configure(Config.AUX_DISABLED, on=False),
            0xA9: lambda: self._answer(0x01),  # test the mouse's lines: none is there
            0xAA: self._self_test,
            0xAB: lambda: self._answer(0x00),  # test the keyboard's lines: good
            0xAD: lambda: self._configure(Config.KEYBOARD_DISABLED, on=True),
            0xAE: lambda: self._configure(Config.KEYBOARD_DISABLED, on=False),
            0xC0: lambda: self._answer(0x80),  # the input port: keyboard not locked
            0xD0: lambda: self._answer(self._output_port()),
            0xD1: lambda: self._await(self._write_output_port),
            0xD2: lambda: self._await(self._answer),  # as if the keyboard had sent it
            0xD3: lambda: self._await(self._answer),  # the same for the mouse; with none, not marked so
            0xD4: lambda: self._await(self._aux),
            0xDD: lambda: self._gate_a20(enabled=False),
            0xDF: lambda: self._gate_a20(enabled=True),
            0xE0: lambda: self._answer(0x00),  # the test inputs
        }

    def _await(self, take: Callable[[int], None]) -> None:
        self._awaiting = take

    def _answer(self, value: int, status: int = 0) -> None:
        self._output, self._full = value, int(status | Status.OUTPUT_FULL)
        self._drive()

    def _keyboard(self, _value: int) -> None:
        self._configure(Config.KEYBOARD_DISABLED, on=False)  # writing to the keyboard enables it
        self._answer(_NO_ANSWER, Status.TIMEOUT)

    def _aux(self, _value: int) -> None:
        self._answer(_NO_ANSWER, Status.TIMEOUT | Status.AUX_OUTPUT_FULL)

    def _self_test(self) -> None:
        self._configure(Config.SYSTEM, on=True)
        self._answer(0x55)

    def _configure(self, bit: Config, *, on: bool) -> None:
        self._store(0, self._memory[0] | bit if on else self._memory[0] & ~int(bit))

    def _store(self, at: int, value: int) -> None:
        self._memory[at] = value
        self._drive()

    def _output_port(self) -> int:
        value = OutputPort.NOT_RESET | OutputPort.CLOCK | OutputPort.DATA
        if self._a20.enabled:
            value |= OutputPort.A20
        if self._full:
            value |= OutputPort.KEYBOARD_INTERRUPT
        return int(value)

    def _write_output_port(self, value: int) -> None:
        self._gate_a20(enabled=bool(value & OutputPort.A20))
        self._pulse(value)

    def _gate_a20(self, *, enabled: bool) -> None:
        self._a20.enabled = enabled

    def _pulse(self, lines: int) -> None:
        """Pull those of the output port's low lines down that are 0; bit 0 is the CPUs' reset."""
        if not lines & OutputPort.NOT_RESET:
            self._on_reset()

    def _drive(self) -> None:
        from_keyboard = self._full and not self._full & _AUX_FULL
        wanted = bool(from_keyboard and self._memory[0] & _KEYBOARD_INTERRUPT)
        if self._irq is not None and wanted != self._level:
            self._irq.set_level(wanted)
        self._level = wanted


class DataPort:
    """Port 0x60 of a keyboard controller."""

    def __init__(self, controller: I8042) -> None:
        self._controller = controller

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the next byte of the output buffer."""
        return bytes((self._controller.read_data(),)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Hand over a byte of data."""
        self._controller.write_data(data[0])


class CommandPort:
    """Port 0x64 of a keyboard controller."""

    def __init__(self, controller: I8042) -> None:
        self._controller = controller

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the status register."""
        return bytes((self._controller.read_status(),)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Hand over a command."""
        self._controller.write_command(data[0])


class SystemControlA:
    """Port 0x92: bit 1 gates A20, a rise of bit 0 resets the CPUs; the other bits are kept.

    Bit 0 stays set over the reset it causes, and is clear after a reset of the whole board: so a
    guest tells the two apart.
    """

    _RESET = 1 << 0
    _A20 = 1 << 1

    def __init__(self, on_reset: Callable[[], None], a20: A20Gate | None = None) -> None:
        self._on_reset = on_reset
        self._a20 = a20 or A20Gate()
        self._value = 0

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - there is one register
        """Answer the bits last written, with A20 as the gate has it now."""
        value = self._value & ~self._A20 | (self._A20 if self._a20.enabled else 0)
        return bytes((value,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - there is one register
        """Gate A20; reset if bit 0 was 0 and is 1."""
        before, self._value = self._value, data[0]
        self._a20.enabled = bool(data[0] & self._A20)
        if self._value & ~before & self._RESET:
            self._on_reset()
