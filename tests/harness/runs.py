"""Starts the runs, each a process group of its own with a log, a time limit and an end in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from harness.junit import Outcome, read_junit
from harness.merge import Run
from harness.programs import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["StoppedError", "Workshop"]

_GRACE_S = 15.0  # a lab saves its results before it ends
_TIME_OVER = -1
_LINUX_FILES = "PYKVM_LINUX_FILES"  # of tests/kvm/linux_guest.py
_FETCH_RUNTIMES = """
from pykvm.containers.runtime_files import runtime_tree
from pykvm.containers.runtimes import RUNTIMES
from pykvm.lab.store import Store
for name in RUNTIMES:
    runtime_tree(name, Store(), print)
"""
_STATUS = {
    2: "pytest was interrupted, or could not collect the tests",
    3: "pytest failed internally",
    4: "pytest was called wrongly",
    5: "there are no tests",
    124: "its time was over",
    _TIME_OVER: "its time was over",
}


class StoppedError(Exception):
    """The user stopped the harness."""


class Workshop:
    """Runs commands, several at a time, and ends them all when asked to.

    `folder` gets PLACE.log and PLACE.xml of each run. `say` is called with each line for the reader.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self._lock = threading.Lock()
        self._live: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._stopped = False

    # ---- processes

    def run(self, name: str, argv: Sequence[str], *, limit_s: float) -> int:
        """Run a command to its end: its exit status, _TIME_OVER, or 128 + the signal that ended it.

        Its output goes to NAME.log. Raises StoppedError after stop().
        """
        with (self.folder / f"{name}.log").open("wb") as log, self._lock:
            if self._stopped:
                raise StoppedError
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._live[name] = process, time.monotonic()
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return _TIME_OVER
        finally:
            with self._lock:
                del self._live[name]
        if self._stopped:
            raise StoppedError
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """End all that runs; what has not started never does."""
        with self._lock:
            self._stopped = True
            processes = [process for process, _ in self._live.values()]
        for process in processes:
            _end(process)

    def progress(self) -> list[str]:
        """A line for each live run: how long, and what its log says last."""
        with self._lock:
            live = [(name, time.monotonic() - since) for name, (_, since) in self._live.items()]
        return [f"… {name} after {seconds:.0f} s: {self._last_line(name)}" for name, seconds in live]

    def _last_line(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:120] if lines else ""

    # ---- tests

    def pytest(self, place: str, arguments: Sequence[str], *, limit_s: float) -> Run:
        """Run pytest here, as `place`."""
        return self._recorded(place, lambda: self.run(place, self._pytest(place, arguments), limit_s=limit_s))

    def pytest_in_lab(self, cpu: str, arguments: Sequence[str], *, limit_s: float, part: str = "") -> Run:
        """Run pytest in the lab `cpu`; one boot. `part` tells the log from that of other parts."""
        name = f"{cpu}{part}"
        argv = [*self._pytest(name, arguments), "--kvm-required"]
        return self._recorded(
            cpu, lambda: self.run_in_lab(cpu, argv, self.folder, limit_s=limit_s, name=name), name
        )

    def run_in_lab(
        self, cpu: str, argv: Sequence[str], share: Path, *, limit_s: float, name: str | None = None
    ) -> int:
        """Run a command in a lab that can write to `share`: its exit status, or the lab's own."""
        name = name or cpu
        # One CPU: with two, QEMU 7.2 now and then locks both up in a nested guest; and the host has few, too.
        lab = [sys.executable, "-m", "pykvm", "lab", "--cpu", cpu, "--smp", "1", "--share", str(share)]
        lab += ["--timeout", f"{limit_s:g}", "--keep-log", str(self.folder / f"{name}-kernel.log")]
        lab += ["--load", "dummy"] if cpu == "amd" else []  # a network interface that leads nowhere
        given = [f"{_LINUX_FILES}={self.folder / 'linux'}"] if cpu == "intel" else []
        return self.run(name, ["env", *given, "nice", "-n", "5", *lab, "--", *argv], limit_s=limit_s + 60)

    def _pytest(self, name: str, arguments: Sequence[str]) -> list[str]:
        report = self.folder / f"{name}.xml"
        options = ["-p", "no:cacheprovider", "--durations=15", f"--junitxml={report}"]
        return [sys.executable, "-m", "pytest", *options, *arguments]

    def _recorded(self, place: str, start: Callable[[], int], name: str | None = None) -> Run:
        name = name or place
        report = self.folder / f"{name}.xml"
        report.unlink(missing_ok=True)
        self.say(f"{name} begins")
        since = time.monotonic()
        status = start()
        seconds = time.monotonic() - since
        run = self._judge(place, name, status, seconds)
        passed, failed = run.count(Outcome.PASSED), run.count(Outcome.FAILED)
        self.say(f"{name} ends after {seconds:.0f} s: {run.problem or f'{passed} passed, {failed} failed'}")
        return run

    def _judge(self, place: str, name: str, status: int, seconds: float) -> Run:
        """The run's cases, and its problem if the report is not there or does not fit the exit status."""
        try:
            cases = tuple(read_junit(self.folder / f"{name}.xml", place))
        except (OSError, ValueError):
            why = _STATUS.get(status, f"exit status {status}")
            return Run(place, (), f"{why}, and there is no report; {self._last_line(name)}", seconds)
        problem = "" if status in (0, 1) else _STATUS.get(status, f"exit status {status}")
        if status == 1 and not any(case.outcome is Outcome.FAILED for case in cases):
            problem = "pytest failed, and its report shows no failure"
        return Run(place, cases, problem and f"{problem}; {self._last_line(name)}", seconds)

    # ---- what the labs need of the host

    def furnish(self, cpus: Sequence[str]) -> None:
        """Install what the labs need, and put the Linux guests' kernel into the cache, which a lab sees."""
        self.install_packages(cpus)
        if "intel" in cpus:  # where nothing can be compiled; the folder is its share
            program = "tests/kvm/linux_guest.py"
            self.run("linux", [sys.executable, program, str(self.folder / "linux")], limit_s=600)
        if "amd" in cpus:
            self.run("kernel", [sys.executable, "-m", "pykvm", "kernel", "fetch"], limit_s=600)
            self.run("runtimes", [sys.executable, "-c", _FETCH_RUNTIMES], limit_s=600)

    def install_packages(self, cpus: Sequence[str]) -> None:
        """Install what the labs need and this host lacks, if we are root; else the lab says what to do."""
        from pykvm.lab.status import needed_packages

        missing = needed_packages(list(cpus), missing_only=True)
        missing += [package for program, package in PACKAGES.items() if not shutil.which(program)]
        if not missing or os.geteuid() or not shutil.which("apt-get"):
            return
        self.say(f"installing Debian packages: {' '.join(missing)}")
        options = ["-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
        environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
        self.run("packages", [*environment, "apt-get", "update", "-qq"], limit_s=300)
        self.run("packages", [*environment, "apt-get", "install", *options, *missing], limit_s=600)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group: by SIGTERM, then, if it takes too long, by SIGKILL."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
