"""`pykvm compare` on a KVM: the counts that must be exact are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pykvm.compare import WORKLOADS, Absent, Done, Job, Look, all_ways
from pykvm.compare.parts import RING3
from pykvm.compare.ptrace import count_syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.needs(*RING3)

N = 5
SYSCALL = {"print": "write", "blocks": "read", "time": "clock_gettime"}
HYPERCALL = {"print": "console_write", "blocks": "block_read", "time": "time"}
UART_SETUP, LINE, SUM_LINE = 6, 64, 17  # port accesses, bytes, bytes
SECTOR = 6 + 1 + 256 + 1  # registers and command, Status, the words, Status
LIMIT_S = 120


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Ten sectors, each different."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([at, 255 - at]) * 256 for at in range(10)))
    return path


def counted(found: Mapping[str, int] | Absent) -> Counter[str]:
    assert not isinstance(found, Absent)
    return Counter(found)


def run(way: str, workload: str, operations: int, disk: Path, look: Look = Look.CALLS) -> Done:
    return all_ways()[way].run(Job(workload, operations, disk), look)


@pytest.mark.parametrize("way", ["emulated", "paravirt"])
def test_guest_system_calls_are_the_program_s(way: str, disk: Path) -> None:
    """One for each operation, whatever the guest's kernel does with it; none for calculating."""
    for workload in WORKLOADS:
        none, all_ = (counted(run(way, workload, n, disk).guest_syscalls) for n in (0, N))
        assert all_ - none == Counter({SYSCALL[workload]: N} if workload in SYSCALL else {})


def test_a_paravirtual_operation_is_one_hypercall_and_one_exit(disk: Path) -> None:
    """N lines are N hypercalls of console_write, and so on; every exit is a hypercall."""
    for workload in WORKLOADS:
        none, all_ = (counted(run("paravirt", workload, n, disk).hypercalls) for n in (0, N))
        assert all_ - none == Counter({HYPERCALL[workload]: N} if workload in HYPERCALL else {})
        assert counted(run("paravirt", workload, N, disk, Look.EXITS).exits) == {"IO": all_.total()}


def test_an_emulated_device_exits_for_each_access(disk: Path) -> None:
    """Two exits for a byte of the UART, 264 for a sector, 16 or more for the time; not one hypercall."""
    sum_line = UART_SETUP + 2 * SUM_LINE
    exact = {
        "print": UART_SETUP + 2 * LINE * N,
        "blocks": sum_line + SECTOR * (1 + N),  # the first is IDENTIFY DEVICE
        "compute": sum_line,
    }
    for workload in WORKLOADS:
        done = run("emulated", workload, N, disk, Look.EXITS)
        exits = counted(done.exits)
        if workload in exact:
            assert exits == {"IO": exact[workload], "HLT": 1}
        else:  # a second may begin while the clock is read: then again
            assert exits["IO"] >= UART_SETUP + 16 * N
            assert exits["IO"] % 2 == 0
        assert counted(run("emulated", workload, N, disk).hypercalls) == {}
        kvm = done.kvm_exits
        assert isinstance(kvm, Absent) or sum(kvm.values()) >= exits.total()


def test_all_ways_come_to_the_same(disk: Path) -> None:
    """The same text, the same sum over the disk (read twice and more), the same number calculated."""
    for workload, n in (("print", 3), ("blocks", 23), ("compute", 2)):
        outputs = {way: run(way, workload, n, disk, Look.TIME).output for way in all_ways()}
        assert len(set(outputs.values())) == 1, workload
        assert outputs["host"]


def test_what_the_host_sees_of_a_guest(disk: Path) -> None:
    """The host's system calls for a line are KVM_RUNs: one where the guest asks, 128 where it drives."""
    for way, each in (("paravirt", 1), ("emulated", 2 * LINE)):
        jobs = [Job("print", n, disk) for n in (0, N)]
        (argv,) = all_ways()[way].counted(jobs)
        none, all_ = count_syscalls(argv, marked=True, timeout_s=LIMIT_S)
        more = all_["ioctl(KVM_RUN)"] - none["ioctl(KVM_RUN)"]
        assert each * N <= more <= each * N + 10  # a kick or two on a slow machine
