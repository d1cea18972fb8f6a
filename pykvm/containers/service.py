"""The process that owns a machine with containers: it starts them, keeps what they print, sees how they end.

It answers on the machine's socket (pykvm.control), in addition to what any machine answers::

    {"do": "container", "root": …, "id": …, "attach": …, "explain": …, "size": [columns, rows] of a terminal}

and then frames (pykvm.containers.wire) go both ways until the container's end, or, if nobody is attached,
until it runs: EVENT step, started, failed, exit; DATA of its streams; from the client DATA of stdin, and
REQUEST signal or resize. Whoever is attached may go; the container stays. All else that can be done with a
container needs only the agent, whose socket is beside the machine's.

    {"do": "hold"}       {"ok": true}: the machine ends with this connection, also if who asked is killed
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.calls import AgentClient, AgentError, AgentGoneError
from pykvm.containers.keeping import Keeper, Site
from pykvm.containers.records import ContainerStore, NoContainerError
from pykvm.containers.viewer import Viewer
from pykvm.control import send_line
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.containers.layer_files import LayerFile
    from pykvm.containers.records import Record
    from pykvm.containers.volumes import VolumeFolder

__all__ = ["Service"]

_START_S = 60.0
_END_S = 20.0
_GRACE_S = 5.0


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
        self._site = Site(vm, started_ns, add_layers, volumes or {}, has_disk, runtimes)
        self._end = end
        self._is_ready = threading.Event()
        self._was_asked = threading.Event()
        self._client: AgentClient | None = None
        self._why = ""
        self._keepers: set[threading.Thread] = set()
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()
        self._is_ending = False

    def name_of(self, short: str) -> str:
        """The name of the container with this short ID; the ID of one that is none of ours."""
        return self._names.get(short, short)

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

    def finish(self, why: str = "") -> None:
        """The machine has ended, `why` if not in order: wait for what its containers' keepers still write."""
        self._site.why = why
        self._site.is_over.set()
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
            running = dict(self._site.running)
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
                if name in self._site.running:
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
        return {"container": self._container, "hold": self._hold, "stop": self._stop}

    def _stop(self, _: Any, link: socket.socket, __: Mapping[str, Any]) -> None:
        send_line(link, {"ok": True})
        self.shut_down()

    def _hold(self, _: Any, link: socket.socket, __: Mapping[str, Any]) -> None:
        """Nobody else wants what is in this machine: it ends with who holds it."""
        self._was_asked.set()
        link.settimeout(None)
        send_line(link, {"ok": True})
        with suppress(OSError):
            while link.recv(1):
                pass
        self._site.is_abandoned = True
        self.shut_down()

    def _container(self, _: Any, link: socket.socket, request: Mapping[str, Any]) -> None:
        self._was_asked.set()
        link.settimeout(None)
        viewer = Viewer(link, is_attached=bool(request.get("attach")))
        store, size = ContainerStore(Path(str(request["root"]))), request.get("size")
        keeper = Keeper(self._site, store, str(request["id"]), viewer, size)
        with suppress(NoContainerError):  # its keeper tells who asked
            record = store.get(str(request["id"]))
            self._names[record.short] = record.name
        begun = threading.Event()
        thread = threading.Thread(
            target=self._keep,
            args=(keeper, begun, bool(request.get("explain"))),
            name=f"keeper {str(request['id'])[:12]}",
        )
        with self._lock:
            self._keepers.add(thread)
        thread.start()
        if viewer.is_attached:
            thread.join()
        else:
            begun.wait()
        viewer.leave()

    def _keep(self, keeper: Keeper, begun: threading.Event, explain: bool) -> None:
        try:
            keeper.keep(self._reach, begun, explain=explain)
        finally:
            begun.set()
            with self._lock:
                self._keepers.discard(threading.current_thread())
            if keeper.record and keeper.record.own_vm:
                self.shut_down()

    def _reach(self) -> AgentClient:
        if not self._is_ready.wait(_START_S) or self._client is None:
            raise AgentGoneError(f"machine {self._site.vm}: {self._why or 'its agent does not answer'}")
        return self._client
