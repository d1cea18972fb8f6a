"""The PC's serial port: a 16550A UART (National Semiconductor PC16550D datasheet).

Offsets, as the divisor latch bit (DLAB) of LCR and the direction have it::

    0  RBR read, THR write; DLL with DLAB     4  MCR
    1  IER; DLM with DLAB                     5  LSR (read only)
    2  IIR read, FCR write                    6  MSR (read only)
    3  LCR                                    7  SCR
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pykvm.devices.serial_registers import Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.irq import IrqLine

__all__ = ["Fcr", "Ier", "Iir", "Lcr", "Lsr", "Mcr", "Msr", "Serial"]

# The chip reckons with plain numbers: arithmetic on flags takes microseconds, an exit has three.
_LSR_OFFSET, _REGISTERS = 5, 8
_FIFO_BYTES = 16
_TRIGGERS = (1, 4, 8, 14)
_FIFOS_ON = 0xC0
_QUEUE_BYTES = 65_536
_DIVISOR_9600_BAUD = 12
_RECEIVED_DATA, _THR_EMPTY = int(Ier.RECEIVED_DATA), int(Ier.THR_EMPTY)
_LINE_STATUS, _MODEM_STATUS = int(Ier.LINE_STATUS), int(Ier.MODEM_STATUS)
_IIR_NONE, _IIR_THR_EMPTY = int(Iir.NONE), int(Iir.THR_EMPTY)
_IIR_RECEIVED_DATA, _IIR_TIMEOUT = int(Iir.RECEIVED_DATA), int(Iir.CHARACTER_TIMEOUT)
_IIR_LINE_STATUS, _IIR_MODEM_STATUS = int(Iir.LINE_STATUS), int(Iir.MODEM_STATUS)
_ENABLE, _CLEAR_RECEIVER = int(Fcr.ENABLE), int(Fcr.CLEAR_RECEIVER)
_DLAB = int(Lcr.DLAB)
_DTR, _RTS, _OUT1, _OUT2, _LOOP = (int(bit) for bit in Mcr)
_DATA_READY, _OVERRUN, _FIFO_ERROR = int(Lsr.DATA_READY), int(Lsr.OVERRUN), int(Lsr.FIFO_ERROR)
_TRANSMITTER_IDLE = int(Lsr.THR_EMPTY | Lsr.TRANSMITTER_EMPTY)
_ERRORS = int(Lsr.OVERRUN | Lsr.PARITY_ERROR | Lsr.FRAMING_ERROR | Lsr.BREAK)
_CTS, _DSR, _RI, _DCD = int(Msr.CTS), int(Msr.DSR), int(Msr.RI), int(Msr.DCD)
_LINES, _TRAILING_RI = _CTS | _DSR | _RI | _DCD, int(Msr.TRAILING_RI)
_DELTAS = int(Msr.DELTA_CTS | Msr.DELTA_DSR | Msr.DELTA_DCD)
_LOOPED = ((_RTS, _CTS), (_DTR, _DSR), (_OUT1, _RI), (_OUT2, _DCD))
_BYTES = [bytes((value,)) for value in range(256)]
_IDLE = _BYTES[_TRANSMITTER_IDLE]
# A character in the FIFO: bits 7-0 it, 15-8 its line status, 16 it came from outside (not looped).
_STATUS_SHIFT, _FROM_OUTSIDE = 8, 1 << 16
_BREAK = int(Lsr.BREAK) << _STATUS_SHIFT


class Serial:
    """A 16550A between a guest and a terminal, with a line that takes no time.

    What the guest sends is handed to `output` at once, so the transmitter is always empty.

    What the terminal sends (`receive`) waits in a queue and goes to the guest as its FIFO has room,
    so it never overruns. It goes only while the guest listens: with the received-data interrupt
    enabled, or once it has read LSR twice in a row (writing THR between does not count). And
    characters that the guest clears from the FIFO go back to the queue. So a driver that resets and tests
    its chip does not swallow what was typed ahead. The queue holds 64 KiB for a guest that ignores it;
    beyond that `receive` refuses, and the terminal keeps the rest.

    The FIFO is fed up to its trigger level, and the character time-out (fewer bytes than that) comes at
    once. So each read of RBR releases the interrupt line for a moment: on a PC's edge-triggered
    interrupt controller a handler that reads one character at a time sees the next one too.
    """

    def __init__(
        self,
        output: Callable[[bytes], None],
        irq: IrqLine | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        """`on_room` is called when the queue, after it refused input, is half empty again."""
        self._output = output
        self._irq = irq
        self._on_room = on_room
        self._level = False
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._divisor = _DIVISOR_9600_BAUD
        self._fifos_on = False
        self._trigger = 1
        self._fifo: deque[int] = deque()
        self._errors = 0  # LSR bits 4-1
        self._thre_pending = False
        self._modem = self._lines = _CTS | _DSR | _DCD  # MSR bits 7-4: as the guest sees them, as they are
        self._deltas = 0  # MSR bits 3-0
        self._queue: deque[int] = deque()
        self._refused = False
        self._listening = self._has_listened = False
        self._lsr_was_read = False
        self._sends_directly = True  # a byte written to offset 0 does nothing but go out
        self._idle = True  # LSR reads as after a reset, and reading it changes nothing
        self._readers = (
            *(self._read_rbr, self._read_ier, self._read_iir, lambda: self._lcr),
            *(lambda: self._mcr, self._read_lsr, self._read_msr, lambda: self._scr),
        )
        self._writers = (
            *(self._write_thr, self._write_ier, self._write_fcr, self._write_lcr),
            *(self._write_mcr, _ignore, _ignore, self._write_scr),
        )

    # The bus's side

    def read(self, offset: int, size: int) -> bytes:
        """Answer the register, or several registers to a wide access."""
        if offset == _LSR_OFFSET and self._idle and size == 1:
            return _IDLE
        if size == 1:
            return _BYTES[self._read_register(offset)]
        return bytes(map(self._read_register, range(offset, offset + size)))

    def write(self, offset: int, data: bytes) -> None:
        """Set the register, or several registers by a wide access."""
        if offset == 0 and self._sends_directly and len(data) == 1:
            self._output(data)
            return
        for at, value in enumerate(data, start=offset):
            if at < _REGISTERS:
                self._lsr_was_read &= at == 0
                self._writers[at](value)
                self._settle()

    # The terminal's side

    @property
    def room(self) -> int:
        """How many bytes `receive` takes now."""
        return max(_QUEUE_BYTES - len(self._queue), 0)

    @property
    def is_listening(self) -> bool:
        """Whether the guest has ever shown interest in input: a driver may mask its interrupts at times."""
        return self._has_listened

    def receive(self, data: bytes) -> int:
        """Take input from the terminal. Answers how many bytes were taken: fewer if the queue is full."""
        taken = min(len(data), self.room)
        self._refused |= taken < len(data)
        self._queue.extend(data[:taken])
        self._arrived()
        return taken

    def hand_over(self) -> bytes:
        """Everything that waits for the guest, which reads its console in another way; nothing waits then."""
        waiting = bytes(character & 0xFF for character in self._queue)
        self._queue.clear()
        return waiting

    def receive_break(self) -> None:
        """Take a break condition from the terminal: a NUL with Lsr.BREAK. Nothing if the queue is full."""
        if self.room:
            self._queue.append(_BREAK)
            self._arrived()

    def set_modem_lines(self, lines: Msr) -> None:
        """Drive the lines from the other end: CTS, DSR, RI, DCD. At power-on all but RI are asserted."""
        self._lines = int(lines) & _LINES
        self._update_modem()
        self._settle()

    # Reading

    def _read_register(self, at: int) -> int:
        if at >= _REGISTERS:
            return 0xFF
        value = self._readers[at]()
        self._lsr_was_read = at == _LSR_OFFSET
        self._settle()
        return value

    def _read_rbr(self) -> int:
        if self._lcr & _DLAB:
            return self._divisor & 0xFF
        if not self._fifo:
            return 0
        character = self._fifo.popleft()
        self._show_errors_of_first()
        self._drive(timed_out=False)
        return character & 0xFF

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & _DLAB else self._ier

    def _read_iir(self) -> int:
        source = self._interrupt()
        if source == _IIR_THR_EMPTY:
            self._thre_pending = False
        return source | (_FIFOS_ON if self._fifos_on else 0)

    def _read_lsr(self) -> int:
        if self._queue and self._lsr_was_read and not self._mcr & _LOOP:
            self._listening = self._has_listened = True
            self._feed()
        value = _TRANSMITTER_IDLE | self._errors
        if self._fifo:
            value |= _DATA_READY
            if self._fifos_on and any(character >> _STATUS_SHIFT & _ERRORS for character in self._fifo):
                value |= _FIFO_ERROR
            self._fifo[0] &= ~(_ERRORS << _STATUS_SHIFT)
        self._errors = 0
        return value

    def _read_msr(self) -> int:
        value = self._modem | self._deltas
        self._deltas = 0
        return value

    # Writing

    def _write_thr(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & _LOOP:
            self._loop(value)
        else:
            self._output(_BYTES[value])
        # The register was full for a moment: an edge-triggered interrupt controller sees it empty anew.
        self._thre_pending = False
        self._drive()
        self._thre_pending = True

    def _write_ier(self, value: int) -> None:
        if self._lcr & _DLAB:
            self._divisor = value << 8 | self._divisor & 0xFF
            return
        if value & ~self._ier & _THR_EMPTY:
            self._thre_pending = True
        self._ier = value & 0x0F
        self._listening = bool(value & _RECEIVED_DATA)
        self._has_listened |= self._listening

    def _write_fcr(self, value: int) -> None:
        turned_on = bool(value & _ENABLE)
        if turned_on != self._fifos_on or (turned_on and value & _CLEAR_RECEIVER):
            self._clear_fifo()
        self._fifos_on = turned_on
        self._trigger = _TRIGGERS[value >> 6] if turned_on else 1

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        self._update_modem()

    def _write_scr(self, value: int) -> None:
        self._scr = value

    # Receiver

    def _arrived(self) -> None:
        self._lsr_was_read = False  # only looks that could have seen the new input count
        self._settle()

    def _feed(self) -> None:
        """Move characters from the queue to the FIFO, up to the trigger level (RBR alone: 1)."""
        if not self._queue or not self._listening or self._mcr & _LOOP:
            return
        for _ in range(min(self._trigger - len(self._fifo), len(self._queue))):
            self._fifo.append(self._queue.popleft() | _FROM_OUTSIDE)
            if len(self._fifo) == 1:
                self._show_errors_of_first()
        if self._refused and len(self._queue) <= _QUEUE_BYTES // 2:
            self._refused = False
            if self._on_room is not None:
                self._on_room()

    def _loop(self, value: int) -> None:
        """Receive what was sent. With no room, a FIFO keeps what it has and RBR takes the new byte."""
        if len(self._fifo) < (_FIFO_BYTES if self._fifos_on else 1):
            self._fifo.append(value)
            return
        self._errors |= _OVERRUN
        if not self._fifos_on:
            self._fifo[0] = value

    def _clear_fifo(self) -> None:
        typed = [character & ~_FROM_OUTSIDE for character in self._fifo if character & _FROM_OUTSIDE]
        self._queue.extendleft(reversed(typed))
        self._fifo.clear()
        self._listening = bool(self._ier & _RECEIVED_DATA)

    def _show_errors_of_first(self) -> None:
        if self._fifo:
            self._errors |= self._fifo[0] >> _STATUS_SHIFT & _ERRORS

    # Modem and interrupt lines

    def _update_modem(self) -> None:
        mcr, before = self._mcr, self._modem
        if mcr & _LOOP:
            self._modem = sum(line for output, line in _LOOPED if mcr & output)
        else:
            self._modem = self._lines
        self._deltas |= (before ^ self._modem) >> 4 & _DELTAS
        if before & ~self._modem & _RI:
            self._deltas |= _TRAILING_RI

    def _interrupt(self, *, timed_out: bool = True) -> int:
        """The pending interrupt of the highest priority."""
        enabled = self._ier
        if enabled & _LINE_STATUS and self._errors:
            return _IIR_LINE_STATUS
        if enabled & _RECEIVED_DATA and len(self._fifo) >= self._trigger:
            return _IIR_RECEIVED_DATA
        if enabled & _RECEIVED_DATA and self._fifo and timed_out:
            return _IIR_TIMEOUT
        if enabled & _THR_EMPTY and self._thre_pending:
            return _IIR_THR_EMPTY
        if enabled & _MODEM_STATUS and self._deltas:
            return _IIR_MODEM_STATUS
        return _IIR_NONE

    def _drive(self, *, timed_out: bool = True) -> None:
        """Drive the interrupt line; OUT2 lets it through, loopback turns OUT2 off."""
        level = self._mcr & (_OUT2 | _LOOP) == _OUT2 and self._interrupt(timed_out=timed_out) != _IIR_NONE
        if level != self._level:
            self._level = level
            if self._irq is not None:
                self._irq.set_level(level)

    def _settle(self) -> None:
        """After a change: feed the receiver, drive the line, see which short paths are open."""
        self._feed()
        self._drive()
        self._sends_directly = not (self._lcr & _DLAB or self._mcr & _LOOP or self._ier & _THR_EMPTY)
        self._idle = not (self._fifo or self._queue or self._errors)


def _ignore(_value: int) -> None:
    """LSR and MSR are read only."""
