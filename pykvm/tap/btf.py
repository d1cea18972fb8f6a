"""Finds in a running Linux where it keeps the current task and its name: from its own type description, BTF.

::

    header   magic 0xeb9f, version 1, flags, 24, type offset 0, type bytes, string offset, string bytes
    types    name offset, kind and number of members, size or type; then the members, by kind
    strings  each ends with a NUL

Distributions' kernels carry BTF of themselves in their read-only data. Everything in it is a claim of the
guest's. Source: the kernel's Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import re
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PlaceLayout", "TaskLayout", "find_btf", "task_layout"]

_HEADER = re.compile(rb"\x9f\xeb\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00")
_HEADER_BYTES = 24
_MOST_BYTES = 64 << 20
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _PROTO, _VAR, _DATASEC, _TAG, _ENUM64 = (
    1,
    3,
    4,
    5,
    6,
    13,
    14,
    15,
    17,
    19,
)
_EXTRA_WORDS = {_INT: (1, 0), _ARRAY: (3, 0), _STRUCT: (0, 3), _UNION: (0, 3), _ENUM: (0, 2), _PROTO: (0, 2)}
_EXTRA_WORDS |= {_VAR: (1, 0), _DATASEC: (0, 3), _TAG: (1, 0), _ENUM64: (0, 3)}  # fixed, and for each member
_WORDS = [_EXTRA_WORDS.get(kind, (0, 0)) for kind in range(32)]
_LARGEST_OFFSET = 1 << 20


class PlaceLayout(NamedTuple):
    """Offsets on the way from a task to its cgroup's name, and to its namespaces."""

    node_steps: tuple[int, int, int]
    """task_struct.cgroups, css_set.dfl_cgrp, cgroup.kn"""
    node_id: int
    node_name: int
    node_parent: int
    proxy: int
    pid_namespace: int
    pid_number: int
    uts_namespace: int
    host_name: int


class TaskLayout(NamedTuple):
    """Offsets: of the current task's address below GS, and in struct task_struct. No `place`: not told."""

    current: int
    name: int
    process: int
    thread: int
    place: PlaceLayout | None = None


def find_btf(memory: memoryview) -> tuple[memoryview, bytes] | None:
    """The types and the strings of the first whole BTF in `memory`; None if there is none."""
    for match in _HEADER.finditer(memory):
        begin = match.start() + _HEADER_BYTES
        if begin > len(memory):
            continue
        types, at, strings = unpack_from("<3I", memory, match.start() + 12)
        if types % 4 or at != types or types + strings > min(len(memory) - begin, _MOST_BYTES):
            continue
        text = bytes(memory[begin + at : begin + at + strings])
        if text[:1] == b"\0" == text[-1:]:
            return memory[begin : begin + types], text
    return None


def task_layout(memory: memoryview, top_of_stack: int) -> TaskLayout | None:
    """Where the kernel in `memory` keeps its tasks; None if it does not tell.

    `top_of_stack` is where below GS the entry finds its stack: since Linux 6.2 in the same struct.
    """
    found = find_btf(memory)
    if found is None:
        return None
    types, strings = found
    task = _members(types, strings, b"task_struct")
    if not {b"comm", b"pid", b"tgid"} <= task.keys():
        return None
    hot = _members(types, strings, b"pcpu_hot")
    if {b"current_task", b"top_of_stack"} <= hot.keys():
        current: int | None = top_of_stack - hot[b"top_of_stack"] + hot[b"current_task"]
    else:
        current = _per_cpu(types, strings, b"current_task")
    if current is None:
        return None
    layout = TaskLayout(current, task[b"comm"], task[b"tgid"], task[b"pid"])
    if not all(0 <= offset < _LARGEST_OFFSET for offset in layout[:4]):
        return None
    return layout._replace(place=_place_layout(types, strings, task))


def _place_layout(types: memoryview, strings: bytes, task: dict[bytes, int]) -> PlaceLayout | None:
    """None if a struct or a member is not there under its name, as in a kernel without cgroups."""
    raw = bytes(types)
    names = (b"css_set", b"cgroup", b"kernfs_node", b"nsproxy", b"pid_namespace", b"uts_namespace")
    css, cgroup, node, proxy, pid, uts = (_members(raw, strings, name) for name in names)
    common, name = _members(raw, strings, b"ns_common"), _members(raw, strings, b"new_utsname")
    try:
        return PlaceLayout(
            (task[b"cgroups"], css[b"dfl_cgrp"], cgroup[b"kn"]),
            node[b"id"],
            node[b"name"],
            node[b"parent"] if b"parent" in node else node[b"__parent"],
            task[b"nsproxy"],
            proxy[b"pid_ns_for_children"],
            pid[b"ns"] + common[b"inum"],
            proxy[b"uts_ns"],
            uts[b"name"] + name[b"nodename"],
        )
    except KeyError:
        return None


def _name_at(strings: bytes, name: bytes) -> int:
    """The offset of a name in the strings; -1 if it is not there."""
    found = strings.find(b"\0" + name + b"\0")
    return found + 1 if found >= 0 else -1


def _text(strings: bytes, at: int) -> bytes:
    return strings[at : strings.find(b"\0", at)] if at < len(strings) else b""


def _members(types: memoryview | bytes, strings: bytes, name: bytes) -> dict[bytes, int]:
    """The byte offsets of a struct's named members; none if there is no such struct."""
    at = _name_at(strings, name)
    if at < 0:
        return {}
    raw, key = bytes(types), at.to_bytes(4, "little")
    where = raw.find(key)
    while where >= 0:
        if where % 4 == 0 and where + 12 <= len(raw):
            info = int.from_bytes(raw[where + 4 : where + 8], "little")
            count = info & 0xFFFF
            if info >> 24 & 31 == _STRUCT and count and where + 12 + 12 * count <= len(raw):
                fields = (unpack_from("<3I", raw, where + 12 + 12 * i) for i in range(count))
                return {_text(strings, member): (bits & 0xFFFFFF) // 8 for member, _, bits in fields}
        where = raw.find(key, where + 1)
    return {}


def _each(words: memoryview) -> Iterator[tuple[int, int]]:
    """(index of the first word, kind) of every type, in order of their numbers, from 1."""
    at, end, extra = 0, len(words) - 2, _WORDS
    while at < end:
        info = words[at + 1]
        kind = info >> 24 & 31
        yield at, kind
        fixed, each = extra[kind]
        at += 3 + fixed + each * (info & 0xFFFF)


def _per_cpu(types: memoryview, strings: bytes, name: bytes) -> int | None:
    """The offset of a per-CPU variable."""
    wanted = _name_at(strings, name)
    section = _name_at(strings, b".data..percpu")
    if wanted < 0 or section < 0:
        return None
    words, number = types.cast("B").cast("I"), None
    for at_number, (at, kind) in enumerate(_each(words), start=1):
        if kind == _VAR and words[at] == wanted:
            number = at_number
        elif kind == _DATASEC and words[at] == section:
            count = min(words[at + 1] & 0xFFFF, (len(words) - at - 3) // 3)
            entries = (words[at + 3 + 3 * i : at + 6 + 3 * i] for i in range(count))
            return next((entry[1] for entry in entries if entry[0] == number), None)
    return None
