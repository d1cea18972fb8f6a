"""Runs a lesson: each `console` block gives what it shows, each `python` block holds.

A console block has commands behind `$ ` and under each what it prints; `…` stands for any text. What a
command prints on stderr counts. All blocks of a lesson run in order, the python ones in one namespace.
`<!-- include: FILE -->` is a source that the lesson shows; it must be there. `<!-- needs: NAME … -->` names
probes of `pykvm doctor`: such a lesson runs with the KVM tests, natively or in a lab.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["LESSONS", "ROOT", "Block", "blocks_of", "needs_of_lesson", "run_lesson"]

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "guests").glob("*/lesson.md"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_NEEDS = re.compile(r"<!-- needs: (.*?) -->")
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


def needs_of_lesson(path: Path) -> list[str]:
    """What a lesson needs of a KVM, beyond what every KVM that we meet has."""
    found = _NEEDS.search(path.read_text())
    return found[1].split() if found else []


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks that run, in order."""
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
        if match[1] in ("python", "console")
    ]


def run_lesson(path: Path) -> None:
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
            _run_console(block)
        else:
            code = compile("\n" * block.line + block.text, str(path), "exec")
            exec(code, namespace)  # noqa: S102 - running the lesson is the test


def _commands_of(block: Block) -> list[tuple[str, str]]:
    """(command, what it prints) pairs of a console block."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"line {block.line}: output before the first command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what the lesson shows, with `…` for any text."""
    pattern = ".*?".join(re.escape(part) for part in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


def _run_console(block: Block) -> None:
    """Run the commands of a console block and compare."""
    for command, shown in _commands_of(block):
        done = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert _matches(shown, done.stdout), f"$ {command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
