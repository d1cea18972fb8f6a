"""What a comparison says, as plain values: for each workload and way a Cell, and their form as JSON.

A count that could not be taken, or that there can't be, is an Absent with its reason and never a number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COUNTS", "NO_GUEST", "Absent", "Cell", "Column", "Comparison", "Count", "Place", "per_operation"]


@dataclass(frozen=True, slots=True)
class Absent:
    """Why there is no figure. With `applies` False there can't be one: a host process has no VM exits."""

    reason: str
    applies: bool = True

    def __str__(self) -> str:
        return f"not measured here: {self.reason}" if self.applies else "-"


NO_GUEST = Absent("there is no guest", applies=False)


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened, by name: in the run of all operations, and in a run of none."""

    by_name: Mapping[str, int]
    at_none: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them, in the run of all operations."""
        return sum(self.by_name.values())

    @property
    def extra(self) -> dict[str, int]:
        """What the operations alone made, by name, most first: the run of all less the run of none."""
        names = {*self.by_name, *self.at_none}
        less = {name: self.by_name.get(name, 0) - self.at_none.get(name, 0) for name in names}
        return {name: less[name] for name in sorted(less, key=lambda n: (-less[n], n)) if less[name]}

    @property
    def extra_total(self) -> int:
        """The sum of `extra`."""
        return self.total - sum(self.at_none.values())


COUNTS = {
    "guest_syscalls": "guest system calls",
    "hypercalls": "hypercalls",
    "exits": "VM exits to pykvm",
    "kvm_exits": "VM exits that KVM counts",
    "host_syscalls": "host system calls",
}
"""The counts of a Cell, and their words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload done in one way. Times are of runs in which nothing was counted.

    `start_ms` is a whole run of no operation, from nothing to the end, and `alone_ms` that of it which is not
    the start of a guest; `us_per_operation` is what `timed_operations` added to that, divided.
    `output_sha256` is of what the counted run printed.
    """

    workload: str
    way: str
    operations: int
    guest_syscalls: Count | Absent
    hypercalls: Count | Absent
    exits: Count | Absent
    kvm_exits: Count | Absent
    host_syscalls: Count | Absent
    us_per_operation: float | Absent
    start_ms: float | Absent
    alone_ms: float | Absent = NO_GUEST
    timed_operations: int = 0
    output_sha256: str = ""

    @classmethod
    def absent(cls, workload: str, way: str, operations: int, reason: str) -> Cell:
        """A cell of a way that can't run here."""
        nothing = Absent(reason)
        return cls(workload, way, operations, nothing, nothing, nothing, nothing, nothing, nothing, nothing)

    def count(self, name: str) -> Count | Absent:
        """One of COUNTS."""
        found: Count | Absent = getattr(self, name)
        return found


@dataclass(frozen=True, slots=True)
class Column:
    """A way as a reader knows it. `short` is the title in two lines, for where room is scarce."""

    name: str
    title: str
    about: str
    short: str = ""

    def __post_init__(self) -> None:
        """The title does where nothing shorter is given."""
        if not self.short:
            object.__setattr__(self, "short", self.title)


@dataclass(frozen=True, slots=True)
class Place:
    """What the program itself sees of where it is: an Absent is what that kernel does not tell.

    `kernel` is uname(2)'s name and release: who answers its system calls. `pid` is its number there,
    `pid_namespace` the inode of the table of numbers: two kernels count these from the same number.
    `process_bytes` is its own memory, `machine_bytes` what the host had to give to the guest around it.
    """

    kernel: str | Absent
    host_name: str | Absent
    pid: int | Absent
    pid_namespace: int | Absent
    process_bytes: int | Absent
    machine_bytes: int | Absent

    @classmethod
    def absent(cls, reason: str) -> Place:
        """The place of a way that can't run here."""
        return cls(*[Absent(reason)] * 6)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: _value_as_json(value, 0) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells, with what they were measured on."""

    kvm: str
    host: str
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    places: Mapping[str, Place] = field(default_factory=dict)
    """By the way's name."""

    @property
    def workloads(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(cell.workload for cell in self.cells))

    def cell(self, workload: str, way: str) -> Cell:
        """One of the cells. Raises KeyError if there is no such."""
        for cell in self.cells:
            if (cell.workload, cell.way) == (workload, way):
                return cell
        raise KeyError(f"{workload} in {way}")

    @property
    def absent_ways(self) -> tuple[str, ...]:
        """The ways that could not run here at all."""
        ran = {name for name, place in self.places.items() if not isinstance(place.kernel, Absent)}
        ran |= {cell.way for cell in self.cells if not isinstance(cell.start_ms, Absent)}
        return tuple(column.name for column in self.columns if column.name not in ran)

    def as_json(self) -> dict[str, Any]:
        """Plain values; an Absent is {"absent": reason}, or null where there can't be a figure."""
        return {
            "kvm": self.kvm,
            "host": self.host,
            "ways": [{"name": c.name, "title": c.title, "about": c.about} for c in self.columns],
            "places": {name: place.as_json() for name, place in self.places.items()},
            "workloads": {
                name: {c.name: _cell_as_json(self.cell(name, c.name)) for c in self.columns}
                for name in self.workloads
            },
        }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    plain = {"operations": cell.operations, "timed_operations": cell.timed_operations}
    counts = {name: _value_as_json(cell.count(name), cell.operations) for name in COUNTS}
    times = {
        "us_per_operation": _value_as_json(cell.us_per_operation, 0),
        "start_ms": _value_as_json(cell.start_ms, 0),
        "alone_ms": _value_as_json(cell.alone_ms, 0),
    }
    return {**plain, **counts, **times, "output_sha256": cell.output_sha256}


def _value_as_json(value: Count | Absent | float | str, operations: int) -> Any:
    if isinstance(value, Absent):
        return {"absent": value.reason} if value.applies else None
    if not isinstance(value, Count):
        return value
    return {
        "total": value.total,
        "by_name": dict(Counter(value.by_name).most_common()),
        "at_none": dict(Counter(value.at_none).most_common()),
        "per_operation": per_operation(value, operations),
    }


def per_operation(count: Count, operations: int) -> float:
    """What one operation made of them."""
    return count.extra_total / operations if operations else 0.0
