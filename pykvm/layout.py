"""The guest's address and port map: drawn first, then named. No other file holds an address literal.

Guest-physical memory::

    0x0000_0000  real-mode vectors, BIOS data area
    0x0000_7c00  a boot sector is loaded here
    0x0000_8000  flat real-mode images are loaded here
    0x0009_0000  BOOT: descriptor tables, page tables, boot information (64 KiB, see below)
    0x000a_0000  end of low memory; the legacy hole up to 1 MiB is plain RAM unless a device sits there
    0x000f_0000  the firmware's 64 KiB, when there is a firmware
    0x0010_0000  flat 32-bit and 64-bit images and most ELF files are loaded here
    0xc000_0000  the hole: MMIO below 4 GiB; RAM goes on at 4 GiB
    0xd000_0000      MMIO devices of pykvm's own board
    0xfec0_0000      IOAPIC (in the kernel)
    0xfee0_0000      local APIC (in the kernel)
    0xfeff_c000      identity-map page and TSS that Intel's KVM asks for
    0xff00_0000      64 KiB of RAM-like MMIO on the testdev board
    0xffff_0000      the firmware again: the reset vector is at 0xffff_fff0
    0x1_0000_0000  the rest of RAM

BOOT, at 0x90000, or in the last 64 KiB of RAM where there is less than 640 KiB of it::

    +0x0000  GDT          +0x2000  PML4           +0x8000  boot information (multiboot, …)
    +0x0800  TSS          +0x3000  PDPT           +0xc000  command line
    +0x1000  IDT          +0x4000  4 page directories: 4 GiB identity-mapped in 2 MiB pages
"""

from __future__ import annotations

__all__ = [
    "BOOT",
    "BOOT_SECTOR",
    "BOOT_SIZE_BYTES",
    "CMOS",
    "COM1",
    "COM1_GSI",
    "DEBUG_CONSOLE",
    "DEBUG_EXIT",
    "FIRMWARE_HIGH_END",
    "FIRMWARE_LOW",
    "FIRMWARE_SIZE_BYTES",
    "FLAT_HIGH",
    "FLAT_REAL",
    "FOUR_GIB",
    "HOLE",
    "HYPERCALL",
    "I8042_COMMAND",
    "I8042_DATA",
    "IDENTITY_MAP",
    "LEGACY_END",
    "LOW_END",
    "MMIO_DEVICES",
    "PANIC",
    "PLAIN_EXIT",
    "POST",
    "RESET_CONTROL",
    "RESET_VECTOR",
    "RTC_GSI",
    "SYSTEM_CONTROL_A",
    "TSS",
]

# Guest-physical addresses
BOOT_SECTOR = 0x7C00
FLAT_REAL = 0x8000
BOOT = 0x9_0000
BOOT_SIZE_BYTES = 0x1_0000
LOW_END = 0xA_0000
FIRMWARE_LOW = 0xF_0000
FIRMWARE_SIZE_BYTES = 0x1_0000
LEGACY_END = 0x10_0000
FLAT_HIGH = 0x10_0000
FOUR_GIB = 1 << 32
HOLE = range(0xC000_0000, FOUR_GIB)
MMIO_DEVICES = range(0xD000_0000, 0xE000_0000)
IDENTITY_MAP = 0xFEFF_C000
TSS = 0xFEFF_D000
FIRMWARE_HIGH_END = FOUR_GIB
RESET_VECTOR = 0xFFFF_FFF0

# I/O ports
I8042_DATA = range(0x60, 0x61)
I8042_COMMAND = range(0x64, 0x65)
CMOS = range(0x70, 0x72)
POST = range(0x80, 0x81)
SYSTEM_CONTROL_A = range(0x92, 0x93)
DEBUG_CONSOLE = range(0xE9, 0xEA)
DEBUG_EXIT = range(0xF4, 0xF8)  # isa-debug-exit: the guest's value v ends the run with (v << 1) | 1
COM1 = range(0x3F8, 0x400)
PLAIN_EXIT = range(0x500, 0x504)  # the guest's value is the exit code, as it is
PANIC = range(0x505, 0x506)  # pvpanic: the guest says that it has crashed
HYPERCALL = range(0x510C, 0x5110)  # the gpa of a hypercall's arguments
RESET_CONTROL = range(0xCF9, 0xCFA)

# Interrupt lines
COM1_GSI = 4
RTC_GSI = 8
