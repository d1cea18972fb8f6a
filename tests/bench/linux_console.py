"""A Linux guest in pykvm whose virtio console prints to a file: VMLINUX INITRD CMDLINE FILE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from pykvm.machine import Machine


def main() -> None:
    """Run it to its end."""
    vmlinux, initrd, cmdline, file = sys.argv[1:]
    with (
        Path(file).open("wb") as out,
        Machine(memory="256M", console=lambda data: _put(out, data)) as machine,
    ):
        machine.add_console()
        machine.load(Path(vmlinux), initrd=Path(initrd).read_bytes(), cmdline=cmdline)
        machine.run()


def _put(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


if __name__ == "__main__":
    main()
