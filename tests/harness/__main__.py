"""python -m harness: all tests, wherever they can run."""

from __future__ import annotations

import argparse
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.merge import Merged, Run, joined, merge
from harness.report import as_junit, as_table, summary
from harness.runs import StoppedError, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLACES = ("unit", "native", "lab", "amd", "intel")
_KVM_TESTS = "tests/kvm"
_UNIT_TESTS = ("-n", "3", "--dist", "loadfile", "tests/unit")  # a file stays together: it compiles once
_HEARTBEAT_S = 30.0
_INTERRUPTED = 130
_AT_ONCE = 2
_AMD_PARTS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report; 0 if every test ran somewhere and passed wherever it ran, 1 if not."""
    options = _options(arguments)
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(folder, _say)
    runs = _run_all(workshop, options)
    if runs is None:
        return _INTERRUPTED
    merged = merge(runs, everywhere=set(options.places) == set(PLACES))
    report, table = folder.parent / "test-report.xml", folder.parent / "test-report.txt"
    as_junit(merged).write(report, encoding="utf-8", xml_declaration=True)
    table.write_text(as_table(merged))
    if (of_kvm := _of_kvm(merged.runs)).tests:
        _say(f"\n{as_table(of_kvm)}")
    *lines, last = summary(merged)
    for line in (*lines, f"logs: {folder}; reports: {report} and {table.name}", last):
        _say(line)
    return 1 if merged.failed_count else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="harness", description="Run every test wherever it can run.")
    parser.add_argument(
        "--places", default=",".join(PLACES), help="where to run, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/test"), help="logs and reports (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=1200,
        help="seconds for unit, native and lab each (default: %(default)s)",
    )
    parser.add_argument(
        "--lab-limit", type=float, default=1800, help="seconds for each lab (default: %(default)s)"
    )
    parser.add_argument("tests", nargs="*", default=[_KVM_TESTS], help="KVM tests to run (default: all)")
    options = parser.parse_args(arguments)
    options.places = options.places.split(",")
    if unknown := set(options.places) - set(PLACES):
        parser.error(f"there is no place {unknown.pop()!r}; there are {', '.join(PLACES)}")
    return options


def _of_kvm(runs: Sequence[Run]) -> Merged:
    """The runs of KVM tests alone: the others have only one place each."""
    return merge(run for run in runs if run.place not in ("unit", "lab"))


def _run_all(workshop: Workshop, options: argparse.Namespace) -> list[Run] | None:
    """Everything, in order of PLACES; None if the user stopped it."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: nothing that runs is left behind
        signal.signal(number, signal.default_int_handler)
    with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(_AT_ONCE) as pool:
        labs = [place for place in ("amd", "intel") if place in options.places]
        packages = beside.submit(workshop.furnish, labs)
        try:
            return _Plan(workshop, options, pool, packages).run()
        except (KeyboardInterrupt, StoppedError):
            workshop.say("stopping")
            workshop.stop()
            return None
        except BaseException:
            workshop.stop()
            raise


def _watch(work: Sequence[Future[Any]], workshop: Workshop) -> None:
    """Until all work is done, say now and then how far it is; the first error is raised at once."""
    left = set(work)
    while left:
        done, left = wait(left, _HEARTBEAT_S, FIRST_COMPLETED)
        for part in done:
            part.result()
        if not done:
            for line in workshop.progress():
                workshop.say(line)


class _Plan:
    """What runs, in which order, _AT_ONCE at a time.

    The KVM tests go to the AMD lab in parts, each a boot of its own, so that no lane is left with most of
    the work. The Intel lab comes when all parts are through: it gets what did not run there.
    """

    def __init__(
        self,
        workshop: Workshop,
        options: argparse.Namespace,
        pool: ThreadPoolExecutor,
        packages: Future[None],
    ) -> None:
        """`pool` has the lanes; `packages` ends when what the labs need is installed."""
        self._workshop = workshop
        self._options = options
        self._pool = pool
        self._packages = packages

    def run(self) -> list[Run]:
        """All runs, in the order of PLACES. Raises StoppedError, and what a run raised."""
        wanted = [place for place in PLACES if place in self._options.places]
        parts = list(enumerate(_parts(self._options.tests, _AMD_PARTS), start=1)) if "amd" in wanted else []
        work: dict[str, Callable[[], Run]] = {
            "unit": lambda: self._here("unit", _UNIT_TESTS),
            **{f"amd-{n}": partial(self._amd, tests, f"-{n}") for n, tests in parts[:1]},
            "native": lambda: self._here("native", self._options.tests),
            **{f"amd-{n}": partial(self._amd, tests, f"-{n}") for n, tests in parts[1:]},
            "lab": self._lab,
        }
        started = {
            name: self._pool.submit(start) for name, start in work.items() if name.partition("-")[0] in wanted
        }
        amd = [future for name, future in started.items() if name.startswith("amd")]
        if "intel" in wanted:
            _watch([self._packages, *amd], self._workshop)
            started["intel"] = self._pool.submit(self._intel, [future.result() for future in amd])
        _watch([self._packages, *started.values()], self._workshop)
        ended = {name: future.result() for name, future in started.items()}
        if amd:
            ended["amd"] = joined(future.result() for future in amd)
        return [ended[place] for place in wanted if place in ended]

    def _here(self, place: str, tests: Sequence[str]) -> Run:
        return self._workshop.pytest(place, tests, limit_s=self._options.limit)

    def _lab(self) -> Run:
        """The tests of the labs themselves, which start some."""
        self._packages.result()
        return self._here("lab", ["tests/lab", "tests/lessons"])

    def _amd(self, tests: Sequence[str], part: str) -> Run:
        self._packages.result()
        return self._workshop.pytest_in_lab("amd", tests, limit_s=self._options.lab_limit, part=part)

    def _intel(self, amd: Sequence[Run]) -> Run:
        """What did not run in the AMD lab, or all of it where that was not asked for."""
        tests = self._options.tests
        if amd:
            if not all(run.cases for run in amd):
                return Run("intel", problem="not started: the amd lab did not say what it can't run")
            tests = [case.test for run in amd for case in run.cases if not case.outcome.ran]
        if not tests:
            return Run("intel")
        self._packages.result()
        return self._workshop.pytest_in_lab("intel", tests, limit_s=self._options.lab_limit)


def _parts(tests: Sequence[str], count: int) -> list[list[str]]:
    """The test files behind `tests`, dealt out largest first; what is no folder goes as it is."""
    files = [
        str(file)
        for test in tests
        for file in (sorted(Path(test).glob("test_*.py")) if Path(test).is_dir() else [test])
    ]
    count = min(count, len(files))
    parts: list[list[str]] = [[] for _ in range(count)]
    for i, file in enumerate(sorted(files, key=_size, reverse=True)):
        parts[min(i % (2 * count), 2 * count - 1 - i % (2 * count))].append(file)
    return parts


def _size(test: str) -> int:
    """Long files last long, more or less."""
    path = Path(test)
    return path.stat().st_size if path.is_file() else 0


if __name__ == "__main__":
    sys.exit(main())
