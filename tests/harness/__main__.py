"""python -m harness: all tests, wherever they can run."""

from __future__ import annotations

import argparse
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.merge import Merged, Run, merge
from harness.report import as_junit, as_table, summary
from harness.runs import StoppedError, Workshop

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACES = ("unit", "native", "lab", "amd", "intel")
_KVM_TESTS = "tests/kvm"
_HEARTBEAT_S = 30.0
_INTERRUPTED = 130


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
    _say(f"\n{as_table(_of_kvm(merged.runs))}")
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
    """Both lanes beside each other; None if the user stopped them."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: nothing that runs is left behind
        signal.signal(number, signal.default_int_handler)
    with ThreadPoolExecutor(3) as pool:
        packages = pool.submit(
            workshop.install_packages, [p for p in ("amd", "intel") if p in options.places]
        )
        lanes = [pool.submit(lane, workshop, options, packages) for lane in (_here, _in_labs)]
        try:
            _watch([packages, *lanes], workshop)
            return [run for lane in lanes for run in lane.result()]
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


def _here(workshop: Workshop, options: argparse.Namespace, packages: Future[None]) -> list[Run]:
    """The unit tests, the KVM tests on this machine's KVM, the tests of the labs themselves."""
    runs = []
    todo = {"unit": ["tests/unit"], "native": options.tests, "lab": ["tests/lab", "tests/lessons"]}
    for place, tests in todo.items():
        if place in options.places:
            if place == "lab":
                packages.result()
            runs.append(workshop.pytest(place, tests, limit_s=options.limit))
    return runs


def _in_labs(workshop: Workshop, options: argparse.Namespace, packages: Future[None]) -> list[Run]:
    """All KVM tests in the AMD lab; then in the Intel lab those that did not run there."""
    packages.result()
    tests, runs = options.tests, []
    if "amd" in options.places:
        runs.append(workshop.pytest_in_lab("amd", tests, limit_s=options.lab_limit))
        if "intel" in options.places and not runs[0].cases:
            return [*runs, Run("intel", problem="not started: the amd lab did not say what it can't run")]
        tests = [case.test for case in runs[0].cases if not case.outcome.ran]
    if "intel" in options.places and tests:
        runs.append(workshop.pytest_in_lab("intel", tests, limit_s=options.lab_limit))
    return runs


if __name__ == "__main__":
    sys.exit(main())
