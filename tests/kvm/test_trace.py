"""Tracing real guests: no event is lost, in any form, whatever the reader does; the run stays as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import layout
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.trace.select import Selection
from pykvm.trace.summary import Summary, shares

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceAbout, TraceEvent

TIMEOUT_S = 60
HELLO = b"Hello from 64-bit long mode!\n"
EXITS = 5000
RING = 512  # much less: so the rings fill up again and again
FREE_PORT = 0x600
ENDLESS = b"\xe6" + bytes([layout.DEBUG_CONSOLE.start]) + b"\xeb\xfc"  # 1: out %al, $0xe9; jmp 1b


def traced(name: str, *, add: Any = None, **options: Any) -> tuple[list[TraceEvent], RunResult]:
    """A guest's run and all of its events."""
    found: list[TraceEvent] = []
    with Machine(**{"memory": "2M", **options}) as machine:
        machine.load(name)
        machine.add_sink(found.append)
        if add:
            machine.add_sink(add)
        return found, machine.run(timeout=TIMEOUT_S)


def pykvm(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command, as a user has it."""
    command = [sys.executable, "-m", "pykvm", *arguments]
    defaults: dict[str, Any] = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": TIMEOUT_S}
    return subprocess.run(command, check=False, **(defaults | options))


def exits_of(found: Sequence[TraceEvent]) -> list[TraceEvent]:
    """The events that are exits."""
    return [event for event in found if event.via]


# ---- what is traced


def test_every_exit_is_an_event_and_the_guest_is_none_the_wiser() -> None:
    """The same console, the same exits, the same end as without a trace."""
    found, result = traced("01_hello")
    assert (result.console, result.exit_code, dict(result.exits)) == (HELLO, 0, {"IO": 30})
    assert len(found) == 30
    assert b"".join(event.data for event in found[:-1]) == HELLO
    assert {dict(event.args)["device"] for event in found} == {"DebugConsole", "PlainExit"}
    assert result.warnings == ()


def test_events_are_in_order_and_their_times_fit_into_each_other() -> None:
    """A stay in the guest, the exit, the next stay: one after the other, on one clock."""
    before = time.monotonic_ns()
    found, _ = traced("02_uart")
    after = time.monotonic_ns()
    assert before < found[0].time_ns
    assert found[-1].end_ns < after
    for earlier, later in pairwise(found):
        assert earlier.time_ns < later.time_ns
        assert earlier.duration_ns is not None
        assert later.guest_ns is not None
        assert abs(later.time_ns - later.guest_ns - earlier.end_ns) < 1000


def test_hypercalls_say_what_was_asked_and_answered() -> None:
    """By C or by Python; a bad pointer, a bad length and an unknown number are errors in the trace, too."""
    found, result = traced("05_hypercall")
    calls = [(event.name, event.result) for event in found]
    assert [name for name, _ in calls] == (
        ["version", "time", "console_write", "time", "mark"]
        + ["console_write"] * 4
        + ["call 0xbad", "console_write", "exit"]
    )
    errors = [answer for _, answer in calls if isinstance(answer, int) and answer < 0]
    assert errors == [-14, -22, -38]
    assert found[2].data == result.console[:32]
    assert dict(found[4].args) == {"value": 42}
    assert {event.via for event in found} == {"IO"}


def test_totals_add_up_to_the_run_s_wall_time() -> None:
    """And the rows of the exits to the time that answering them took."""
    summary = Summary()
    found, result = traced("02_uart")
    for event in found:
        summary.add(event)
    stats = result.stats
    assert sum(share.ns for share in shares(stats, 1)) == stats.wall_ns
    rows = summary.rows["exit"].values()
    assert sum(row.count for row in rows) == stats.exits
    assert sum(row.total for row in rows) == pytest.approx(stats.answer_ns, rel=0.05)
    assert sum(event.guest_ns or 0 for event in found) == pytest.approx(stats.guest_ns, rel=0.05)


def test_symbols_name_the_places() -> None:
    """Where the image has them."""
    found, _ = traced("02_uart")
    assert any(event.where.startswith("main") for event in found)


# ---- nothing is lost


def flood(vcpus: int) -> bytes:
    """C of a guest whose CPUs all write to a free port as fast as they can, EXITS times each."""
    return f"""
#include "console.h"
#include "smp.h"
static volatile unsigned done;
static void work(void)
{{
    unsigned id = cpu_id();
    for (unsigned i = 0; i < {EXITS}; i++)
        out32({FREE_PORT:#x}, id << 24 | i);
    __atomic_fetch_add(&done, 1, __ATOMIC_RELEASE);
}}
int main(void)
{{
    start_other_cpus(work);
    work();
    while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) < {vcpus})
        pause();
    return 0;
}}
""".encode()


@pytest.fixture
def small_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings that a few exits fill."""
    monkeypatch.setattr("pykvm.trace.recorder._RECORDS", RING)


@pytest.fixture(scope="module")
def flooding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of such a guest, for two CPUs."""
    from pykvm.guests import built_folder
    from pykvm.toolchain import compile_program

    root, folder = built_folder(), tmp_path_factory.mktemp("flood")
    source = folder / "flood.c"
    source.write_bytes(flood(2))
    parts = [root / "lib" / name for name in ("start.S", "smp.c", "smp.S")]
    return compile_program([source, *parts], folder / "flood.elf", mode="long64", root=root)


class Null:
    """A device that takes everything."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass


class SlowSink:
    """A reader that is much slower than two vCPUs, and keeps count of what each of them said."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self.numbers: dict[int, list[int]] = {0: [], 1: []}
        self.events = 0
        self.late = 0
        self._last_ns = 0

    def open(self, about: TraceAbout) -> None:
        pass

    def write(self, events: Sequence[TraceEvent]) -> None:
        for event in events:
            self.events += 1
            self.late += event.time_ns < self._last_ns
            self._last_ns = event.time_ns
            if event.args and event.args[1] == ("port", FREE_PORT):
                self.numbers[event.vcpu or 0].append(int.from_bytes(event.data, "little"))
        time.sleep(self._pause_s)

    def close(self, result: RunResult | None) -> None:
        pass


@pytest.mark.needs("irqchip", "smp")
@pytest.mark.usefixtures("small_rings")
@pytest.mark.parametrize("fast", [False, True], ids=["python", "C"])
def test_two_vcpus_at_full_load_lose_nothing(flooding: Path, *, fast: bool) -> None:
    """With rings that fill up again and again: every write is there once, in order, and so in one list."""
    from pykvm._native import lib

    sink = SlowSink(0.002)
    with Machine(memory="2M", vcpus=2, irqchip=True) as machine:
        machine.ports.attach(range(FREE_PORT, FREE_PORT + 4), Null())
        machine.load(flooding)
        if fast:
            machine.fast_port(range(FREE_PORT, FREE_PORT + 4), lib.VERB_DISCARD)
        machine.add_sink(sink)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.exit_code == 0
    for vcpu, numbers in sink.numbers.items():
        assert numbers == [vcpu << 24 | i for i in range(EXITS)]
    assert sink.events == result.stats.exits == sum(result.exits.values())
    assert result.stats.dropped_records == 0
    assert sink.late == 0


@pytest.mark.needs("irqchip", "smp")
@pytest.mark.usefixtures("small_rings")
def test_who_would_rather_lose_events_is_told_how_many(flooding: Path) -> None:
    """Dropped and seen are all exits there were; the guest did not wait."""
    seen: list[TraceEvent] = []
    with Machine(memory="2M", vcpus=2, irqchip=True, drop_records=True) as machine:

        def hook(event: TraceEvent) -> None:
            deadline = time.monotonic() + TIMEOUT_S
            while not any(vcpu.loop.trace.dropped for vcpu in machine.vcpus) and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(event)

        machine.ports.attach(range(FREE_PORT, FREE_PORT + 4), Null())
        machine.load(flooding)
        machine.add_sink(hook)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.exit_code == 0
    assert result.stats.dropped_records > 0
    assert len(seen) + result.stats.dropped_records == result.stats.exits
    (warning,) = result.warnings
    assert (
        warning == f"{result.stats.dropped_records} exits came faster than they were read and have no event"
    )
    assert result.stats.wait_ns == 0


# ---- the reader's troubles are not the run's


def test_a_hook_that_raises_is_switched_off_and_reported() -> None:
    """The run and the other sinks go on."""

    def hook(event: TraceEvent) -> None:
        raise ZeroDivisionError("on purpose")

    found, result = traced("01_hello", add=hook)
    assert len(found) == 30
    assert result.exit_code == 0
    (warning,) = result.warnings
    assert "hook" in warning
    assert "ZeroDivisionError: on purpose" in warning


def test_sinks_come_before_the_run() -> None:
    """Later they would miss what they are for."""
    with Machine(memory="2M") as machine:
        machine.load("01_hello")
        machine.run(timeout=TIMEOUT_S)
        with pytest.raises(ConfigError, match="before run"):
            machine.add_sink(print)


def test_a_selection_is_applied_before_the_sink() -> None:
    """Kinds, ports, names."""
    found: list[TraceEvent] = []
    with Machine(memory="2M") as machine:
        machine.load("05_hypercall")
        machine.add_sink(found.append, Selection(hypercalls=["time"]))
        machine.run(timeout=TIMEOUT_S)
    assert [event.name for event in found] == ["time", "time"]


# ---- the iterator


def test_events_can_be_iterated_while_the_guest_runs() -> None:
    """All of them; the result follows."""
    with Machine(memory="2M") as machine:
        machine.load("01_hello")
        events = machine.trace(timeout=TIMEOUT_S)
        assert b"".join(event.data for event in events).startswith(HELLO)
        assert events.result is not None
        assert events.result.exit_code == 0


@pytest.mark.parametrize("how", ["with", "machine"])
def test_a_loop_that_is_left_ends_the_run(how: str) -> None:
    """Also of a guest that would print for ever; no thread stays behind."""
    with Machine(memory="1M") as machine:
        machine.load(ENDLESS, mode="real16")
        events = machine.trace(timeout=TIMEOUT_S)
        for _ in zip(range(10), events, strict=False):
            pass
        if how == "with":
            with events:
                pass
            assert events.result is not None
            assert str(events.result.reason) == "interrupted"
    assert not {"tracer", "traced-run"} & {thread.name for thread in threading.enumerate()}


def test_a_time_limit_holds_while_nobody_reads() -> None:
    """A reader who has gone to lunch holds the guest up, but not beyond its limit."""
    resume = threading.Event()
    with Machine(memory="1M") as machine:
        machine.load(ENDLESS, mode="real16")
        machine.add_sink(lambda _: resume.wait(TIMEOUT_S))
        threading.Timer(6, resume.set).start()
        result = machine.run(timeout=1)
    assert str(result.reason) == "timeout"
    assert result.stats.wall_ns < 5e9


# ---- more detail


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("01_hello", r"^out dx, al   ; dx=0xe9 al=0x48   hello\.S:\d+$"),
        ("02_uart", r"^out dx, al   ; dx=0x3f9 al=0x0   cpu\.h:\d+$"),
        ("04_mmio", r"dword ptr \[0xd0000000\]   mmio\.c:\d+$"),
        ("07_halt", r"^hlt   halt\.S:\d+$"),
    ],
)
def test_the_instruction_behind_an_exit_is_shown(name: str, instruction: str) -> None:
    """With what it read, and its line in the source."""
    found: list[TraceEvent] = []
    with Machine(memory="2M") as machine:
        machine.load(name)
        machine.trace_detail(disassemble=True)
        machine.add_sink(found.append)
        machine.run(timeout=TIMEOUT_S)
    assert re.search(instruction, found[0].code), found[0].code
    assert all(event.code for event in found)


@pytest.mark.needs("single_step")
@pytest.mark.parametrize("period", [1, 7])
def test_single_steps_are_sampled(period: int) -> None:
    """Every so manieth instruction, in order; the exits between are as ever, and everything adds up."""
    found: list[TraceEvent] = []
    with Machine(memory="2M") as machine:
        machine.load("01_hello")
        machine.trace_detail(step=period)
        machine.add_sink(found.append)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.console == HELLO
    steps = [event for event in found if event.kind == "step"]
    assert len(steps) == -(-result.exits["DEBUG"] // period)
    assert len(found) == result.stats.exits - result.stats.skipped_steps
    assert {event.layer for event in steps} == {"guest kernel"}
    if period == 1:
        assert any(event.code.startswith("dec ") for event in steps)


# ---- the command


def test_lines_go_to_stderr_and_the_guest_s_output_to_stdout() -> None:
    """As with strace; the status is the guest's."""
    done = pykvm("trace", "01_hello")
    assert (done.stdout, done.returncode) == (HELLO, 0)
    lines = done.stderr.decode().splitlines()
    assert lines[0].split()[:2] == ["time", "s"]
    assert sum("IO out 0xe9 DebugConsole" in line for line in lines) == 29
    assert lines[-1].startswith("pykvm: exit code 0 after")
    assert b"\x1b" not in done.stderr


def test_json_lines_can_be_piped() -> None:
    """Without the guest's output between them."""
    done = pykvm("trace", "01_hello", "--not", "kvm,host", "--format", "jsonl", "-o", "-")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["start", *["exit"] * 30, "end"]
    assert lines[-1]["events"] == lines[-1]["exits"] == 30


def test_summary_counts_every_exit() -> None:
    """As a table, or as JSON."""
    done = pykvm("trace", "-c", "02_uart")
    assert re.search(rb"IO out 0x3f8 Serial +32 ", done.stderr)
    found = json.loads(pykvm("trace", "-c", "--json", "02_uart").stdout)
    assert sum(row["count"] for row in found["exit"].values()) == found["exits"] == 69
    assert sum(found["time_ns"].values()) == found["wall_ns"]


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.pftrace", "t.html"])
def test_every_form_goes_to_a_file(tmp_path: Path, name: str) -> None:
    """By the file's end; nothing of it on the terminal."""
    done = pykvm("trace", "01_hello", "-o", str(tmp_path / name), "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, HELLO, b"")
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("form", ["live", "jsonl", "perfetto", "html"])
def test_a_full_disk_is_one_line_and_ends_the_run(form: str) -> None:
    """Not a traceback, not a hang, not an endless guest that nobody sees any more."""
    done = pykvm("trace", "11_endless_loop", "-q", "--format", form, "-o", "/dev/full", "--step", "1")
    assert done.returncode == 125
    assert re.fullmatch(
        rb"pykvm: /dev/full: No space left on device; the trace ends there, and the run was ended\n",
        done.stderr,
    )


def test_a_reader_who_goes_ends_the_run(tmp_path: Path) -> None:
    """`pykvm trace … | head -1`: the status is that of a program killed by SIGPIPE."""
    image = tmp_path / "endless.bin"
    image.write_bytes(ENDLESS)
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-m",
        "pykvm",
        "trace",
        "--format",
        "jsonl",
        "-o",
        "-",
        "--mode",
        "real16",
        str(image),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        assert os.read(reader, 100).startswith(b'{"kind":"start"')
        os.close(reader)
        assert process.wait(TIMEOUT_S) == 141
        assert process.stderr.read() == b""


def test_an_unwritable_path_is_one_line() -> None:
    """Before the guest has run."""
    done = pykvm("trace", "01_hello", "-o", "/proc/nowhere/t.jsonl")
    assert (done.returncode, done.stdout) == (125, b"")
    assert (
        done.stderr == b"pykvm: /proc/nowhere/t.jsonl: No such file or directory; give another file with -o\n"
    )


def test_ctrl_c_ends_the_run_and_the_trace_is_whole(tmp_path: Path) -> None:
    """The file has its last line."""
    path = tmp_path / "t.jsonl"
    command = [sys.executable, "-m", "pykvm", "trace", "11_endless_loop", "-o", str(path), "-q"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(2)
        assert process.wait(TIMEOUT_S) == 130
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["kind"], last["reason"]) == ("end", "interrupted")


# ---- who does not trace does not pay


def test_without_a_trace_nothing_of_it_is_imported() -> None:
    """`pykvm run` knows neither tracer nor sinks."""
    code = (
        "import sys; from pykvm.cli import main; status = main(['run', '-q', '01_hello']); "
        "print(sorted(n for n in sys.modules if n.startswith('pykvm.trace')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "['pykvm.trace', 'pykvm.trace.clock', 'pykvm.trace.record']"
