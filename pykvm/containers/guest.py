"""A machine that holds containers: Debian's cloud kernel, the agent as its first process, and devices.

::

    vda        all layers on one read-only disk, which grows (pykvm.containers.layer_disk)
    vdb        where there is a disk for what containers write: an ext4 file system
    vsock      the agent listens there; the Unix socket is NAME.vsock in the directory of named machines
    virtiofs   the folders of the host that containers have, read-only ones and others apart
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pykvm.containers.layer_disk import LayerDisk, partition_name
from pykvm.errors import PykvmError
from pykvm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.guest_options import GuestOptions
    from pykvm.containers.layer_files import LayerFile
    from pykvm.containers.volumes import VolumeFolder
    from pykvm.devices.virtio.block import Block
    from pykvm.linux.kit import Kit
    from pykvm.result import RunResult

__all__ = ["ContainerGuest"]

_CID = 3
_CONNECT_S = 120.0
_RETRY_S = 0.02
_RESCAN_S = 10.0


class ContainerGuest:
    """The machine, loaded; run() it. close() takes all of it apart."""

    def __init__(
        self, name: str, kit: Kit, options: GuestOptions, vsock: Path, layers: Sequence[LayerFile]
    ) -> None:
        """`vsock` is the path of the agent's socket. Raises PykvmError in one line."""
        from pykvm.containers.guest_boot import load_agent  # noqa: PLC0415 - it brings the initramfs' parts
        from pykvm.devices.virtio.block import Block  # noqa: PLC0415 - needed only here
        from pykvm.devices.virtio.vsock import Vsock  # noqa: PLC0415 - as above

        self._vsock = vsock
        with ExitStack() as stack:
            self.machine = stack.enter_context(
                Machine(memory=options.memory, vcpus=options.vcpus, console=_log)
            )
            self.disk = LayerDisk(layers)
            self._block = Block(self.disk, serial="layers")
            self.machine.virtio.add(self._block)
            self.machine.virtio.add(Vsock(_CID, vsock))
            self.volumes: dict[str, VolumeFolder] = {}
            if options.disk:
                self.machine.virtio.add(_disk(options.disk, kit))
            if options.volumes:
                self._add_volumes(kit)
            load_agent(self.machine, kit, name, with_shares=options.volumes, runtimes=options.runtimes)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of the machine stays."""
        self._stack.close()

    def _add_volumes(self, kit: Kit) -> None:
        from pykvm.containers.volumes import VolumeFolder  # noqa: PLC0415 - few have volumes
        from pykvm.devices.virtio.fs import Fs  # noqa: PLC0415 - as above

        empty = kit.store.root / "empty"
        empty.mkdir(mode=0o700, parents=True, exist_ok=True)
        for tag, read_only in (("rw", False), ("ro", True)):
            self.volumes[tag] = VolumeFolder(empty, read_only=read_only)
            self.machine.virtio.add(Fs(self.volumes[tag], tag))

    def run(self) -> RunResult:
        """Until the guest ends."""
        return self.machine.run()

    def add_layers(self, client: AgentClient, layers: Sequence[LayerFile]) -> None:
        """Have the guest know these layers. Raises PykvmError if it does not find them."""
        wanted = {partition_name(layer) for layer in layers}
        if not self.disk.grow(layers) and wanted <= self._known(client):
            return
        self._block.resized()
        end = time.monotonic() + _RESCAN_S
        while missing := wanted - self._known(client):
            if time.monotonic() > end:
                raise PykvmError(f"the guest does not see {len(missing)} of the layers on its disk")
            time.sleep(_RETRY_S)

    def _known(self, client: AgentClient) -> set[str]:
        return set(client.ask("rescan", _RESCAN_S).get("layers") or [])


def _disk(size: str, kit: Kit) -> Block:
    """An empty ext4 file system on a disk that has no name, so that it ends with this process."""
    from pykvm.devices.virtio.block import Block  # noqa: PLC0415 - needed only here
    from pykvm.devices.virtio.disk_files import RawFile  # noqa: PLC0415 - as above
    from pykvm.lab.ext4 import make_image  # noqa: PLC0415 - as above
    from pykvm.memory import parse_size  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory(dir=kit.store.root, prefix=".disk-") as folder:
        image, content = Path(folder, "image"), Path(folder, "content")
        content.mkdir()
        make_image(image, content, "upper", free_bytes=parse_size(size))
        return Block(RawFile(image), serial="upper")


def _log(data: bytes) -> None:
    """What the guest's kernel prints goes where the process' own words go."""
    os.write(1, data)
