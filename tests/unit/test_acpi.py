"""The firmware tables that a Linux guest reads: parsed back here by what the specifications say."""

from __future__ import annotations

import struct

import pytest

from pykvm import layout
from pykvm.boot import aml
from pykvm.boot.acpi import SLP_EN, SLP_TYP_S5, VirtioSlot, acpi_tables, dsdt
from pykvm.boot.mptable import mp_table
from pykvm.boot.placement import Platform, _write_tables
from pykvm.devices.acpi_sleep import AcpiSleep
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory

AT = layout.ACPI_TABLES.start


def found(blob: bytes, gpa: int) -> bytes:
    """The table at `gpa`, its checksum looked at."""
    (size,) = struct.unpack_from("<I", blob, gpa - AT + 4)
    table = blob[gpa - AT :][:size]
    assert len(table) == size
    assert sum(table) & 0xFF == 0
    return table


def by_signature(blob: bytes) -> dict[bytes, bytes]:
    """The tables that can be reached from the RSDP."""
    signature, _, _, revision, _, size, xsdt_at, _ = struct.unpack_from("<8sB6sBIIQB", blob)
    assert (signature, revision, size) == (b"RSD PTR ", 2, 36)
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0
    xsdt = found(blob, xsdt_at)
    entries = struct.unpack_from(f"<{(len(xsdt) - 36) // 8}Q", xsdt, 36)
    tables = {table[:4]: table for table in (found(blob, at) for at in entries)}
    (dsdt_at,) = struct.unpack_from("<Q", tables[b"FACP"], 140)
    assert struct.unpack_from("<I", tables[b"FACP"], 40) == (dsdt_at,)
    return tables | {b"XSDT": xsdt, b"DSDT": found(blob, dsdt_at)}


@pytest.mark.parametrize("vcpus", [1, 2, 300])
def test_every_table_is_found_and_sums_to_zero(vcpus: int) -> None:
    """From the RSDP to the DSDT; the MADT has each CPU once, the later ones as x2APICs."""
    tables = by_signature(acpi_tables(AT, vcpus=vcpus))
    assert set(tables) == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    assert len(tables[b"FACP"]) == 276
    (flags,) = struct.unpack_from("<I", tables[b"FACP"], 112)
    assert flags >> 20 & 1, "hardware-reduced"
    madt, at, ids, kinds = tables[b"APIC"], 44, [], []
    while at < len(madt):
        kind, size = madt[at], madt[at + 1]
        kinds.append(kind)
        if kind == 0:
            ids.append(madt[at + 3])
        elif kind == 9:
            ids.append(struct.unpack_from("<I", madt, at + 4)[0])
        elif kind == 1:
            assert struct.unpack_from("<II", madt, at + 4) == (layout.IOAPIC, 0)
        at += size
    assert at == len(madt)
    assert ids == list(range(vcpus))
    assert kinds.count(1) == 1


def test_registers_of_the_fadt_are_those_of_the_board() -> None:
    """The reset register and the sleep registers; SLP_TYP of S5 switches the board off, others do nothing."""
    fadt = by_signature(acpi_tables(AT, vcpus=1))[b"FACP"]
    ports = [struct.unpack_from("<BBBBQ", fadt, at) for at in (116, 244, 256)]
    sleep = layout.ACPI_SLEEP.start
    assert [(p[0], p[1], p[4]) for p in ports] == [(1, 8, 0xCF9), (1, 8, sleep), (1, 8, sleep + 1)]
    off: list[bool] = []
    device = AcpiSleep(lambda: off.append(True))
    for value in (SLP_TYP_S5 << 2, SLP_EN, SLP_EN | 3 << 2):
        device.write(0, bytes([value]))
    device.write(1, bytes([SLP_EN | SLP_TYP_S5 << 2]))
    assert (off, device.read(0, 4)) == ([], bytes(4))
    device.write(0, bytes([SLP_EN | SLP_TYP_S5 << 2]))
    assert off == [True]


def test_the_dsdt_names_each_virtio_device_with_its_memory_and_interrupt() -> None:
    """LNRO0005, Memory32Fixed and an edge-triggered GSI for each; none without devices."""
    slots = [VirtioSlot(range(0xD010_0000 + n * 4096, 0xD010_1000 + n * 4096), 16 + n) for n in range(3)]
    table = dsdt(slots)
    assert table.count(b"LNRO0005") == 3
    assert b"LNRO0005" not in dsdt()
    for slot in slots:
        memory = struct.pack("<BHBII", 0x86, 9, 1, slot.where.start, 4096)
        assert memory + struct.pack("<BHBBI", 0x89, 6, 3, 1, slot.gsi) in table


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, b"\x01"), (62, b"\x3f"), (63, b"\x41\x04"), (4093, b"\x4f\xff"), (4094, b"\x81\x00\x01")],
)
def test_package_lengths_at_their_borders(size: int, head: bytes) -> None:
    """PkgLength counts itself; one byte to 63, two to 4095, then three."""
    assert aml._length(bytes(size)) == head


def test_names_and_integers_of_aml() -> None:
    """Shortest constants, padded names, EISA ids; what can't be is refused."""
    assert [aml.integer(n)[:1] for n in (0, 1, 2, 256, 1 << 16, 1 << 32)] == [
        *(b"\0", b"\1", b"\x0a", b"\x0b", b"\x0c", b"\x0e")
    ]
    assert aml.path("\\_S5") == b"\\_S5_"
    assert aml.path("\\_SB.PWRB") == b"\\\x2e_SB_PWRB"
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c41d00501")
    for bad in ("", "TOOLONG", "a", "A-B"):
        with pytest.raises(ValueError, match="no name"):
            aml.path(bad)
    with pytest.raises(ValueError, match="does not fit"):
        aml.integer(1 << 64)


def test_the_mp_table_has_every_cpu_and_the_isa_interrupts() -> None:
    """The floating pointer leads to a table whose entries are those that it counts."""
    blob = mp_table(0xF_0000, vcpus=3)
    signature, at, size, _, _ = struct.unpack_from("<4sIBBB", blob)
    assert (signature, at, size) == (b"_MP_", 0xF_0010, 1)
    table = blob[16:]
    assert sum(blob[:16]) & 0xFF == sum(table) & 0xFF == 0
    length, count = struct.unpack_from("<H", table, 4)[0], struct.unpack_from("<H", table, 34)[0]
    assert (table[:4], length) == (b"PCMP", len(table))
    kinds, at = [], 44
    while at < len(table):
        kinds.append(table[at])
        at += 20 if table[at] == 0 else 8
    assert (kinds.count(0), kinds.count(2), kinds.count(3), len(kinds)) == (3, 1, 16, count)
    assert [table[44 + 20 * n + 1] for n in range(3)] == [0, 1, 2]
    assert [table[44 + 20 * n + 3] for n in range(3)] == [3, 1, 1]


def test_too_many_cpus_for_the_tables_room_are_refused() -> None:
    """One line, and nothing is written over what follows."""
    with GuestMemory(2 << 20) as memory, pytest.raises(ConfigError, match="give fewer"):
        _write_tables(memory, Platform(vcpus=5000))
