"""The empty PCI bus answers like hardware without devices."""

from __future__ import annotations

from pykvm.devices.pci_none import NoPci, NoPciData


def test_the_address_register_reads_back_whole_writes() -> None:
    """That a guest's probe for configuration mechanism 1 succeeds."""
    bus = NoPci()
    bus.write(0, (0x80000000).to_bytes(4, "little"))
    assert bus.read(0, 4) == b"\x00\x00\x00\x80"
    bus.write(0, b"\x12")
    assert bus.read(0, 4) == b"\x00\x00\x00\x80"


def test_every_device_is_absent() -> None:
    """A vendor id of all ones, in all widths."""
    bus = NoPci()
    assert [bus.read(0, size) for size in (1, 2)] == [b"\xff", b"\xff\xff"]
    assert bus.read(4, 4) == b"\xff" * 4


def test_no_device_is_behind_the_data_port() -> None:
    """All ones for every access, also a whole one at its beginning, and after writes."""
    data = NoPciData()
    data.write(0, bytes(4))
    assert [data.read(offset, size) for offset, size in ((0, 4), (2, 2), (3, 1))] == [
        *(b"\xff" * 4, b"\xff" * 2, b"\xff"),
    ]
