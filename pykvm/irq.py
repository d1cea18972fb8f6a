"""One interrupt line of a machine."""

from __future__ import annotations

from typing import Protocol

__all__ = ["IrqLine"]


class IrqLine(Protocol):
    """One GSI. What a device is given to ask for attention; it never learns the number."""

    def set_level(self, level: bool) -> None:
        """Drive the line high (asserted) or low."""
        ...
