"""How Bochs is told what computer to be, and how it is started.

Everything is in one directory of its own: the images are opened by names in it, so that the locks that Bochs
makes beside them are there too. There is no display and no socket that listens. Debian's Bochs has its
debugger in it, which starts the computer when a file tells it to.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.lab.backend import Tool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "BOCHS",
    "MOST_MIB",
    "Disk",
    "Wires",
    "bochs_command",
    "bochs_environment",
    "bochsrc",
    "explain_end",
]

_BIOS = "/usr/share/bochs/BIOS-bochs-latest"
_VGA_BIOS = "/usr/share/seabios/vgabios-stdvga.bin"
BOCHS = (
    Tool("bochs", "bochs"),
    Tool("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_sdl2_gui.so", "bochs-sdl"),
    Tool(_BIOS, "bochsbios"),
    Tool(_VGA_BIOS, "seabios"),
)
MOST_MIB = 3072
"""Bochs counts the host memory of a computer in 32 bits, and its BIOS ends RAM where the PCI hole begins."""

_MODEL = "corei3_cnl"
_INSTRUCTIONS_PER_SECOND = 20_000_000
_PLACES = ("ata0-master", "ata0-slave", "ata1-master", "ata1-slave")
_LAST_WORDS = "Bochs is exiting with the following message"
_TRIPLE_FAULT = "exception with no resolution"
_POWER_OFF = "soft power off"
_RC = "bochsrc"
_START = "start"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image by its name in the lab's directory; what is written to one not `writable` is lost."""

    name: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Wires:
    """Descriptors that Bochs inherits: what the serial ports' other ends are."""

    console: int
    """The first port writes here."""
    channel_in: int
    """The second port reads here. A pipe, since Bochs opens it anew."""


def bochsrc(mem_mib: int, disks: Sequence[Disk], wires: Wires) -> str:
    """The configuration: a PC with up to four disks, the first of which it boots, and two serial ports.

    Its time is counted in instructions, so that figures repeat: the TSC counts them, and the other clocks,
    the serial ports and the disks believe in `_INSTRUCTIONS_PER_SECOND`. The fewer these are, the less the
    CPU waits for devices. The CPU must be one whose TSC deadline timer Linux trusts: the APIC's other modes
    count the devices' time, and Linux takes some hundred times more timer interrupts.
    """
    lines = [
        f"cpu: model={_MODEL}, count=1, ips={_INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0",
        f"memory: guest={mem_mib}, host={mem_mib}",
        f"romimage: file={_BIOS}, options=fastboot",
        f"vgaromimage: file={_VGA_BIOS}",
        "vga: update_freq=1, realtime=0",
        "boot: disk",
        f"com1: enabled=1, mode=file, dev=/dev/fd/{wires.console}",
        f"com2: enabled=1, mode=term, dev=/dev/fd/{wires.channel_in}",
        "port_e9_hack: enabled=1",
        "clock: sync=none, time0=utc",
        'display_library: sdl2, options="hideIPS"',
        "plugin_ctrl: speaker=0, gameport=0, parallel=0",
        "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy",
        "mouse: enabled=0",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
        "log: /dev/null",
    ]
    for place, disk in zip(_PLACES, disks, strict=False):
        mode = "flat" if disk.writable else "volatile"
        lines.append(f"{place}: type=disk, path={disk.name}, mode={mode}")
    return "".join(f"{line}\n" for line in lines)


def bochs_command(room: Path, configuration: str) -> list[str]:
    """Write the configuration to `room`; the command to be run there."""
    (room / _RC).write_text(configuration)
    (room / _START).write_text("c\n")
    return ["bochs", "-q", "-unlock", "-f", _RC, "-rc", _START]


def bochs_environment() -> dict[str, str]:
    """The environment of this process without what leads Bochs or SDL elsewhere, and with no display."""
    theirs = ("SDL_", "BOCHSRC", "BXSHARE", "LTDL_LIBRARY_PATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return {**kept, "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}


def explain_end(lines: Sequence[str]) -> str:
    """Why Bochs ended, from what it said; "" if it did not say."""
    begin = next((at for at, line in enumerate(lines) if line.startswith(_LAST_WORDS)), None)
    said = "" if begin is None else " ".join(itertools.takewhile(_is_no_ruler, lines[begin + 1 :]))
    if _TRIPLE_FAULT in said:
        return f"its CPU met a triple fault, as when it is restarted ({said})"
    return "it was powered off" if _POWER_OFF in said else said


def _is_no_ruler(line: str) -> bool:
    return not line.startswith("====")
