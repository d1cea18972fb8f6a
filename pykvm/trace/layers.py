"""The layers of a trace beyond the exits: a Linux guest's syscalls, KVM's own answers, the host's kernel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pykvm.trace.event import TraceEvent
from pykvm.trace.tracefs import KernelSource, TracefsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.machine import Machine
    from pykvm.trace.select import Selection

__all__ = ["Remark", "add_layers"]

_NEVER = 1 << 63


class Remark:
    """A Source that has one thing to say."""

    def __init__(self, text: str) -> None:
        self._text = text

    def take(self) -> tuple[Sequence[TraceEvent], int]:
        """See Source: the note, the first time."""
        text, self._text = self._text, ""
        return [TraceEvent(time.monotonic_ns(), "note", "pykvm", text)] if text else [], _NEVER

    def finish(self) -> Sequence[TraceEvent]:
        """See Source."""
        return self.take()[0]


def add_layers(
    machine: Machine,
    selection: Selection,
    *,
    tap: str = "auto",
    syscalls: Sequence[str] = (),
    processes: Sequence[int] = (),
) -> None:
    """Add the sources that `selection` may want to `machine`, between load() and run().

    `tap` is one of pykvm.tap.TAP_WORDS; `syscalls` and `processes` are applied in the tap itself. What can't
    be had here is said in a note, and the trace goes on without. Raises ConfigError for what makes no sense.
    """
    if tap not in ("off", "auto") or (tap == "auto" and selection.may_want("syscall")):
        from pykvm.tap import add_tap  # noqa: PLC0415 - only Linux guests pay

        add_tap(machine, tap, syscalls=syscalls, processes=processes)
    wants_kvm, wants_host = selection.may_want("kvm"), selection.may_want("host")
    if wants_kvm or wants_host:
        try:
            machine.add_source(_kernel_source(kvm=wants_kvm, host=wants_host))
        except TracefsError as error:
            what = "no syscalls of pykvm and no exits that KVM answered in this trace"
            machine.add_source(Remark(f"{what}: {error}"))


def _kernel_source(*, kvm: bool, host: bool) -> KernelSource:
    from pykvm.trace.syscalls import syscall_name  # noqa: PLC0415 - only who may read tracepoints pays
    from pykvm.trace.syscalls.ioctl_names import ioctl_text  # noqa: PLC0415 - as above

    return KernelSource(kvm=kvm, host_calls=host, syscall_name=syscall_name, ioctl_name=ioctl_text)
