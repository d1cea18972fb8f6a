"""What a lab's back end is: the part that knows one emulator, and what it is given and gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

__all__ = ["Backend", "Job", "Options", "Progress", "Running", "Tool"]

Progress = Callable[[str], None]
"""Called with one short line whenever something that takes time begins."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of the host that a back end needs, and the Debian package that has it."""

    program: str
    package: str


@dataclass(frozen=True, slots=True)
class Options:
    """What the lab's computer is made of. `kernel` and `modules` None: Debian's, from the cache.

    `modules` is a directory such as /lib/modules/6.1.0-1-amd64. `load` names modules to load besides those
    the lab needs itself. `tree` names paths that a back end without a shared file system shall take along.
    `update`: ask for a kernel that is newer than the cached one.
    """

    mem_mib: int
    smp: int
    kernel: Path | None = None
    modules: Path | None = None
    load: tuple[str, ...] = ()
    share: Path | None = None
    tree: tuple[Path, ...] = ()
    update: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What to run in the lab. `cwd` and `argv[0]` are looked up inside."""

    argv: tuple[str, ...]
    cwd: str = field(default_factory=os.getcwd)
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class Running:
    """An emulator that was started. The session closes the descriptors and ends the process.

    `receive` and `send` are the channel (the same number for a socket); `console` gives what the lab's
    kernel prints; `messages` gives what the emulator itself has to say. None of them blocks the emulator
    for long: the session reads them all. `preamble` is what the channel's first frame comes after, where the
    emulator itself writes to the channel too. `explain` finds in all that the emulator said, line by line,
    why it ended; it gives "" if that isn't there.
    """

    process: subprocess.Popen[bytes]
    receive: int
    send: int
    console: int
    messages: int
    preamble: bytes = b""
    explain: Callable[[Sequence[str]], str] | None = None


class Backend(Protocol):
    """One way to make a computer with a full KVM."""

    name: str
    """What `--cpu` calls it."""

    tools: tuple[Tool, ...]
    """The host's programs it needs; the caller checks them before anything else is called."""

    flavour: str
    """The Debian kernel it boots: `amd64` for linux-image-amd64, `cloud-amd64` for the cloud one."""

    default_mem_mib: int
    default_smp: int

    boot_limit_s: float
    """How long a boot may take until the init says HELLO, on a slow and busy host."""

    grace_s: float
    """How long the lab may take to end in order, with its results saved, after a time-out."""

    def check(self, options: Options) -> None:
        """Raise ConfigError if `options` ask for what it can't do."""
        ...

    def prepare(self, options: Options, progress: Progress) -> None:
        """Fill the cache with what does not depend on the job. Idempotent, atomic, quick when warm."""
        ...

    def start(self, options: Options, job: Job, room: Path, progress: Progress) -> Running:
        """Start the emulator. `room` is a private directory, removed when the lab has ended."""
        ...

    def collect(self, options: Options, job: Job, room: Path) -> None:
        """Bring results back to `options.share`; called once when the emulator has ended, however it did."""
        ...
