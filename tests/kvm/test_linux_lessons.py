"""The lessons that need more of a KVM than every machine has: about Linux, ACPI, virtio, containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.lessons import LESSONS, ROOT, needs_of_lesson, run_lesson
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.kit import cached_kit

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = [
    pytest.param(path, id=path.parent.name, marks=pytest.mark.needs(*needs))
    for path in LESSONS
    if (needs := needs_of_lesson(path))
]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of all lessons: containers and machines of their own, `lessons` shared by several."""
    places = {
        "PYKVM_DATA": str(tmp_path_factory.mktemp("data")),
        "XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("rt")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    yield places
    stop = [sys.executable, "-m", "pykvm", "stop", "lessons"]
    subprocess.run(stop, env={**os.environ, **places}, timeout=60, check=False, capture_output=True)


@pytest.mark.parametrize("path", CASES)
def test_lesson(path: Path, monkeypatch: pytest.MonkeyPatch, room: dict[str, str]) -> None:
    """Everything in it happens as it says."""
    if cached_kit(Store()) is None:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    for name, value in room.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    run_lesson(path)


def test_lessons_exist() -> None:
    """There are some: an empty list would pass."""
    assert len(CASES) >= 6
