"""The names of containers that a tap sees: read from structures of the guest's, which may hold anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.tap.btf import PlaceLayout
from pykvm.tap.places import FIRST_PID_NAMESPACE, Places

LAYOUT = PlaceLayout((0, 0, 0), 96, 16, 8, 0, 32, 136, 8, 89)
OWN = FIRST_PID_NAMESPACE + 100
NAMES = {"a1b2": "web"}


class Memory:
    """The guest's, by linear address; what is not there is read as nothing."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}

    def __call__(self, at: int, size: int) -> bytes:
        return self.parts.get(at, b"")[:size]

    def node(self, at: int, name: str, parent: int) -> int:
        self.parts[at + LAYOUT.node_name] = (at + 500).to_bytes(8, "little")
        self.parts[at + LAYOUT.node_parent] = parent.to_bytes(8, "little")
        self.parts[at + 500] = name.encode() + bytes(16)
        return at

    def uts(self, proxy: int, name: str) -> int:
        self.parts[proxy + LAYOUT.uts_namespace] = (proxy + 500).to_bytes(8, "little")
        self.parts[proxy + 500 + LAYOUT.host_name] = name.encode() + bytes(8)
        return proxy


def test_a_container_of_the_agent_has_its_hosts_name() -> None:
    """By the cgroup below the agent's, also for who is further down; an unknown one keeps the cgroup's."""
    memory, places = Memory(), Places(lambda short: NAMES.get(short, short))
    top = memory.node(0x10000, "pykvm", memory.node(0x20000, "", 0))
    web = memory.node(0x30000, "a1b2", top)
    for key, node in (
        (1, web),
        (2, memory.node(0x40000, "inner", web)),
        (3, memory.node(0x50000, "ffff", top)),
    ):
        assert not places.is_known((key, OWN))
        places.see((key, OWN), LAYOUT, node, 0, memory)
        assert places.is_known((key, OWN))
    assert [places.name((key, OWN)) for key in (1, 2, 3)] == ["web", "web", "ffff"]


def test_who_is_in_no_container_has_no_name() -> None:
    """The first PID namespace outside of the agent's cgroups; and what nobody has seen."""
    memory, places = Memory(), Places()
    root = memory.node(0x20000, "", 0)
    places.see((1, FIRST_PID_NAMESPACE), LAYOUT, memory.node(0x30000, "service", root), 0, memory)
    assert places.name((1, FIRST_PID_NAMESPACE)) == places.name((9, 9)) == ""


def test_a_container_made_by_hand_is_named_by_its_kernel() -> None:
    """By its cgroup, or where it is in none, by the host name that it has and its PID namespace."""
    memory, places = Memory(), Places()
    root = memory.node(0x20000, "", 0)
    places.see((1, OWN), LAYOUT, memory.node(0x30000, "box", root), 0, memory)
    places.see((2, OWN), LAYOUT, root, memory.uts(0x40000, "hand"), memory)
    places.see((3, OWN), LAYOUT, 0, 0, memory)
    assert places.name((1, OWN)) == "box"
    assert places.name((2, OWN)) == f"hand pid:[{OWN}]"
    assert places.name((3, OWN)) == f"pid:[{OWN}]"


@given(
    st.dictionaries(st.integers(0, 1200), st.binary(max_size=300)), st.integers(0, 1000), st.integers(0, 1000)
)
def test_any_memory_gives_a_name_that_can_be_printed(parts: dict[int, bytes], node: int, proxy: int) -> None:
    """Circles, wild addresses and control characters: a name in one line, in finite time."""
    memory, places = Memory(), Places()
    memory.parts = parts | {node + LAYOUT.node_parent: node.to_bytes(8, "little")}
    places.see((1, OWN), LAYOUT, node, proxy, memory)
    assert places.name((1, OWN)).isprintable()


def test_what_is_kept_is_bounded() -> None:
    """A guest that makes namespaces without end costs no more memory."""
    places = Places()
    for number in range(5000):
        places.see((number, OWN), LAYOUT, 0, 0, Memory())
    assert not places.is_known((0, OWN))
    assert places.is_known((4999, OWN))
