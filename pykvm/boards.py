"""Boards: which devices sit where. A board is a function that attaches them to a machine's two buses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.devices.acpi_sleep import AcpiSleep
from pykvm.devices.debug_console import DebugConsole
from pykvm.devices.debug_exit import DebugExit, PlainExit
from pykvm.devices.fw_cfg import FwCfg, board_items
from pykvm.devices.i8042 import I8042, A20Gate, SystemControlA
from pykvm.devices.mmio_console import MmioConsole
from pykvm.devices.panic import Panic, PanicEvent
from pykvm.devices.pci_none import NoPci, NoPciData
from pykvm.devices.post import PostCode
from pykvm.devices.reset import ResetControl
from pykvm.devices.rtc import Rtc
from pykvm.devices.serial import Serial
from pykvm.devices.testdev import IoMemory, IrqLines, PageFlush, TestLatch
from pykvm.errors import ConfigError
from pykvm.result import EndReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.bus import Bus
    from pykvm.irq import IrqLine
    from pykvm.memory import GuestMemory
    from pykvm.timers import DeviceTimers

__all__ = ["BOARDS", "Board", "attach_board"]


class Board(NamedTuple):
    """What a board is built from.

    `irq_line` gives None for every GSI where there is no irqchip; `attach_calls` attaches the devices that
    take hypercalls.
    """

    ports: Bus
    mmio: Bus
    memory: GuestMemory
    vcpus: int
    max_vcpus: int
    output: Callable[[bytes], None]
    irq_line: Callable[[int], IrqLine | None]
    timers: DeviceTimers
    end: Callable[[EndReason, int | None, str], None]
    mark: Callable[[int], None]
    flush_page: Callable[[int], None]
    attach_calls: Callable[[], None]

    def attach_common(self) -> Serial:
        """The devices of every board; its serial port comes back, to be given the terminal's input."""
        serial = Serial(self.output, self.irq_line(layout.COM1_GSI))
        a20 = A20Gate()
        i8042 = I8042(lambda: self._reset("keyboard controller"), a20, self.irq_line(layout.I8042_GSI))
        ram = self.memory.size_bytes
        low = min(ram, layout.HOLE.start)
        rtc = Rtc(
            irq=self.irq_line(layout.RTC_GSI),
            low_memory_bytes=low,
            high_memory_bytes=ram - low,
            changed=self.timers.look,
        )
        self.timers.add(rtc)
        attach = self.ports.attach
        attach(layout.COM1, serial)
        attach(layout.CMOS, rtc)
        attach(layout.I8042_DATA, i8042.data_port)
        attach(layout.I8042_COMMAND, i8042.command_port)
        attach(layout.SYSTEM_CONTROL_A, SystemControlA(lambda: self._reset("port 0x92"), a20))
        attach(layout.RESET_CONTROL, ResetControl(lambda hard: self._reset("hard" if hard else "soft")))
        attach(layout.POST, PostCode(self.mark))
        attach(layout.DEBUG_EXIT, DebugExit(self._exit))
        attach(layout.PLAIN_EXIT, PlainExit(self._exit))
        attach(layout.PANIC, Panic(self._panic))
        return serial

    def attach_pykvm(self) -> Serial:
        """pykvm's own board: the common devices, a debug console, one in memory, hypercalls."""
        serial = self.attach_common()
        self.ports.attach(layout.DEBUG_CONSOLE, DebugConsole(self.output))
        self.mmio.attach(layout.MMIO_CONSOLE, MmioConsole(self.output))
        self.attach_calls()
        return serial

    def attach_linux(self) -> Serial:
        """The board that ACPI tables of ours describe: pykvm's own, a way to switch it off, no PCI."""
        serial = self.attach_pykvm()
        self.ports.attach(layout.PCI_CONFIG_ADDRESS, NoPci())
        self.ports.attach(layout.PCI_CONFIG_DATA, NoPciData())
        self.ports.attach(layout.ACPI_SLEEP, AcpiSleep(lambda: self.end(EndReason.POWER_OFF, None, "")))
        return serial

    def attach_testdev(self) -> Serial:
        """The board that KVM developers' test kernels expect: isa-debug-exit, fw_cfg, and the test device."""
        serial = self.attach_common()
        self.ports.attach(
            layout.FW_CFG, FwCfg(board_items(self.memory.size_bytes, self.vcpus, self.max_vcpus))
        )
        self.ports.attach(layout.PCI_CONFIG_ADDRESS, NoPci())
        self.ports.attach(layout.PCI_CONFIG_DATA, NoPciData())
        latch = TestLatch()
        self.ports.attach(layout.TESTDEV_LATCH, latch)
        self.ports.attach(layout.TESTDEV_LATCH_BYTES, latch)
        self.ports.attach(layout.TESTDEV_FLUSH, PageFlush(self.flush_page))
        self.ports.attach(layout.TESTDEV_IRQ, IrqLines(self._test_line))
        self.mmio.attach(layout.TESTDEV_IOMEM, IoMemory(len(layout.TESTDEV_IOMEM)))
        return serial

    def _test_line(self, gsi: int) -> IrqLine:
        line = self.irq_line(gsi)
        if line is None:
            raise ConfigError("the testdev board needs an irqchip")
        return line

    def _exit(self, code: int) -> None:
        self.end(EndReason.EXIT, code, "")

    def _reset(self, how: str) -> None:
        self.end(EndReason.RESET, None, how)

    def _panic(self, event: PanicEvent) -> None:
        if event & PanicEvent.PANICKED:  # a crash kernel that was loaded goes on by itself
            self.end(EndReason.PANIC, None, "the guest wrote to the panic port")


BOARDS: dict[str, Callable[[Board], Serial]] = {
    "pykvm": Board.attach_pykvm,
    "linux": Board.attach_linux,
    "testdev": Board.attach_testdev,
}


def attach_board(name: str, board: Board) -> Serial:
    """Attach the devices of the board called `name`; its serial port. Raises ConfigError if unknown."""
    if name not in BOARDS:
        raise ConfigError(f"there is no board {name!r}; there are {', '.join(BOARDS)}")
    return BOARDS[name](board)
