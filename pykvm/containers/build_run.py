"""RUN: a command in a container upon the layers so far, whose changes become the next layer.

All commands of a build run in one machine, made for the first of them and ended with the build. They have no
network: what they need comes with COPY or with the base.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Self

from pykvm.containers.calls import Data
from pykvm.containers.changes import write_layer
from pykvm.containers.documents import CONFIG_TYPE, Descriptor, Image
from pykvm.containers.guest_options import GuestOptions
from pykvm.containers.kept import files_of
from pykvm.containers.launch import ensure_machine, reach
from pykvm.containers.records import ContainerStore
from pykvm.containers.run_options import RunOptions
from pykvm.containers.running import Wish, add_container_of, start_container
from pykvm.containers.talk import ServicePeer
from pykvm.control import ask
from pykvm.errors import ImageError, PykvmError
from pykvm.registry import Room, stop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from pykvm.containers.records import Record
    from pykvm.containers.store import ImageStore
    from pykvm.containers.tree import FileTree

__all__ = ["BuildMachine"]

_MEMORY = "1G"
_STOP_S = 60.0


class BuildMachine:
    """Runs the commands of one build. close() ends its machine, if there was need of one.

    So does the end of this process, however it comes: the machine is held by a connection of ours.
    """

    def __init__(self, store: ImageStore, notice: Callable[[str], None]) -> None:
        """`notice` is told what commands print, line by line."""
        self._store = store
        self._containers = ContainerStore(store.root)
        self._notice = notice
        self._name = f"build-{secrets.token_hex(4)}"
        self._hold: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine."""
        with Room() as room, suppress(PykvmError):
            if room.is_running(self._name):
                stop(room, self._name, timeout_s=_STOP_S)
        if self._hold:
            self._hold.close()

    def run(
        self,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        settings: dict[str, Any],
        words: Sequence[str],
        below: FileTree,
        target: IO[bytes],
    ) -> None:
        """Run a command with the image's `settings`, and write what it changed as a layer's tar.

        Raises ImageError if it ends with another status than 0, ConfigError, PykvmError.
        """
        nothing = Descriptor(CONFIG_TYPE, "sha256:" + "0" * 64, 0)
        image = Image(b"", b"", nothing.digest, nothing, tuple(layers), tuple(diff_ids), {"config": settings})
        options = RunOptions(command=tuple(words), entrypoint="")
        wish = Wish("(build)", f"{self._name}-{secrets.token_hex(3)}", self._name)
        record = add_container_of(self._store, self._containers, wish, options, image)
        try:
            self._carry_out(record, " ".join(words))
            with (self._containers.folder(record) / "upper.tar").open("rb") as upper:
                write_layer(upper, target, record, below)
        finally:
            self._containers.remove(record)

    def _carry_out(self, record: Record, text: str) -> None:
        with Room() as room:
            guest = GuestOptions(memory=_MEMORY, for_one=True)
            if not self._hold:
                ensure_machine(room, self._name, guest, self._store.root, files_of(self._containers, record))
                self._hold = reach(room, self._name)
                ask(self._hold, {"do": "hold"})
            link = start_container(room, self._containers, record, guest, attach=True, explain=False)
        held = {1: b"", 2: b""}
        ending: dict[str, Any] = {}
        with link:
            for item in ServicePeer(link).items():
                if isinstance(item, Data):
                    held[item.stream] = self._tell(held[item.stream] + item.data)
                elif item.get("event") in {"exit", "failed"}:
                    ending = item
                    break
        for rest in held.values():
            self._tell(rest + b"\n" if rest else b"")
        if ending.get("event") == "failed":
            raise ImageError(str(ending.get("text")))
        if not ending:
            raise PykvmError("the machine that ran it has gone")
        if status := int(ending.get("status") or 0):
            raise ImageError(f"the command '{text}' returned a non-zero code: {status}")

    def _tell(self, data: bytes) -> bytes:
        """Tell all whole lines; what is left."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._notice(line.decode(errors="replace"))
        return rest
