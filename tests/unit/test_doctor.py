"""pykvm doctor without a KVM: children and their limits, what follows from outcomes, the host, the text."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.cli import main
from pykvm.doctor import PROBES, Figure, Outcome, Report, Result, examine, lacking, names_in
from pykvm.doctor.child import run_in_child
from pykvm.doctor.features import FEATURES, findings
from pykvm.doctor.host import Host, next_step, survey
from pykvm.doctor.labs import ask_labs
from pykvm.doctor.outcome import differs, fails, works
from pykvm.doctor.render import print_report, print_side_by_side
from pykvm.doctor.report import probe
from pykvm.doctor.rig import UnexpectedExitError
from pykvm.errors import ConfigError, KvmError, KvmUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

GUESTS = Path(__file__).parents[2] / "guests"
HOST = Host(
    kernel="6.1.0",
    cpu_vendor="GenuineIntel",
    cpu_model="A CPU",
    cpus=2,
    flag="vmx",
    is_guest=False,
    machine="Maker Model",
    module="kvm_intel",
    nested=True,
    device="crw-rw---- root:kvm",
)
REPORT = Report(
    HOST,
    "",
    12,
    {"KVM_CAP_MAX_VCPUS": 8, "KVM_CAP_XEN_HVM": 0},
    {
        "pio": works("", Figure("an OUT to user space and back", 8.21, "µs")),
        "ring3_code": works(),
        "ring3_syscall": differs("still in ring 3"),
        "ring3_syscall_by_pf": works(),
        "smp": Outcome(Result.HANGS, "sleeps"),
    },
)


# ---- children


def _raise(error: Exception) -> Callable[[], Outcome]:
    def probe() -> Outcome:
        raise error

    return probe


def _kill(number: signal.Signals) -> Callable[[], Outcome]:
    def probe() -> Outcome:
        os.kill(os.getpid(), number)
        signal.pause()
        return works()

    return probe


def _pause() -> Outcome:
    signal.pause()
    return works()


def _leave() -> Outcome:
    os._exit(3)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of the forks that a test makes."""
    pids: list[int] = []
    fork = os.fork

    def recorded() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", recorded)
    return pids


def _assert_gone(children: list[int]) -> None:
    for pid in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_child_gives_its_outcome() -> None:
    """What a probe returns in its process arrives whole."""
    outcome = works("µ-detail", Figure("a step", 0.26, "ns"))
    assert run_in_child(lambda: outcome) == outcome


@pytest.mark.parametrize(
    ("probe", "result", "words"),
    [
        (_raise(KvmError(errno.EINVAL, "KVM_RUN")), Result.FAILS, "KVM_RUN: Invalid argument"),
        (_raise(UnexpectedExitError("triple fault")), Result.FAILS, "triple fault"),
        (_raise(ZeroDivisionError("oh")), Result.BROKEN, "ZeroDivisionError: oh"),
        (_kill(signal.SIGPROF), Result.HANGS, "spins"),
        (_kill(signal.SIGALRM), Result.HANGS, "sleeps"),
        (_kill(signal.SIGKILL), Result.BROKEN, "SIGKILL"),
        (_leave, Result.BROKEN, "status 3"),
    ],
)
def test_every_end_of_a_child_has_its_word(
    probe: Callable[[], Outcome], result: Result, words: str, children: list[int]
) -> None:
    """An error, a signal, a time limit, an exit: each becomes an outcome, and no process is left."""
    outcome = run_in_child(probe)
    assert outcome.result is result
    assert words in outcome.detail
    _assert_gone(children)


def test_child_that_never_answers_is_killed(children: list[int]) -> None:
    """The last resort is the parent's own limit."""
    assert run_in_child(_pause, limit_s=0.01) == Outcome(Result.HANGS, "killed after 0.01 s")
    _assert_gone(children)


def test_child_has_default_signals() -> None:
    """A parent that ignores or blocks a limit's signal does not disarm it."""
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    try:
        assert run_in_child(_kill(signal.SIGPROF)).result is Result.HANGS
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.signal(signal.SIGPROF, before)


# ---- what follows


def test_need_is_met_by_all_names_or_any_alternative() -> None:
    """Needs that are met are left out; the others come with every alternative's reason."""
    assert lacking(["pio", "ring3_syscall|ring3_syscall_by_pf"], REPORT.probes) == {}
    assert lacking(["smp", "pio", "ring3_syscall|smp"], REPORT.probes) == {
        "smp": "hangs: sleeps",
        "ring3_syscall|smp": "differs: still in ring 3; hangs: sleeps",
    }


@pytest.mark.parametrize("answers", [[Result.HANGS, Result.WORKS], [Result.HANGS] * 2, [Result.FAILS]])
def test_what_hangs_once_is_asked_again(monkeypatch: pytest.MonkeyPatch, answers: list[Result]) -> None:
    """Only once, and nobody else: a host that stood still for a while is not a KVM that hangs."""
    left = [Outcome(result, "") for result in answers]
    monkeypatch.setattr("pykvm.doctor.report.run_in_child", lambda _: left.pop(0))
    monkeypatch.setattr("pykvm.doctor.report.Kvm", io.BytesIO)
    name = next(iter(PROBES))
    assert probe([name]) == {name: Outcome(answers[-1], "")}
    assert left == []


def test_need_that_was_not_probed_is_an_error() -> None:
    """A probe that nobody ran is no reason to skip a test."""
    with pytest.raises(ConfigError, match="vmcall"):
        lacking(["pio", "vmcall"], REPORT.probes)


def test_features_name_probes() -> None:
    """Each feature's needs are probes."""
    assert {n for f in FEATURES for need in f.needs for n in names_in(need)} <= PROBES.keys()


def test_findings_say_what_stands_in() -> None:
    """Only features whose probes ran are judged; an alternative that is used is named."""
    found = {finding.name: finding for finding in findings(REPORT.probes)}
    assert found["system calls of ring 3"].by == ("ring3_syscall_by_pf",)
    assert found["guests with several CPUs"].lacks == {"smp": "hangs: sleeps"}
    assert found["hypercalls by OUT"].lacks == {}
    assert "an unmodified Linux" not in found


def test_guests_need_what_there_is() -> None:
    """What the tiny guests ask for in their guest.toml are probes."""
    for about in GUESTS.glob("*/guest.toml"):
        needs = tomllib.loads(about.read_text()).get("needs", [])
        assert {name for need in needs for name in names_in(need)} <= PROBES.keys(), about


def test_probe_guests_are_listed() -> None:
    """probes.toml names every source in guests/probes, and nothing else."""
    listed = tomllib.loads((GUESTS / "probes/probes.toml").read_text())
    assert sorted(listed) == sorted(path.stem for path in (GUESTS / "probes").glob("*.S"))


# ---- the host and the report


def test_survey_reads_the_host(tmp_path: Path) -> None:
    """CPU, machine and the module's parameter come from /proc and /sys."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "vendor_id\t: AuthenticAMD\nmodel name\t: A: B\nflags\t\t: fpu svm hypervisor\n\nvendor_id\t: other\n"
    )
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id/product_name").write_text("Model\n")
    parameters = tmp_path / "sys/module/kvm_amd/parameters"
    parameters.mkdir(parents=True)
    (parameters / "nested").write_text("1\n")
    host = survey("kvm_amd", device=tmp_path / "none", root=tmp_path)
    assert (host.cpu_vendor, host.cpu_model, host.flag) == ("AuthenticAMD", "A: B", "svm")
    assert (host.is_guest, host.machine, host.nested, host.device) == (True, "Model", True, "")


def test_survey_of_a_bare_host(tmp_path: Path) -> None:
    """Nothing to read is no error."""
    host = survey("none", device=tmp_path, root=tmp_path)
    assert (host.cpu_model, host.flag, host.is_guest, host.nested) == ("unknown", "", False, None)
    assert host.device.startswith("drwx")


def test_next_step_fits_the_cpu() -> None:
    """With the flag it is the module, without it the firmware, the host below, or the lab."""
    from dataclasses import replace

    assert "modprobe kvm_intel" in next_step(HOST)
    assert "firmware" in next_step(replace(HOST, flag=""))
    assert "host below" in next_step(replace(HOST, flag="", is_guest=True))


@pytest.mark.parametrize(("code", "words"), [(errno.ENOENT, "modprobe"), (errno.EACCES, "join the group")])
def test_host_without_kvm_is_a_report(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    """No device, no permission: a report with the problem and the next step; nothing is probed."""

    def unavailable() -> None:
        raise KvmUnavailableError(code, "/dev/kvm", "join the group")

    monkeypatch.setattr("pykvm.doctor.report.Kvm", unavailable)
    monkeypatch.setattr("pykvm.doctor.report.survey", lambda _: HOST)
    report = examine()
    assert not report.usable
    assert words in report.problem
    assert report.probes == {}
    text = io.StringIO()
    print_report(report, text)
    assert words in text.getvalue()


def test_report_travels_as_json() -> None:
    """as_json() is plain JSON, and from_json() makes the same report of it."""
    found = json.loads(json.dumps(REPORT.as_json()))
    assert Report.from_json(found) == REPORT
    assert {
        "name": "guests with several CPUs",
        "works": False,
        "lacks": {"smp": "hangs: sleeps"},
        "by": [],
    } in found["features"]


def test_report_as_text() -> None:
    """A pipe gets columns without colours: KVM, probes with figures, what pykvm does and why not."""
    text = io.StringIO()
    print_report(REPORT, text, everything=True)
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert lines[0].split() == ["KVM", "kvm_intel,", "API", "version", "12:", "VT-x"]
    assert any(line.startswith("pio") and line.endswith("8.21 µs") for line in lines)
    assert any(line.startswith("no ") and line.endswith("because of smp") for line in lines)
    assert any(line.split() == ["KVM_CAP_MAX_VCPUS", "8"] for line in lines)


def test_reports_side_by_side() -> None:
    """A column a KVM, a row a probe, a figure, a feature; what nobody asked is a dash."""
    text = io.StringIO()
    print_side_by_side({"here": REPORT, "amd": Report(HOST, "no KVM")}, text)
    lines = text.getvalue().splitlines()
    assert lines[1].split() == ["here", "amd"]
    assert lines[2].split() == ["KVM", "kvm_intel", "-"]
    assert any(line.split() == ["pio", "works", "-"] for line in lines)
    assert any("8.21 µs" in line and line.endswith("-") for line in lines)
    assert any(line.split() == ["guests", "with", "several", "CPUs", "no", "-"] for line in lines)
    assert any(line.split() == ["here", "smp", "hangs", "sleeps"] for line in lines)


def test_the_labs_are_asked_one_by_one_and_one_that_fails_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each runs doctor with the probes named; a lab that gives no report is a problem of its own."""
    asked = []

    def run(argv: list[str], *, cpu: str, stdout: int, **more: object) -> int:
        asked.append((cpu, argv[3:], more["smp"]))
        os.write(stdout, json.dumps(REPORT.as_json()).encode() if cpu == "amd" else b"no report")
        return 0 if cpu == "amd" else 9

    monkeypatch.setattr("pykvm.doctor.labs.run", run)
    reports, problems = ask_labs(["pio"], progress=True)
    assert asked == [(cpu, ["doctor", "--json", "pio", "--progress"], 1) for cpu in ("amd", "intel")]
    assert reports == {"amd": REPORT}
    assert [str(problem) for problem in problems] == [
        "the intel lab: pykvm doctor ended with status 9 and no report"
    ]


def test_unknown_probe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no probe is refused, with those that are."""
    assert main(["doctor", "vmcal"]) == 125
    error = capsys.readouterr().err
    assert error.startswith("pykvm: there is no probe 'vmcal'")
    assert "vmcall" in error
    assert error.count("\n") == 1


def test_figures_have_few_digits() -> None:
    """Three digits are what such a measurement is worth."""
    shown = [str(Figure("x", value, "ns")) for value in (0.264, 8.21, 13.27, 1128.4)]
    assert shown == ["x 0.26 ns", "x 8.21 ns", "x 13.3 ns", "x 1128 ns"]


def test_outcome_in_words() -> None:
    """An outcome's text is its result and its detail."""
    assert [str(works()), str(fails("it is 0"))] == ["works", "does not: it is 0"]
