"""The syscall tap in a stock Debian kernel: what the guest counts inside is what is seen outside."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from harness.needs import NOT_HERE
from linux_guest import CMDLINE, initrd, prepare

from pykvm import layout
from pykvm.machine import Machine
from pykvm.tap import SyscallTap, TapError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceEvent

TIMEOUT_S = 400
LOOPS = {"patch": 5000, "breakpoint": 500}  # in each of two processes
OTHERS = "read write write write write nanosleep rt_sigaction rt_sigreturn alarm wait4 open fork pipe getppid"
BY_BREAKPOINT = pytest.param("breakpoint", marks=pytest.mark.needs("hw_breakpoint"))


class Seen(NamedTuple):
    """A run and what the tap saw of it."""

    result: RunResult
    tap: SyscallTap
    events: list[TraceEvent]

    @property
    def calls(self) -> list[TraceEvent]:
        return [event for event in self.events if event.kind == "syscall"]

    @property
    def counted_inside(self) -> int:
        found = re.search(r"^calls (\d+)\r?$", self.result.text, re.MULTILINE)
        assert found, self.result.text
        return int(found[1])


@pytest.fixture(scope="session")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a kernel and a first process."""
    folder = tmp_path_factory.mktemp("linux")
    if missing := prepare(folder):
        pytest.skip(f"{NOT_HERE}linux_guest: {missing}")
    return folder


def run(
    linux: Path,
    method: str,
    loops: int,
    *,
    watch: Callable[[SyscallTap, TraceEvent], None] | None = None,
    **options: object,
) -> Seen:
    events: list[TraceEvent] = []
    with Machine(memory="256M") as machine:
        machine.load(linux / "vmlinuz", initrd=initrd(linux), cmdline=f"{CMDLINE} loops={loops}")
        tap = SyscallTap(machine, method, **options)  # type: ignore[arg-type]

        def sink(event: TraceEvent) -> None:
            events.append(event)
            if watch:
                watch(tap, event)

        machine.add_sink(sink)
        result = machine.run(timeout=TIMEOUT_S)
        assert str(result.reason) == "reset", result.text
        assert not result.warnings
    return Seen(result, tap, events)


@pytest.mark.needs("ring3_syscall", "msr_filter")
@pytest.mark.parametrize("method", ["patch", BY_BREAKPOINT])
def test_no_call_is_lost(linux: Path, method: str) -> None:
    """Calls of two processes at once, with KASLR: numbers, arguments, results, names and process numbers.

    Both taps see what the program does, call by call: more than 10,000 by patch.
    """
    loops = LOOPS[method]
    seen = run(linux, method, loops)
    assert seen.counted_inside > 2 * loops
    assert seen.tap.calls == len(seen.calls) == seen.counted_inside
    assert seen.tap.returns == seen.tap.calls - 2  # exit and reboot do not return
    exits = seen.result.exits["DEBUG"] if method == "breakpoint" else None
    assert exits in (None, seen.tap.calls + seen.tap.returns)

    names = Counter(event.name for event in seen.calls)
    assert names == Counter({"getpid": 2 * loops}) + Counter([*OTHERS.split(), "exit", "reboot"])
    tasks = Counter((event.task, event.cr3, event.result) for event in seen.calls if event.name == "getpid")
    (parent, ours), (child, theirs) = sorted(tasks.items(), key=lambda item: int(str(item[0][2])))
    assert (parent[0], parent[2], ours) == ("init[1]", 1, loops)
    assert (child[0], theirs) == (f"init[{child[2]}]", loops)
    assert parent[1] != child[1]

    text = {event.name: (*(value for _, value in event.args), event.result) for event in seen.calls}
    assert text["open"] == ('"/nowhere"', "O_RDONLY", -2)
    assert text["wait4"] == (str(child[2]), "[{WIFEXITED(s) && WEXITSTATUS(s) == 7}]", "0", "NULL", child[2])
    assert text["nanosleep"][-1] == "-4 EINTR (signal 14)"
    assert text["exit"] == ("7", None)
    assert text["getppid"] == (0,)  # by INT 0x80, whose numbers are others
    assert all(event.duration_ns for event in seen.calls if event.result is not None)


@pytest.mark.needs("ring3_syscall", "msr_filter")
def test_filter_and_detach_while_the_guest_runs(linux: Path) -> None:
    """The chosen calls of the chosen process alone come out; detached, the guest has its own bytes again."""
    done: list[tuple[bytes, bytes]] = []

    def watch(tap: SyscallTap, event: TraceEvent) -> None:
        if event.kind == "syscall" and not done:
            patches = list(tap._patches)
            tap.detach()
            read = tap._machine.memory.read
            done.extend((read(patch.gpa, len(patch.bytes)), patch.site.code) for patch in patches)
            assert not tap.is_attached

    seen = run(linux, "patch", 300, watch=watch, only=["pipe", "open"], processes=[1])
    assert [event.name for event in seen.calls] == ["pipe"]
    assert len(done) >= 2
    assert all(now == before for now, before in done)
    assert seen.counted_inside > seen.tap.calls


@pytest.mark.needs("ring3_syscall", "msr_filter")
def test_a_guest_that_rewrites_its_entry_is_followed(linux: Path) -> None:
    """Its own bytes in place of the tap's are found; the tap says so and goes in again."""
    done: list[bool] = []

    def watch(tap: SyscallTap, event: TraceEvent) -> None:
        if event.kind == "syscall" and not done:
            done.append(True)
            for patch in list(tap._patches):
                tap._machine.memory.write(patch.gpa, patch.site.code)

    seen = run(linux, "patch", 1500, watch=watch, words=False)
    assert any("rewritten its syscall entry" in event.name for event in seen.events if event.kind == "note")
    assert seen.calls[-1].name == "reboot"
    assert seen.tap.calls <= seen.counted_inside


@pytest.mark.needs("long64")
def test_a_guest_without_system_calls_has_nothing_to_tap() -> None:
    """It runs as ever; attach() refuses in one line, and the trace says that there was nothing."""
    events: list[TraceEvent] = []
    with Machine(memory="4M") as machine:
        machine.load("01_hello")
        tap = SyscallTap(machine)
        machine.add_sink(events.append)
        with pytest.raises(TapError, match="MSR_LSTAR is 0"):
            tap.attach()
        result = machine.run(timeout=30)
    assert result.exit_code == 0
    assert layout.SYSCALL_TAP.start not in {dict(event.args).get("port") for event in events}
    assert [event.name for event in events if event.kind == "note"] == [
        "the guest has set no entry for system calls: the tap had nothing to do"
    ]
