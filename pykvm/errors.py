"""Everything pykvm raises on purpose, and the exit status each gives the command.

::

    PykvmError                      125  pykvm itself could not do it
    ├── KvmError (OSError)          125  an ioctl failed; keeps errno
    │   └── KvmUnavailableError     125  no /dev/kvm, not permitted, or a foreign API version
    ├── ConfigError                 125  what was asked for makes no sense (memory, vCPUs, options)
    ├── ImageError                  126  the image is there and can't be run
    │   └── ImageNotFoundError      127  there is no such image
    ├── LabError                    125  the lab could not be set up or died
    │   └── LabTimeoutError         124  the lab was stopped because its time was over
    ├── RegistryError               125  a registry of images refused, lied, or can't be reached
    ├── ToolchainError              125  gcc or binutils refused
    └── GuestError                       the guest did something it may not
        ├── GuestAddressError       the address it gave is not in its memory
        └── UnclaimedIoError        it spoke to a port or an address where nobody answers

How a guest's run ends is not an exception but a value, `RunResult.reason`; its exit statuses
stand in `pykvm.result`.
"""

from __future__ import annotations

import os

__all__ = [
    "ConfigError",
    "GuestAddressError",
    "GuestError",
    "ImageError",
    "ImageNotFoundError",
    "KvmError",
    "KvmUnavailableError",
    "LabError",
    "LabTimeoutError",
    "PykvmError",
    "RegistryError",
    "ToolchainError",
    "UnclaimedIoError",
]


class PykvmError(Exception):
    """The base of all: its text is one line that says who, what, where and the next step."""

    exit_status = 125


class KvmError(PykvmError, OSError):
    """An ioctl on one of KVM's file descriptors failed.

    `errno` is the kernel's; `call` names the ioctl as the kernel's API document does.
    """

    def __init__(self, errno: int, call: str, hint: str = "") -> None:
        """`hint` is the next step for the user, if there is one."""
        self.call = call
        self.hint = hint
        OSError.__init__(self, errno, os.strerror(errno))

    def __str__(self) -> str:
        text = f"{self.call}: {os.strerror(self.errno or 0)}"
        return f"{text}; {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[type[KvmError], tuple[int, str, str]]:
        return type(self), (self.errno or 0, self.call, self.hint)


class KvmUnavailableError(KvmError):
    """There is no usable /dev/kvm here."""


class ConfigError(PykvmError):
    """What the user asked for can't be built."""


class ImageError(PykvmError):
    """The image is damaged, of a wrong kind, or does not fit."""

    exit_status = 126


class ImageNotFoundError(ImageError):
    """There is no such image."""

    exit_status = 127


class LabError(PykvmError):
    """The lab could not be set up, started, or kept alive."""


class LabTimeoutError(LabError):
    """The lab was stopped because its time was over; the status is that of timeout(1)."""

    exit_status = 124


class RegistryError(PykvmError):
    """A registry of images can't be reached, refuses, or does not say the truth."""


class ToolchainError(PykvmError):
    """The compiler, assembler or linker is missing or refused its input."""


class GuestError(PykvmError):
    """The guest did something it may not."""


class GuestAddressError(GuestError):
    """A guest address, with its size, is not inside the guest's memory."""


class UnclaimedIoError(GuestError):
    """A port or address where no device answers was touched."""
