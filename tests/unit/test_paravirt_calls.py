"""A program's system calls from the guest's ring to events: nothing untrue, and nobody waits for ever."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pykvm._native import ffi, lib
from pykvm.memory import GuestMemory
from pykvm.paravirt import calls
from pykvm.paravirt.calls import ProgramCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CR3, TEXT, DATA, PRIVATE = 0x1000, 0x10_000, 0x11_000, 0x12_000
PRESENT, WRITABLE, USER = 1, 2, 4
OPEN, EXIT, UNKNOWN = 2, 60, 9999


class FakeParavirt:
    """As much of Paravirt as the source needs: its records come from a list."""

    def __init__(self) -> None:
        self.program = SimpleNamespace(name="/bin/program", segments=[range(0x40_0000, 0x50_0000)])
        self.on_drain: Callable[[], None] = lambda: None
        self.trouble = ""
        self.pieces: list[bytes] = []

    def symbols(self) -> tuple[Any, ...]:
        return ()

    def take_syscalls(self) -> bytes:
        found, self.pieces = b"".join(self.pieces), []
        return found

    def ns(self, stamp: int, _: Callable[[int], int]) -> int:
        return stamp * 10


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Pages at TEXT (read-only), DATA (writable) and PRIVATE (the kernel's), mapped to themselves."""
    found = GuestMemory(1 << 20)
    everything = PRESENT | WRITABLE | USER
    for table, entry in ((CR3, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
        found.write(table, (entry | everything).to_bytes(8, "little"))
    for page, rights in ((TEXT, PRESENT | USER), (DATA, everything), (PRIVATE, PRESENT)):
        found.write(0x4000 + (page >> 12) * 8, (page | rights).to_bytes(8, "little"))
        found.write(page, b"/etc/passwd\0")
    found.write(DATA - 5, b"/long")  # and goes on where it may be changed
    yield found
    found.close()


def record(number: int, *args: int, start: int = 100, end: int = 130, flags: int = lib.SYSCALL_DONE) -> bytes:
    """A struct syscall_record."""
    padded = [*args, *[0] * (6 - len(args))]
    values = {"number": number, "arg": padded, "result": -2, "start_time": start, "end_time": end}
    values |= {"cr3": CR3, "rip": 0x40_1000, "flags": flags, "pid": 100, "tid": 100}
    return bytes(ffi.buffer(ffi.new("struct syscall_record *", values)))


def source_of(paravirt: FakeParavirt, memory: GuestMemory) -> ProgramCalls:
    clock: Any = SimpleNamespace(tick=lambda: None, ns=lambda tsc: tsc)
    return ProgramCalls(paravirt, memory, clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gva", "text"),
    [(TEXT, '"/etc/passwd"'), (DATA, hex(DATA)), (PRIVATE, hex(PRIVATE)), (0x9_0000, "0x90000"), (0, "NULL")],
)
def test_words_are_shown_where_nobody_can_have_changed_them(memory: GuestMemory, gva: int, text: str) -> None:
    """A path in read-only memory is one; elsewhere it may be another by now, and stays an address."""
    paravirt = FakeParavirt()
    paravirt.pieces = [record(OPEN, gva)]
    ((event,), until) = source_of(paravirt, memory).take()
    assert event.args[0] == ("arg0", text)
    assert (event.name, event.time_ns, event.duration_ns, event.result) == ("open", 1000, 300, -2)
    assert (event.task, event.cr3, event.where) == ("program[100]", CR3, "")
    assert until == 1300


def test_a_call_that_did_not_return_has_no_result(memory: GuestMemory) -> None:
    """And an unknown one has its number."""
    paravirt = FakeParavirt()
    paravirt.pieces = [record(UNKNOWN), record(EXIT, 3, start=200, end=0, flags=0)]
    events, until = source_of(paravirt, memory).take()
    assert [event.name for event in events] == ["syscall_0x270f", "exit"]
    assert (events[1].duration_ns, events[1].result, until) == (None, None, 2000)


def test_what_is_wrong_with_the_ring_is_a_note_at_the_end(memory: GuestMemory) -> None:
    """Behind the last calls."""
    paravirt = FakeParavirt()
    source = source_of(paravirt, memory)
    paravirt.pieces, paravirt.trouble = [record(OPEN, TEXT)], "the ring is damaged"
    assert [(event.kind, event.name) for event in source.finish()] == [
        ("syscall", "open"),
        ("note", "the ring is damaged"),
    ]


def test_a_full_ring_waits_for_the_reader_but_not_for_ever(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vCPU's thread holds the machine's lock: after a while memory grows instead; nothing is lost."""
    monkeypatch.setattr(calls, "_BACKLOG_BYTES", 0)
    monkeypatch.setattr(calls, "_LONGEST_S", 0.05)
    paravirt = FakeParavirt()
    source = source_of(paravirt, memory)
    paravirt.pieces = [record(OPEN, TEXT)]
    paravirt.on_drain()
    monkeypatch.setattr(calls, "_LONGEST_S", 60)
    paravirt.pieces = [record(OPEN, TEXT)]
    waiting = threading.Thread(target=paravirt.on_drain)
    waiting.start()
    found = 0
    while waiting.is_alive():
        found += len(source.take()[0])
    found += len(source.finish())
    waiting.join()
    assert found == 2
