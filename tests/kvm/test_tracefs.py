"""Exits that KVM answers by itself, and the host's system calls, from the host's tracepoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pykvm.machine import Machine
from pykvm.trace.tracefs import KernelSource, Tracefs, TracefsError


@pytest.mark.needs("exit_tracepoints", "long64")
def test_what_never_reached_us_is_seen() -> None:
    """A guest's first touch of its memory is an exit that KVM answers; our own ioctls are host calls."""
    source = KernelSource(syscall_name=lambda number: {16: "ioctl"}.get(number, str(number)))
    name = source._instance.name
    with Machine(memory="2M") as machine:
        machine.load("01_hello")
        machine.run(timeout=20)
    events = source.finish()
    with Tracefs() as tracefs:
        assert name not in [instance.name for instance in (tracefs.folder / "instances").iterdir()]
    assert source.lost == 0
    assert {"kvm", "host"} <= {event.kind for event in events}
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    assert any(event.name == "ioctl" for event in events)


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


@pytest.mark.needs("tracefs")
def test_a_mount_of_our_own_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where tracefs is mounted nowhere root gets it all the same; the host's mounts stay what they are."""
    monkeypatch.setattr("pykvm.trace.tracefs._FOLDERS", (tmp_path,))
    before = _mounts(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - iterdir() holds one more
    with Tracefs() as tracefs:
        assert (tracefs.folder / "events" / "kvm").is_dir()
        assert _mounts() == before[0]
    assert (_mounts(), len(os.listdir("/proc/self/fd"))) == before  # noqa: PTH208 - as above


def test_where_tracepoints_cant_be_read_the_reason_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No tracefs, and no right to mount one, gives the command for it; one that is closed to us says so."""
    monkeypatch.setattr("pykvm.trace.tracefs._FOLDERS", (tmp_path,))
    monkeypatch.setattr("pykvm.trace.tracefs.lib", SimpleNamespace(detached_mount=lambda _: -errno.EPERM))
    with pytest.raises(TracefsError, match="mount -t tracefs"):
        Tracefs()
    (tmp_path / "events").mkdir()
    with pytest.raises(TracefsError, match="not permitted"):
        Tracefs()
