"""What KVM's tracepoints tell of a run that another program makes: its beginning, its exits by reason."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pykvm._native import lib

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ExitCounts", "FirstRun", "can_trace"]

_TRACEFS = Path("/sys/kernel/tracing")
_EXITS = "hist:keys=isa,exit_reason:size=512"
_RETURNS = "hist:keys=reason:size=128"
_ROW = re.compile(r"\{ (.+?) \} hitcount:\s+(\d+)")
_SVM = {
    0x60: "interrupt",
    0x64: "interrupt window",
    0x72: "CPUID",
    0x78: "HLT",
    0x7B: "I/O",
    0x7C: "MSR",
    0x400: "nested page fault",
    0x20: "debug register",
    0x30: "debug register",
    0x10: "control register",
    0x14: "control register",
    0x65: "control register",
    0x70: "RDPMC",
    0x8D: "XSETBV",
}  # fmt: skip - arch/x86/include/uapi/asm/svm.h
_VMX = {
    1: "interrupt",
    7: "interrupt window",
    10: "CPUID",
    12: "HLT",
    28: "control register",
    29: "debug register",
    30: "I/O",
    31: "MSR",
    32: "MSR",
    48: "nested page fault",
    49: "nested page fault",
    52: "interrupt",
    55: "XSETBV",
}  # fmt: skip - arch/x86/include/uapi/asm/vmx.h


def can_trace() -> bool:
    """Whether this user may look."""
    return os.access(_TRACEFS / "instances", os.W_OK)


class _Instance:
    """A trace instance of our own, with events, their filters and triggers, gone at the end."""

    def __init__(self, events: dict[str, tuple[str, str]]) -> None:
        """`events` by name: which file of it gets which text."""
        self._events = events
        self._folder = _TRACEFS / "instances" / f"pykvm-bench-{os.getpid()}"

    def __enter__(self) -> Self:
        self._folder.mkdir()
        try:
            (self._folder / "trace_clock").write_text("mono")
            for name, (file, text) in self._events.items():
                (self._folder / "events" / "kvm" / name / file).write_text(text)
        except OSError:
            self.__exit__(None, None, None)
            raise
        return self

    def read(self, name: str) -> str:
        """A file of the instance."""
        return (self._folder / name).read_text()

    def enable(self, name: str) -> None:
        """Let an event be recorded."""
        (self._folder / "events" / "kvm" / name / "enable").write_text("1")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, (file, text) in self._events.items():
            with suppress(OSError):
                (self._folder / "events" / "kvm" / name / file).write_text(
                    f"!{text}" if file == "trigger" else "0"
                )
        with suppress(OSError):
            self._folder.rmdir()


class FirstRun(_Instance):
    """Hears when the first KVM_RUN of anybody's began: KVM loads the guest's FPU there."""

    def __init__(self) -> None:
        super().__init__({"kvm_fpu": ("filter", "load == 1")})

    def __enter__(self) -> Self:
        super().__enter__()
        self.enable("kvm_fpu")
        return self

    def at_s(self) -> float | None:
        """When, as time.monotonic() has it; None if there was none."""
        found = re.search(r"(\d+\.\d+): kvm_fpu: ", self.read("trace"))
        return float(found[1]) if found else None


class ExitCounts(_Instance):
    """Counts all exits of all guests, and returns of KVM_RUN, by reason."""

    def __init__(self) -> None:
        super().__init__({"kvm_exit": ("trigger", _EXITS), "kvm_userspace_exit": ("trigger", _RETURNS)})

    def exits(self) -> dict[str, int]:
        """Reason -> count, most first."""
        found: dict[str, int] = {}
        for key, count in _ROW.findall(self.read("events/kvm/kvm_exit/hist")):
            isa, reason = (int(number) for number in re.findall(r"\d+", key))
            name = (_VMX if isa == 1 else _SVM).get(reason & 0xFFFF, f"reason {reason & 0xFFFF}")
            found[name] = found.get(name, 0) + int(count)
        return dict(sorted(found.items(), key=lambda row: -row[1]))

    def returns(self) -> dict[str, int]:
        """The same of what came out to user space."""
        names = {getattr(lib, name): name.removeprefix("KVM_EXIT_") for name in dir(lib) if _is_reason(name)}
        rows = _ROW.findall(self.read("events/kvm/kvm_userspace_exit/hist"))
        found = {names.get(int(key.split()[-1]), key): int(count) for key, count in rows}
        return dict(sorted(found.items(), key=lambda row: -row[1]))


def _is_reason(name: str) -> bool:
    return name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_")
