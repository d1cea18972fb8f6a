"""The command as a user types it."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["pykvm_command"]


def pykvm_command() -> list[str]:
    """The installed script, or the module where only that is there; a script saves what `-m` imports."""
    script = Path(sys.executable).parent / "pykvm"
    return [str(script)] if script.exists() else [sys.executable, "-m", "pykvm"]
