"""What a machine's vCPUs share in the C exit loop: the fast ports, and where guest memory is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm._native import ffi, lib
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory

__all__ = ["fast_port", "share_slots"]


def fast_port(shared: Any, where: range, verb: int, *, doorbell_fd: int = -1) -> int:
    """Enter the ports of `where` into `struct loop_shared`, to be answered with a VERB_*; the row's index.

    Raises ConfigError if the table is full or a port is in it already.
    """
    used = [i for i in range(1, lib.FAST_PORTS_MAX) if shared.fast_ports[i].verb]
    index = len(used) + 1
    if index >= lib.FAST_PORTS_MAX or any(shared.fast_index[port] for port in where):
        raise ConfigError(f"fast ports {where.start:#x}-{where.stop - 1:#x}: taken, or the table is full")
    fast = shared.fast_ports[index]
    fast.verb, fast.doorbell_fd, fast.ring = verb, doorbell_fd, ffi.addressof(shared, "console")
    for port in where:
        shared.fast_index[port] = index
    return index


def share_slots(shared: Any, memory: GuestMemory) -> None:
    """Tell the C loop where guest memory is in this process: it checks every address by this table."""
    for target, slot in zip(shared.slots, memory.slots, strict=False):
        target.gpa, target.size, target.read_only = slot.gpa, slot.size_bytes, slot.read_only
        target.host = ffi.cast("uint8_t *", slot.hva)
    shared.slot_count = len(memory.slots)
