"""A machine that boots a raw disk image by our own BIOS: each of its services, its disk, its refusals."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.boot.disk_file import SECTOR_BYTES, DiskFile
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.result import EndReason
from pykvm.toolchain import compile_program

if TYPE_CHECKING:
    from pykvm.pytest_plugin import Boot

HERE = Path(__file__).parent
GUESTS = HERE.parents[1] / "guests"
START_MARKS = list(range(1, 10))
SERVICES = [
    "equipment, memory size",
    "memory map",
    "memory sizes",
    "block move",
    "A20",
    "configuration, no APM",
    "ticks, waiting",
    "clock",
    "video",
    "by INT 10h/13h",
    "serial",
    "S",
    "keyboard",
    "an interrupt nobody serves",
    "disk: what it is",
    "disk: moves",
    "disk: refusals",
]


def boot_sector(folder: Path, text: str) -> Path:
    """A disk of one sector with that code in it, entered with all registers 0 but DL."""
    source = folder / "sector.S"
    source.write_text(
        f'#include "guest.h"\nGUEST_START\n#line 1 "boot sector"\n{text}\n.org 510\n.byte 0x55, 0xaa\n'
    )
    return compile_program([source], folder / "disk.img", mode="real16", root=GUESTS, address=0x7C00)


def test_every_service_answers(boot: Boot, tmp_path: Path) -> None:
    """Each service of the BIOS answers as programs expect, the disk's by CHS and by packet among them."""
    image = tmp_path / "services.img"
    compile_program([HERE / "firmware_services.S"], image, mode="real16", root=GUESTS, address=0x7C00)
    before = image.read_bytes()
    result = boot.image(image, typed=b"q\x1b[A\n")
    assert result.text.split("\r\n") == [*SERVICES, ""]
    assert (result.reason, result.exit_code) == (EndReason.EXIT, 0)
    assert [mark.value for mark in result.marks] == [*START_MARKS, 0xEE, 0x60]
    after = image.read_bytes()
    at = 59 * SECTOR_BYTES  # where the program wrote its boot sector
    assert after[at : at + SECTOR_BYTES] == before[:SECTOR_BYTES]
    assert after[:at] + after[at + SECTOR_BYTES :] == before[:at] + before[at + SECTOR_BYTES :]


def test_boot_sector_guest(boot: Boot) -> None:
    """The guest that travels with pykvm boots by name, writes to its disk, and leaves its image as it was."""
    first = boot.image("20_bootsector")
    again = boot.image("20_bootsector")
    for result in (first, again):
        assert result.exit_code == 0
        assert result.text.endswith("A sector was written and read back.\r\n")
        assert [mark.value for mark in result.marks] == START_MARKS
        assert set(result.exits) == {"IO"}


def test_boot_sector_gets_the_state_programs_rely_on(boot: Boot, tmp_path: Path) -> None:
    """A boot sector starts at 0000:7C00 with DL = 80h, interrupts on, and a stack below it."""
    code = """
        pushf
        pop %bx
        mov %cs, %ax
        mov %ss, %cx
        or %cx, %ax
        jnz 1f
        cmp $0x80, %dl
        jne 1f
        cmp $0x7c00, %sp
        jne 1f
        test $0x200, %bx
        jz 1f
        mov $PORT_EXIT, %dx
        xor %eax, %eax
        out %eax, %dx
1:      ud2
    """
    assert boot.image(boot_sector(tmp_path, code)).exit_code == 0


@pytest.mark.parametrize(
    ("code", "number", "address"),
    [
        ("xor %ax, %ax; div %al", 0x00, 0x7C02),
        ("ud2", 0x06, 0x7C00),
        ("mov $0xdead0000, %ecx; rdmsr", 0x0D, 0x7C06),  # no such MSR
    ],
)
def test_exceptions_are_reported(boot: Boot, tmp_path: Path, code: str, number: int, address: int) -> None:
    """An exception that nobody handles ends the run with its number and address, on a line of its own."""
    text = f"mov $0x0e2e, %ax; int $0x10; jmp 1f; .org 0x20; 1: {code}"
    result = boot.image(boot_sector(tmp_path, text))
    assert result.reason is EndReason.PANIC
    assert result.text == (
        f".\r\npykvm BIOS: nobody handles CPU exception {number:02x}h, raised at 0000:{address + 0x20:04x}; "
        "stopped.\r\n"
    )
    assert [mark.value for mark in result.marks] == [*START_MARKS, 0xE3, number]


def test_giving_up_booting_is_a_panic(boot: Boot, tmp_path: Path) -> None:
    """INT 18h says that there is nothing to boot and ends the run by the panic port."""
    result = boot.image(boot_sector(tmp_path, "int $0x18"))
    assert result.reason is EndReason.PANIC
    assert result.text == "pykvm BIOS: no bootable disk; stopped.\r\n"


def test_disk_that_lost_its_mark(boot: Boot, tmp_path: Path) -> None:
    """A boot sector that wipes itself from the disk and boots again is told that there is none any more."""
    code = """
        mov $0x0301, %ax
        mov $1, %cx
        mov $0, %dh
        mov $0x9000, %bx
        int $0x13
        int $0x19
    """
    result = boot.image(boot_sector(tmp_path, code))
    assert result.reason is EndReason.PANIC
    assert "does not end in the bytes 55 AA" in result.text
    assert [mark.value for mark in result.marks] == [*START_MARKS, 0x08, 0xE2]


def test_jump_to_the_reset_vector_starts_again(boot: Boot, tmp_path: Path) -> None:
    """A program that jumps to F000:FFF0 boots the machine again, with all steps of the start."""
    code = """
        mov $0x0301, %ax                /* the next boot finds zeros */
        mov $1, %cx
        mov $0, %dh
        mov $0x9000, %bx
        int $0x13
        ljmp $0xf000, $0xfff0
    """
    result = boot.image(boot_sector(tmp_path, code))
    assert [mark.value for mark in result.marks] == [*START_MARKS, *START_MARKS[:-1], 0xE2]


def test_waiting_for_a_key_sleeps(boot: Boot, tmp_path: Path) -> None:
    """Who waits for a key costs a handful of exits per tick of 18.2 Hz, not a processor."""
    result = boot.image(boot_sector(tmp_path, "mov $0, %ah; int $0x16"), timeout=1)
    assert result.reason is EndReason.TIMEOUT
    assert result.exits["IO"] < 400


def test_map_has_memory_above_four_gib(boot: Boot, tmp_path: Path) -> None:
    """The last entry of the map is the RAM from 4 GiB on, exactly."""
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 3088 << 20:
        pytest.skip("not here: the host has less RAM than this guest is given")
    code = """
        xor %ebx, %ebx
1:      mov $0xe820, %eax
        mov $0x534d4150, %edx
        mov $20, %ecx
        mov $0x9000, %di
        int $0x15
        test %ebx, %ebx
        jnz 1b
        cmpl $1, 0x9004                 /* base, upper half */
        jne 2f
        mov 0x9008, %eax                /* length, in MiB */
        shr $20, %eax
        mov $PORT_EXIT, %dx
        out %eax, %dx
2:      ud2
    """
    result = boot.image(boot_sector(tmp_path, code), memory="3088M")
    assert result.exit_code == 16


def test_hostile_requests_are_answered(boot: Boot, tmp_path: Path) -> None:
    """Requests with wild sectors, lengths and addresses get an error; the machine and the disk live on."""
    code = """
        mov $request, %edi
        mov $tries, %si
1:      mov (%si), %eax
        mov %eax, (%di)                 /* number */
        mov 4(%si), %eax
        mov %eax, 16(%di)               /* first sector */
        mov %eax, 20(%di)
        mov 8(%si), %eax
        mov %eax, 24(%di)               /* count */
        mov 12(%si), %eax
        mov %eax, 32(%di)               /* buffer */
        mov %eax, 36(%di)
        mov $0x510c, %dx
        mov %edi, %eax
        out %eax, %dx
        cmpl $-1, 12(%di)               /* the result is below 0 */
        jne 2f
        add $16, %si
        cmp $tries_end, %si
        jne 1b
        mov $PORT_EXIT, %dx
        xor %eax, %eax
        out %eax, %dx
2:      ud2
tries:  .long 0x11, -1, 1, 0
        .long 0x11, 0, 0, 0
        .long 0x11, 0, -1, 0
        .long 0x11, 0, 1, -1
        .long 0x12, 0, 1, -1
        .long 0x12, 0, 1, 0x7fffffff
        .long 0x12, 1, 1, 0
        .long 0x13, 0, 1, 0
        .long -1, -1, -1, -1
tries_end:
        .balign 8
request: .fill 48
    """
    image = boot_sector(tmp_path, code)
    before = image.read_bytes()
    assert boot.image(image).exit_code == 0
    assert image.read_bytes() == before


def test_request_outside_memory(boot: Boot, tmp_path: Path) -> None:
    """A request that is not in memory ends the run with a word for it, not with a traceback."""
    code = "mov $0xfffffff0, %eax; mov $0x510c, %dx; out %eax, %dx"
    result = boot.image(boot_sector(tmp_path, code))
    assert result.reason is EndReason.BAD_REQUEST


@pytest.mark.usefixtures("boot")
@pytest.mark.parametrize("options", [{"irqchip": False}, {"board": "testdev"}, {"memory": "512K"}])
def test_firmware_needs_its_board(options: dict[str, Any]) -> None:
    """Without the irqchip, on another board, or with too little memory there is one clear line."""
    with Machine(**options) as machine, pytest.raises(ConfigError, match="firmware needs"):
        machine.load("20_bootsector")


def test_a_host_error_is_told_to_the_guest_and_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest gets an I/O error and goes on; the result names the image and the host's reason."""

    def full(self: DiskFile, first: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DiskFile, "write", full)
    write = (
        "mov $0x0301, %ax; mov $2, %cx; mov $0x80, %dx; xor %bx, %bx; int $0x13; mov %ah, %al; out %al, $0xf4"
    )
    image = boot_sector(tmp_path, write)
    with image.open("ab") as file:
        file.write(bytes(SECTOR_BYTES))
    with Machine(memory="2M") as machine:
        machine.load(image)
        result = machine.run(timeout=20)
    assert result.exit_code not in (None, 0)
    assert result.warnings == (f"{image}: No space left on device; the guest was told of an I/O error",)
