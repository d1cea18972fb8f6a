"""A Linux guest with the agent, two other runtimes, and what the bench of containers measures in it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pykvm.containers.archive import load
from pykvm.containers.busybox import add_busybox, busybox_layer
from pykvm.containers.calls import Data
from pykvm.containers.creation import for_agent
from pykvm.containers.dialling import connect_agent
from pykvm.containers.guest_boot import load_agent
from pykvm.containers.layer_disk import LayerDisk, partition_name
from pykvm.containers.layer_files import layer_files
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.run_options import RunOptions
from pykvm.containers.runtime_files import runtime_tree
from pykvm.containers.runtimes import RUNTIMES, bundle_config, runtime_program
from pykvm.containers.seccomp import compile_filter
from pykvm.containers.store import ImageStore
from pykvm.containers.users import User
from pykvm.devices.virtio.block import Block
from pykvm.devices.virtio.disk_files import RawFile
from pykvm.devices.virtio.vsock import Vsock
from pykvm.errors import ConfigError
from pykvm.lab.ext4 import make_image
from pykvm.lab.store import Store
from pykvm.linux.initramfs import applets
from pykvm.linux.kit import kit
from pykvm.machine import Machine

from .containers import many_files, write_archive
from .linux_machines import LinuxFiles

if TYPE_CHECKING:
    from pykvm.containers.calls import AgentClient, Call
    from pykvm.containers.layer_files import LayerFile

__all__ = ["BenchGuest", "ContainerFiles", "Outcome"]

_FILES = 3000
_FIRST_ID = 100_000
_ANSWER_S = 120.0
_NOW = re.compile(rb"bench (\w+) (\d+) (\d+)")
_BUNDLE = "/run/bench"
_PATH = "PATH=/bin:/sbin:/usr/bin:/usr/sbin"
_ETC = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class ContainerFiles:
    """An image, its layers, the largest as ext4, too, and all that a lab can't fetch; what is there is kept.

    Raises LabError for packages that can't be had, ToolchainError where the program can't be compiled.
    """

    def __init__(self, folder: Path) -> None:
        self.linux = LinuxFiles(folder)
        self.kit = kit(Store(), lambda _text: None)
        for name in RUNTIMES:
            runtime_tree(name, self.kit.store, lambda _text: None)
        self.data = folder / "data"
        self.ext4 = folder / "layer.ext4"
        if not self.ext4.exists():
            self._make(folder)
        store = ImageStore(folder / "store")
        self.layers: list[LayerFile] = layer_files(store, store.image(store.entries()[0].descriptor))

    def _make(self, folder: Path) -> None:
        base = busybox_layer(self.kit.busybox, applets(self.kit.busybox))
        (large,) = many_files(_FILES, 1)
        archive = folder / "archive.tar"
        write_archive(archive, [base, _program(self.linux.program), large])
        store = ImageStore(folder / "store")
        layer_files(store, load(store, archive)[0].image)
        archive.unlink()
        data = ImageStore(self.data)  # of its own: the one that `container run` is to find
        layer_files(data, data.image(add_busybox(data, lambda _text: None).descriptor))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            subprocess.run(["tar", "-x", "-C", scratch], input=large, check=True)
            make_image(self.ext4, Path(scratch), "layer")


def _program(program: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("bench")
        info.mode, info.size = 0o755, program.stat().st_size
        with program.open("rb") as file:
            tar.addfile(info, file)
    return out.getvalue()


class Outcome(NamedTuple):
    """What a process gave: its answer, its output, its status, and how long its output took to come."""

    answer: dict[str, Any]
    out: bytes
    status: int
    seconds: float

    def told(self, word: str) -> tuple[int, int]:
        """The two numbers that /bench told. Raises ConfigError if it did not."""
        for found, one, other in _NOW.findall(self.out):
            if found.decode() == word:
                return int(one), int(other)
        raise ConfigError(f"the guest told nothing of {word} (status {self.status}): {self.out[-300:]!r}")


class BenchGuest:
    """The guest; /mnt/program has the bench's program for its own processes, not for containers."""

    def __init__(self, files: ContainerFiles) -> None:
        self.files = files
        self._stack = ExitStack()
        self._count = 0
        self._console = bytearray()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pykvm-bench-")))
            image = folder / "ext4"
            shutil.copyfile(self.files.ext4, image)
            machine = stack.enter_context(Machine(memory="512M", console=self._console.extend))
            disk = stack.enter_context(LayerDisk(self.files.layers))
            machine.virtio.add(Block(disk))
            machine.virtio.add(Block(RawFile(image)))
            machine.virtio.add(Vsock(3, folder / "v"))
            load_agent(machine, self.files.kit, "bench", runtimes=tuple(RUNTIMES))
            thread = threading.Thread(target=machine.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(machine.stop)
            self.client: AgentClient = stack.enter_context(connect_agent(folder / "v"))
            self.layers = [partition_name(layer) for layer in disk.layers]
            self._prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        """The program where the guest's own processes find it, and a container that lends its root."""
        mounts = "mkdir /mnt/program /mnt/erofs /mnt/ext4; mount -t erofs /dev/vda2 /mnt/program"
        self.shell(mounts)
        held = self.words(["sleep", "1000000"], "holder")
        self._holder = self.client.open("create", **held)
        self._holder.answer(_ANSWER_S)
        root = str(self.client.ask("info", _ANSWER_S, name="holder")["rootfs"])
        config = self._config(["/bench", "now"])
        for runtime in RUNTIMES:
            found = json.loads(bundle_config(config, "", _ETC))
            found["root"]["path"] = root
            found["linux"]["cgroupsPath"] = f"/{runtime}"
            for mount in found["mounts"]:
                if mount["type"] == "bind":
                    mount["source"] = f"{os.path.dirname(root)}/{mount['source']}"  # noqa: PTH120 - the guest's
            self.shell(
                f"mkdir -p {_BUNDLE}/{runtime}; cat > {_BUNDLE}/{runtime}/config.json",
                json.dumps(found).encode(),
            )

    def _config(self, args: list[str]) -> dict[str, Any]:
        place = Place("bench", _FIRST_ID, (6, 1))
        return oci_config({}, RunOptions(command=tuple(args)), User(0, 0, (), ""), place)

    def words(self, args: list[str], name: str) -> dict[str, Any]:
        """The agent's `create` of a container as `container run` makes it, without a network."""
        config = self._config(args)
        config["process"] = for_agent(config["process"])
        seccomp = compile_filter(config["linux"].pop("seccomp")).hex()
        files = [{"path": path, "text": f"{path}\n", "mode": 0o644} for path in _ETC]
        found = {"name": name, "config": config, "seccomp": seccomp, "layers": self.layers, "files": files}
        return {**found, "network": {"mode": "none"}, "stdin": True, "start": True}

    def run(self, args: list[str], typed: bytes = b"") -> Outcome:
        """A container from its beginning to its end, deleted."""
        name, found = self._run(args, typed)
        self.delete(name)
        return found

    def start(self, args: list[str]) -> str:
        """A container that has ended and is still there: its name."""
        return self._run(args, b"")[0]

    def _run(self, args: list[str], typed: bytes) -> tuple[str, Outcome]:
        self._count += 1
        name = f"c{self._count}"
        call = self.client.open("create", **self.words(args, name))
        return name, _follow(call, typed)

    def delete(self, name: str) -> None:
        """Delete one that has ended."""
        self.client.ask("delete", _ANSWER_S, name=name)

    def run_by(self, runtime: str) -> Outcome:
        """`RUNTIME run` of the same container, whose root is there already, as a process of the guest."""
        self._count += 1
        argv = [runtime_program(runtime), "--root", f"{_BUNDLE}/state", "run", "--bundle"]
        return self.process(["/mnt/program/bench", "from", *argv, f"{_BUNDLE}/{runtime}", f"r{self._count}"])

    def process(self, args: list[str], typed: bytes = b"") -> Outcome:
        """A process of the guest itself."""
        process = {"args": args, "env": [_PATH], "cwd": "/"}
        return _follow(self.client.open("exec", process=process, stdin=bool(typed)), typed)

    def shell(self, script: str, typed: bytes = b"") -> str:
        """What a script of the guest's prints. Raises ConfigError if it fails."""
        done = self.process(["/bin/sh", "-c", script], typed)
        if done.status:
            raise ConfigError(f"the guest: {script}: {done.out.decode(errors='replace').strip()}")
        return done.out.decode(errors="replace")


def _type(call: Call, data: bytes) -> None:
    call.send(data)
    call.end_input()


def _follow(call: Call, typed: bytes) -> Outcome:
    answer = call.answer(_ANSWER_S)
    if typed:
        threading.Thread(target=_type, args=(call, typed), daemon=True).start()
    out, status, open_streams = bytearray(), -1, {1, 2}
    began = came = 0.0
    for item in call:
        if isinstance(item, Data):
            out += item.data
            came = time.monotonic() if item.data else came
            began = began or came
            if not item.data:
                open_streams.discard(item.stream)
        elif item.get("event") == "exit":
            status = int(item["status"])
        if status >= 0 and not open_streams:
            break
    call.forget()
    return Outcome(answer, bytes(out), status, came - began)
