"""The bench of Linux guests as far as it goes without one: command lines, what is told, tracepoints."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench.linux import _ratio
from bench.linux_machines import MACHINES, Devices, Process, command
from bench.tracepoints import ExitCounts

from pykvm.errors import ConfigError

FILES: Any = SimpleNamespace(bzimage=Path("/k/vmlinuz"), vmlinux=Path("/k/vmlinux"))


@pytest.mark.parametrize("name", MACHINES)
def test_all_machines_get_the_same_guest(name: str) -> None:
    """Memory, initramfs, the words of the command line; each its own kernel file and devices."""
    argv = command(name, FILES, Path("/i.cpio"), Devices(disk=Path("/d.img"), tap="t0"))
    text = " ".join(argv)
    assert "console=ttyS0 quiet panic=-1 cryptomgr.notests tsc=nowatchdog" in text
    for word in ("/i.cpio", "/d.img", "t0"):
        assert word in text
    assert ("/k/vmlinux" in argv) == (name == "pykvm")
    assert ("/k/vmlinuz" in argv) == (name != "pykvm")


def test_a_process_tells_what_it_measured_and_can_t_hang() -> None:
    """Lines of /bench; one that says nothing, ends early or never ends is an error that says so."""
    script = "echo init; echo bench read 10 20; echo bench read x"
    process = Process(["sh", "-c", script], 20, [])
    assert process.started_s <= process.wait_for(b"init") <= process.finish()
    assert process.told("read") == (10, 20)
    with pytest.raises(ConfigError, match="told nothing of write"):
        process.told("write")
    with pytest.raises(ConfigError, match="ended without"):
        process.wait_for(b"never")
    process.stop()
    stuck = Process([sys.executable, "-c", "import time; time.sleep(60)"], 0.1, [])
    with pytest.raises(ConfigError, match="no end in sight"):
        stuck.finish()
    stuck.stop()


def test_a_ratio_is_of_medians_and_knows_its_promise() -> None:
    """One slow sample changes nothing."""
    assert _ratio("x", [9.0, 1.0, 1.0], [2.0, 2.0, 1.0], 0.75).is_met
    assert not _ratio("x", [1.0], [2.0], 0.8, more=True).is_met


def test_exits_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of AMD and Intel; of user space by the names of KVM_EXIT_*."""
    rows = "{ isa: 2, exit_reason: 123 } hitcount: 7\n{ isa: 1, exit_reason: 30 } hitcount: 2\n"
    texts = {
        "events/kvm/kvm_exit/hist": rows,
        "events/kvm/kvm_userspace_exit/hist": "{ reason: 6 } hitcount: 3\n",
    }
    counts = ExitCounts()
    monkeypatch.setattr(counts, "read", texts.__getitem__)
    assert counts.exits() == {"I/O": 9}
    assert counts.returns() == {"MMIO": 3}
