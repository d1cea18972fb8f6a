"""One container from its start to its end: it is made, what it prints is kept, its end is written down."""

from __future__ import annotations

import errno
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.blobs import write_whole
from pykvm.containers.calls import AgentClient, AgentError, Call, Data
from pykvm.containers.creation import creation
from pykvm.containers.holding import held_by
from pykvm.containers.kept import files_of, keep_changes
from pykvm.containers.logs import LogWriter
from pykvm.containers.publishing import Publisher
from pykvm.containers.records import NoContainerError
from pykvm.containers.runtimes import OWN_RUNTIME, bundle_config, runtime_program
from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pykvm.containers.layer_files import LayerFile
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.viewer import Viewer
    from pykvm.containers.volumes import VolumeFolder

__all__ = ["Keeper", "Site", "failure_status"]

_START_S = 60.0
_ASK_S = 20.0
_WHY_S = 5.0


def failure_status(error: PykvmError) -> int:
    """What a start that failed counts as: 127 not found, 126 not to be run, 125 all else."""
    if isinstance(error, AgentError) and error.step in {"execve", "chdir"}:
        return 127 if error.errno in {errno.ENOENT, errno.ENOTDIR} else 126
    return 125


@dataclass(slots=True)
class Site:
    """The machine that containers are in. `add_layers` makes its guest know layers.

    `is_abandoned`: who alone wanted its containers has gone. `why` says how the machine ended if not in
    order, once it `is_over`.
    """

    vm: str
    started_ns: int
    add_layers: Callable[[AgentClient, Sequence[LayerFile]], None]
    volumes: Mapping[str, VolumeFolder]
    has_disk: bool
    runtimes: Sequence[str] = ()
    growing: threading.Lock = field(default_factory=threading.Lock)
    running: dict[str, Record] = field(default_factory=dict)
    is_abandoned: bool = False
    is_over: threading.Event = field(default_factory=threading.Event)
    why: str = ""


class Keeper:
    """The life of one container. `record` is what is known of it, once it has been read."""

    def __init__(
        self,
        site: Site,
        store: ContainerStore,
        container_id: str,
        viewer: Viewer,
        size: Sequence[int] | None = None,
    ) -> None:
        """`size`: columns and rows of the terminal that it begins with."""
        self._site = site
        self._store = store
        self._id = container_id
        self._viewer = viewer
        self._size = size
        self._folder = ""  # of the guest, where what it writes is on a disk
        self.record: Record | None = None

    def keep(self, reach: Callable[[], AgentClient], begun: threading.Event, *, explain: bool) -> None:
        """Until its end; that it could not be started is written down, too. `begun` is set when it runs."""
        try:
            self.record = self._store.get(self._id)
            self._run(reach(), self.record, begun, explain=explain)
        except PykvmError as error:
            status = failure_status(error)
            if self.record and not isinstance(error, NoContainerError):
                with suppress(NoContainerError):
                    self._note(status=status, error=str(error), finished_ns=time.time_ns())
                    if self.record.auto_remove or self._site.is_abandoned:
                        self._store.remove(self.record)
            self._viewer.event({"event": "failed", "status": status, "text": str(error)})

    def _note(self, **parts: Any) -> Record:
        self.record = self._store.set(self._id, **parts)
        return self.record

    def _run(self, client: AgentClient, record: Record, begun: threading.Event, *, explain: bool) -> None:
        site, store = self._site, self._store
        with site.growing:
            site.add_layers(client, files_of(store, record))
        log = LogWriter(store.folder(record) / "log")
        try:
            call, pid = self._begin(client, record, explain=explain)
            record = self._note(
                state="running", pid=pid, started_ns=time.time_ns(), vm=site.vm, vm_started_ns=site.started_ns
            )
            site.running[record.short] = record
            with Publisher(client, record.address, record.ports) as published:
                if published.ports:
                    record = self._note(ports=published.ports)
                early = call.so_far()
                if not self._viewer.is_attached:  # he leaves when it has started: its making comes first
                    self._show_steps(early)
                self._viewer.event({"event": "started", "pid": record.pid})
                begun.set()
                ending = self._follow(chain(early, call), call, log, is_tty=record.tty)
        except ConfigError:  # a port that is taken: the container is there by now
            with suppress(AgentError):
                client.ask("delete", _ASK_S, name=record.short, force=True)
            self._note(state="created", pid=0)
            raise
        finally:
            for tag in site.volumes:
                for at in range(len(record.volumes)):
                    site.volumes[tag].unshare(f"{record.short}-{at}")
            log.close()
            site.running.pop(record.short, None)
        self._viewer.event({**ending, "held": self._ended(client, record, ending)})

    def _begin(self, client: AgentClient, record: Record, *, explain: bool) -> tuple[Call, int]:
        """Have it made and started; its call, and its process in the guest. Raises PykvmError."""
        request = creation(self._store, record, explain=explain)
        if self._size:
            columns, rows = self._size
            request["config"]["process"]["consoleSize"] = {"height": rows, "width": columns}
        self._give_volumes(record, request["config"])
        self._give_disk(client, record, request)
        if record.runtime != OWN_RUNTIME:
            self._give_runtime(record, request)
        call = client.open("create", **request)
        self._viewer.types_into(client, call, record)
        try:
            return call, int(call.answer(_START_S).get("pid") or 0)
        except PykvmError:
            for item in call.so_far():
                if record.runtime == OWN_RUNTIME or not isinstance(item, Data):  # others say why twice
                    self._viewer.show(item)
            raise

    def _give_volumes(self, record: Record, config: dict[str, Any]) -> None:
        """Share the folders of the host with the guest, and mount them. Raises ConfigError."""
        site = self._site
        if record.volumes and not site.volumes:
            raise ConfigError(f"machine {site.vm} was made without volumes; stop it, or take another")
        for at, (source, target, read_only) in enumerate(record.volumes):
            if not Path(source).is_dir():
                raise ConfigError(f"invalid mount config: bind source path does not exist: {source}")
            tag, name = "ro" if read_only else "rw", f"{record.short}-{at}"
            site.volumes[tag].share(name, Path(source))
            options = ["rbind", "nosuid", "nodev", *(["ro"] if read_only else [])]
            config["mounts"].append(
                {"destination": target, "type": "virtiofs", "source": f"{tag}/{name}", "options": options}
            )

    def _give_disk(self, client: AgentClient, record: Record, request: dict[str, Any]) -> None:
        """What it writes goes to the machine's disk, if there is one; rates need the numbers of devices."""
        if self._site.has_disk:  # a folder for this start alone: what earlier ones wrote is a layer by now
            folder = f"{record.short}-{time.time_ns():x}"
            request["upper"] = {"type": "ext4", "device": "vdb", "dir": folder}
            self._folder = f"/run/pykvm/d/vdb/{folder}"
        rates = {kind: rows for kind, rows in record.rates.items() if rows}
        if rates:
            found = {kind: [_numbered(client, *row) for row in rows] for kind, rows in rates.items()}
            request["config"]["linux"]["resources"]["blockIO"] = found

    def _give_runtime(self, record: Record, request: dict[str, Any]) -> None:
        """Have another runtime make it, of the same configuration. Raises ConfigError."""
        if record.runtime not in self._site.runtimes:
            why = f"machine {self._site.vm} was made without {record.runtime}"
            raise ConfigError(f"{why}; stop it, or name another with --vm")
        whole = self._store.config(record)
        whole["linux"]["resources"] = request["config"]["linux"]["resources"]  # devices by their numbers
        text = bundle_config(whole, record.short, [one["path"] for one in request["files"]])
        request["runtime"] = {"program": runtime_program(record.runtime), "config": text}

    def _show_steps(self, items: Iterable[Data | dict[str, Any]]) -> None:
        for item in items:
            if not isinstance(item, Data) and item.get("event") == "step":
                self._viewer.show(item)

    def _follow(
        self, items: Iterable[Data | dict[str, Any]], call: Call, log: LogWriter, *, is_tty: bool
    ) -> dict[str, Any]:
        """Everything until the end of the container and of its streams; its exit event."""
        ending: dict[str, Any] | None = None
        open_streams = {1} if is_tty else {1, 2}
        for item in items:
            self._viewer.show(item)
            if isinstance(item, Data):
                log.write(item.stream, item.data)
                if not item.data:
                    open_streams.discard(item.stream)
            elif item.get("event") == "exit":
                ending = item
            if ending and not open_streams:
                call.forget()
                return ending
        return ending or {"event": "exit", "status": 128 + signal.SIGKILL, "text": self._lost()}

    def _lost(self) -> str:
        """That the machine ended, and how, if it comes to be known."""
        site = self._site
        site.is_over.wait(_WHY_S)
        return f"its machine {site.vm} ended before it" + (f": {site.why}" if site.why else "")

    def _ended(self, client: AgentClient, record: Record, ending: Mapping[str, Any]) -> list[str]:
        """Keep what it changed, free what it had in the guest, write its end down; which limits held it."""
        error = str(ending.get("text") or "")
        held: list[str] = []
        try:
            held = held_by(client.ask("info", _ASK_S, name=record.short).get("files") or {})
            if not record.auto_remove and not self._site.is_abandoned:
                with write_whole(self._store.folder(record) / "upper.tar") as file:
                    keep_changes(self._store, record, client, file)
            client.ask("delete", _ASK_S, name=record.short, force=True)
            if self._folder:
                _in_guest(client, "/bin/rm", "-rf", self._folder)
        except (PykvmError, TimeoutError, FileNotFoundError) as failed:
            error = error or f"what it changed is lost: {failed}"
        with suppress(NoContainerError):
            done = self._store.change(
                record.id,
                lambda one: replace(
                    one,
                    state="exited",
                    pid=0,
                    status=int(ending.get("status") or 0),
                    oom_kills=int(ending.get("oom_kills") or 0),
                    held=held,
                    finished_ns=time.time_ns(),
                    error=error,
                ),
            )
            if done.auto_remove or self._site.is_abandoned:
                self._store.remove(done)
        return held


def _in_guest(client: AgentClient, *words: str) -> str:
    """What a program of the guest itself prints."""
    call = client.open("exec", process={"args": words, "env": [], "cwd": "/"})
    text = b""
    open_ends = {1, 2, "exit"}
    try:
        call.answer(_START_S)
        for item in call:
            if not isinstance(item, Data):
                open_ends.discard(str(item.get("event")))
            elif not item.data:
                open_ends.discard(item.stream)
            elif item.stream == 1:
                text += item.data
            if not open_ends:
                break
    finally:
        call.forget()
    return text.decode(errors="replace")


def _numbered(client: AgentClient, device: str, rate: int) -> dict[str, int]:
    """A device of the guest by its numbers. Raises ConfigError if there is none."""
    text = _in_guest(client, "/bin/cat", f"/sys/class/block/{device.removeprefix('/dev/')}/dev")
    major, colon, minor = text.strip().partition(":")
    if not colon:
        raise ConfigError(f"{device}: the machine has no such device; --vm-disk SIZE makes it /dev/vdb")
    return {"major": int(major), "minor": int(minor), "rate": rate}
