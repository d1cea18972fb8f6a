r"""ACPI tables for a virtual board, made here: hardware-reduced, so there is nothing to program and probe.

::

    RSDP ──► XSDT ──► FADT ──► DSDT   \_SB: COM1, the panic port, virtio-mmio devices, power button; \_S5
                  └─► MADT            a local APIC for each vCPU, one IOAPIC with GSIs from 0

Source: ACPI specification 6.4: 5.2.5 RSDP, 5.2.8 XSDT, 5.2.9 FADT, 5.2.12 MADT, 4.8.3.7 sleep registers,
5.6.9 interrupt-signalled events. The ids LNRO0005 and QEMU0001 are those that Linux's drivers virtio_mmio and
pvpanic-mmio look for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pykvm import layout
from pykvm.boot import aml

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SLP_EN", "SLP_TYP_S5", "VirtioSlot", "acpi_tables", "checksum", "dsdt", "table"]

SLP_TYP_S5 = 5
SLP_EN = 1 << 5  # SLEEP_CONTROL_REG: go to sleep now; SLP_TYP stands in bits 2-4

_OEM = b"PYKVM "
_OEM_TABLE = b"PYKVM   "
_CREATOR = b"PYKV"
_RSDP_BYTES = 36
_ALIGN = 16

_FADT_BYTES = 276
_NO_VGA = 1 << 2  # IAPC_BOOT_ARCH; its bits for legacy devices and an i8042 stay 0: nobody probes them
_NO_RTC = 1 << 5  # the guest has kvmclock
_WBINVD = 1 << 0  # the FADT's flags
_POWER_BUTTON_IS_DEVICE = 1 << 4
_NO_SLEEP_BUTTON = 1 << 5
_RESET_REG_SUP = 1 << 10
_HW_REDUCED = 1 << 20
_RESET_VALUE = 0x06  # SYS_RST and RST_CPU of the reset control register

_ENABLED = 1
_LOCAL_APIC_MAX = 254  # above, ids need the x2APIC structure
_PRESENT = 0x0F  # _STA: present, enabled, shown, working
_PRESSED = 0x80


class VirtioSlot(NamedTuple):
    """Where one virtio-mmio device sits: its registers' gpas and its GSI."""

    where: range
    gsi: int


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the 36-byte header, its checksum set, and `body` (5.2.6)."""
    head = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1
    )
    whole = bytearray(head + body)
    whole[9] = checksum(whole)
    return bytes(whole)


def acpi_tables(at: int, *, vcpus: int, virtio: Sequence[VirtioSlot] = ()) -> bytes:
    """All tables as one piece for the gpa `at`, a multiple of 16; the RSDP comes first.

    The vCPUs have the APIC ids 0 to `vcpus` - 1.
    """
    out = bytearray(_RSDP_BYTES)

    def add(data: bytes) -> int:
        out.extend(bytes(-len(out) % _ALIGN))
        out.extend(data)
        return at + len(out) - len(data)

    fadt = add(_fadt(add(dsdt(virtio))))
    madt = add(_madt(vcpus))
    xsdt = add(table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    out[:_RSDP_BYTES] = _rsdp(xsdt)
    return bytes(out)


def _rsdp(xsdt: int) -> bytes:
    """Revision 2; the first checksum is for the 20 bytes that ACPI 1.0 knew."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, _RSDP_BYTES, xsdt, 0))
    rsdp[8] = checksum(rsdp[:20])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)


def _io_register(port: int) -> bytes:
    """A Generic Address Structure for one byte of I/O space (5.2.3.2)."""
    return struct.pack("<BBBBQ", 1, 8, 0, 1, port)


def _fadt(dsdt_gpa: int) -> bytes:
    fadt = bytearray(_FADT_BYTES - 36)

    def put(layout_: str, at: int, *values: object) -> None:
        struct.pack_into(layout_, fadt, at - 36, *values)  # offsets as in table 5.9

    flags = _WBINVD | _POWER_BUTTON_IS_DEVICE | _NO_SLEEP_BUTTON | _RESET_REG_SUP | _HW_REDUCED
    put("<I", 40, dsdt_gpa)
    put("<H", 109, _NO_VGA | _NO_RTC)
    put("<I", 112, flags)
    put("12s", 116, _io_register(layout.RESET_CONTROL.start))
    put("<B", 128, _RESET_VALUE)
    put("<B", 131, 4)  # the minor version: 6.4
    put("<Q", 140, dsdt_gpa)
    put("12s", 244, _io_register(layout.ACPI_SLEEP.start))
    put("12s", 256, _io_register(layout.ACPI_SLEEP.start + 1))
    put("8s", 268, b"PYKVM")
    return table(b"FACP", 6, bytes(fadt))


def _madt(vcpus: int) -> bytes:
    parts = [struct.pack("<II", layout.LOCAL_APIC, 0)]
    for number in range(vcpus):
        if number <= _LOCAL_APIC_MAX:
            parts.append(struct.pack("<BBBBI", 0, 8, number, number, _ENABLED))
        else:
            parts.append(struct.pack("<BBHIII", 9, 16, 0, number, _ENABLED, number))
    parts.append(struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0))
    parts.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # every CPU's LINT1 is its NMI
    return table(b"APIC", 5, b"".join(parts))


def dsdt(virtio: Sequence[VirtioSlot] = ()) -> bytes:
    """The DSDT: what sits on the board besides memory, CPUs and interrupt controllers."""
    devices = [
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(aml.io_ports(layout.COM1), aml.irq(layout.COM1_GSI))),
        ),
        aml.device(
            "PNIC",
            aml.name("_HID", aml.string("QEMU0001")),
            aml.name("_STA", aml.integer(_PRESENT)),
            aml.name("_CRS", aml.resources(aml.io_ports(layout.PANIC))),
        ),
        *(_virtio_device(number, slot) for number, slot in enumerate(virtio)),
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C"))),
        aml.device(
            "GED0",
            aml.name("_HID", aml.string("ACPI0013")),
            aml.name("_CRS", aml.resources(aml.interrupt(layout.ACPI_EVENT_GSI))),
            aml.method("_EVT", 1, aml.if_equal(layout.ACPI_EVENT_GSI, aml.notify("\\_SB.PWRB", _PRESSED))),
        ),
    ]
    s5 = aml.package(aml.integer(SLP_TYP_S5), aml.integer(0), aml.integer(0), aml.integer(0))
    return table(b"DSDT", 2, aml.name("\\_S5", s5) + aml.scope("\\_SB", *devices))


def _virtio_device(number: int, slot: VirtioSlot) -> bytes:
    return aml.device(
        f"V{number:03d}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.memory32(slot.where), aml.interrupt(slot.gsi))),
    )
