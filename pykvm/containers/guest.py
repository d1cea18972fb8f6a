"""A machine that holds containers: Debian's cloud kernel, the agent as its first process, and devices.

::

    vda        all layers on one read-only disk, which grows (pykvm.containers.layer_disk)
    vdb        where there is a disk for what containers write: an ext4 file system
    vsock      the agent listens there; the Unix socket is NAME.vsock in the directory of named machines
    virtiofs   the folders of the host that containers have, read-only ones and others apart
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pykvm.containers.layer_disk import LayerDisk, partition_name
from pykvm.errors import PykvmError
from pykvm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.guest_options import GuestOptions
    from pykvm.containers.layer_files import LayerFile
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
            load_agent(self.machine, kit, name)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of the machine stays."""
        self._stack.close()

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


def _log(data: bytes) -> None:
    """What the guest's kernel prints goes where the process' own words go."""
    os.write(1, data)
