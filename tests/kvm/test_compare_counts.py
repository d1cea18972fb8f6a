"""`pykvm compare` on a KVM: the counts that must be exact are."""

from __future__ import annotations

import platform
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from harness.needs import NOT_HERE

from pykvm.compare import WORKLOADS, Absent, Done, Job, Look, all_ways
from pykvm.compare.parts import RING3
from pykvm.compare.ptrace import count_syscalls
from pykvm.compare.ways.linux import NEEDS as LINUX_NEEDS
from pykvm.compare.workloads import LOOK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.needs(*RING3)

N = 3
SYSCALL = {"print": "write", "blocks": "read", "time": "clock_gettime", "getpid": "getpid"}
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, in every Linux
HYPERCALL = {"print": "console_write", "blocks": "block_read", "time": "time"}
UART_SETUP, LINE, SUM_LINE = 6, 64, 17  # port accesses, bytes, bytes
SECTOR = 6 + 1 + 256 + 1  # registers and command, Status, the words, Status


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Three sectors, each different."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([at, 255 - at]) * 256 for at in range(3)))
    return path


def counted(found: Mapping[str, int] | Absent) -> Counter[str]:
    assert not isinstance(found, Absent)
    return Counter(found)


def run(way: str, workload: str, operations: int, disk: Path, look: Look = Look.CALLS) -> Done:
    return all_ways()[way].run(Job(workload, operations, disk), look)


def once_each(names: Mapping[str, str], workload: str) -> Counter[str]:
    return Counter({names[workload]: N} if workload in names else {})


def test_a_paravirtual_operation_is_one_hypercall_and_one_exit(disk: Path) -> None:
    """N lines are N system calls and N hypercalls of console_write; every exit is a hypercall."""
    for workload in WORKLOADS.keys() - {"files"}:
        none, all_ = (run("paravirt", workload, n, disk) for n in (0, N))
        calls, before = counted(all_.hypercalls), counted(none.hypercalls)
        assert calls - before == once_each(HYPERCALL, workload)
        assert counted(all_.guest_syscalls) - counted(none.guest_syscalls) == once_each(SYSCALL, workload)
        assert counted(run("paravirt", workload, N, disk, Look.EXITS).exits) == {"IO": calls.total()}


def test_an_emulated_device_exits_for_each_access(disk: Path) -> None:
    """Two exits for a byte of the UART, 264 for a sector, 16 or more for the time; not one hypercall."""
    sum_line = UART_SETUP + 2 * SUM_LINE
    exact = {
        "print": UART_SETUP + 2 * LINE * N,
        "blocks": sum_line + SECTOR * (1 + N),  # the first is IDENTIFY DEVICE
        "compute": sum_line,
        "getpid": UART_SETUP,
    }
    for workload in WORKLOADS.keys() - {"files"}:
        done = run("emulated", workload, N, disk, Look.EXITS)
        exits = counted(done.exits)
        if workload in exact:
            assert exits == {"IO": exact[workload], "HLT": 1}
        elif workload == "time":  # a second may begin while the clock is read: then again
            assert exits["IO"] >= UART_SETUP + 16 * N
            assert exits["IO"] % 2 == 0
        kvm = done.kvm_exits
        assert isinstance(kvm, Absent) or sum(kvm.values()) >= exits.total()
        traced = run("emulated", workload, N, disk)
        assert counted(traced.hypercalls) == {}
        assert counted(traced.guest_syscalls) >= once_each(SYSCALL, workload)


def test_all_ways_come_to_the_same(disk: Path) -> None:
    """The same text, the same sum over the disk, from its beginning again, the same number calculated."""
    for workload, n in (("print", 2), ("blocks", 4), ("compute", 1)):
        slow = {"linux-container", *({"linux"} if workload != "blocks" else ())}  # it boots for each
        here = [name for name, way in all_ways().items() if name not in slow and not way.lacks()]
        outputs = {name: run(name, workload, n, disk, Look.TIME).output for name in here}
        assert {"host", "emulated", "paravirt"} <= set(outputs)
        assert len(set(outputs.values())) == 1, workload
        assert outputs["host"]


@pytest.mark.needs(*LINUX_NEEDS)
def test_a_process_in_a_linux_guest_prints_without_an_exit(disk: Path) -> None:
    """The tap sees each of its calls, and those alone; pykvm's vCPU is not left for one of them."""
    if why := all_ways()["linux"].lacks():
        pytest.skip(f"{NOT_HERE}linux_guest: {why}")
    assert counted(run("linux", "print", N, disk).guest_syscalls) == Counter(exit=1, write=N)
    done = run("linux", "print", 50 * N, disk, Look.EXITS)
    assert counted(done.exits).total() <= 2, done.exits
    assert done.output.count(b"\n") == 50 * N
    assert counted(done.kvm_exits).total() > 0
    assert 0 < (done.work_ns or 0) < done.wall_ns


def looked(way: str, disk: Path) -> list[str]:
    """Where the program finds itself: kernel, release, host name, its number, its PID namespace, memory."""
    lines = run(way, LOOK, 1, disk, Look.TIME).output.decode().splitlines()
    assert len(lines) == 6
    return lines


def test_a_container_on_the_host_has_the_hosts_kernel_and_numbers_of_its_own(disk: Path) -> None:
    """The same kernel answers, with another name, another first process, another table of processes."""
    if why := all_ways()["host-container"].lacks():
        pytest.skip(f"{NOT_HERE}namespaces: {why}")
    host, container = (looked(way, disk) for way in ("host", "host-container"))
    assert host[:2] == container[:2] == ["Linux", platform.release()]
    assert container[2:4] == ["box", "00000001"]
    assert container[4] not in ("", host[4])
    jobs = [Job("getpid", n, disk) for n in (0, N)]
    none, all_ = (count_syscalls(argv)[0] for argv in all_ways()["host-container"].counted(jobs))
    assert all_ - none == Counter(getpid=N)
    assert none["clone3"] == none["pivot_root"] == none["umount2"] == 1


@pytest.mark.needs(*LINUX_NEEDS)
def test_a_container_in_a_linux_guest_has_the_guests_kernel_and_numbers_of_its_own(disk: Path) -> None:
    """Its calls are those of the program, none of them leaves the guest, and its work is the same."""
    way = all_ways()["linux-container"]
    if why := way.lacks():
        pytest.skip(f"{NOT_HERE}linux_guest: {why}")
    try:
        kernel, release, name, pid, namespace, _ = looked("linux-container", disk)
        assert (kernel, name, pid) == ("Linux", "box", "00000001")
        assert release.endswith("-cloud-amd64")
        assert namespace != f"pid:[{FIRST_PID_NAMESPACE}]"
        assert counted(run("linux-container", "print", N, disk).guest_syscalls) == Counter(exit=1, write=N)
        done = run("linux-container", "blocks", 50 * N, disk, Look.EXITS)
        assert done.output == run("host", "blocks", 50 * N, disk, Look.TIME).output
        assert counted(done.exits).total() <= 2, done.exits
        assert 0 < (done.work_ns or 0) < done.wall_ns
        timed = run("linux-container", "compute", 1, disk, Look.TIME)
        assert 16 << 20 < (timed.machine_bytes or 0) < 256 << 20
    finally:
        way.close()
