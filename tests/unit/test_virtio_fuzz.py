"""The fuzzer of the virtio devices: a short run of it, and that it would find something."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fuzz.__main__ import main
from fuzz.case import FailedError, run_case
from fuzz.subjects import SUBJECTS

from pykvm.devices.virtio.block import Block
from pykvm.devices.virtio.host_folder import HostFolder
from pykvm.devices.virtio.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    """Twenty hostile drivers: no exception, no hang, nothing left open, nothing changed beside the guest."""
    results = [run_case(name, f"unit.{n}", tmp_path / "case") for n in range(20)]
    assert sum(result.used for result in results) > 20, "the device has done some work"
    assert any(result.needs_reset for result in results)
    assert run_case(name, "unit.0", tmp_path / "case")[::2] == results[0][::2], "a case can be repeated"


def _skip_check(disk: Block, sector: int, size: int) -> int:
    return sector * 512


def _fuzz(subject: str, folder: Path) -> None:
    for n in range(50):
        run_case(subject, f"planted.{n}", folder)


def _leak(queue: Queue, chain: object, written: int) -> None:
    os.dup(0)


@pytest.mark.parametrize(
    ("owner", "method", "planted", "subject", "what"),
    [
        (Block, "_range", _skip_check, "disk", "another size|OverflowError|OSError"),
        (Queue, "push", _leak, "console", "file descriptors stay open"),
        (HostFolder, "close", lambda folder: None, "share", "file descriptors stay open"),
    ],
)
def test_planted_defects_are_found(
    owner: type,
    method: str,
    planted: Callable[..., object],
    subject: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A check that is left out, a descriptor that is not closed."""
    monkeypatch.setattr(owner, method, planted)
    monkeypatch.setattr("fuzz.case.LIMIT_S", 0.3)
    before = {int(fd) for fd in os.listdir("/proc/self/fd")}  # noqa: PTH208 - their numbers
    with pytest.raises(FailedError, match=what):
        _fuzz(subject, tmp_path / "case")
    for fd in {int(fd) for fd in os.listdir("/proc/self/fd")} - before:  # noqa: PTH208 - as above
        if Path(f"/proc/self/fd/{fd}").exists():
            os.close(fd)


def test_the_command_counts(capfd: pytest.CaptureFixture[str]) -> None:
    """How many cases, of which seed; one case alone says what it came to."""
    assert main(["--seconds", "0.1", "--seed", "7", "--device", "rng"]) == 0
    assert "seed 7: " in (printed := capfd.readouterr().out)
    assert "nothing found" in printed
    assert main(["--device", "rng", "--case", "7.0"]) == 0
    assert "CaseResult" in capfd.readouterr().out
