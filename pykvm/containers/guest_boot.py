"""Loads a machine for containers: the kernel, and an initramfs whose first process is the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.errors import ImageNotFoundError
from pykvm.guests import built_folder
from pykvm.lab import cpio
from pykvm.linux.command import CMDLINE
from pykvm.linux.initramfs import Job, build_initramfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.linux.kit import Kit
    from pykvm.machine import Machine

__all__ = ["load_agent"]

_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    "veth",
    "bridge",
)


def load_agent(
    machine: Machine, kit: Kit, name: str, *, with_shares: bool = False, runtimes: Sequence[str] = ()
) -> None:
    """Load it; its devices are there. Raises LabError, ImageError, ImageNotFoundError.

    The initramfs has the `runtimes` named, see pykvm.containers.runtimes.
    """
    agent = built_folder() / "agent"
    if not agent.exists():
        raise ImageNotFoundError("the agent of guests with containers has not been built; run `make guests`")
    job = Job()
    job.add("name", name)
    modules = [*_MODULES, *(["virtiofs"] if with_shares else [])]
    initrd = build_initramfs(kit._replace(init=agent), job, modules)
    if runtimes:
        from pykvm.containers.runtime_files import runtime_members, runtime_tree  # noqa: PLC0415 - few want one

        trees = [runtime_tree(one, kit.store, lambda _: None) for one in runtimes]
        initrd += bytes(-len(initrd) % 4) + cpio.pack(runtime_members(trees))
    machine.load(kit.vmlinux, initrd=initrd, cmdline=f"{CMDLINE} quiet")
