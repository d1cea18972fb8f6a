"""Asks the KVMs of the labs: `pykvm doctor --json`, run in each of them."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import TYPE_CHECKING

from pykvm.doctor.report import Report
from pykvm.errors import LabError, PykvmError
from pykvm.lab.launch import LABS, run

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ask_lab", "ask_labs"]

_LIMIT_S = 600.0


def ask_labs(
    names: Iterable[str] | None = None, *, progress: bool = False
) -> tuple[dict[str, Report], list[PykvmError]]:
    """The report of each lab's KVM, by the lab's name; and the errors of those that did not answer.

    The labs run one after the other, in the main thread. `names` are probes, all by default; with `progress`
    stderr, a terminal, names the one at work.
    """
    wanted = None if names is None else list(names)
    reports: dict[str, Report] = {}
    problems: list[PykvmError] = []
    for cpu in LABS:
        try:
            reports[cpu] = ask_lab(cpu, wanted, progress=progress)
        except PykvmError as error:
            problems.append(error)
    return reports, problems


def ask_lab(cpu: str, names: list[str] | None = None, *, progress: bool = False) -> Report:
    """The report of the KVM in the lab `cpu`. Raises LabError."""
    argv = [sys.executable, "-m", "pykvm", "doctor", "--json"]
    argv += ["--quick"] if names == [] else names or []
    argv += ["--progress"] if progress else []
    with tempfile.TemporaryFile() as answer:
        status = run(argv, cpu=cpu, smp=1, stdout=answer.fileno(), timeout_s=_LIMIT_S)
        answer.seek(0)
        text = answer.read()
    try:
        return Report.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError):
        raise LabError(f"the {cpu} lab: pykvm doctor ended with status {status} and no report") from None
