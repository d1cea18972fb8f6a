"""How far a Linux guest is, as its first process (guests/linux_init/init.c) writes it to port 0x80."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["LinuxMark"]


class LinuxMark(IntEnum):
    """The marks, in order."""

    KERNEL_READY = 0xC4  # all modules are loaded, that one among them which reports a panic
    TERMINAL_READY = 0xC5  # the command is about to be started
    COMMAND_ENDED = 0xC6
