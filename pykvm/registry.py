"""Machines by name: a private directory in which every running one that has a name keeps a lock and a socket.

::

    NAME.lock   locked (flock) by the process as long as it lives: the kernel's own proof of life. It holds a
                line of JSON: pid, image, start
    NAME.sock   a Unix socket on which the machine listens (pykvm.control)
    NAME.vsock  where it holds containers, the way to the agent in it (pykvm.containers)

What a machine that died has left is swept up by whoever looks next. The directory is
`$XDG_RUNTIME_DIR/pykvm`, or `/run/user/UID/pykvm`, or `pykvm-UID` in the directory for temporary files.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Entry", "NotRunningError", "Room", "Seat", "as_table", "room_path", "stop"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOCK, _SOCKET, _VSOCK = ".lock", ".sock", ".vsock"
_ABOUT_BYTES = 1 << 16
_LOOK_S = 0.02
_CONNECT_S = 5.0


class NotRunningError(ConfigError):
    """No machine of that name runs."""


class Entry(NamedTuple):
    """A running machine: its name and what it says of itself; `about` is empty while it still starts."""

    name: str
    about: Mapping[str, Any]


def room_path(env: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """The directory for this user's machines; it need not be there yet."""
    uid = os.getuid() if uid is None else uid
    given = env.get("XDG_RUNTIME_DIR", "")
    for base in (given, f"/run/user/{uid}"):
        if base.startswith("/") and os.access(base, os.W_OK | os.X_OK):
            return Path(base, "pykvm")
    return Path(tempfile.gettempdir(), f"pykvm-{uid}")


class Room:
    """The directory, opened: what is in it is reached by its descriptor, so no path is too long."""

    def __init__(self, path: Path | None = None) -> None:
        """Makes the directory if need be. Raises ConfigError if it is not this user's alone."""
        self.path = path or room_path()
        try:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: {error.strerror}; machines with names need this directory"
            ) from None
        found = os.fstat(self._fd)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            self.close()
            raise ConfigError(
                f"{self.path}: not yours alone (chmod 700), so nobody's machines are safe in it"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the directory go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the directory, for paths below /proc/self/fd that are short whatever its own is."""
        fd = os.dup(self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def enter(self, name: str, about: Mapping[str, Any] | None = None) -> Seat:
        """Take `name` until the Seat is closed or this process ends. ConfigError if it can't be had."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a machine: letters, digits and ._-, at most 64 of them"
            )
        lock = self._lock(name)
        if lock is None:
            raise ConfigError(f"a machine named {name} runs already; `pykvm ps` lists all")
        try:
            seat = Seat(name, os.dup(self._fd), lock)
        except BaseException:
            os.close(lock)
            raise
        seat.tell(about or {})
        return seat

    def entries(self) -> list[Entry]:
        """All machines that run, by name; the rest of those that died is taken away."""
        there = os.listdir(self._fd)  # noqa: PTH208 - pathlib knows no descriptors
        names = sorted(name.removesuffix(_LOCK) for name in there if name.endswith(_LOCK))
        found = []
        for name in names:
            if self._sweep(name):
                continue
            found.append(Entry(name, self._about(name)))
        return found

    def connect(self, name: str) -> socket.socket:
        """A connection to a machine. Raises NotRunningError if there is none of that name."""
        if not _NAME.fullmatch(name) or self._sweep(name):
            names = ", ".join(entry.name for entry in self.entries())
            there = f"there are {names}" if names else "none has a name (`pykvm run --name NAME`)"
            raise NotRunningError(f"no machine named {name} runs; {there}")
        link = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + _CONNECT_S
        while True:
            try:
                link.connect(f"/proc/self/fd/{self._fd}/{name}{_SOCKET}")
            except OSError as error:  # it has its name, and will listen in a moment
                if time.monotonic() < end and not self._sweep(name):
                    time.sleep(_LOOK_S)
                    continue
                link.close()
                raise NotRunningError(f"{name} does not answer: {error.strerror}") from None
            return link

    def is_running(self, name: str) -> bool:
        """Whether a machine of that name lives."""
        return bool(_NAME.fullmatch(name)) and not self._sweep(name)

    def _about(self, name: str) -> Mapping[str, Any]:
        try:
            fd = os.open(name + _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return {}
        try:
            found = json.loads(os.pread(fd, _ABOUT_BYTES, 0))
        except ValueError:
            return {}
        finally:
            os.close(fd)
        return found if isinstance(found, dict) else {}

    def _lock(self, name: str, flags: int = os.O_CREAT) -> int | None:
        """The lock's descriptor, locked; None if another process has it, or if there is none to open."""
        while True:
            try:
                fd = os.open(
                    name + _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600, dir_fd=self._fd
                )
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:  # else somebody has just swept it up: it is nobody's lock
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _sweep(self, name: str) -> bool:
        """Take away what a dead machine has left; False if it lives."""
        fd = self._lock(name, 0)
        if fd is None:
            return not self._exists(name)
        _remove(name, self._fd)
        os.close(fd)
        return True

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name + _LOCK, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


class Seat:
    """A name that this process holds. close() gives it back; so does the process' end, however it comes."""

    def __init__(self, name: str, folder: int, lock: int) -> None:
        self.name = name
        self._folder, self._lock = folder, lock
        self.started_ns = time.time_ns()

    def tell(self, about: Mapping[str, Any]) -> None:
        """What others read of the machine: `about`, this process, and when that was."""
        about = {**about, "pid": os.getpid(), "started_unix_ns": self.started_ns}
        text = json.dumps(about).encode() + b"\n"
        os.pwrite(self._lock, text, 0)
        os.ftruncate(self._lock, len(text))

    def listen(self) -> socket.socket:
        """The socket on which others reach the machine; the caller closes it."""
        link = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):  # what a dead one of the same name has left
            os.unlink(self.name + _SOCKET, dir_fd=self._folder)
        link.bind(f"/proc/self/fd/{self._folder}/{self.name}{_SOCKET}")
        link.listen()
        return link

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the name back."""
        if self._lock >= 0:
            _remove(self.name, self._folder)
            os.close(self._lock)
            os.close(self._folder)
            self._lock = -1


def _remove(name: str, folder: int) -> None:
    """Sockets and lock; only who holds the lock may."""
    for end in (_SOCKET, _VSOCK, _LOCK):
        with suppress(FileNotFoundError):
            os.unlink(name + end, dir_fd=folder)


def stop(room: Room, name: str, *, timeout_s: float) -> None:
    """End a machine and wait until it is gone. Raises PykvmError if it does not run or is still there."""
    from pykvm.control import ask  # noqa: PLC0415 - a machine that only takes a name does not pay

    with room.connect(name) as link:
        link.settimeout(max(timeout_s, 1.0))
        ask(link, {"do": "stop"})
    end = time.monotonic() + timeout_s
    while room.is_running(name):
        if time.monotonic() > end:
            pid = next((entry.about.get("pid") for entry in room.entries() if entry.name == name), "?")
            raise PykvmError(
                f"{name} has been told to end and still runs after {timeout_s:g} s (process {pid})"
            )
        time.sleep(_LOOK_S)


def as_table(entries: Sequence[Entry]) -> str:
    """The machines in columns, for a terminal."""
    heads = ("NAME", "PID", "VCPUS", "MEMORY", "RUNS FOR", "IMAGE")
    rows = [heads, *map(_row, entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads) - 1)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def _row(entry: Entry) -> tuple[str, ...]:
    about = entry.about
    seconds = (time.time_ns() - int(about.get("started_unix_ns", time.time_ns()))) // 10**9
    minutes, hours = seconds // 60, seconds // 3600
    age = f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
    memory = f"{int(about.get('memory_bytes', 0)) >> 20} MiB" if "memory_bytes" in about else "?"
    return (
        entry.name,
        str(about.get("pid", "?")),
        str(about.get("vcpus", "?")),
        memory,
        age,
        str(about.get("image", "?")),
    )
