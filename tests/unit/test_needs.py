"""The marker `needs`: what a KVM lacks is "not here", counted apart, never passed and never lost."""

from __future__ import annotations

import signal
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from harness import needs

from pykvm.doctor import Outcome, Result
from pykvm.errors import KvmUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.needs("pio")
def test_met(): pass

@pytest.mark.needs("pio", "vmcall")
def test_lacks(): pass

@pytest.mark.needs("vmcall|pio")
def test_either(): pass

def test_any_kvm(): pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with KVM tests and a unit test; its KVM does OUT, and hangs at VMCALL."""
    found = {"pio": Outcome(Result.WORKS), "vmcall": Outcome(Result.HANGS, "it spun")}
    asked: list[set[str]] = []

    def probe(names: Iterable[str]) -> dict[str, Outcome]:
        asked.append(set(names))
        return {name: found[name] for name in asked[-1]}

    monkeypatch.setattr("pykvm.doctor.probe", probe)
    pytester.mkdir("kvm").joinpath("test_kvm.py").write_text(TESTS)
    pytester.makepyfile(test_unit="def test_unit(): pass")
    pytester.makeini("[pytest]\nmarkers = none\naddopts = --strict-markers")
    project_asked[pytester.path.name] = asked
    return pytester


project_asked: dict[str, list[set[str]]] = {}


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the project's tests in this process."""
    others = ["-p", "no:pykvm", "-p", "no:hypothesispytest"]
    return project.runpytest_inprocess(*others, *arguments, plugins=[needs])


def test_lacking_test_is_not_here(project: pytest.Pytester) -> None:
    """It is counted by itself, with the need and the reason; the others run; each probe is asked once."""
    result = run(project, "-v")
    result.stdout.fnmatch_lines(
        [
            "*test_lacks NOT HERE (not here: vmcall*",
            "=* 1 not here =*",
            "*1 need vmcall: hangs: it spun",
            "*4 passed, 1 not here in *",
        ]
    )
    assert result.ret == 0
    assert project_asked[project.path.name] == [{"pio", "vmcall"}]


def test_reason_is_in_the_junit_file(project: pytest.Pytester) -> None:
    """Machines find the node id, the needs, and a skip whose message begins with "not here"."""
    run(project, "--junitxml=out.xml")
    cases = {c.get("name"): c for c in ET.parse(project.path / "out.xml").iter("testcase")}  # noqa: S314 - ours
    lacks = cases["test_lacks"]
    assert [(p.get("name"), p.get("value")) for p in lacks.iter("property")] == [
        ("nodeid", "kvm/test_kvm.py::test_lacks"),
        ("needs", "pio"),
        ("needs", "vmcall"),
    ]
    skipped = lacks.find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "not here: vmcall: hangs: it spun"
    assert cases["test_met"].find("skipped") is None


def test_unknown_need_is_refused(project: pytest.Pytester) -> None:
    """A misspelt need does not skip a test for ever: nothing runs."""
    project.makepyfile(test_typo='import pytest\n@pytest.mark.needs("vmcal")\ndef test_x(): pass')
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_typo.py::test_x needs 'vmcal', which is no probe of `pykvm doctor`*"])


@pytest.mark.parametrize(
    ("option", "counts"), [("-q", {"passed": 1}), ("--kvm-required", {"passed": 1, "errors": 4})]
)
def test_without_any_kvm(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str, counts: dict[str, int]
) -> None:
    """All of tests/kvm is not here; by option it fails. The other tests run."""

    def none(names: Iterable[str]) -> dict[str, Outcome]:
        raise KvmUnavailableError(2, "/dev/kvm", "load it")

    monkeypatch.setattr("pykvm.doctor.probe", none)
    result = run(project, option)
    result.assert_outcomes(**counts)
    if option == "-q":
        result.stdout.fnmatch_lines(["*4 need kvm: /dev/kvm: No such file or directory; load it"])


def test_needs_are_not_probed_for_other_tests(project: pytest.Pytester) -> None:
    """A session without KVM tests starts no guest."""
    run(project, "test_unit.py").assert_outcomes(passed=1)
    assert project_asked[project.path.name] == []


def test_marker_is_documented(project: pytest.Pytester) -> None:
    """pytest --markers tells how to use it."""
    run(project, "--markers").stdout.fnmatch_lines(["@pytest.mark.needs(name, *"])


def test_words_are_those_of_the_doctor() -> None:
    """What is not needed is told from what is lacking by the doctor's own word."""
    assert str(Result.NEEDLESS) == needs.NOT_NEEDED


def test_sigterm_ends_a_session_with_its_reports(project: pytest.Pytester) -> None:
    """A run whose time is over tells of the tests that were through."""
    project.makepyfile(
        test_z="""
        import os, signal
        def test_stops(): os.kill(os.getpid(), signal.SIGTERM)
        def test_never(): pass
        """
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(project, "--junitxml=out.xml")
    assert signal.getsignal(signal.SIGTERM) == before
    names = [c.get("name") for c in ET.parse(project.path / "out.xml").iter("testcase")]  # noqa: S314 - ours
    assert "test_unit" in names
    assert "test_never" not in names
