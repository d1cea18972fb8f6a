"""Runs a lesson: each `console` block gives what it shows, each `python` block holds.

A console block has commands behind `$ ` and under each what it prints; `…` stands for any text. What a
command prints on stderr counts. All blocks of a lesson run in order, the python ones in one namespace.
Commands behind `# ` are typed into the shell that the last command behind `$ ` has started, also those of
later blocks: that is a guest. It ends with the lesson, or when another is started.
`<!-- include: FILE -->` is a source that the lesson shows; it must be there. `<!-- needs: NAME … -->` names
probes of `pykvm doctor`: such a lesson runs with the KVM tests, natively or in a lab.
"""

from __future__ import annotations

import codecs
import re
import selectors
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LESSONS", "ROOT", "Block", "blocks_of", "needs_of_lesson", "run_lesson"]

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "guests").glob("*/lesson.md"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_TYPED = re.compile(r"^```console\n(?:.*\n)*?# ", re.MULTILINE)
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
_BEGUN, _DONE = "typed:", "done:"


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
    assert _INCLUDE.search(text) or _TYPED.search(text), "a lesson shows its guest's source, or types it"
    namespace: dict[str, object] = {"__name__": "lesson"}
    with _Consoles() as consoles:
        for block in blocks_of(text):
            if block.language == "console":
                consoles.run(block)
            else:
                code = compile("\n" * block.line + block.text, str(path), "exec")
                exec(code, namespace)  # noqa: S102 - running the lesson is the test


class _Command(NamedTuple):
    """A line of a console block, and what is shown below it. `prompt`: `$` is the host's, `#` a guest's."""

    prompt: str
    line: str
    shown: str


def _commands_of(block: Block) -> Iterator[_Command]:
    parts = re.split(r"^([$#]) (.*)\n", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"line {block.line}: output before the first command"
    return map(_Command, parts[1::3], parts[2::3], parts[3::3])


def _matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what the lesson shows, with `…` for any text."""
    pattern = ".*?".join(re.escape(part) for part in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


class _Consoles:
    """Runs console blocks, and keeps the guest whose shell they type into."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._guest: _Shell | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, block: Block) -> None:
        """Run the commands of a console block and compare."""
        commands = list(_commands_of(block))
        for command, after in zip(commands, [*commands[1:], None], strict=True):
            if command.prompt == "#":
                assert self._guest, f"line {block.line}: no guest to type into"
                printed = self._guest.type(command.line)
            elif after and after.prompt == "#":
                self._stack.close()
                self._guest = self._stack.enter_context(_Shell(command.line))
                printed = ""
            else:
                printed = _printed_by(command.line)
            wrong = f"{command.prompt} {command.line}\nshown:\n{command.shown}\nprinted:\n{printed}"
            assert _matches(command.shown, printed), wrong


def _printed_by(command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    return done.stdout


class _Shell:
    """A guest with a shell that reads commands from its input, as `pykvm run linux` has it."""

    def __init__(self, command: str) -> None:
        pipe = subprocess.PIPE
        self._guest = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._printed = ""
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._guest.stdin
        assert self._guest.stdout
        self._guest.stdin.close()  # to the shell, the end
        try:
            self._guest.wait(10)
        except subprocess.TimeoutExpired:  # something in it still runs
            self._guest.terminate()
            self._guest.wait(_LIMIT_S)
        self._guest.stdout.close()

    def type(self, line: str) -> str:
        """What the command prints, from when it was read until whichever shell reads next says so.

        A command may be a shell itself, which then reads what is typed. The shell before it must have read
        the line, and none more, before more is typed.
        """
        self._count += 1
        begun, done = f"{_BEGUN}{self._count}\n", f"{_DONE}{self._count}\n"
        self._write(f"echo {begun[:-1]}; {line}\n")
        self._until(begun)
        self._write(f"echo {done[:-1]}\n")
        return self._until(done)

    def _write(self, text: str) -> None:
        assert self._guest.stdin
        self._guest.stdin.write(text.encode())

    def _until(self, mark: str) -> str:
        """What comes before the mark. Raises AssertionError if it does not come."""
        assert self._guest.stdout
        end = time.monotonic() + _LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._guest.stdout, selectors.EVENT_READ)
            while mark not in self._printed:
                is_there = selector.select(end - time.monotonic())
                data = self._guest.stdout.read(4096) if is_there else b""
                assert data, f"the guest has ended, or says nothing more: {self._printed}"
                self._printed += self._decoder.decode(data).replace("\r", "")
        before, _, self._printed = self._printed.partition(mark)
        return before
