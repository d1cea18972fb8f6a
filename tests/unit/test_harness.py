"""The test harness: JUnit files in, one report out; a test that ran nowhere fails; runs end in order."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from harness.__main__ import main
from harness.junit import Case, Outcome, read_junit
from harness.merge import Merged, Run, merge
from harness.report import as_junit, as_table, summary
from harness.runs import StoppedError, Workshop

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="3" tests="7">
<testcase classname="tests.kvm.test_a" name="test_good" time="0.5">
  <properties><property name="nodeid" value="tests/kvm/test_a.py::test_good"/></properties></testcase>
<testcase classname="tests.kvm.test_a" name="test_bad" time="0.25">
  <properties><property name="nodeid" value="tests/kvm/test_a.py::test_bad"/></properties>
  <failure message="assert 1 == 2">def test_bad(): ...
E assert 1 == 2</failure></testcase>
<testcase classname="tests.kvm.test_a" name="test_needy" time="0.0">
  <properties><property name="nodeid" value="tests/kvm/test_a.py::test_needy"/></properties>
  <skipped type="pytest.skip" message="not here: vmcall: hangs: spun">file:1: not here</skipped></testcase>
<testcase classname="tests.kvm.test_a" name="test_lazy" time="0.0">
  <skipped type="pytest.skip" message="no time">file:1: no time</skipped></testcase>
<testcase classname="tests.kvm.test_a" name="test_known" time="0.0">
  <skipped type="pytest.xfail" message="a known fault"/></testcase>
<testcase classname="tests.kvm.test_a" name="test_leaves" time="0.0"></testcase>
<testcase classname="tests.kvm.test_a" name="test_leaves" time="0.0">
  <error message="failed on teardown">it left something</error></testcase>
</testsuite></testsuites>
"""


def case(test: str, place: str, outcome: Outcome, detail: str = "") -> Case:
    """An invented case, with its element as pytest would have written it."""
    element = ET.Element("testcase", name=test)
    tag = {Outcome.FAILED: "failure", Outcome.NOT_HERE: "skipped", Outcome.SKIPPED: "skipped"}.get(outcome)
    if tag:
        ET.SubElement(element, tag, message=detail)
    return Case(test, place, outcome, detail, element=element)


def everything() -> Merged:
    """One test of each fate, in three places."""
    native = (
        case("a", "native", Outcome.PASSED),
        case("b", "native", Outcome.NOT_HERE, "smp: hangs"),
        case("c", "native", Outcome.PASSED),
        case("d", "native", Outcome.NOT_HERE, "smp: hangs"),
    )
    amd = (
        case("a", "amd", Outcome.PASSED),
        case("b", "amd", Outcome.PASSED),
        case("c", "amd", Outcome.FAILED, "assert 1 == 2"),
        case("d", "amd", Outcome.NOT_HERE, "smp: does not"),
    )
    return merge([Run("native", native), Run("amd", amd), Run("intel", problem="it did not start")])


def test_junit_is_read(tmp_path: Path) -> None:
    """Each case has its node id, its outcome and the reason; "not here" is told from other skips."""
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    cases = read_junit(path, "native")
    assert [(c.test.rpartition("::")[2], c.outcome, c.detail) for c in cases] == [
        ("test_good", Outcome.PASSED, ""),
        ("test_bad", Outcome.FAILED, "def test_bad(): ...\nE assert 1 == 2"),
        ("test_needy", Outcome.NOT_HERE, "vmcall: hangs: spun"),
        ("test_lazy", Outcome.SKIPPED, "no time"),
        ("test_known", Outcome.XFAILED, "a known fault"),
        ("test_leaves", Outcome.PASSED, ""),
        ("test_leaves", Outcome.FAILED, "it left something"),
    ]
    assert [c.test for c in cases[:4:3]] == ["tests/kvm/test_a.py::test_good", "tests.kvm.test_a::test_lazy"]
    assert cases[0].seconds == 0.5


@pytest.mark.parametrize("text", ["", "<testsuites><testcase", "not xml"])
def test_damaged_junit_is_an_error(tmp_path: Path, text: str) -> None:
    """A lab that died while it wrote its report is not taken for one without tests."""
    path = tmp_path / "junit.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"junit\.xml"):
        read_junit(path, "amd")


def test_of_a_test_named_twice_the_worse_counts(tmp_path: Path) -> None:
    """A test that passes and fails on its way out has failed, once."""
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    merged = merge([Run("native", tuple(read_junit(path, "native")))])
    assert len(merged.tests) == 6
    assert sorted(c.test.rpartition("::")[2] for c in merged.failed) == ["test_bad", "test_leaves"]


def test_verdicts() -> None:
    """Passed: ran somewhere, failed nowhere. Failed: failed anywhere, ran nowhere, or a lost run."""
    merged = everything()
    assert (merged.passed_count, merged.failed_count) == (2, 3)
    assert [c.test for c in merged.failed] == ["c"]
    assert merged.nowhere == {"d": "native: smp: hangs; amd: smp: does not"}
    assert merged.problems == {"intel": "it did not start"}


def test_skip_for_another_reason_is_no_run() -> None:
    """A plain skip everywhere is as bad as a need that nobody meets; an expected failure is a run."""
    runs = [Run("unit", (case("a", "unit", Outcome.SKIPPED, "later"), case("b", "unit", Outcome.XFAILED)))]
    assert merge(runs).nowhere == {"a": "unit: later"}


def test_way_round_that_nobody_needs_is_no_failure() -> None:
    """A test of a way round some KVM's fault need not run where no KVM at hand has the fault."""
    cases = {
        place: case("a", place, Outcome.NOT_HERE, "by_pf: not needed: all is well")
        for place in ("amd", "native")
    }
    merged = merge([Run(place, (found,)) for place, found in cases.items()])
    assert (merged.passed_count, merged.failed_count, merged.nowhere) == (0, 0, {})
    assert list(merged.needless) == ["a"]
    assert next(summary(merged)) == "not needed a"


def test_fewer_places_forgive_what_is_not_here() -> None:
    """Where not all places were asked, a test that ran nowhere is told and is no failure."""
    merged = merge([Run("native", everything().runs[0].cases)], everywhere=False)
    assert merged.failed_count == 0
    assert list(summary(merged))[-1] == "2 passed, 0 failed, 2 not here"


def test_merged_junit_has_a_suite_a_place() -> None:
    """Each place's cases as they were; and a suite of failures: what ran nowhere, and lost runs."""
    root = as_junit(everything()).getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["native", "amd", "intel", "nowhere"]
    assert (suites["native"].get("tests"), suites["native"].get("skipped")) == ("4", "2")
    assert suites["amd"].get("failures") == "1"
    assert [c.get("name") for c in suites["nowhere"]] == ["d", "intel"]
    assert suites["nowhere"].get("failures") == "2"


def test_table_shows_where_each_test_ran() -> None:
    """A row a test, a column a place, a dash where nobody asked."""
    rows = [line.split("  ") for line in as_table(everything()).splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["test", "native", "amd", "intel"],
        ["a", "passed", "passed", "-"],
        ["b", "not here", "passed", "-"],
        ["c", "passed", "FAILED", "-"],
        ["d", "not here", "not here", "-"],
    ]


def test_summary_ends_with_the_counts() -> None:
    """Failures come with their text, what ran nowhere with its reasons, and the last line is the counts."""
    lines = list(summary(everything()))
    assert lines[:2] == ["FAILED c (amd)", "    assert 1 == 2"]
    assert lines[2:4] == ["RAN NOWHERE d", "    native: smp: hangs; amd: smp: does not"]
    assert lines[4] == "RUN FAILED intel: it did not start"
    assert lines[-1] == "2 passed, 3 failed"


# ---- running


class FakePytest(Workshop):
    """A workshop whose pytest is a shell script."""

    def __init__(self, folder: Path, script: str) -> None:
        self.lines: list[str] = []
        super().__init__(folder, self.lines.append)
        self.script = script
        (folder / "given.xml").write_text(JUNIT)

    def _pytest(self, place: str, arguments: object) -> list[str]:
        return ["sh", "-c", f"cd {self.folder}; place={place}; {self.script}"]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("cp given.xml $place.xml; exit 1", ""),
        (
            "cp given.xml $place.xml; echo oh; exit 2",
            "pytest was interrupted, or could not collect the tests; oh",
        ),
        ("echo there is no QEMU; exit 125", "exit status 125, and there is no report; there is no QEMU"),
        ("echo '<a' >$place.xml; exit 0", "exit status 0, and there is no report; "),
        ("kill -9 $$", "exit status 137, and there is no report; "),
        ("echo '<testsuites/>' >$place.xml; exit 5", "there are no tests; "),
        ("echo '<testsuites/>' >$place.xml; exit 1", "pytest failed, and its report shows no failure; "),
    ],
)
def test_run_is_believed_only_with_a_report_that_fits(tmp_path: Path, script: str, problem: str) -> None:
    """Exit status and report must agree; else the run has a problem, and its log's last line says more."""
    run = FakePytest(tmp_path, script).pytest("native", [], limit_s=60)
    assert run.problem == problem
    assert bool(run.cases) == script.startswith("cp")


def test_old_report_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """A run that writes no report does not show the last run's."""
    (tmp_path / "native.xml").write_text(JUNIT)
    assert FakePytest(tmp_path, "exit 0").pytest("native", [], limit_s=60).problem


def test_time_limit_ends_a_run(tmp_path: Path) -> None:
    """A run that hangs is ended with all its processes."""
    workshop = FakePytest(tmp_path, "echo begun; sleep 600 & wait")
    run = workshop.pytest("native", [], limit_s=0.3)
    assert run.problem == "its time was over, and there is no report; begun"
    assert workshop.progress() == []


def test_stop_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    """After stop() a live run ends at once, and the next is refused."""
    workshop = FakePytest(tmp_path, "sleep 600")
    ended = threading.Event()

    def lane() -> None:
        with pytest.raises(StoppedError):
            workshop.pytest("native", [], limit_s=600)
        ended.set()

    thread = threading.Thread(target=lane)
    thread.start()
    while not workshop.progress():
        pass
    workshop.stop()
    thread.join(30)
    assert ended.is_set()
    with pytest.raises(StoppedError):
        workshop.pytest("unit", [], limit_s=600)


def test_lab_is_asked_for_by_its_command(tmp_path: Path) -> None:
    """A lab gets the folder of the reports as its share, a time limit, and pytest that insists on a KVM."""
    started: list[list[str]] = []

    class Recorder(Workshop):
        def run(self, name: str, argv: object, *, limit_s: float) -> int:
            started.append([str(word) for word in argv])  # type: ignore[attr-defined]
            return 125

    Recorder(tmp_path, lambda _: None).pytest_in_lab("amd", ["tests/kvm"], limit_s=7)
    (argv,) = started
    at = argv.index("--")
    assert argv[argv.index("--share") + 1] == str(tmp_path)
    assert argv[argv.index("--timeout") + 1] == "7"
    assert argv[at + 1 :][1:3] == ["-m", "pytest"]
    assert argv[-2:] == ["tests/kvm", "--kvm-required"]


@pytest.mark.parametrize(
    ("amd", "asked"),
    [
        ((case("a", "amd", Outcome.PASSED), case("b", "amd", Outcome.NOT_HERE)), ["b"]),
        ((case("a", "amd", Outcome.PASSED),), None),
        ((), None),
    ],
)
def test_intel_lab_gets_what_the_amd_lab_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amd: tuple[Case, ...], asked: list[str] | None
) -> None:
    """Every file goes to the AMD lab in one of two parts; the Intel lab starts only for what did not run."""
    given: dict[str, list[str]] = {}

    def in_lab(self: Workshop, cpu: str, arguments: list[str], *, limit_s: float, part: str = "") -> Run:
        given[f"{cpu}{part}"] = arguments
        if part == "-2":
            return Run(cpu, (case("c", "amd", Outcome.PASSED),))
        return Run(cpu, amd if cpu == "amd" else (case("b", "intel", Outcome.PASSED),))

    monkeypatch.setattr(Workshop, "pytest_in_lab", in_lab)
    monkeypatch.setattr(Workshop, "furnish", lambda self, cpus: None)
    status = main(["--places", "amd,intel", "--folder", str(tmp_path / "test")])
    assert given.get("intel") == asked
    files = [*given["amd-1"], *given["amd-2"]]
    assert sorted(files) == sorted(str(path) for path in Path("tests/kvm").glob("test_*.py"))
    assert status == (0 if amd else 1)
    assert (tmp_path / "test-report.xml").is_file()
