"""One Linux guest with the agent as its first process; its containers by nothing but the agent's protocol."""

from __future__ import annotations

import io
import itertools
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pykvm.containers.archive import load
from pykvm.containers.busybox import busybox_layer
from pykvm.containers.calls import AgentClient, AgentError, AgentGoneError, Call, Data
from pykvm.containers.guest_boot import load_agent
from pykvm.containers.layer_disk import LayerDisk, partition_name
from pykvm.containers.layer_files import layer_files
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.run_options import RunOptions
from pykvm.containers.runtime_files import cached_runtime
from pykvm.containers.runtimes import RUNTIMES, bundle_config, runtime_program
from pykvm.containers.seccomp import compile_filter
from pykvm.containers.store import ImageStore
from pykvm.containers.transfers import save_tar
from pykvm.containers.users import User
from pykvm.containers.wire import PORT
from pykvm.devices.virtio.block import Block
from pykvm.devices.virtio.disk_files import RawFile
from pykvm.devices.virtio.fs import Fs
from pykvm.devices.virtio.host_folder import HostFolder
from pykvm.devices.virtio.vsock import Vsock
from pykvm.linux.initramfs import applets
from pykvm.machine import Machine

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from image_parts import docker_archive, entry, layer, tar_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pykvm.linux.kit import Kit
    from pykvm.result import RunResult

__all__ = ["KINDS", "AgentError", "Ended", "Guest", "follow"]

LIMIT_S = 240.0
_SOLID = bytes(range(1, 256)) * 300
KINDS = {
    **{f"of {size} bytes": _SOLID[:size] for size in (0, 1, 4031, 4032, 4033, 4096, 4097, 65536, 65537)},
    "holes": bytes(1 << 20) + _SOLID + bytes(3 << 20) + b"end",
    "only a hole": bytes(200_000),
    **{f"many/{'n' * (at % 200)}{at}": str(at).encode() for at in range(300)},
}
"""Files of the upper layer, of every size and shape, by their names below /kinds."""
FIRST_ID = 100_000


@dataclass
class Ended:
    """What became of a process: its exit event, its output, and the other events."""

    status: int = -1
    out: bytes = b""
    err: bytes = b""
    exit: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Both outputs."""
        return (self.out + self.err).decode(errors="replace")


def follow(call: Call, *, is_tty: bool = False) -> Ended:
    """Everything until the end of a process and of its streams."""
    found, open_streams = Ended(), {1} if is_tty else {1, 2}
    for item in call:
        if isinstance(item, Data):
            if item.stream == 1:
                found.out += item.data
            else:
                found.err += item.data
            if not item.data:
                open_streams.discard(item.stream)
        elif item["event"] == "exit":
            found.exit, found.status = item, item["status"]
        else:
            found.events.append(item)
        if found.exit and not open_streams:
            break
    return found


class Guest:
    """The guest; `client` speaks to its agent. It has busybox in two layers, a disk, a folder of the host."""

    def __init__(self, kit: Kit, folder: Path, disk: Path | None = None) -> None:
        self.kit = kit
        self.folder = folder
        self.console = bytearray()
        self.result: RunResult | None = None
        self._names = (f"c{n}" for n in itertools.count())
        self._stack = ExitStack()
        self.share = folder / "share"
        self.share.mkdir()
        self.disk = disk
        self._link: socket.socket | None = None
        self.runtimes = tuple(name for name in RUNTIMES if cached_runtime(name, kit.store))
        base = busybox_layer(kit.busybox, applets(kit.busybox))
        store = ImageStore(folder / "store")
        image = load(store, io.BytesIO(tar_of(docker_archive([base, _top()], ["a"]))))[0].image
        self.layers = LayerDisk(layer_files(store, image))
        self.names = [partition_name(one) for one in self.layers.layers]

    def __enter__(self) -> Self:
        self.machine = self._stack.enter_context(Machine(memory="256M", console=self.console.extend))
        self.machine.virtio.add(Block(self.layers))
        if self.disk:
            self.machine.virtio.add(Block(RawFile(self.disk)))
        self.machine.virtio.add(Fs(HostFolder(self.share), "host"))
        self.machine.virtio.add(Vsock(3, self.folder / "v"))
        load_agent(self.machine, self.kit, "guest", runtimes=self.runtimes)
        self.machine.allow_attach()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        try:
            self._link = self.connect()
            self.client = AgentClient(self._link)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError, AgentError, AgentGoneError, TimeoutError):
            self.client.ask("shutdown", 30)
        with suppress(AttributeError):
            self.client.close()
        self._thread.join(30)
        if self._thread.is_alive():
            self.machine.stop()
            self._thread.join()
        self._stack.close()

    def _run(self) -> None:
        self.result = self.machine.run(timeout=900)  # all tests of a module share it, also on a slow host
        self.hang_up()  # who waits for an answer hears that there is none

    def hang_up(self) -> None:
        """End the client's connection."""
        if self._link:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)

    def connect(self) -> socket.socket:
        """A connection to the agent, once it listens."""
        end = time.monotonic() + LIMIT_S
        while self._thread.is_alive() and time.monotonic() < end:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(LIMIT_S)
            with suppress(OSError):
                link.connect(str(self.folder / "v"))
                link.sendall(f"CONNECT {PORT}\n".encode())
                line = b""
                while (byte := link.recv(1)) and byte != b"\n":
                    line += byte
                if line.startswith(b"OK"):
                    return link
            link.close()
            time.sleep(0.05)
        raise AssertionError(f"no agent: {self.console.decode(errors='replace')}")

    # ---- containers

    def config(self, options: RunOptions, uid: int = 0, *, is_mapped: bool = False) -> dict[str, Any]:
        """config.json by the rules of `container run`; without a user namespace unless `is_mapped`."""
        user = User(uid, uid, (), "")
        found = oci_config({}, options, user, Place("id", FIRST_ID, (6, 1)))
        if not is_mapped:
            linux = found["linux"]
            linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "user"]
        return found

    def wish(
        self,
        command: str | list[str],
        *,
        uid: int = 0,
        is_mapped: bool = False,
        name: str = "",
        more: Mapping[str, Any] | None = None,
        mounts: Iterable[Mapping[str, Any]] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """The words of a `create`; a text is run by sh -c."""
        args = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        config = self.config(RunOptions(command=tuple(args), **options), uid, is_mapped=is_mapped)
        config["mounts"] += mounts
        profile = config["linux"].pop("seccomp", None)
        found = {"name": name or next(self._names), "config": config, "layers": self.names, "start": True}
        if profile:
            found["seccomp"] = compile_filter(profile).hex()
        return found | dict(more or {})

    def by(self, runtime: str, wish: dict[str, Any]) -> dict[str, Any]:
        """The words of a `create` by another runtime, of those by the agent."""
        found = self.config(
            RunOptions(command=("x",)), is_mapped=bool(wish["config"]["linux"].get("uidMappings"))
        )
        linux = {**wish["config"]["linux"], "seccomp": found["linux"]["seccomp"]}
        text = bundle_config({**wish["config"], "linux": linux}, wish["name"], [])
        return wish | {"runtime": {"program": runtime_program(runtime), "config": text}}

    def open(self, command: str | list[str], **words: Any) -> tuple[str, Call]:
        """A container that runs: its name, and the request that made it. Raises AgentError."""
        wish = self.wish(command, **words)
        return wish["name"], self.begin(wish)

    def begin(self, wish: Mapping[str, Any]) -> Call:
        """Make a container of the words of a `create`. Raises AgentError."""
        call = self.client.open("create", **wish)
        call.answer(LIMIT_S)
        return call

    def run(self, command: str | list[str], **words: Any) -> Ended:
        """A container from its beginning to its end, deleted. Raises AgentError."""
        name, call = self.open(command, **words)
        found = follow(call, is_tty=bool(words.get("tty")))
        self.client.ask("delete", LIMIT_S, name=name)
        return found

    def exec(self, name: str | None, command: str | list[str], **words: Any) -> Ended:
        """A process in a container, or in the guest itself. Raises AgentError."""
        args = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        process = {"args": args, "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "cwd": "/"}
        if name:
            process = self.config(RunOptions(command=tuple(args)))["process"]
        process |= words.pop("process", {})
        named = {"name": name} if name else {}
        call = self.client.open("exec", process=process, **named, **words)
        call.answer(LIMIT_S)
        return follow(call, is_tty=bool(process.get("terminal")))

    def tar(self, op: str, **words: Any) -> bytes:
        """The archive that an operation gives. Raises AgentError."""
        found = io.BytesIO()
        save_tar(self.client, found, op, **words)
        return found.getvalue()


def _top() -> bytes:
    """A second layer: it hides a file of the first, and adds some."""
    return layer(
        entry("etc", kind=b"5"),
        entry("etc/.wh.shadow"),
        entry("etc/image", b"of the image\n"),
        entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
        entry("bin", kind=b"5"),
        entry("bin/gains", b"x", mode=0o4755),
        entry("bin/not_a_program", b"\0\1", mode=0o755),
        entry("home", kind=b"5"),
        entry("home/a", b"1"),
        entry("home/hard", kind=b"1", linkname="home/a"),
        entry("kinds", kind=b"5", mode=0o1751, uid=7, gid=8),
        *(entry(f"kinds/{name}", data) for name, data in KINDS.items()),
        entry("kinds/link", kind=b"2", linkname="../" * 30 + "x"),
        entry("kinds/pipe", kind=b"6", mode=0o620),
        entry("kinds/null", kind=b"3", devmajor=1, devminor=3, mode=0o666),
    )
