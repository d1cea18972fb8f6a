"""Names for where a task is: a container as its host knows it, or what the guest's kernel says of it.

A record has two numbers: the id of the task's cgroup, which a kernel never gives twice, and the inode number
of its PID namespace. What they mean is read from the kernel's own structures, once, while the vCPU that came
with them stands still. A CR3 would not do: it is another process' as soon as the first has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.tap.btf import PlaceLayout

__all__ = ["FIRST_PID_NAMESPACE", "Places"]

FIRST_PID_NAMESPACE = 0xEFFF_FFFC
"""PROC_PID_INIT_INO of <linux/proc_ns.h>: the inode number of every kernel's first PID namespace."""
_GROUPS = "pykvm"  # the agent's cgroup above all its containers
_DEPTH = 16
_NAME_BYTES, _HOST_BYTES = 256, 65
_MOST = 4096  # the guest can make as many as it likes


class Places:
    """What is known of the places that were seen. `container` makes a name of a cgroup of the agent's."""

    def __init__(self, container: Callable[[str], str] = str) -> None:
        self._container = container
        self._names: dict[tuple[int, int], tuple[str, bool]] = {}

    def name(self, place: tuple[int, int]) -> str:
        """The container; "" for a task that is in none."""
        name, is_ours = self._names.get(place, ("", False))
        return self._container(name) if is_ours else name

    def is_known(self, place: tuple[int, int]) -> bool:
        """Whether the place was seen, and is not forgotten."""
        return place in self._names

    def see(
        self,
        place: tuple[int, int],
        layout: PlaceLayout,
        node: int,
        proxy: int,
        read: Callable[[int, int], bytes],
    ) -> None:
        """Learn the name of a place. `node` is its cgroup's kernfs node, `proxy` the task's struct nsproxy.

        `read` gives the guest's memory by linear address, less than asked for where there is none.
        """
        if len(self._names) >= _MOST:
            self._names.pop(next(iter(self._names)))
        path = _path(layout, node, read) if node else []
        self._names[place] = self._name(path, place[1], layout, proxy, read)

    def _name(
        self, path: list[str], number: int, layout: PlaceLayout, proxy: int, read: Callable[[int, int], bytes]
    ) -> tuple[str, bool]:
        """The name, and whether it is that of a cgroup of the agent's."""
        if len(path) > 1 and path[0] == _GROUPS:
            return path[1], True
        if number in (0, FIRST_PID_NAMESPACE):
            return "", False
        if path:
            return path[-1], False
        uts = _word(read(proxy + layout.uts_namespace, 8)) if proxy else 0
        host = _text(read(uts + layout.host_name, _HOST_BYTES)) if uts else ""
        return f"{host} pid:[{number}]".strip(), False


def _path(layout: PlaceLayout, node: int, read: Callable[[int, int], bytes]) -> list[str]:
    """The names of a cgroup and those above it, the topmost first; not that of the root, which has none."""
    found: list[str] = []
    while node and len(found) < _DEPTH:
        found.append(_text(read(_word(read(node + layout.node_name, 8)), _NAME_BYTES)))
        node = _word(read(node + layout.node_parent, 8))
    return [name for name in reversed(found) if name]


def _word(data: bytes) -> int:
    return int.from_bytes(data, "little") if len(data) == 8 else 0


def _text(data: bytes) -> str:
    """A name of the guest's, with a "?" for what of it can't be printed."""
    text = data.partition(b"\0")[0].decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
