"""Tracers that come to a running machine and leave it: they see everything, the guest sees nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from machines import FREE_PORT, TIMEOUT_S, leave, leaving_nothing, loop

from pykvm.control import read_line, send_line
from pykvm.errors import ConfigError
from pykvm.machine import Machine
from pykvm.registry import Room, stop
from pykvm.trace.select import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pykvm.result import RunResult
    from pykvm.trace.event import TraceEvent

pytestmark = pytest.mark.needs("real16")
nothing_left = pytest.fixture(leaving_nothing)
LONG_S = 100  # a command takes its time to start in a lab
STOP_PORT = FREE_PORT + 8
# counts, to FREE_PORT, until a read of STOP_PORT gives 1
COUNT = (
    b"\x66\x31\xdb"  # 1: xor %ebx, %ebx
    b"\xba"
    + FREE_PORT.to_bytes(2, "little")
    + b"\x66\x89\xd8\x66\xef"  # 2: mov $FREE, %dx; mov %ebx, %eax; out
    b"\x66\x43"  # inc %ebx
    b"\xba" + STOP_PORT.to_bytes(2, "little") + b"\xec"  # mov $STOP, %dx; in %dx, %al
    b"\x84\xc0\x74\xee"  # test %al, %al; jz 2b
)


class Counter:
    """What the guest counts, and what tells it to stop."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.stop = 0

    def read(self, offset: int, size: int) -> bytes:
        return bytes([self.stop])

    def write(self, offset: int, data: bytes) -> None:
        self.numbers.append(int.from_bytes(data, "little"))


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_for_more(counter: Counter, than: int) -> None:
    wait_for(lambda: len(counter.numbers) > than)


@pytest.fixture
def running(nothing_left: None) -> Iterator[tuple[Machine, Counter, Callable[[], RunResult]]]:
    """A machine whose guest counts, in a thread; and what ends it and gives its result."""
    counter, results = Counter(), []
    with Machine(memory="1M") as machine:
        machine.ports.attach(range(FREE_PORT, FREE_PORT + 4), counter)
        machine.ports.attach(range(STOP_PORT, STOP_PORT + 1), counter)
        machine.load(COUNT + leave(7), mode="real16")
        machine.allow_attach()
        thread = threading.Thread(target=lambda: results.append(machine.run(timeout=LONG_S)))
        thread.start()
        wait_for(lambda: counter.numbers)

        def end() -> RunResult:
            counter.stop = 1
            thread.join()
            return results[0]

        yield machine, counter, end
        end()


def counted(events: list[TraceEvent]) -> list[int]:
    """What the guest wrote, as the events have it."""
    outs = [event for event in events if ("port", FREE_PORT) in event.args]
    return [int.from_bytes(event.data, "little") for event in outs]


def test_what_happens_meanwhile_is_seen_whole(running: Any) -> None:
    """No event is missing between the first and the last; again and again; the guest counts on."""
    machine, counter, end = running
    for _ in range(3):
        events: list[TraceEvent] = []
        sink = machine.attach(events.append)
        begun = len(counter.numbers)
        wait_for_more(counter, begun + 200)
        machine.detach(sink)
        seen = counted(events)
        assert len(seen) >= 200
        assert seen == list(range(seen[0], seen[0] + len(seen)))
        after = len(events)
        wait_for_more(counter, seen[-1] + 100)
        assert len(events) == after
    result = end()
    assert counter.numbers == list(range(len(counter.numbers)))
    assert (result.exit_code, result.warnings) == (7, ())
    assert len(result.last_exits) == 64  # the flight recorder is back
    assert [record.address for record in result.last_exits[-3:-1]] == [FREE_PORT, STOP_PORT]


def test_several_come_and_go_as_they_like(running: Any) -> None:
    """Each with what it selected; the last one hears the end, and its result."""
    machine, counter, end = running
    everything: list[TraceEvent] = []
    outs: list[TraceEvent] = []
    first = machine.attach(everything.append)
    second = machine.attach(outs.append, Selection(ports=[range(FREE_PORT, FREE_PORT + 1)]))
    begun = len(counter.numbers)
    wait_for(lambda: len(counter.numbers) > begun + 100 and len(counted(outs)) > 50)
    machine.detach(first)
    machine.detach(first)
    had = len(everything)
    wait_for(lambda: len(counted(outs)) > 150)
    assert len(everything) == had
    result = end()
    machine.detach(second)
    assert counted(outs)[-1] == counter.numbers[-1]
    assert result.exit_code == 7


def test_a_sink_that_raises_is_nobody_else_s_trouble(running: Any) -> None:
    """It hears no more; the guest and the others go on."""
    machine, counter, end = running

    def broken(_: TraceEvent) -> None:
        raise ZeroDivisionError

    events: list[TraceEvent] = []
    machine.attach(broken)
    machine.attach(events.append)
    wait_for(lambda: len(counted(events)) > 50)
    assert end().exit_code == 7
    assert counted(events)[-1] == counter.numbers[-1]


def pykvm(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command, as a user has it."""
    command = [sys.executable, "-m", "pykvm", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_a_machine_is_traced_and_stopped_by_its_name(tmp_path: Path) -> None:
    """From other processes: one tracer vanishes, one leaves, and the guest goes on until it is stopped."""
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    image, trace = tmp_path / "count.bin", tmp_path / "trace.jsonl"
    image.write_bytes(COUNT.replace(b"\x74\xee", b"\xeb\xee"))  # for ever, whatever is read
    words = ["run", "--name", "counter", "--timeout", "400", "--unclaimed", "float"]
    with pykvm(*words, "--mode", "real16", str(image), env=env) as machine:
        wait_for((tmp_path / "pykvm" / "counter.sock").exists)
        tracer = pykvm("trace", "--attach", "counter", "--only", "io", "-o", str(trace), env=env)
        with Room(tmp_path / "pykvm") as room:
            with room.connect("counter") as link:
                send_line(link, {"do": "trace"})
                assert read_line(link) is not None
            wait_for(lambda: trace.exists() and trace.stat().st_size > 100_000)
            tracer.send_signal(signal.SIGINT)
            err = tracer.communicate(timeout=LONG_S)[1]
            assert (tracer.returncode, err.count(b"\n")) == (0, 1)
            assert b"the tracer has left, the guest runs on" in err
            assert machine.poll() is None
            stop(room, "counter", timeout_s=LONG_S)
            assert room.entries() == []
        assert machine.wait(LONG_S) == 130
    assert list((tmp_path / "pykvm").iterdir()) == []

    first, *lines, last = map(json.loads, trace.read_text().splitlines())
    assert (first["kind"], last["kind"], last["events"]) == ("start", "end", len(lines))
    outs = [
        int.from_bytes(bytes.fromhex(line["data"]), "little")
        for line in lines
        if line["args"].get("port") == FREE_PORT
    ]
    assert len(outs) > 100
    assert outs == list(range(outs[0], outs[0] + len(outs)))


def test_nobody_comes_before_the_run_after_it_or_unasked() -> None:
    """One line each."""
    with Machine(memory="1M") as machine:
        machine.load(loop(3, b"") + leave(), mode="real16")
        with pytest.raises(ConfigError, match="allow_attach"):
            machine.attach(print)
        machine.allow_attach()
        with pytest.raises(ConfigError, match="while run"):
            machine.attach(print)
        machine.run(timeout=TIMEOUT_S)
        with pytest.raises(ConfigError, match="run is over"):
            machine.attach(print)
