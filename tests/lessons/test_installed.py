"""pykvm installed from its source archive, as who has no checkout gets it: everything it needs came along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pykvm alone, from the wheel made of the source archive."""
    folder = tmp_path_factory.mktemp("installed")
    python = sys.executable
    _run(python, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT), cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = (python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "lib"))
    _run(*install, str(wheel), cwd=folder)
    return folder


def _pykvm(installed: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(installed / "lib")}
    where = "import pykvm; print(pykvm.__file__)"
    assert str(installed) in _run(sys.executable, "-c", where, cwd=installed, env=env)
    return _run(sys.executable, "-m", "pykvm", *words, cwd=installed, env=env)


def test_no_file_of_the_package_is_left_out(installed: Path) -> None:
    """All that the tree's package holds is installed, but for what only the build reads."""
    made = ("__pycache__", "_guests", ".")
    files = [p.relative_to(ROOT) for p in (ROOT / "pykvm").rglob("*") if p.is_file() and p.suffix != ".so"]
    sources = [path for path in files if not any(part.startswith(made) for part in path.parts)]
    missing = [str(path) for path in sources if not (installed / "lib" / path).exists()]
    assert missing == ["pykvm/kvm_api.cdef"]


def test_guests_and_firmware_come_along(installed: Path) -> None:
    """They were built from the archive's sources."""
    assert "01_hello" in _pykvm(installed, "guests")


@pytest.mark.needs("long64")
def test_it_runs_a_guest_and_draws_its_trace(installed: Path) -> None:
    """The page is made of files that are no Python."""
    assert "Hello from 64-bit long mode!" in _pykvm(installed, "trace", "-o", "hello.html", "01_hello")
    assert (installed / "hello.html").read_text().startswith("<!")


@pytest.mark.needs("long64")
def test_a_disk_boots_through_the_firmware(installed: Path) -> None:
    """The firmware is in the wheel too."""
    assert "Hello from a boot sector!" in _pykvm(installed, "run", "20_bootsector")
