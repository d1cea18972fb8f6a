"""The probes of `pykvm doctor` on a real KVM."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pykvm.doctor import PROBES, Report, Result, probe

# Debian's kernels, of which the labs are made, are built without CONFIG_KVM_XEN; pykvm does not use it.
_NOWHERE = frozenset({"xen_hvm"})
_NAMES = [pytest.param(name, marks=pytest.mark.needs(name)) for name in PROBES if name not in _NOWHERE]


@pytest.mark.parametrize("name", _NAMES)
def test_works_somewhere(name: str) -> None:
    """Each probe finds what it looks for in at least one of the places where tests run."""
    assert probe([name])[name].result is Result.WORKS


def test_none_is_broken() -> None:
    """Every probe has an answer here, whatever it is, and the command tells it as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "pykvm", "doctor", "--json"], check=True, capture_output=True, timeout=300
    )
    report = Report.from_json(json.loads(done.stdout))
    assert report.usable
    assert list(report.probes) == list(PROBES)
    assert not [name for name, outcome in report.probes.items() if outcome.result is Result.BROKEN]


def test_status_of_a_named_probe() -> None:
    """The command's exit status is 0 if the probes named on its line work, 3 if one does not."""
    outcomes = probe(["pio", "xen_hvm"])
    for name, outcome in outcomes.items():
        done = subprocess.run(
            [sys.executable, "-m", "pykvm", "doctor", "vm", name],
            check=False,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == (0 if outcome.works else 3)
