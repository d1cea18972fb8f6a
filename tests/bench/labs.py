"""The bench in a lab: the same figures, taken inside, beside those that are kept in the tree.

The Intel lab's clock counts instructions, so that a figure there repeats, whatever else the host does: a
change against the figures kept is a change of pykvm, of its Python or of the lab's kernel.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import LabError
from pykvm.lab.launch import run

from .container_machine import ContainerFiles
from .figures import read_baseline
from .floor import Programs
from .linux_machines import LinuxFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KEPT", "measure_in"]

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_INTERRUPTED = 130

KEPT = {"intel": _HERE / "intel_lab.json"}
"""The figures in the tree, by lab."""


def measure_in(cpu: str, parts: Sequence[str], *, quick: bool) -> Mapping[str, Any]:
    """What as_json() wrote in the lab `cpu`, with "lab" in its "where". Raises LabError.

    A lab may have no compiler: what the bench compiles is made here and travels with the shared folder.
    """
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as name:
        share = Path(name)
        Programs(share / "programs")
        is_linux = any(part.startswith("linux") for part in parts)
        if any(part.startswith("guest") for part in parts):
            ContainerFiles(share / "programs")  # as below; and Python makes images faster here
        if is_linux:
            LinuxFiles(share / "programs")  # fetches the kernel: a lab has no network
        answer = share / "figures.json"
        argv = [sys.executable, "-m", "tests.bench", *parts, "--json", str(answer)]
        argv += ["--programs", str(share / "programs"), *(["--quick"] if quick else [])]
        argv += ["--progress"] if sys.stderr.isatty() else []
        null = os.open(os.devnull, os.O_RDWR)
        try:
            load = ("tun",) if is_linux else ()  # the tap device to the host
            status = run(argv, cpu=cpu, smp=1, share=share, cwd=_ROOT, stdin=null, stdout=null, load=load)
        finally:
            os.close(null)
        if status == _INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise LabError(f"the {cpu} lab: the bench ended with status {status}")
        found = read_baseline(answer)
    return {**found, "where": {**found["where"], "lab": cpu}}
