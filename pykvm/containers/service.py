"""The process that owns a machine with containers: it starts them, keeps what they print, sees how they end.

It answers on the machine's socket (pykvm.control), in addition to what any machine answers::

    {"do": "container", "root": …, "id": …, "attach": …, "explain": …}

and then frames (pykvm.containers.wire) go both ways until the container's end, or, if nobody is attached,
until it runs: EVENT step, started, failed, exit; DATA of its streams; from the client DATA of stdin, and
REQUEST signal or resize. Whoever is attached may go; the container stays. All else that can be done with a
container needs only the agent, whose socket is beside the machine's.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.blobs import write_whole
from pykvm.containers.calls import AgentClient, AgentError, AgentGoneError, Call, Data
from pykvm.containers.layer_files import LayerFile, files_of
from pykvm.containers.logs import LogWriter
from pykvm.containers.publishing import Publisher
from pykvm.containers.records import ContainerStore, NoContainerError, Record
from pykvm.containers.runtimes import OWN_RUNTIME, bundle_config, runtime_program
from pykvm.containers.seccomp import compile_filter
from pykvm.containers.wire import Decoder, Kind, encode, encode_json
from pykvm.control import send_line
from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.containers.volumes import VolumeFolder

__all__ = ["Service", "failure_status", "for_agent", "save_tar"]

_START_S = 60.0
_END_S = 20.0
_GRACE_S = 5.0


def failure_status(error: PykvmError) -> int:
    """What a start that failed counts as: 127 not found, 126 not to be run, 125 all else."""
    if isinstance(error, AgentError) and error.step in {"execve", "chdir"}:
        return 127 if error.errno in {errno.ENOENT, errno.ENOTDIR} else 126
    return 125


class Service:
    """Serves one machine. `add_layers` makes a guest know layers, `end` ends the machine at once."""

    def __init__(
        self,
        vm: str,
        started_ns: int,
        add_layers: Callable[[AgentClient, Sequence[LayerFile]], None],
        end: Callable[[], None],
        volumes: Mapping[str, VolumeFolder] | None = None,
        *,
        has_disk: bool = False,
        runtimes: Sequence[str] = (),
    ) -> None:
        self._vm = vm
        self._started_ns = started_ns
        self._add_layers = add_layers
        self._end = end
        self._volumes = volumes or {}
        self._has_disk = has_disk
        self._runtimes = runtimes
        self._is_ready = threading.Event()
        self._was_asked = threading.Event()
        self._client: AgentClient | None = None
        self._why = ""
        self._growing = threading.Lock()
        self._keepers: set[threading.Thread] = set()
        self._running: dict[str, Record] = {}
        self._lock = threading.Lock()
        self._is_ending = False

    # ---- the machine's side

    def begin(self, connect: Callable[[], AgentClient]) -> None:
        """Reach the agent; those who wait for it go on. Raises AgentGoneError."""
        try:
            self._client = connect()
        except PykvmError as error:
            self._why = str(error)
            raise
        finally:
            self._is_ready.set()

    def end_unless_used(self, limit_s: float) -> None:
        """Shut down if nobody has asked for a container by then: who made the machine has gone."""
        if not self._was_asked.wait(limit_s):
            self.shut_down()

    def finish(self) -> None:
        """The machine has ended: wait for what its containers' keepers still write."""
        if self._client:
            self._client.close()
        with self._lock:
            keepers = list(self._keepers)
        for keeper in keepers:
            keeper.join(_END_S)

    def shut_down(self) -> None:
        """End the containers, write file systems, switch the guest off; after a while without its help."""
        with self._lock:
            if self._is_ending:
                return
            self._is_ending = True
            running = dict(self._running)
        try:
            if self._client:
                self._stop_all(self._client, running)
                self._client.ask("shutdown", _END_S)
                return
        except (PykvmError, TimeoutError):
            pass
        self._end()

    def _stop_all(self, client: AgentClient, running: Mapping[str, Record]) -> None:
        """Ask the containers to end, then make them; what they leave is kept."""
        for harder in (False, True):
            for name, record in running.items():
                if name in self._running:
                    with suppress(AgentError):
                        number = signal.SIGKILL if harder else record.stop_signal
                        client.ask("signal", _END_S, name=name, signal=int(number))
            end = time.monotonic() + _GRACE_S
            with self._lock:
                keepers = list(self._keepers)
            for keeper in keepers:
                keeper.join(max(end - time.monotonic(), 0))

    # ---- requests

    def answers(self) -> dict[str, Callable[[Any, socket.socket, Mapping[str, Any]], None]]:
        """What pykvm.control is to answer in addition."""
        return {"container": self._container, "stop": self._stop}

    def _stop(self, _: Any, link: socket.socket, __: Mapping[str, Any]) -> None:
        send_line(link, {"ok": True})
        self.shut_down()

    def _container(self, _: Any, link: socket.socket, request: Mapping[str, Any]) -> None:
        self._was_asked.set()
        link.settimeout(None)
        viewer = _Viewer(link, is_attached=bool(request.get("attach")))
        store = ContainerStore(Path(str(request["root"])))
        container_id = str(request["id"])
        begun = threading.Event()
        keeper = threading.Thread(
            target=self._keep,
            args=(store, container_id, viewer, begun, bool(request.get("explain"))),
            name=f"keeper {container_id[:12]}",
        )
        with self._lock:
            self._keepers.add(keeper)
        keeper.start()
        if viewer.is_attached:
            keeper.join()
        else:
            begun.wait()
        viewer.leave()

    # ---- one container

    def _keep(
        self, store: ContainerStore, container_id: str, viewer: _Viewer, begun: threading.Event, explain: bool
    ) -> None:
        record = None
        try:
            record = store.get(container_id)
            self._run(store, record, viewer, begun, explain=explain)
        except PykvmError as error:
            status = failure_status(error)
            if record and not isinstance(error, NoContainerError):
                with suppress(NoContainerError):
                    store.set(container_id, status=status, error=str(error), finished_ns=time.time_ns())
                    if record.auto_remove:
                        store.remove(record)
            viewer.event({"event": "failed", "status": status, "text": str(error)})
        finally:
            begun.set()
            with self._lock:
                self._keepers.discard(threading.current_thread())
            if record and record.own_vm:
                self.shut_down()

    def _run(
        self, store: ContainerStore, record: Record, viewer: _Viewer, begun: threading.Event, *, explain: bool
    ) -> None:
        if not self._is_ready.wait(_START_S) or self._client is None:
            raise AgentGoneError(f"machine {self._vm}: {self._why or 'its agent does not answer'}")
        client = self._client
        with self._growing:
            self._add_layers(client, files_of(store, record))
        log = LogWriter(store.folder(record) / "log")
        try:
            request = _creation(store, record, explain=explain)
            self._give_volumes(record, request["config"])
            self._give_disk(client, record, request)
            if record.runtime != OWN_RUNTIME:
                self._give_runtime(store, record, request)
            call = client.open("create", **request)
            viewer.types_into(client, call, record)
            try:
                answer = call.answer(_START_S)
            except PykvmError:
                for item in call.so_far():
                    if record.runtime == OWN_RUNTIME or not isinstance(item, Data):  # others say why twice
                        viewer.show(item)
                raise
            record = store.set(
                record.id,
                state="running",
                pid=int(answer.get("pid") or 0),
                started_ns=time.time_ns(),
                vm=self._vm,
                vm_started_ns=self._started_ns,
            )
            self._running[record.short] = record
            with Publisher(client, record.address, record.ports) as published:
                if published.ports:
                    record = store.set(record.id, ports=published.ports)
                viewer.event({"event": "started", "pid": record.pid})
                begun.set()
                ending = _follow(call, viewer, log, is_tty=record.tty)
        except ConfigError:  # a port that is taken: the container is there by now
            with suppress(AgentError):
                client.ask("delete", _END_S, name=record.short, force=True)
            store.set(record.id, state="created")
            raise
        finally:
            for tag in self._volumes:
                for at in range(len(record.volumes)):
                    self._volumes[tag].unshare(f"{record.short}-{at}")
            log.close()
            self._running.pop(record.short, None)
        self._ended(client, store, record, ending)
        viewer.event(ending)

    def _give_volumes(self, record: Record, config: dict[str, Any]) -> None:
        """Share the folders of the host with the guest, and mount them. Raises ConfigError."""
        if record.volumes and not self._volumes:
            raise ConfigError(f"machine {self._vm} was made without volumes; stop it, or take another")
        for at, (source, target, read_only) in enumerate(record.volumes):
            tag, name = "ro" if read_only else "rw", f"{record.short}-{at}"
            self._volumes[tag].share(name, Path(source))
            options = ["rbind", "nosuid", "nodev", *(["ro"] if read_only else [])]
            config["mounts"].append(
                {"destination": target, "type": "virtiofs", "source": f"{tag}/{name}", "options": options}
            )

    def _give_disk(self, client: AgentClient, record: Record, request: dict[str, Any]) -> None:
        """What it writes goes to the machine's disk, if there is one; rates need the numbers of devices."""
        if self._has_disk:
            request["upper"] = {"type": "ext4", "device": "vdb", "dir": record.short}
        rates = {kind: rows for kind, rows in record.rates.items() if rows}
        if rates:
            found = {kind: [_numbered(client, *row) for row in rows] for kind, rows in rates.items()}
            request["config"]["linux"]["resources"]["blockIO"] = found

    def _give_runtime(self, store: ContainerStore, record: Record, request: dict[str, Any]) -> None:
        """Have another runtime make it, of the same configuration. Raises ConfigError."""
        if record.runtime not in self._runtimes:
            why = f"machine {self._vm} was made without {record.runtime}"
            raise ConfigError(f"{why}; stop it, or name another with --vm")
        whole = store.config(record)
        whole["linux"]["resources"] = request["config"]["linux"]["resources"]  # devices by their numbers
        text = bundle_config(whole, record.short, [one["path"] for one in request["files"]])
        request["runtime"] = {"program": runtime_program(record.runtime), "config": text}

    def _ended(
        self, client: AgentClient, store: ContainerStore, record: Record, ending: Mapping[str, Any]
    ) -> None:
        """Keep what it changed, free what it had in the guest, write its end down."""
        error = str(ending.get("text") or "")
        try:
            if not record.auto_remove:
                with write_whole(store.folder(record) / "upper.tar") as file:
                    save_tar(client, file, "diff", name=record.short)
            client.ask("delete", _END_S, name=record.short, force=True)
        except (PykvmError, TimeoutError, FileNotFoundError) as failed:
            error = error or f"what it changed is lost: {failed}"
        with suppress(NoContainerError):
            done = store.change(
                record.id,
                lambda one: replace(
                    one,
                    state="exited",
                    pid=0,
                    status=int(ending.get("status") or 0),
                    oom_kills=int(ending.get("oom_kills") or 0),
                    finished_ns=time.time_ns(),
                    error=error,
                ),
            )
            if done.auto_remove:
                store.remove(done)


def _numbered(client: AgentClient, device: str, rate: int) -> dict[str, int]:
    """A device of the guest by its numbers. Raises ConfigError if there is none."""
    name = device.removeprefix("/dev/")
    process = {"args": ["/bin/cat", f"/sys/class/block/{name}/dev"], "env": [], "cwd": "/"}
    call = client.open("exec", process=process)
    text = b""
    try:
        call.answer(_START_S)
        for item in call:
            if isinstance(item, Data):
                text += item.data if item.stream == 1 else b""
            elif item.get("event") == "exit":
                break
    finally:
        call.forget()
    major, colon, minor = text.decode(errors="replace").strip().partition(":")
    if not colon:
        raise ConfigError(f"{device}: the machine has no such device; --vm-disk SIZE makes it /dev/vdb")
    return {"major": int(major), "minor": int(minor), "rate": rate}


def save_tar(client: AgentClient, file: Any, op: str, **words: Any) -> None:
    """Write the tar that the agent makes for `op` to a file. Raises AgentError, AgentGoneError."""
    call = client.open(op, **words)
    call.answer()
    try:
        for item in call:
            if isinstance(item, Data):
                file.write(item.data)
            elif item.get("event") == "end":
                if isinstance(error := item.get("error"), dict):
                    raise AgentError(error)
                return
        raise AgentGoneError("the guest ended in the midst of a tar")
    finally:
        call.forget()


def _creation(store: ContainerStore, record: Record, *, explain: bool) -> dict[str, Any]:
    """The agent's `create` for a container."""
    config = store.config(record)
    config["process"] = for_agent(config["process"])
    profile = config["linux"].pop("seccomp", None)
    found: dict[str, Any] = {
        "name": record.short,
        "config": config,
        "layers": [key.removeprefix("sha256:")[:32] for key in record.layers],
        "files": _etc_files(config["hostname"], record.address),
        "network": _network(record),
        "stdin": not record.tty,
        "init": record.init,
        "start": True,
        "explain": explain,
    }
    if profile:
        found["seccomp"] = compile_filter(profile).hex()
    return found


def for_agent(process: Mapping[str, Any]) -> dict[str, Any]:
    """OCI's process with numbers that have a sign: no limit is -1."""
    limits = [
        {key: value if isinstance(value, str) or value < 1 << 63 else -1 for key, value in one.items()}
        for one in process["rlimits"]
    ]
    return {**process, "rlimits": limits}


def _network(record: Record) -> dict[str, Any]:
    if record.network != "bridge":
        return {"mode": record.network}
    return {
        "mode": "bridge",
        "bridge": "pykvm0",
        "address": f"{record.address}/16",
        "gateway": "10.88.0.1",
    }


def _etc_files(hostname: str, address: str) -> list[dict[str, Any]]:
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    own = f"{address or '127.0.1.1'}\t{hostname}\n"
    texts = {"/etc/hosts": hosts + own, "/etc/hostname": f"{hostname}\n", "/etc/resolv.conf": ""}
    return [{"path": path, "text": text, "mode": 0o644} for path, text in texts.items()]


def _follow(call: Call, viewer: _Viewer, log: LogWriter, *, is_tty: bool) -> dict[str, Any]:
    """Everything until the end of the container and of its streams; its exit event."""
    ending: dict[str, Any] | None = None
    open_streams = {1} if is_tty else {1, 2}
    for item in call:
        viewer.show(item)
        if isinstance(item, Data):
            log.write(item.stream, item.data)
            if not item.data:
                open_streams.discard(item.stream)
        elif item.get("event") == "exit":
            ending = item
        if ending and not open_streams:
            call.forget()
            return ending
    return ending or {
        "event": "exit",
        "status": 128 + signal.SIGKILL,
        "text": "its machine ended before it",
    }


class _Viewer:
    """Who asked for the container, and perhaps is attached; his going is no error."""

    def __init__(self, link: socket.socket, *, is_attached: bool) -> None:
        self._link = link
        self.is_attached = is_attached
        self._is_gone = False
        self._lock = threading.Lock()

    def show(self, item: Data | Mapping[str, Any]) -> None:
        """Data or an event, if it is for him."""
        if isinstance(item, Data):
            if self.is_attached:
                self._send(encode(Kind.DATA, 0, item.stream, item.data))
        elif item.get("event") != "exit":
            self.event(item)

    def event(self, about: Mapping[str, Any]) -> None:
        """An event."""
        self._send(encode_json(Kind.EVENT, 0, about))

    def leave(self) -> None:
        """Nothing more is said."""
        with self._lock:
            self._is_gone = True

    def _send(self, frame: bytes) -> None:
        with self._lock:
            if self._is_gone:
                return
            try:
                self._link.sendall(frame)
            except OSError:
                self._is_gone = True

    def types_into(self, client: AgentClient, call: Call, record: Record) -> None:
        """Pass on what he types, his signals and his window's size, in a thread of their own."""
        if not self.is_attached:
            call.end_input()
            return
        thread = threading.Thread(target=self._listen, args=(client, call, record), daemon=True)
        thread.start()

    def _listen(self, client: AgentClient, call: Call, record: Record) -> None:
        decoder = Decoder()
        with suppress(OSError, PykvmError):
            while data := self._link.recv(1 << 16):
                for frame in decoder.feed(data):
                    if frame.kind is Kind.DATA:
                        call.send(frame.body) if frame.body else call.end_input()
                    elif frame.kind is Kind.REQUEST:
                        with suppress(AgentError):
                            client.ask(**frame.json(), name=record.short)
        if not record.tty:
            call.end_input()
