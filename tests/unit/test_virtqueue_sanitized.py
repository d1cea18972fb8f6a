"""The virtqueue's C, built with sanitizers, takes no step beside guest memory, whatever a driver does.

The harness runs for as long as one likes: `virtqueue_harness hostile 1 600s`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).with_name("virtqueue_harness.c")


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness, compiled once."""
    program = tmp_path_factory.mktemp("harness") / "virtqueue"
    command = ["gcc", "-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    command += [
        "-Wno-missing-field-initializers",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    command += [f"-I{ROOT / 'pykvm'}", f"-I{ROOT / 'guests' / 'include'}", str(HARNESS)]
    done = subprocess.run(
        [*command, "-o", str(program), "-lpthread"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize(("scenario", "seed"), [("hostile", 1), ("hostile", 2), ("changing", 3)])
def test_no_driver_leads_out_of_guest_memory(harness: Path, scenario: str, seed: int) -> None:
    """Every piece of every chain lies in one slot, and no more is moved than chain and file have.

    In `changing` another thread rewrites descriptors, tables and indices meanwhile.
    """
    command = [str(harness), scenario, str(seed), "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    served, refused = map(int, re.findall(r"(\d+) chains served, (\d+) refused", done.stdout)[0])
    assert served > 1000
    assert refused > 1000
