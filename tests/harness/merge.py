"""Puts the runs together: each test with what it did in each place, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.junit import Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Merged", "Run", "joined", "merge"]


@dataclass(frozen=True, slots=True)
class Run:
    """One place's run. `problem` says why its cases are not all there, or are not to be trusted."""

    place: str
    cases: tuple[Case, ...] = ()
    problem: str = ""
    seconds: float = 0.0

    def count(self, outcome: Outcome) -> int:
        """How many of its tests ended so."""
        return sum(1 for case in self.cases if case.outcome is outcome)


@dataclass(frozen=True, slots=True)
class Merged:
    """All runs. `tests` gives for each test, in order, its case in each place that reported it.

    `everywhere` says that all places were asked, so that a test that ran in none is a failure.
    """

    runs: tuple[Run, ...]
    tests: dict[str, dict[str, Case]] = field(default_factory=dict)
    everywhere: bool = True

    @property
    def failed(self) -> list[Case]:
        """The cases that failed, wherever."""
        return [
            case for cases in self.tests.values() for case in cases.values() if case.outcome is Outcome.FAILED
        ]

    @property
    def nowhere(self) -> dict[str, str]:
        """The tests that ran nowhere and should have: test -> the reasons, place by place."""
        return {test: why for test, why in self._not_run().items() if test not in self.needless}

    @property
    def needless(self) -> dict[str, str]:
        """Those that ran nowhere and need not: they test a way round what no KVM here lacks."""
        return {
            test: why
            for test, why in self._not_run().items()
            if any(case.is_needless for case in self.tests[test].values())
        }

    def _not_run(self) -> dict[str, str]:
        return {
            test: "; ".join(f"{case.place}: {case.detail or case.outcome.word}" for case in cases.values())
            for test, cases in self.tests.items()
            if not any(case.outcome.ran for case in cases.values())
        }

    @property
    def problems(self) -> dict[str, str]:
        """The runs that did not go as they should: place -> why."""
        return {run.place: run.problem for run in self.runs if run.problem}

    @property
    def failed_count(self) -> int:
        """Tests that failed somewhere or, if they had their chance, ran nowhere; and runs with a problem."""
        nowhere = len(self.nowhere) if self.everywhere else 0
        return len({case.test for case in self.failed}) + nowhere + len(self.problems)

    @property
    def passed_count(self) -> int:
        """Tests that ran somewhere and failed nowhere."""
        bad = {case.test for case in self.failed} | self._not_run().keys()
        return len(self.tests.keys() - bad)


def joined(runs: Iterable[Run]) -> Run:
    """The parts of one place's run as one."""
    parts = tuple(runs)
    return Run(
        parts[0].place,
        tuple(case for part in parts for case in part.cases),
        "; ".join(part.problem for part in parts if part.problem),
        sum(part.seconds for part in parts),
    )


def merge(runs: Iterable[Run], *, everywhere: bool = True) -> Merged:
    """The runs as one result. A test that a run names twice (its call and its teardown) counts once."""
    merged = Merged(tuple(runs), everywhere=everywhere)
    for run in merged.runs:
        for case in run.cases:
            places = merged.tests.setdefault(case.test, {})
            before = places.get(run.place)
            if before is None or case.outcome > before.outcome:
                places[run.place] = case
    return merged
