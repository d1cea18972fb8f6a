"""Reads the JUnit files that pytest writes."""

from __future__ import annotations

import enum
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.needs import NOT_HERE, NOT_NEEDED

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Case", "Outcome", "read_junit"]


class Outcome(enum.IntEnum):
    """How a test went; of several, the greatest counts."""

    NOT_HERE = 0  # this KVM lacks what the test needs
    SKIPPED = 1  # it did not run for another reason
    XFAILED = 2  # it failed, as it says it does
    PASSED = 3
    FAILED = 4

    @property
    def ran(self) -> bool:
        """Whether the test did run."""
        return self >= Outcome.XFAILED

    @property
    def word(self) -> str:
        """As a report says it."""
        return "FAILED" if self is Outcome.FAILED else self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Case:
    """One test in one place. `detail` is the reason of a skip, or a failure's text."""

    test: str
    place: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_needless(self) -> bool:
        """Whether it tests a way round something that is all right in this place."""
        return self.outcome is Outcome.NOT_HERE and f": {NOT_NEEDED}" in self.detail

    element: ET.Element = field(default_factory=lambda: ET.Element("testcase"), compare=False, repr=False)


def read_junit(path: Path, place: str) -> list[Case]:
    """The cases of one run, in order. Raises OSError or ValueError if the file is absent or damaged."""
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - our own pytest wrote it
    except ET.ParseError as error:
        raise ValueError(f"{path}: {error}") from error
    return [_case(element, place) for element in root.iter("testcase")]


def _case(element: ET.Element, place: str) -> Case:
    outcome, detail = _outcome(element)
    return Case(_test(element), place, outcome, detail, float(element.get("time") or 0), element)


def _test(element: ET.Element) -> str:
    """The node id, which needs.py records; without it (an error of collection) what stands there."""
    for entry in element.iter("property"):
        if entry.get("name") == "nodeid":
            return str(entry.get("value"))
    return "::".join(filter(None, (element.get("classname"), element.get("name"))))


def _outcome(element: ET.Element) -> tuple[Outcome, str]:
    for kind in ("failure", "error"):
        if (found := element.find(kind)) is not None:
            return Outcome.FAILED, found.text or found.get("message") or ""
    skipped = element.find("skipped")
    if skipped is None:
        return Outcome.PASSED, ""
    message = skipped.get("message") or ""
    if message.startswith(NOT_HERE):
        return Outcome.NOT_HERE, message.removeprefix(NOT_HERE)
    return (Outcome.XFAILED if skipped.get("type") == "pytest.xfail" else Outcome.SKIPPED), message
