"""fw_cfg, QEMU's way to tell firmware about the board (docs/specs/fw_cfg): keys that hold bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FwCfg", "FwCfgKey", "board_items"]

_SELECTOR, _DATA = 0, 1
_WRITE_CHANNEL = 1 << 14  # asks to write the item; nothing is writable through the ports
_KEY_LIMIT = 1 << 16


class FwCfgKey(IntEnum):
    """The keys that every board has."""

    SIGNATURE = 0x00
    ID = 0x01
    RAM_SIZE = 0x03
    NB_CPUS = 0x05
    MAX_CPUS = 0x0F


def board_items(ram_bytes: int, cpus: int, max_cpus: int | None = None) -> dict[int, bytes]:
    """The items that every board has: signature, interface revision, RAM size in bytes, CPU counts.

    The revision says: selector and data port, no DMA. `max_cpus` is `cpus` unless given.
    """
    return {
        FwCfgKey.SIGNATURE: b"QEMU",
        FwCfgKey.ID: (1).to_bytes(4, "little"),
        FwCfgKey.RAM_SIZE: ram_bytes.to_bytes(8, "little"),
        FwCfgKey.NB_CPUS: cpus.to_bytes(2, "little"),
        FwCfgKey.MAX_CPUS: (cpus if max_cpus is None else max_cpus).to_bytes(2, "little"),
    }


class FwCfg:
    """A selector port (16 bits) and a data port behind it that reads out the selected item byte by byte.

    Behind an item's end, and for an unknown key, the bytes are 0. Selecting starts at the first
    byte again. Items can't be written.
    """

    def __init__(self, items: Mapping[int, bytes]) -> None:
        """`items` gives each key its bytes; `add` gives more. Raises ConfigError as `add` does."""
        self._items: dict[int, bytes] = {}
        self._item = b""
        self._at = 0
        for key, value in items.items():
            self.add(key, value)
        self._item = self._items.get(FwCfgKey.SIGNATURE, b"")

    def add(self, key: int, value: bytes) -> None:
        """Give `key` its bytes. Raises ConfigError if the key is taken or can't be selected."""
        if not 0 <= key < _KEY_LIMIT or key & _WRITE_CHANNEL:
            raise ConfigError(f"fw_cfg: {key:#x} is no key; keys have 16 bits and bit 14 clear")
        if key in self._items:
            raise ConfigError(f"fw_cfg: key {key:#x} is taken")
        self._items[int(key)] = bytes(value)

    def read(self, offset: int, size: int) -> bytes:
        """Answer the item's next bytes at the data port; the selector can't be read."""
        if offset != _DATA:
            return b"\xff" * size
        out = self._item[self._at : self._at + size]
        self._at += size
        return out.ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Select an item by a write of 16 bits to the selector; all else is ignored."""
        if offset == _SELECTOR and len(data) >= 2:
            key = int.from_bytes(data[:2], "little") & ~_WRITE_CHANNEL
            self._item = self._items.get(key, b"")
            self._at = 0
