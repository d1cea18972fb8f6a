"""All layers in one list: a program's syscalls, its kernel's hypercalls, exits, KVM's and our own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from harness.needs import NOT_HERE

from pykvm.cli import main
from pykvm.machine import Machine
from pykvm.result import EndReason
from pykvm.trace.tracefs import TracefsError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceEvent

PROGRAM = ("long64_interrupts", "ring3_code", "ring3_exceptions", "ring3_syscall|ring3_syscall_by_pf")
TIMEOUT_S = 120
LOOPS = 5000  # more than the ring holds
SOURCE = """
static long count;
static long call(long number, long a, long b, long c)
{
    long result;
    count++;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
__attribute__((force_align_arg_pointer)) void _start(void)
{
    for (int i = 0; i < LOOPS; i++)
        call(110, 0, 0, 0);                     /* getppid */
    call(2, (long)"/nowhere", 0, 0);            /* open */
    call(1, 1, (long)"hello\\n", 6);            /* write */
    count++;
    call(1, 1, (long)&count, sizeof count - 1); /* the count, with this and the exit */
    call(231, 3, 0, 0);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that counts its own system calls and prints how many."""
    if not shutil.which("gcc"):
        pytest.skip(f"{NOT_HERE}gcc: there is none to build the program with")
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.c").write_text(SOURCE)
    flags = f"-O1 -static -nostdlib -fno-stack-protector -mno-red-zone -DLOOPS={LOOPS}".split()
    subprocess.run(["gcc", *flags, folder / "program.c", "-o", folder / "calls"], check=True)
    return folder / "calls"


def pykvm(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The command, as a user has it."""
    command = [sys.executable, "-m", "pykvm", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S
    )


def traced(program: Path) -> tuple[list[TraceEvent], RunResult]:
    """The program's run, and all events of it."""
    found: list[TraceEvent] = []
    with Machine(memory="8M") as machine:
        machine.load_program(program)
        machine.add_sink(found.append)
        return found, machine.run(timeout=TIMEOUT_S)


@pytest.mark.needs(*PROGRAM)
def test_what_a_program_counts_is_what_the_trace_has(program: Path) -> None:
    """Every system call once, although the ring fills up; with arguments and times, hypercalls inside."""
    found, result = traced(program)
    assert result.exit_code == 3
    calls = [event for event in found if event.kind == "syscall"]
    counted = int.from_bytes(result.console.removeprefix(b"hello\n"), "little")
    assert len(calls) == counted == LOOPS + 4
    assert Counter(event.name for event in calls) == {
        "getppid": LOOPS,
        "open": 1,
        "write": 2,
        "exit_group": 1,
    }
    assert [event.time_ns for event in found] == sorted(event.time_ns for event in found)
    assert {event.task for event in calls} == {"calls[100]"}

    opened, first, second, last = calls[-4:]
    assert [text for _, text in opened.args[:2]] == ['"/nowhere"', "O_RDONLY"]
    assert (opened.result, first.result, last.duration_ns) == (-2, 6, None)
    assert first.args[1] == ("arg1", '"hello\\n"')
    assert re.fullmatch(r"0x[0-9a-f]+", str(second.args[1][1]))  # it may have been changed since
    writes = [event for event in found if event.name == "console_write"]
    for call, hypercall in zip((first, second), writes, strict=True):
        assert call.time_ns < hypercall.time_ns
        assert hypercall.end_ns < call.end_ns
    assert first.where.startswith("_start") or first.where == ""


@pytest.mark.needs(*PROGRAM)
def test_the_summary_of_a_program_adds_up(program: Path) -> None:
    """Syscalls as the program counted them, hypercalls as exits, exits as the loop counted them."""
    done = pykvm("trace", "-c", "--json", "--paravirt", program)
    found: dict[str, Any] = json.loads(done.stdout)
    counts = {
        section: sum(row["count"] for row in found[section].values()) for section in ("syscall", "exit")
    }
    assert counts == {"syscall": LOOPS + 4, "exit": found["exits"]}
    assert sum(row["count"] for row in found["hypercall"].values()) == found["exit"]["IO hypercall"]["count"]
    assert found["hypercall"]["console_write"]["count"] == 2
    assert sum(found["time_ns"].values()) == found["wall_ns"]
    assert found["entries"] >= found["exits"]
    assert found["kvm_counts"]["exits"] >= found["exits"]
    table = pykvm("trace", "-c", "--paravirt", program).stderr.decode()
    assert re.search(rf"syscalls of the guest's programs +{LOOPS + 4} ", table)
    assert re.search(r"exits to userspace: (\d+) in the table = \1\n", table)


@pytest.mark.needs(*PROGRAM)
def test_filters_leave_what_was_asked_for(program: Path) -> None:
    """By name, by process, by kind; a name that is none is one line."""
    chosen = pykvm("trace", "--format", "jsonl", "-o", "-", "--syscall", "open,write", "--paravirt", program)
    kinds = Counter(json.loads(line)["kind"] for line in chosen.stdout.splitlines())
    assert kinds["syscall"] == 3
    assert not kinds["exit"] + kinds["hypercall"]
    other = pykvm("trace", "-c", "--json", "--pid", "7", "--only", "syscall", "--paravirt", program)
    assert "syscall" not in json.loads(other.stdout)
    wrong = pykvm("trace", "--syscall", "nonsense", "--paravirt", program)
    assert (wrong.returncode, wrong.stderr) == (125, b"pykvm: 'nonsense' is no system call of Linux on x86\n")


@pytest.mark.needs("tracefs", "long64")
def test_our_own_syscalls_are_counted() -> None:
    """As many KVM_RUNs as the exit loop made. Live lines have them only where they are asked for."""
    found: dict[str, Any] = json.loads(pykvm("trace", "-c", "--json", "02_uart").stdout)
    assert found["host"]["ioctl KVM_RUN"]["count"] == found["entries"]
    assert b"request=KVM_RUN" not in pykvm("trace", "07_halt").stderr
    assert b"request=KVM_RUN" in pykvm("trace", "--host", "07_halt").stderr
    assert b"request=KVM_RUN" in pykvm("trace", "--only", "host", "07_halt").stderr


@pytest.mark.needs("exit_tracepoints", "long64")
def test_kvm_s_answers_are_counted() -> None:
    """Exits of both kinds are those that KVM's statistics have."""
    found: dict[str, Any] = json.loads(pykvm("trace", "-c", "--json", "02_uart").stdout)
    inside = sum(row["count"] for row in found["kvm"].values())
    assert inside > 0
    assert inside + found["exits"] <= found["kvm_counts"]["exits"] + 1
    assert "notes" not in found


@pytest.mark.parametrize(("words", "count"), [((), 1), (("-c",), 1), (("--only", "exit"), 0)])
def test_without_tracepoints_one_line_says_so(
    words: tuple[str, ...], count: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the trace goes on; who did not ask for them is told nothing."""

    def closed(_: object) -> None:
        raise TracefsError("tracepoints are closed")

    monkeypatch.setattr("pykvm.trace.tracefs.Tracefs.__init__", closed)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["trace", *words, "07_halt"]) == EndReason.HALT.exit_status(None)
    assert capfd.readouterr().err.replace("\n  ", " ").count("tracepoints are closed") == count


def test_kvm_counts_what_happens_inside_it() -> None:
    """Its statistics are those of this run alone."""
    with Machine(memory="2M") as machine:
        machine.load("02_uart")
        machine.add_sink(lambda _: None)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.warnings == ()
    assert result.exits["IO"] <= result.kvm_counts["exits"]
    with Machine(memory="2M") as machine:
        machine.load("02_uart")
        assert machine.run(timeout=TIMEOUT_S).kvm_counts == {}
