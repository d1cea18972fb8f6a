"""python -m tests.fuzz: hostile drivers against every virtio device, for as long as one likes."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .case import CaseResult, FailedError, run_case
from .subjects import SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAY_S = 30.0
_FILE_BYTES = 64 << 20  # the most that a guest may make of a file in its share
_FINDINGS_MOST = 10


def main(words: Sequence[str] | None = None) -> int:
    """Fuzz; 0 if nothing was found, 1 if something was."""
    options = _options(words)
    names = options.device or [*SUBJECTS]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, before[1]))
    try:
        with tempfile.TemporaryDirectory(prefix="pykvm-fuzz") as folder:
            if options.case is not None:
                return _one(names, str(options.case), Path(folder))
            return _many(names, options.seed, options.seconds, Path(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Hostile drivers against the virtio queue and each device. Every case can be repeated.",
    )
    parser.add_argument("--seconds", type=float, default=600, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the run (default: the time)")
    parser.add_argument(
        "--device", action="append", choices=[*SUBJECTS], help="only this one; repeat for more"
    )
    parser.add_argument("--case", metavar="SEED.NUMBER", help="repeat one case, with its traceback")
    return parser.parse_args(words)


def _one(names: Sequence[str], seed: str, folder: Path) -> int:
    for name in names:
        sys.stdout.write(f"{name} {seed}: {run_case(name, seed, folder / 'case')}\n")
    return 0


def _many(names: Sequence[str], seed: int, seconds: float, folder: Path) -> int:
    cases: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    findings = 0
    began = said = time.monotonic()
    number = 0
    while (now := time.monotonic()) - began < seconds and findings < _FINDINGS_MOST:
        if now - said > _SAY_S:
            said = now
            sys.stderr.write(f"{now - began:.0f} s: {cases.total():,} cases, {findings} findings\n")
        for name in names:
            case = f"{seed}.{number}"
            try:
                result = run_case(name, case, folder / f"{os.getpid()}")
            except FailedError as error:
                findings += 1
                _tell(name, case, error)
                result = CaseResult(0, 0, needs_reset=False)
            cases[name] += 1
            steps[name] += result.steps
            answered[name] += result.used
            broken[name] += result.needs_reset
        number += 1
    for name in names:
        sys.stdout.write(
            f"{name:14} {cases[name]:9,} cases {steps[name]:11,} steps {answered[name]:11,} answers "
            f"{broken[name]:9,} resets demanded\n"
        )
    sys.stdout.write(
        f"seed {seed}: {cases.total():,} cases, {steps.total():,} steps in {time.monotonic() - began:.0f} s; "
        f"{findings or 'nothing'} found\n"
    )
    return 1 if findings else 0


def _tell(name: str, case: str, error: FailedError) -> None:
    sys.stderr.write(f"\n{name}: {error}\n  again: python -m tests.fuzz --device {name} --case {case}\n")
    traceback.print_exception(error.__cause__ or error)


if __name__ == "__main__":
    sys.exit(main())
