"""The host's programs that a lab needs, and the one line that installs what is missing."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from pykvm.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.lab.backend import Tool

__all__ = ["check_tools", "find_program", "missing_tools", "packages_of"]

_SYSTEM = "/usr/sbin:/sbin:/usr/bin:/bin"


def find_program(name: str) -> str | None:
    """The path of a program, also in the directories of system programs that a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


def missing_tools(tools: Iterable[Tool]) -> list[Tool]:
    """Those of `tools` that this host lacks. A name with a slash is a file that must be there."""
    return [tool for tool in tools if not _is_there(tool.program)]


def packages_of(tools: Iterable[Tool]) -> list[str]:
    """The Debian packages of `tools`, sorted; a tool may name several, separated by spaces."""
    return sorted({package for tool in tools for package in tool.package.split()})


def check_tools(lab: str, tools: Iterable[Tool]) -> None:
    """Raise LabError with the command that installs what is missing, if anything is."""
    missing = missing_tools(tools)
    if missing:
        sudo = "" if os.geteuid() == 0 else "sudo "
        names = ", ".join(tool.program for tool in missing)
        raise LabError(
            f"the {lab} lab needs {names}; install with: {sudo}apt-get install --no-install-recommends "
            f"{' '.join(packages_of(missing))}"
        )


def _is_there(program: str) -> bool:
    return os.path.exists(program) if "/" in program else find_program(program) is not None  # noqa: PTH110
