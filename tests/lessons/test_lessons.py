"""Runs every guests/*/lesson.md that needs no more than this machine has, and the README's examples.

These lessons start the labs themselves; those that name needs run with the KVM tests, in the labs too.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.lessons import LESSONS, ROOT, blocks_of, needs_of_lesson, run_lesson

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.pytest_plugin import Boot

HERE = [path for path in LESSONS if not needs_of_lesson(path)]


@pytest.fixture(autouse=True)
def _find_pykvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is the one beside the interpreter that runs the tests."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", HERE, ids=[path.parent.name for path in HERE])
def test_lesson(path: Path) -> None:
    """The lesson's shape is the house's, its sources are there, and everything in it happens as it says."""
    run_lesson(path)


def test_readme_example(capsys: pytest.CaptureFixture[str], boot: Boot) -> None:
    """The README's Python example prints what its comments say, and its pytest example passes."""
    example, with_pytest = (block.text for block in blocks_of((ROOT / "README.md").read_text()))
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - running it is the test
    printed = capsys.readouterr().out.split("\n")
    shown = re.findall(r"# (.*)$", example, re.MULTILINE)
    assert [line for line in printed if line][: len(shown)] == shown
    namespace: dict[str, Callable[[Boot], None]] = {}
    exec(compile(with_pytest, "README.md", "exec"), namespace)  # noqa: S102 - as above
    namespace["test_greeting"](boot)


def test_lessons_exist() -> None:
    """There is at least one: a glob that finds nothing would pass."""
    assert HERE
