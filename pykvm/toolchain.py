"""The tool chain of guests: the one place that runs gcc, as and ld."""
from __future__ import annotations
from pathlib import Path

def build_all(root: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
