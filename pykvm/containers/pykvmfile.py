r"""The file that says how an image is built, in the words of a Dockerfile.

Known: FROM, COPY, ENV, WORKDIR, USER, CMD, ENTRYPOINT, LABEL; `\` at a line's end goes on, `#` begins a
comment; CMD, ENTRYPOINT and COPY take a JSON list, too; $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} stand
for what ENV has set.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Instruction", "expand", "pairs", "parse", "split", "words"]

_KNOWN = ("FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "CMD", "ENTRYPOINT", "LABEL")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\\(.)|\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:[-+])([^{}]*))?\}|(.?))", re.DOTALL)
_PAIR = re.compile(r"([^\s=]+)=((?:\"(?:\\.|[^\"\\])*\"|'[^']*'|\\.|[^\s\"'\\])*)(?:\s+|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word, and what stands behind it. `line` counts from 1."""

    word: str
    text: str
    line: int

    def wrong(self, why: str) -> ConfigError:
        """The error to raise when it can't be done."""
        return ConfigError(f"line {self.line}: {self.word}: {why}")


def parse(text: str, where: str) -> list[Instruction]:
    """The instructions, FROM first. Raises ConfigError naming `where` and the line."""
    try:
        found = _instructions(text)
        _check_stages(found)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return found


def _check_stages(found: list[Instruction]) -> None:
    if not found:
        raise ConfigError("there is no instruction; the first one is FROM")
    if found[0].word != "FROM":
        raise found[0].wrong("the first instruction must be FROM")
    for one in found[1:]:
        if one.word == "FROM":
            raise one.wrong("a second stage can't be built yet; build it as an image of its own")


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        first = first if parts else number
        goes_on = line.rstrip().endswith("\\")
        parts.append(line.rstrip()[:-1] if goes_on else line)
        if not goes_on:
            found.append(_instruction(" ".join(parts), first))
            parts = []
    if parts:
        found.append(_instruction(" ".join(parts), first))
    return found


def _instruction(text: str, line: int) -> Instruction:
    word, _, rest = text.strip().partition(" ")
    one = Instruction(word.upper(), rest.strip(), line)
    if one.word not in _KNOWN:
        raise one.wrong(f"no instruction of that name; there are {', '.join(_KNOWN)}")
    if not one.text:
        raise one.wrong("nothing stands behind it")
    return one


def words(one: Instruction) -> list[str] | None:
    """The JSON list behind an instruction, or None if there is none."""
    if not one.text.startswith("["):
        return None
    try:
        found = json.loads(one.text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def pairs(one: Instruction, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """The NAME=VALUE pairs of ENV and LABEL, or the single pair of the old form `NAME VALUE`."""
    name, space, value = one.text.partition(" ")
    if "=" not in name:
        if not space:
            raise one.wrong("needs NAME=VALUE")
        return [(_checked(one, name), expand(value.strip(), variables))]
    found, at = [], 0
    while at < len(one.text):
        match = _PAIR.match(one.text, at)
        if not match:
            raise one.wrong(f"{one.text[at:][:40]!r} is no NAME=VALUE; is a quote missing?")
        found.append((_checked(one, _unquoted(match[1])), _value(match[2], variables)))
        at = match.end()
    return found


def _checked(one: Instruction, name: str) -> str:
    if one.word == "ENV" and not _NAME.fullmatch(name):
        raise one.wrong(f"{name!r} is no variable's name")
    return name


def _value(text: str, variables: Mapping[str, str]) -> str:
    """Quotes taken away; variables stay as they are between single ones."""
    parts = re.findall(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|(?:\\.|[^\"'\\])+", text, re.DOTALL)
    done = []
    for part in parts:
        if part[0] == "'":
            done.append(part[1:-1])
        else:
            done.append(expand(part[1:-1] if part[0] == '"' else part, variables))
    return "".join(done)


def _unquoted(text: str) -> str:
    return text.strip("\"'")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`text` with variables put in; one that is not set is empty, and a backslash protects what follows."""

    def value(match: re.Match[str]) -> str:
        escaped, plain, braced, sign, word, other = match.groups()
        if escaped is not None:
            return str(escaped)
        if other is not None:
            return f"${other}"
        found = variables.get(plain or braced, "")
        if sign == ":-":
            return found or word
        return word if sign == ":+" and found else "" if sign == ":+" else found

    return _VARIABLE.sub(value, text)


def split(one: Instruction, variables: Mapping[str, str]) -> list[str]:
    """The words behind an instruction, from a JSON list or as a shell splits them; variables put in."""
    found = words(one)
    if found is None:
        try:
            found = shlex.split(one.text)
        except ValueError as error:
            raise one.wrong(str(error).lower()) from None
    return [expand(word, variables) for word in found]
