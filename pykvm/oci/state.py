"""What `pykvm-oci` knows of its containers, a directory each.

::

    ROOT/ID/state.json    the State, written whole and renamed
    ROOT/ID/agent         the Unix socket of the agent in the container's machine
    ROOT/ID/machine.log   what the machine's kernel and pykvm said

The container's process on the host is the machine's. A state that names a process which is no more is that
of a stopped container, whatever else it says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.blobs import write_whole
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AGENT", "VERSION", "OciError", "State", "States"]

VERSION = "1.0.2"
"""Of the OCI runtime specification."""
AGENT = "agent"
"""The name of the agent's socket in a container's directory."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # what the agent takes for a name
_STARTTIME = 19  # of /proc/PID/stat, counted behind the name


class OciError(PykvmError):
    """What a caller of the runtime is told, in one line; the status is 1, as that of other runtimes."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class State:
    """One container. `status` is OCI's: creating, created, running or stopped."""

    id: str
    bundle: str
    status: str = "creating"
    pid: int = 0
    started: str = ""
    """When the process `pid` began, as /proc tells it: another of that number is another."""
    created: str = ""
    exit_code: int = -1
    annotations: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return self.pid > 0 and self.started != "" and begin_of(self.pid) == self.started

    def seen(self) -> State:
        """The same as the process table has it."""
        if self.status == "creating" and not self.pid:
            return self
        return self if self.is_alive else replace(self, status="stopped")

    def told(self) -> dict[str, Any]:
        """The state as the specification has it."""
        about: dict[str, Any] = {"ociVersion": VERSION, "id": self.id, "status": self.status}
        about["pid"] = self.pid if self.status != "stopped" else 0
        about["bundle"] = self.bundle
        if self.annotations:
            about["annotations"] = self.annotations
        if self.created:
            about["created"] = self.created
        return about

    def send_signal(self, number: int) -> None:
        """Send a signal to its process; none if that has gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.is_alive:  # the descriptor holds this process, so nobody can take its place now
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def begin_of(pid: int) -> str:
    """When a process began, in clock ticks since boot; "" for one that has ended, or is a zombie."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in b"ZX" else words[_STARTTIME].decode()


class States:
    """All containers below one root directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, container_id: str) -> Path:
        """The container's directory. Raises OciError for what can't be an ID."""
        if not _ID.fullmatch(container_id):
            raise OciError(f"{container_id!r} is no container ID: give letters, digits, _ . -, at most 64")
        return self._root / container_id

    def add(self, state: State) -> Path:
        """A directory for a new container. Raises OciError if the ID is taken."""
        folder = self.folder(state.id)
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise OciError(f"container {state.id} exists already; delete it, or take another ID") from None
        except OSError as error:
            raise OciError(f"{folder}: {error.strerror}; give another directory with --root") from None
        self.put(state)
        return folder

    def put(self, state: State) -> None:
        """Write a container's state down."""
        with write_whole(self.folder(state.id) / "state.json") as file:
            file.write(json.dumps(asdict(state)).encode())

    def get(self, container_id: str) -> State:
        """A container, as it is now. Raises OciError if there is none."""
        path = self.folder(container_id) / "state.json"
        try:
            found = json.loads(path.read_bytes())
            known = {one.name for one in fields(State)}
            return State(**{key: value for key, value in found.items() if key in known}).seen()
        except FileNotFoundError:
            raise OciError(f"container {container_id} does not exist") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise OciError(f"{path}: {error}; `pykvm-oci delete --force {container_id}`") from None

    def all(self) -> Iterator[State]:
        """All containers, by ID; those that are damaged are passed over."""
        with suppress(FileNotFoundError):
            for folder in sorted(self._root.iterdir()):
                with suppress(OciError):
                    yield self.get(folder.name)

    def remove(self, container_id: str) -> None:
        """Nothing of it stays."""
        shutil.rmtree(self.folder(container_id), ignore_errors=True)
