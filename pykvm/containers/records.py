"""What is known of each container, kept on disk, so that it stays true whoever is killed.

::

    ROOT/containers/       ROOT is the image store's
      lock                 held alone while a record is changed
      ID/record.json       a Record, written whole and renamed
      ID/config.json       OCI's config.json
      ID/log, log.1        what it printed (pykvm.containers.logs)
      ID/upper.tar         what it changed in its files, once it has ended
      ID/upper.erofs       the same as a layer, where it was started again

A record says in which machine the container is, and when that was started: a container that is said to run in
a machine that is no more has ended with it, and whoever looks first writes that down.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import IO, TYPE_CHECKING, Any

from pykvm.containers.blobs import write_whole
from pykvm.containers.store import data_root
from pykvm.containers.volumes import ID_COUNT, VOLUME_FIRST_ID
from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "LOST_STATUS",
    "ContainerStore",
    "NameTakenError",
    "NoContainerError",
    "Record",
    "StateError",
    "new_id",
]

LOST_STATUS = 255
"""The status of a container whose end nobody saw: docker's."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
_FIRST_ID = VOLUME_FIRST_ID + ID_COUNT
_LIVE = frozenset({"created", "running", "paused"})


class NoContainerError(ConfigError):
    """There is no such container."""

    exit_status = 1


class StateError(ConfigError):
    """What is asked of a container can't be done as it is now."""

    exit_status = 1


class NameTakenError(ConfigError):
    """Another container has that name."""


@dataclass(frozen=True, slots=True)
class Record:
    """One container. Times are Unix time in ns, 0 for what has not been; `state` as docker names them."""

    id: str
    name: str
    image: str
    image_id: str
    layers: list[str]
    """The keys of its layers' files, lowest first."""
    created_ns: int
    vm: str
    command: list[str]
    state: str = "created"
    vm_started_ns: int = 0
    own_vm: bool = False
    first_id: int = _FIRST_ID
    address: str = ""
    network: str = "none"
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    status: int = 0
    oom_kills: int = 0
    error: str = ""
    auto_remove: bool = False
    tty: bool = False
    stop_signal: int = 15
    ports: list[list[Any]] = field(default_factory=list)
    volumes: list[list[Any]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    init: bool = False
    rates: dict[str, list[list[Any]]] = field(default_factory=dict)
    """[device, rate] by OCI's names for throttling block devices."""
    runtime: str = "pykvm"
    """Who makes its first process: the agent, or one of pykvm.containers.runtimes."""
    kept: str = ""
    """The key of the layer of what it changed before it was started again."""
    held: list[str] = field(default_factory=list)
    """Which limits held it (pykvm.containers.holding), once it has ended."""
    guest: dict[str, Any] = field(default_factory=dict)
    """How large its machine is made if it has one of its own (pykvm.containers.guest_options)."""

    @property
    def short(self) -> str:
        """The first 12 digits of the ID."""
        return self.id[:12]

    @property
    def is_live(self) -> bool:
        """Whether it is in a machine."""
        return self.state in {"running", "paused"}


def new_id() -> str:
    """64 hexadecimal digits."""
    return secrets.token_hex(32)


class ContainerStore:
    """All records of one user."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or data_root()) / "containers"

    def folder(self, record: Record | str) -> Path:
        """Where a container's files are."""
        return self.root / (record if isinstance(record, str) else record.id)

    def add(self, record: Record, config: Callable[[Record], dict[str, Any]]) -> Record:
        """Keep a new container with the `config` made for it; it gets users and an address of its own.

        Raises NameTakenError, ConfigError.
        """
        if not _NAME.fullmatch(record.name):
            raise _bad_name(record.name)
        with self.locked():
            there = self.all()
            _check_name(record.name, there)
            record = replace(record, first_id=_first_id(record, there), address=_address(record, there))
            text = json.dumps(config(record)).encode()
            folder = self.folder(record)
            folder.mkdir(mode=0o700)
            with write_whole(folder / "config.json") as file:
                file.write(text)
            self._write(record)
        return record

    def revive(self, record: Record, kept: str) -> Record:
        """Make one that has ended as one that has not begun, with users and an address that are free now.

        Raises StateError if it is live, NoContainerError if it was removed.
        """
        with self.locked():
            now = self._read(record.id)
            if now.is_live:
                raise StateError(f"container {now.name} is {now.state} already")
            there = [other for other in self.all() if other.id != now.id]
            now = replace(now, first_id=_first_id(now, there), address=_address(now, there), kept=kept)
            config = self.config(now)
            for key in ("uidMappings", "gidMappings"):
                config["linux"][key][0]["hostID"] = now.first_id
            with write_whole(self.folder(now) / "config.json") as file:
                file.write(json.dumps(config).encode())
            now = replace(
                now, state="created", pid=0, status=0, error="", held=[], oom_kills=0, finished_ns=0
            )
            self._write(now)
        return now

    def rename(self, record: Record, name: str) -> Record:
        """Give it another name. Raises ConfigError, NameTakenError, NoContainerError."""
        if not _NAME.fullmatch(name):
            raise _bad_name(name)
        with self.locked():
            now = self._read(record.id)
            _check_name(name, self.all())
            now = replace(now, name=name)
            self._write(now)
        return now

    def all(self) -> list[Record]:
        """Every container, the newest first; what is damaged or half made is left out."""
        found = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for folder in self.root.iterdir():
                with suppress(NoContainerError):
                    found.append(self._read(folder.name))
        return sorted(found, key=lambda record: record.created_ns, reverse=True)

    def find(self, text: str) -> Record:
        """By name, ID or the ID's first digits. Raises NoContainerError, ConfigError if it may be several."""
        there = self.all()
        for record in there:
            if text in {record.name, record.id}:
                return record
        found = [record for record in there if text and record.id.startswith(text)]
        if len(found) > 1:
            raise ConfigError(f"Multiple IDs found with provided prefix: {text}")
        if not found:
            raise NoContainerError(f"No such container: {text}")
        return found[0]

    def get(self, container_id: str) -> Record:
        """The record as it is now. Raises NoContainerError if it was removed."""
        return self._read(container_id)

    def config(self, record: Record) -> dict[str, Any]:
        """Its config.json."""
        try:
            found: dict[str, Any] = json.loads((self.folder(record) / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise PykvmError(f"container {record.short}: its config.json is damaged: {error}") from None
        return found

    def change(self, container_id: str, how: Callable[[Record], Record]) -> Record:
        """Replace a record by what `how` makes of it. Raises NoContainerError if it was removed."""
        with self.locked():
            record = how(self._read(container_id))
            self._write(record)
        return record

    def set(self, container_id: str, **parts: Any) -> Record:
        """Replace parts of a record."""
        return self.change(container_id, lambda record: replace(record, **parts))

    def remove(self, record: Record) -> None:
        """Take all of a container away: first its name, so that half of it is never seen."""
        gone = self.root / f".gone-{record.id}"
        with self.locked():
            with suppress(FileNotFoundError):
                self.folder(record).rename(gone)
            for left in self.root.glob(".gone-*"):
                shutil.rmtree(left, ignore_errors=True)

    def sweep(self, started_of: Callable[[str], int | None]) -> None:
        """Write down the end of containers whose machine is no more.

        `started_of` tells of a machine by name when it was started, None if it does not run.
        """
        for record in self.all():
            if record.is_live and started_of(record.vm) != record.vm_started_ns:
                with suppress(NoContainerError):
                    lost = self.change(record.id, lambda one: self._lost(one, started_of))
                    if lost.auto_remove and not lost.is_live:
                        self.remove(lost)

    def _lost(self, record: Record, started_of: Callable[[str], int | None]) -> Record:
        if not record.is_live or started_of(record.vm) == record.vm_started_ns:
            return record  # it has ended in order meanwhile
        return replace(
            record,
            state="exited",
            status=LOST_STATUS,
            pid=0,
            finished_ns=time.time_ns(),
            error=f"its machine {record.vm} ended before it",
        )

    @contextmanager
    def scratch(self) -> Iterator[IO[bytes]]:
        """A file without a name, on the same disk."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=self.root) as file:
            yield file

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this is held nobody else changes a record."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, container_id: str) -> Record:
        try:
            said = json.loads((self.folder(container_id) / "record.json").read_bytes())
            return Record(**{key: value for key, value in said.items() if key in _KEYS})
        except (OSError, ValueError, TypeError, AttributeError):
            raise NoContainerError(f"No such container: {container_id}") from None

    def _write(self, record: Record) -> None:
        with write_whole(self.folder(record) / "record.json") as file:
            file.write(json.dumps(asdict(record)).encode())


def _bad_name(name: str) -> ConfigError:
    return ConfigError(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def _check_name(name: str, there: list[Record]) -> None:
    for other in there:
        if other.name == name:
            raise NameTakenError(
                f"Conflict. The container name {name!r} is already in use by container "
                f'"{other.short}". You have to remove (or rename) that container to be able to reuse '
                "that name."
            )


def _first_id(record: Record, there: list[Record]) -> int:
    """Users that no other container that lives has; those with volumes share theirs."""
    if record.volumes:
        return VOLUME_FIRST_ID
    taken = {other.first_id for other in there if other.state in _LIVE}
    return next(at for at in range(_FIRST_ID, 1 << 31, ID_COUNT) if at not in taken)


def _address(record: Record, there: list[Record]) -> str:
    """The first of the bridge's addresses that no other container of the machine has."""
    if record.network != "bridge":
        return ""
    taken = {other.address for other in there if other.vm == record.vm and other.state in _LIVE}
    for number in range(2, 65_535):
        address = f"10.88.{number >> 8}.{number & 255}"
        if address not in taken:
            return address
    raise ConfigError("no free address on the bridge")


_KEYS = frozenset(one.name for one in fields(Record))
