"""Marks tests with what they need of a KVM, and reports those that this KVM can't run as "not here".

`@pytest.mark.needs("ring3_syscall", "irqchip")` names probes of `pykvm doctor`, all of which must work; "a|b"
is met by either. All in tests/kvm need a KVM, said or not. The probes run once a session, those only that
the collected tests name.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pykvm.doctor import Outcome

__all__ = [
    "NOT_HERE",
    "NOT_NEEDED",
    "needs_of",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_report_teststatus",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
]

NOT_HERE = "not here: "
"""How the reason of such a skip begins; then come the need, a colon, and why it is not met."""

NOT_NEEDED = "not needed"
"""How the reason begins where the need is a way round something that is all right here."""

_NEEDED: pytest.StashKey[set[str]] = pytest.StashKey()
_ANSWER: pytest.StashKey[dict[str, Outcome] | str] = pytest.StashKey()
_BEFORE: pytest.StashKey[Any] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--kvm-required."""
    group = parser.getgroup("kvm", "tests that need a KVM")
    group.addoption(
        "--kvm-required",
        action="store_true",
        help="fail the KVM tests, do not skip, where there is no KVM at all",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "needs(name, …): probes of `pykvm doctor` that must work here; 'a|b' is met by either"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let SIGTERM, which is what a time limit sends, end the session as Ctrl-C does: with its reports."""
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        session.config.stash[_BEFORE] = before


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give SIGTERM back."""
    if _BEFORE in session.config.stash:
        signal.signal(signal.SIGTERM, session.config.stash[_BEFORE])


def pytest_report_header() -> str:
    """Which KVM this session is about."""
    from pykvm.errors import KvmUnavailableError
    from pykvm.kvm import Kvm

    try:
        with Kvm() as kvm:
            return f"KVM: {kvm.module()}"
    except KvmUnavailableError as error:
        return f"KVM: none ({error})"


def needs_of(item: pytest.Item) -> list[str] | None:
    """The needs that a test declares, in order; None if it is no KVM test."""
    markers = list(item.iter_markers("needs"))
    if not markers and "kvm" not in item.path.parts[len(item.config.rootpath.parts) :]:
        return None
    return list(dict.fromkeys(str(need) for marker in markers for need in marker.args))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what the tests need, and put their ids and needs into the JUnit report."""
    from pykvm.doctor import PROBES, names_in

    wanted: set[str] = set()
    for item in items:
        item.user_properties.append(("nodeid", item.nodeid))
        for need in needs_of(item) or ():
            item.user_properties.append(("needs", need))
            if unknown := [name for name in names_in(need) if name not in PROBES]:
                raise pytest.UsageError(
                    f"{item.nodeid} needs {unknown[0]!r}, which is no probe of `pykvm doctor`; "
                    f"there are {', '.join(PROBES)}"
                )
            wanted.update(names_in(need))
    config.stash[_NEEDED] = wanted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, before its fixtures are made, a test that can't run here."""
    needs = needs_of(item)
    if needs is None:
        return
    answer = _answer(item.config)
    if isinstance(answer, str):
        if item.config.getoption("--kvm-required"):
            pytest.fail(f"no KVM: {answer}", pytrace=False)
        pytest.skip(f"{NOT_HERE}kvm: {answer}")
    from pykvm.doctor import lacking

    for need, reason in lacking(needs, answer).items():
        pytest.skip(f"{NOT_HERE}{need}: {reason}")


def _answer(config: pytest.Config) -> dict[str, Outcome] | str:
    """What the probes say, or why there is no KVM to ask; found out once."""
    if _ANSWER not in config.stash:
        from pykvm.doctor import probe
        from pykvm.errors import KvmUnavailableError

        try:
            config.stash[_ANSWER] = probe(config.stash[_NEEDED])
        except KvmUnavailableError as error:
            config.stash[_ANSWER] = str(error)
    return config.stash[_ANSWER]


def _reason(report: pytest.TestReport) -> str | None:
    """The need and why it is not met, if that is why the test was skipped."""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
        if text.startswith(NOT_HERE):
            return text.removeprefix(NOT_HERE)
    return None


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A category of its own, so that no skip among others hides it."""
    reason = _reason(report) if report.when == "setup" else None
    return ("not here", "n", "NOT HERE") if reason else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests that are not here, by need."""
    reports = terminalreporter.stats.get("not here", [])
    if not reports:
        return
    counts: dict[str, int] = {}
    for report in reports:
        reason = _reason(report) or ""
        counts[reason] = counts.get(reason, 0) + 1
    terminalreporter.section(f"{len(reports)} not here")
    for reason, count in counts.items():
        terminalreporter.line(f"{count:4} need {reason}")
