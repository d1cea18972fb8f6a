"""How large a machine for containers is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GuestOptions"]


class GuestOptions(NamedTuple):
    """`memory` is a size; where containers have no disk, what they write is in it as well.

    `disk` is the size of a disk for what they write, "" for none. `volumes`: folders of the host can be had.
    `for_one`: it ends if nobody asks for its container. `runtimes` are the others that it has.
    """

    memory: str = "512M"
    vcpus: int = 1
    disk: str = ""
    volumes: bool = False
    for_one: bool = False
    runtimes: tuple[str, ...] = ()
