"""The lessons that need more of a KVM than every machine has: about Linux, ACPI and virtio."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from harness.lessons import LESSONS, ROOT, needs_of_lesson, run_lesson
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.kit import cached_kit

CASES = [
    pytest.param(path, id=path.parent.name, marks=pytest.mark.needs(*needs))
    for path in LESSONS
    if (needs := needs_of_lesson(path))
]


@pytest.mark.parametrize("path", CASES)
def test_lesson(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in it happens as it says."""
    if cached_kit(Store()) is None:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    run_lesson(path)


def test_lessons_exist() -> None:
    """There are some: an empty list would pass."""
    assert len(CASES) >= 3
