"""The sleep registers of hardware-reduced ACPI (ACPI specification 6.4, 4.8.3.7): the way to switch off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AcpiSleep"]

_SLP_EN = 1 << 5
_SLP_TYP = 0x7
_S5 = 5
_CONTROL = 0


class AcpiSleep:
    """SLEEP_CONTROL_REG at offset 0 and SLEEP_STATUS_REG at 1; entering S5 calls `on_power_off`.

    S5 is the one sleep state there is: other types are ignored. Nothing ever wakes up, so the status reads 0.
    """

    def __init__(self, on_power_off: Callable[[], None]) -> None:
        self._on_power_off = on_power_off

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - both registers read 0
        """Answer 0."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Switch off if SLP_EN comes with the type of S5."""
        if offset == _CONTROL and data[0] & _SLP_EN and data[0] >> 2 & _SLP_TYP == _S5:
            self._on_power_off()
