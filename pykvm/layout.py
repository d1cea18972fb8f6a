"""The guest's address and port map: drawn first, then named. No other file holds an address literal.

Guest-physical memory::

    0x0000_0000  real-mode vectors, BIOS data area
    0x0000_7c00  a boot sector is loaded here
    0x0000_8000  flat real-mode images are loaded here
    0x0009_0000  BOOT: descriptor tables, page tables, boot information (64 KiB, see below)
    0x000a_0000  end of low memory; the legacy hole up to 1 MiB is plain RAM unless a device sits there
    0x000e_0000  ACPI tables, 64 KiB, for Linux
    0x000f_0000  the firmware's 64 KiB, when there is a firmware; for Linux the MP table
    0x0010_0000  flat 32-bit and 64-bit images and most ELF files are loaded here
    0xc000_0000  the hole: MMIO below 4 GiB; RAM goes on at 4 GiB
    0xd000_0000      MMIO devices of pykvm's own board: a console of 16 bytes, …
    0xd000_1000      hypercalls by a store
    0xd010_0000      virtio-mmio devices, a page each
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

I/O ports; those in brackets sit on the testdev board alone, where 0xe8-0xeb takes the place of 0xe9::

    0x0060 0x0064  i8042              [0x00e0-0x00e3  latch]           0x03f8-0x03ff  COM1
    0x0070-0x0071  CMOS and RTC       [0x00e4-0x00e7  page flush]      0x0500-0x0503  plain exit
    0x0080         POST marks         [0x00e8-0x00eb  latch again]     0x0505         panic
    0x0092         system control A    0x00e9         debug console    [0x0510-0x0511  fw_cfg]
    0x0cf9         reset control       0x00f4-0x00f7  debug exit       [0x2000-0x2017  interrupt lines]
   [0x0cf8 0x0cfc  empty PCI bus]      0x510c-0x510f  hypercall
                                                                     0x5110-0x5113  doorbell of call rings
    0x0520-0x0521  ACPI's sleep registers, for Linux
    0x00ee         syscall tap: free unless a tap is on, and written by nobody who knows it
    0x01f0-0x01f7 0x03f6  ATA disk: on no board by itself; `pykvm compare` adds one
"""

from __future__ import annotations

__all__ = [
    "ACPI_EVENT_GSI",
    "ACPI_SLEEP",
    "ACPI_TABLES",
    "ATA",
    "ATA_CONTROL",
    "BIOS_ENTRY",
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
    "FW_CFG",
    "HOLE",
    "HYPERCALL",
    "HYPERCALL_DOORBELL",
    "HYPERCALL_REGISTER",
    "I8042_COMMAND",
    "I8042_DATA",
    "I8042_GSI",
    "IDENTITY_MAP",
    "IOAPIC",
    "LEGACY_END",
    "LOCAL_APIC",
    "LOW_END",
    "MMIO_CONSOLE",
    "MMIO_DEVICES",
    "MP_TABLE",
    "PANIC",
    "PCI_CONFIG_ADDRESS",
    "PCI_CONFIG_DATA",
    "PLAIN_EXIT",
    "POST",
    "RESET_CONTROL",
    "RESET_VECTOR",
    "RTC_GSI",
    "SYSCALL_TAP",
    "SYSTEM_CONTROL_A",
    "TESTDEV_FLUSH",
    "TESTDEV_IOMEM",
    "TESTDEV_IRQ",
    "TESTDEV_LATCH",
    "TESTDEV_LATCH_BYTES",
    "TSS",
    "VIRTIO_GSIS",
    "VIRTIO_MMIO",
    "VIRTIO_MMIO_BYTES",
]

# Guest-physical addresses
BOOT_SECTOR = 0x7C00
FLAT_REAL = 0x8000
BOOT = 0x9_0000
BOOT_SIZE_BYTES = 0x1_0000
LOW_END = 0xA_0000
ACPI_TABLES = range(0xE_0000, 0xF_0000)
MP_TABLE = range(0xF_0000, 0x10_0000)  # where the firmware is, when there is one
BIOS_ENTRY = 0xF_FFF0  # where a kernel jumps that wants the BIOS to restart the machine
FIRMWARE_LOW = 0xF_0000
FIRMWARE_SIZE_BYTES = 0x1_0000
LEGACY_END = 0x10_0000
FLAT_HIGH = 0x10_0000
FOUR_GIB = 1 << 32
HOLE = range(0xC000_0000, FOUR_GIB)
MMIO_DEVICES = range(0xD000_0000, 0xE000_0000)
MMIO_CONSOLE = range(0xD000_0000, 0xD000_0010)
HYPERCALL_REGISTER = range(0xD000_1000, 0xD000_1008)  # the gpa of a hypercall's arguments, as at HYPERCALL
VIRTIO_MMIO = range(0xD010_0000, 0xD011_0000)
VIRTIO_MMIO_BYTES = 0x1000  # of one device
IOAPIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
IDENTITY_MAP = 0xFEFF_C000
TSS = 0xFEFF_D000
TESTDEV_IOMEM = range(0xFF00_0000, 0xFF01_0000)  # testdev board: RAM-like MMIO
FIRMWARE_HIGH_END = FOUR_GIB
RESET_VECTOR = 0xFFFF_FFF0

# I/O ports
I8042_DATA = range(0x60, 0x61)
I8042_COMMAND = range(0x64, 0x65)
CMOS = range(0x70, 0x72)
POST = range(0x80, 0x81)
SYSTEM_CONTROL_A = range(0x92, 0x93)
TESTDEV_LATCH = range(0xE0, 0xE4)
TESTDEV_FLUSH = range(0xE4, 0xE8)  # the gpa of a page to unmap and map again
TESTDEV_LATCH_BYTES = range(0xE8, 0xEC)  # the same latch, taken byte by byte; in place of DEBUG_CONSOLE
DEBUG_CONSOLE = range(0xE9, 0xEA)
SYSCALL_TAP = range(0xEE, 0xEF)  # the OUT that a syscall tap puts into the guest's kernel
DEBUG_EXIT = range(0xF4, 0xF8)  # isa-debug-exit: the guest's value v ends the run with (v << 1) | 1
ATA = range(0x1F0, 0x1F8)  # command block of the first channel
ATA_CONTROL = range(0x3F6, 0x3F7)
COM1 = range(0x3F8, 0x400)
PLAIN_EXIT = range(0x500, 0x504)  # the guest's value is the exit code, as it is
PANIC = range(0x505, 0x506)  # pvpanic: the guest says that it has crashed
ACPI_SLEEP = range(0x520, 0x522)  # SLEEP_CONTROL_REG and SLEEP_STATUS_REG
FW_CFG = range(0x510, 0x512)  # selector and data of QEMU's firmware configuration
HYPERCALL = range(0x510C, 0x5110)  # the gpa of a hypercall's arguments
HYPERCALL_DOORBELL = range(0x5110, 0x5114)  # any 32-bit value: look at the rings of calls
PCI_CONFIG_ADDRESS = range(0xCF8, 0xCF9)  # 4 bytes wide; a byte at 0xcf9 is RESET_CONTROL
RESET_CONTROL = range(0xCF9, 0xCFA)
PCI_CONFIG_DATA = range(0xCFC, 0xD00)
TESTDEV_IRQ = range(0x2000, 0x2018)  # one port a GSI, 0 to 23

# Interrupt lines
I8042_GSI = 1
COM1_GSI = 4
RTC_GSI = 8
ACPI_EVENT_GSI = 9  # the generic event device: the power button
VIRTIO_GSIS = (*range(16, 24), 5, 6, 7, 10, 11, 13, 14, 15)  # first those that no ISA device could have
