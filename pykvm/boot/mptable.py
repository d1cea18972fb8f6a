"""The MP table: CPUs, the IOAPIC and the ISA interrupts, for guests that do not read ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

import struct

from pykvm import layout
from pykvm.boot.acpi import checksum

__all__ = ["mp_table"]

_VERSION = 4
_POINTER_BYTES = 16
_CPU_ENABLED, _CPU_BOOTS = 1, 2
_APIC_VERSION = 0x14
_IOAPIC_VERSION = 0x11
_INT, _NMI, _EXT_INT = 0, 1, 3
_ALL_APICS = 0xFF
_ISA_LINES = 16
_MOST_CPUS = 254  # ids are bytes; 255 is everybody, and the IOAPIC needs one


def mp_table(at: int, *, vcpus: int) -> bytes:
    """The floating pointer, and the configuration table behind it, for the gpa `at`, a multiple of 16.

    It has the first 254 vCPUs.
    """
    cpus = min(vcpus, _MOST_CPUS)
    entries = [
        struct.pack(
            "<BBBBII8x", 0, cpu, _APIC_VERSION, _CPU_ENABLED | (0 if cpu else _CPU_BOOTS), 0x600, 0x201
        )
        for cpu in range(cpus)
    ]
    entries.append(struct.pack("<BB6s", 1, 0, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, cpus, _IOAPIC_VERSION, 1, layout.IOAPIC))
    entries += [struct.pack("<BBHBBBB", 3, _INT, 0, 0, line, cpus, line) for line in range(_ISA_LINES)]
    entries.append(struct.pack("<BBHBBBB", 4, _EXT_INT, 0, 0, 0, 0, 0))
    entries.append(struct.pack("<BBHBBBB", 4, _NMI, 0, 0, 0, _ALL_APICS, 1))
    body = b"".join(entries)
    head = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        *(b"PCMP", 44 + len(body), _VERSION, 0, b"PYKVM   ", b"VIRTUAL BRD ", 0, 0),
        *(len(entries), layout.LOCAL_APIC, 0, 0, 0),
    )
    table = bytearray(head + body)
    table[7] = checksum(table)
    pointer = bytearray(struct.pack("<4sIBBB5x", b"_MP_", at + _POINTER_BYTES, 1, _VERSION, 0))
    pointer[10] = checksum(pointer)
    return bytes(pointer + table)
