"""Exits that KVM answers by itself, and the host's system calls, from the host's tracepoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pykvm.machine import Machine
from pykvm.trace.tracefs import KernelSource, TracefsError, tracefs_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.needs("tracefs", "long64")
def test_what_never_reached_us_is_seen() -> None:
    """A guest's first touch of its memory is an exit that KVM answers; our own ioctls are host calls."""
    source = KernelSource(syscall_name=lambda number: {16: "ioctl"}.get(number, str(number)))
    instance = source._instance
    with Machine(memory="2M") as machine:
        machine.load("01_hello")
        machine.run(timeout=20)
    events = source.finish()
    assert not instance.exists()
    assert source.lost == 0
    assert {"kvm", "host"} <= {event.kind for event in events}
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    assert any(event.name == "ioctl" for event in events)


def test_where_tracepoints_cant_be_read_the_reason_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No tracefs gives the command that mounts it."""
    monkeypatch.setattr("pykvm.trace.tracefs._FOLDERS", (tmp_path,))
    with pytest.raises(TracefsError, match="mount -t tracefs"):
        tracefs_folder()
