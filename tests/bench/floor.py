"""The C floor and the guest of the bench: built here, and given the same start as pykvm's machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

from pykvm import guests, toolchain
from pykvm._native import ffi
from pykvm.errors import ToolchainError

if TYPE_CHECKING:
    from pykvm.machine import Machine

__all__ = ["EXITS_PER_ROUND", "Programs"]

HERE = Path(__file__).parent
EXITS_PER_ROUND = 64
_PAGE = 4096


class Programs:
    """The compiled floor and guests in a folder; what is there already is not compiled again."""

    def __init__(self, folder: Path) -> None:
        """Raises ToolchainError where gcc is missing or refuses."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.floor = folder / "floor"
        self.exits = folder / "exits.long64.elf"
        self.calls = folder / "calls.long64.elf"
        if not self.floor.exists():
            self._compile_floor()
        root = guests.built_folder()
        if not self.exits.exists():
            toolchain.compile_program([HERE / "exits.S"], self.exits, mode="long64", root=root)
        if not self.calls.exists():
            library = (root / "lib" / name for name in ("start.S", "transport.c"))
            toolchain.compile_program([HERE / "calls.c", *library], self.calls, mode="long64", root=root)

    def _compile_floor(self) -> None:
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(HERE / "floor.c"), "-o", str(self.floor)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            what = getattr(error, "stderr", None) or str(error)
            raise ToolchainError(f"floor.c: {what.splitlines()[0]}") from None

    def start_file(self, machine: Machine, name: str) -> Path:
        """A file with the start of a loaded `machine`'s first vCPU and memory, as floor.c reads it."""
        pieces = list(_pieces(machine))
        path = self.folder / f"{name}.start"
        regs = ffi.new("struct kvm_regs *", machine.vcpus[0].get_regs())
        with path.open("wb") as out:
            out.write(pack("<QQ", machine.memory.size_bytes, len(pieces)))
            out.write(ffi.buffer(regs))
            out.write(ffi.buffer(machine.vcpus[0].get_sregs()))
            for gpa, data in pieces:
                out.write(pack("<QQ", gpa, len(data)) + data)
        return path

    def run(self, what: str, start: Path, times: int = 1) -> list[tuple[int, int]]:
        """(ns, exits) of each of `times` runs of the floor; `what` is "run" or "whole"."""
        command = [str(self.floor), what, str(start), str(times)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [(int(ns), int(exits)) for ns, exits in (line.split() for line in text.splitlines())]


def _pieces(machine: Machine) -> list[tuple[int, bytes]]:
    """The pages of guest memory that are not zero."""
    empty = bytes(_PAGE)
    found = []
    for slot in machine.memory.slots:
        for at in range(0, slot.size_bytes, _PAGE):
            page = bytes(slot.view[at : at + _PAGE])
            if page != empty:
                found.append((slot.gpa + at, page))
    return found
