"""Writes what the runs gave: one JUnit file, one table, one last line."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from harness.junit import Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.merge import Merged, Run

__all__ = ["as_junit", "as_table", "summary"]

_ABSENT = "-"
_SHOWN_LINES = 60
_WIDEST = 100  # a longer test id pushes its row's cells to the right


def as_junit(merged: Merged) -> ET.ElementTree[ET.Element]:
    """A suite for each place, as it was; and one named "nowhere", with what makes the build fail besides."""
    root = ET.Element("testsuites", name="pykvm")
    for run in merged.runs:
        suite = ET.SubElement(root, "testsuite", name=run.place, time=f"{run.seconds:.3f}")
        suite.extend(case.element for case in run.cases)
        _count(suite)
    missing = merged.nowhere if merged.everywhere else {}
    missing |= {f"harness::{place}": why for place, why in merged.problems.items()}
    suite = ET.SubElement(root, "testsuite", name="nowhere", time="0")
    for test, why in missing.items():
        classname, _, name = test.rpartition("::")
        case = ET.SubElement(suite, "testcase", classname=classname, name=name, time="0")
        ET.SubElement(case, "failure", message=why)
    _count(suite)
    return ET.ElementTree(root)


def _count(suite: ET.Element) -> None:
    suite.set("tests", str(len(suite)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(1 for case in suite if case.find(tag) is not None)))


def as_table(merged: Merged) -> str:
    """A row a test, a column a place: where it ran, and how it went."""
    places = [run.place for run in merged.runs]
    rows = [("test", *places), *((test, *_cells(cases, places)) for test, cases in merged.tests.items())]
    widths = [min(max(len(row[i]) for row in rows), _WIDEST) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cells(cases: Mapping[str, Case], places: list[str]) -> list[str]:
    return [cases[place].outcome.word if place in cases else _ABSENT for place in places]


def summary(merged: Merged) -> Iterator[str]:
    """The lines for the reader: failures with their text, what ran nowhere and why, counts, the last line."""
    for case in merged.failed:
        yield f"FAILED {case.test} ({case.place})"
        yield from (f"    {line}" for line in case.detail.splitlines()[-_SHOWN_LINES:])
    for test, why in merged.nowhere.items():
        yield f"{'RAN NOWHERE' if merged.everywhere else 'not here'} {test}"
        yield f"    {why}"
    for test, why in merged.needless.items():
        yield f"not needed {test}"
        yield f"    {why}"
    for place, why in merged.problems.items():
        yield f"RUN FAILED {place}: {why}"
    yield from map(_run_line, merged.runs)
    rest = "" if merged.everywhere or not merged.nowhere else f", {len(merged.nowhere)} not here"
    yield f"{merged.passed_count} passed, {merged.failed_count} failed{rest}"


def _run_line(run: Run) -> str:
    counts = [f"{n} {o.word.lower()}" for o in sorted(Outcome, reverse=True) if (n := run.count(o))]
    return f"{run.place:<7} {', '.join(counts) or 'no tests'} in {run.seconds:.0f} s"
