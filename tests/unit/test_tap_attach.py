"""A tap on a machine that is a fake: attached, refused, followed, taken out; no KVM."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pykvm._native import ffi
from pykvm.bus import Bus
from pykvm.errors import ConfigError
from pykvm.memory import GuestMemory
from pykvm.tap import SyscallTap, TapError, add_tap
from pykvm.vcpu import LoopResult

if TYPE_CHECKING:
    from collections.abc import Iterator

LSTAR = 0xC000_0082
ENTRY = 0x4000
CODE = bytes.fromhex(
    "0f01f8 654889242514600000 65488b242550fb0100 6a2b 50"  # swapgs, to the kernel's stack, pushes
    "4889e7 4863f0 e800000000 488b4c2458 4c8b9c2480000000 0f01f8 480f07"
)
SAVE_AT, BACK_AT = CODE.index(bytes.fromhex("4889e7")), CODE.index(bytes.fromhex("488b4c2458"))


class FakeVcpu:
    """A vCPU without paging, so that linear addresses are gpas."""

    def __init__(self, shared: Any) -> None:
        self.fd, self.number, self.thread = 3, 0, 0
        self.loop = ffi.new("struct exit_loop *", {"shared": shared})
        self.msrs = {LSTAR: 0}
        self.kicks = 0
        self.breakpoints: list[list[int]] = []
        self.results: deque[int] = deque()
        self.view = SimpleNamespace(msr=SimpleNamespace(error=9))

    def enter(self) -> int:
        return self.results.popleft()

    def kick(self) -> None:
        self.kicks += 1

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        return {index: self.msrs.get(index, 0) for index in indices}

    def set_msrs(self, values: dict[int, int]) -> None:
        self.msrs.update(values)

    def get_sregs(self) -> Any:
        return SimpleNamespace(cr0=0, cr3=0, cr4=0, efer=0, idt=SimpleNamespace(base=0, limit=0))

    def sync_registers(self, *, special: bool) -> None:
        assert special

    def guest_debug(
        self, *, step: bool = False, breakpoints: list[int] | None = None, enable: bool = True
    ) -> None:
        assert not step
        self.breakpoints.append(list(breakpoints or []) if enable else [])


class FakeMachine:
    """As much of a machine as a tap needs."""

    def __init__(self) -> None:
        self.memory = GuestMemory(1 << 16)
        self.ports = Bus("ports")
        self.handlers: dict[Any, Any] = {}
        self.shared = ffi.new("struct loop_shared *")
        self.vcpus = [FakeVcpu(self.shared)]
        self.filtered: list[int] = []
        self.vm: Any = SimpleNamespace(filter_msrs=self.filtered.extend)
        self.image = SimpleNamespace(kind="linux")
        self.is_over = False
        self.name_container = str
        self.sources: list[Any] = []
        self.spec = SimpleNamespace(unclaimed="stop")

    def fast_port(self, where: range, verb: int) -> None:
        self.fast = where, verb

    def add_source(self, source: Any) -> None:
        self.sources.append(source)

    def code(self, at: int = ENTRY) -> bytes:
        return self.memory.read(at, len(CODE))

    def set_lstar(self, value: int) -> None:
        """What the guest's WRMSR does."""
        handler = next(iter(h for kind, h in self.handlers.items() if kind.__name__ == "MsrExit"))
        handler(self.vcpus[0], SimpleNamespace(index=LSTAR, data=value))


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    fake = FakeMachine()
    fake.memory.write(ENTRY, CODE)
    yield fake
    fake.memory.close()


def notes(tap: SyscallTap) -> list[str]:
    return [event.name for event in tap.source.take()[0]]


def test_the_guest_s_own_wrmsr_attaches(machine: FakeMachine) -> None:
    """The MSR gets its value; two instructions become an OUT to the tap's port, and nothing else changes."""
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    assert LSTAR in machine.filtered
    machine.set_lstar(ENTRY)
    assert machine.vcpus[0].msrs[LSTAR] == ENTRY
    assert machine.vcpus[0].view.msr.error == 0
    assert tap.is_attached
    now = machine.code()
    assert now[SAVE_AT : SAVE_AT + 3] == b"\xe6\xee\x90"
    assert now[BACK_AT : BACK_AT + 5] == b"\xe6\xee\x90\x90\x90"
    changed = {at for at in range(len(CODE)) if now[at] != CODE[at]}
    assert changed <= {*range(SAVE_AT, SAVE_AT + 3), *range(BACK_AT, BACK_AT + 5)}
    tap.detach()
    assert machine.code() == CODE
    assert not tap.is_attached


def test_breakpoints_leave_the_code_alone(machine: FakeMachine) -> None:
    """The addresses of both instructions go into debug registers, and out of them again."""
    tap = SyscallTap(machine, "breakpoint")  # type: ignore[arg-type]
    machine.set_lstar(ENTRY)
    tap.detach()
    assert machine.vcpus[0].breakpoints == [[ENTRY + SAVE_AT, ENTRY + BACK_AT], []]
    assert machine.code() == CODE


def test_code_that_is_not_linux_s_is_not_touched(machine: FakeMachine) -> None:
    """By the guest's WRMSR it is a note, by attach() an error; the guest runs on either way."""
    strange = b"\x90" * 64
    machine.memory.write(ENTRY, strange)
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    machine.set_lstar(ENTRY)
    assert not tap.is_attached
    (note,) = notes(tap)
    assert "does not begin with swapgs" in note
    assert note.endswith("the tap is off")
    with pytest.raises(TapError, match="does not begin with swapgs"):
        tap.attach()
    assert machine.memory.read(ENTRY, 64) == strange


@pytest.mark.parametrize("entry", [1 << 40, (1 << 16) - 1, 0xFFFF_FFFF_FFFF_F000])
def test_an_entry_in_no_memory_is_refused(machine: FakeMachine, entry: int) -> None:
    """Wherever the guest points LSTAR, it is one line."""
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    machine.set_lstar(entry)
    assert not tap.is_attached
    assert len(notes(tap)) == 1


def test_a_moved_entry_is_followed(machine: FakeMachine) -> None:
    """The old place gets its bytes back, the new one the tap."""
    machine.memory.write(0x6000, CODE)
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    machine.set_lstar(ENTRY)
    machine.set_lstar(0x6000)
    assert machine.code() == CODE
    assert machine.code(0x6000) != CODE
    assert any("moved its syscall entry to 0x6000" in note for note in notes(tap))


def test_a_rewritten_entry_is_seen_and_tapped_again(machine: FakeMachine) -> None:
    """Where the guest puts Linux's bytes back, the tap returns; where it puts others, it gives up aloud."""
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    machine.set_lstar(ENTRY)
    tapped = machine.code()
    machine.memory.write(ENTRY, CODE)
    assert any("rewritten its syscall entry" in note for note in notes(tap))
    assert machine.code() == tapped
    machine.memory.write(ENTRY, b"\x90" * len(CODE))
    assert any(note.endswith("the tap is off") for note in notes(tap))
    assert not tap.is_attached
    assert machine.code() == b"\x90" * len(CODE)


def test_wait_leaves_it_to_attach(machine: FakeMachine) -> None:
    """With `wait` the guest's WRMSR changes nothing."""
    tap = SyscallTap(machine, wait=True)  # type: ignore[arg-type]
    with pytest.raises(TapError, match="MSR_LSTAR is 0"):
        tap.attach()
    tap.detach()
    machine.set_lstar(ENTRY)
    assert machine.code() == CODE
    tap.attach()
    assert machine.code() != CODE


def test_vcpus_are_held_while_the_code_changes(machine: FakeMachine) -> None:
    """One that is inside the guest is kicked and waited for; it meets the gate before it goes in again."""
    vcpu = machine.vcpus[0]
    tap = SyscallTap(machine)  # type: ignore[arg-type]
    vcpu.msrs[LSTAR] = ENTRY
    vcpu.loop.tid = 1
    attaching = threading.Thread(target=tap.attach)
    attaching.start()
    attaching.join(0.05)
    assert attaching.is_alive()
    assert vcpu.kicks
    assert machine.code() == CODE
    vcpu.loop.tid = 0
    attaching.join(5)
    assert not attaching.is_alive()
    assert machine.code() != CODE
    vcpu.results.extend([LoopResult.EXIT, LoopResult.KICKED])
    assert [vcpu.enter(), vcpu.enter()] == [LoopResult.EXIT, LoopResult.KICKED]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "auto, patch, breakpoint"),
        ({"only": ["nosuchcall"]}, "'nosuchcall' is no system call"),
        ({"processes": range(17)}, "at most 16 processes"),
    ],
)
def test_bad_options_are_one_line(machine: FakeMachine, options: dict[str, Any], words: str) -> None:
    """They are refused before anything is changed."""
    with pytest.raises(ConfigError, match=words):
        SyscallTap(machine, **options)  # type: ignore[arg-type]
    assert machine.code() == CODE


def test_a_tap_is_made_between_load_and_run(machine: FakeMachine) -> None:
    """Without a VM there is nothing to tap."""
    machine.vm = None
    with pytest.raises(ConfigError, match="after load"):
        SyscallTap(machine)  # type: ignore[arg-type]


def test_the_option_auto_taps_linux_alone(machine: FakeMachine) -> None:
    """`off` never taps; `patch` always does."""
    assert add_tap(machine, "off") is None  # type: ignore[arg-type]
    machine.image.kind = "flat"
    assert add_tap(machine, "auto") is None  # type: ignore[arg-type]
    assert not machine.sources
    assert add_tap(machine, "patch") is not None  # type: ignore[arg-type]
    assert len(machine.sources) == 1
