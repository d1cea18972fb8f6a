"""What a command's options say of the tap: one function from words to a tap on a loaded machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.tap.tap import SyscallTap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.machine import Machine

__all__ = ["TAP_WORDS", "add_tap"]

TAP_WORDS = ("auto", "patch", "breakpoint", "off")
"""The values of an option `--tap`; "auto" taps Linux and nothing else."""


def add_tap(
    machine: Machine,
    how: str = "auto",
    *,
    syscalls: Iterable[str] = (),
    processes: Iterable[int] = (),
    words: bool = True,
) -> SyscallTap | None:
    """Tap `machine`, between load() and run(), and send the calls to its sinks; None where nothing is to tap.

    `how` is one of TAP_WORDS; the rest is as in SyscallTap. Raises ConfigError for what makes no sense.
    """
    is_linux = machine.image is not None and machine.image.kind == "linux"
    if how == "off" or (how == "auto" and not is_linux):
        return None
    return SyscallTap(machine, how, only=syscalls, processes=processes, words=words)
