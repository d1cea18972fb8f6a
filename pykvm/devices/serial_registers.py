"""The registers of a 16550A UART, with the names of National Semiconductor's PC16550D datasheet."""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = ["Fcr", "Ier", "Iir", "Lcr", "Lsr", "Mcr", "Msr"]


class Ier(IntFlag):
    """Interrupt enable register."""

    RECEIVED_DATA = 1 << 0
    THR_EMPTY = 1 << 1
    LINE_STATUS = 1 << 2
    MODEM_STATUS = 1 << 3


class Iir(IntEnum):
    """Interrupt identification register, bits 3-0; bits 7-6 are set while the FIFOs are on."""

    MODEM_STATUS = 0x0
    NONE = 0x1
    THR_EMPTY = 0x2
    RECEIVED_DATA = 0x4
    LINE_STATUS = 0x6
    CHARACTER_TIMEOUT = 0xC


class Fcr(IntFlag):
    """FIFO control register."""

    ENABLE = 1 << 0
    CLEAR_RECEIVER = 1 << 1
    CLEAR_TRANSMITTER = 1 << 2
    DMA_MODE = 1 << 3
    TRIGGER = 3 << 6  # 1, 4, 8 or 14 bytes


class Lcr(IntFlag):
    """Line control register. Of these only DLAB has an effect here: characters pass whole."""

    WORD_LENGTH = 3 << 0
    STOP_BITS = 1 << 2
    PARITY = 1 << 3
    EVEN_PARITY = 1 << 4
    STICK_PARITY = 1 << 5
    BREAK = 1 << 6
    DLAB = 1 << 7


class Mcr(IntFlag):
    """Modem control register."""

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3  # on a PC: lets the interrupt line through
    LOOP = 1 << 4


class Lsr(IntFlag):
    """Line status register."""

    DATA_READY = 1 << 0
    OVERRUN = 1 << 1
    PARITY_ERROR = 1 << 2
    FRAMING_ERROR = 1 << 3
    BREAK = 1 << 4
    THR_EMPTY = 1 << 5
    TRANSMITTER_EMPTY = 1 << 6
    FIFO_ERROR = 1 << 7


class Msr(IntFlag):
    """Modem status register."""

    DELTA_CTS = 1 << 0
    DELTA_DSR = 1 << 1
    TRAILING_RI = 1 << 2
    DELTA_DCD = 1 << 3
    CTS = 1 << 4
    DSR = 1 << 5
    RI = 1 << 6
    DCD = 1 << 7
