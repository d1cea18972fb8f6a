"""What a kernel's own type description tells of its tasks; it is the guest's, so anything may stand in it."""

from __future__ import annotations

from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from pykvm.tap.btf import PlaceLayout, TaskLayout, find_btf, task_layout

STRUCT, VAR, DATASEC = 4, 14, 15


class Btf:
    """Makes a BTF: types in order, strings once each."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"

    def name(self, text: str) -> int:
        at = self.strings.find(b"\0" + text.encode() + b"\0") + 1
        if at:
            return at
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def struct(self, name: str, /, **members: int) -> None:
        self.types += pack("<3I", self.name(name), STRUCT << 24 | len(members), 8)
        for member, offset in members.items():
            self.types += pack("<3I", self.name(member), 1, offset * 8)

    def var(self, name: str) -> None:
        self.types += pack("<4I", self.name(name), VAR << 24, 1, 1)

    def section(self, name: str, *entries: tuple[int, int]) -> None:
        self.types += pack("<3I", self.name(name), DATASEC << 24 | len(entries), 64)
        for number, offset in entries:
            self.types += pack("<3I", number, offset, 8)

    def bytes(self) -> bytes:
        head = pack("<HBBI4I", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


def kernel_6_1() -> bytes:
    btf = Btf()
    btf.struct("other", comm=1)
    btf.struct("task_struct", state=0, pid=2416, tgid=2420, comm=2976)
    btf.var("other_variable")
    btf.var("current_task")
    btf.section(".data..percpu", (3, 0x10), (4, 0x1FB80))
    return btf.bytes()


def test_current_task_is_a_variable_up_to_6_1() -> None:
    """Its offset stands in the section of per-CPU variables, found among other memory."""
    memory = memoryview(bytes(4096) + kernel_6_1() + bytes(100))
    assert task_layout(memory, 0x1FB50) == TaskLayout(0x1FB80, 2976, 2420, 2416)


def test_the_way_to_cgroup_and_namespaces() -> None:
    """Each step's offset; a kernel that lacks a struct tells of its tasks all the same."""
    structs = {
        "css_set": {"dfl_cgrp": 48},
        "cgroup": {"kn": 256},
        "kernfs_node": {"parent": 8, "name": 16, "id": 96},
        "nsproxy": {"uts_ns": 8, "pid_ns_for_children": 32},
        "pid_namespace": {"ns": 120},
        "ns_common": {"inum": 16},
        "uts_namespace": {"name": 24},
        "new_utsname": {"sysname": 0, "nodename": 65},
    }
    for missing in (None, *structs):
        btf = Btf()
        btf.struct("task_struct", pid=100, tgid=104, comm=200, cgroups=3000, nsproxy=2900)
        btf.struct("pcpu_hot", current_task=0, top_of_stack=16)
        for name, members in structs.items():
            if name != missing:
                btf.struct(name, **members)
        found = task_layout(memoryview(btf.bytes()), 0x30010)
        place = PlaceLayout((3000, 48, 256), 96, 16, 8, 2900, 32, 136, 8, 89)
        assert found == TaskLayout(0x30000, 200, 104, 100, None if missing else place)


def test_current_task_is_in_pcpu_hot_from_6_2_on() -> None:
    """That struct holds the top of the stack too, whose offset the entry's code tells."""
    btf = Btf()
    btf.struct("task_struct", pid=100, tgid=104, comm=200)
    btf.struct("pcpu_hot", current_task=0, preempt_count=8, top_of_stack=16)
    assert task_layout(memoryview(btf.bytes()), 0x30010) == TaskLayout(0x30000, 200, 104, 100)


def test_no_description_is_no_layout() -> None:
    """A kernel without BTF, or without tasks in it, is traced without names."""
    assert task_layout(memoryview(bytes(4096)), 0) is None
    assert task_layout(memoryview(Btf().bytes()), 0) is None


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 500))
def test_a_damaged_one_is_survived(at: int, value: int, length: int) -> None:
    """One wrong byte, and an end anywhere: a layout with small offsets or none, no error."""
    raw = bytearray(kernel_6_1())
    raw[at % len(raw)] = value
    found = task_layout(memoryview(bytes(raw[:length])), 0x1FB50)
    assert found is None or all(0 <= offset < 1 << 20 for offset in found[:4])


def test_sizes_beyond_memory_are_no_btf() -> None:
    """A header whose sizes lead out of memory is passed over, and the next one is found."""
    wild = pack("<HBBI4I", 0xEB9F, 1, 0, 24, 0, 0xFFFF_FFF0, 0xFFFF_FFF0, 0xFFFF_FFF0)
    assert find_btf(memoryview(wild)) is None
    found = find_btf(memoryview(wild + kernel_6_1()))
    assert found is not None
