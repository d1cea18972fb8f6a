"""Runs every guests/*/lesson.md: each `console` block gives what it shows, each `python` block holds.

A console block has commands behind `$ ` and under each what it prints; `…` stands for any text. What a
command prints on stderr counts. All blocks of a lesson run in order, the python ones in one namespace.
Lessons run on the machine at hand and start the labs themselves. `<!-- include: FILE -->` is a source that
the lesson shows; it must be there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.pytest_plugin import Boot

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "guests").glob("*/lesson.md"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_HEADINGS = (
    "## The guest",
    "## Run it",
    "## What you saw",
    "## Who did the work",
    "## One change to try",
    "## What to read next",
)
_LIMIT_S = 280


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line it begins at."""

    language: str
    text: str
    line: int


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks that run, in order."""
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
        if match[1] in ("python", "console")
    ]


def commands_of(block: Block) -> list[tuple[str, str]]:
    """(command, what it prints) pairs of a console block."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"line {block.line}: output before the first command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what the lesson shows, with `…` for any text."""
    pattern = ".*?".join(re.escape(part) for part in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


@pytest.fixture(autouse=True)
def _find_pykvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is the one beside the interpreter that runs the tests."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)


def run_console(block: Block) -> None:
    """Run the commands of a console block and compare."""
    for command, shown in commands_of(block):
        done = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert matches(shown, done.stdout), f"$ {command}\nshown:\n{shown}\nprinted:\n{done.stdout}"


@pytest.mark.parametrize("path", LESSONS, ids=[path.parent.name for path in LESSONS])
def test_lesson(path: Path) -> None:
    """The lesson's shape is the house's, its sources are there, and everything in it happens as it says."""
    text = path.read_text()
    headings = re.findall(r"^## .*", text, re.MULTILINE)
    assert headings == list(_HEADINGS), "a lesson has the house's headings, in order"
    for name in _INCLUDE.findall(text):
        assert (path.parent / name).is_file(), f"{name} is included and not there"
    assert _INCLUDE.search(text), "a lesson shows its guest's source"
    namespace: dict[str, object] = {"__name__": "lesson"}
    for block in blocks_of(text):
        if block.language == "console":
            run_console(block)
        else:
            code = compile("\n" * block.line + block.text, str(path), "exec")
            exec(code, namespace)  # noqa: S102 - running the lesson is the test


def test_readme_example(capsys: pytest.CaptureFixture[str], boot: Boot) -> None:
    """The README's Python example prints what its comments say, and its pytest example passes."""
    example, with_pytest = (block.text for block in blocks_of((ROOT / "README.md").read_text()))
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - as above
    printed = capsys.readouterr().out.split("\n")
    shown = re.findall(r"# (.*)$", example, re.MULTILINE)
    assert [line for line in printed if line][: len(shown)] == shown
    namespace: dict[str, Callable[[Boot], None]] = {}
    exec(compile(with_pytest, "README.md", "exec"), namespace)  # noqa: S102 - as above
    namespace["test_greeting"](boot)


def test_lessons_exist() -> None:
    """There is at least one: a glob that finds nothing would pass."""
    assert LESSONS
