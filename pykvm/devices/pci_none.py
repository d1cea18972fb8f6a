"""A PCI bus with nothing on it: configuration mechanism 1 that finds no device.

A guest that looks for PCI devices reads all ones and goes on. Source: PCI Local Bus Specification 3.0,
section 3.2.2.3.2, "Software Generation of Configuration Transactions".
"""

from __future__ import annotations

__all__ = ["NoPci", "NoPciData"]

_ADDRESS_BYTES = 4


class NoPci:
    """CONFIG_ADDRESS keeps what a 4-byte write puts there; every other read answers all ones."""

    def __init__(self) -> None:
        self._address = bytes(_ADDRESS_BYTES)

    def read(self, offset: int, size: int) -> bytes:
        """Answer the address register to a whole read of it, and "no such device" to all others."""
        if offset == 0 and size == _ADDRESS_BYTES:
            return self._address
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Keep a whole address; writes to a device that is not there are lost."""
        if offset == 0 and len(data) == _ADDRESS_BYTES:
            self._address = data


class NoPciData:
    """CONFIG_DATA, behind which no device is, whatever the address says."""

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - as everywhere
        """Answer "no such device"."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Nobody takes it."""
