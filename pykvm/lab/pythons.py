"""What a Python program needs of this machine: the interpreter, its standard library, its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.lab.tree import Tree

__all__ = [
    "ENVIRONMENT_MARK",
    "Python",
    "add_python",
    "ask_python",
    "compile_below",
    "is_python",
    "this_python",
]

ENVIRONMENT_MARK = "pyvenv.cfg"
"""The file that makes a directory a virtual environment (PEP 405)."""

_PACKAGES = {"dist-packages", "site-packages"}
_NOT_NEEDED = {"ensurepip", "idlelib", "lib2to3", "test", "tests", "tkinter", "turtledemo"}
_LIMIT_S = 20.0
_ASK = """
import json, sys, sysconfig
stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
print(json.dumps([sys.executable, sys.prefix, stdlib, sys.path[1:]]))
"""


class Python(NamedTuple):
    """An interpreter: its program, its environment's directory, its library, where it finds modules."""

    executable: str
    prefix: str
    stdlib: tuple[str, ...]
    path: tuple[str, ...]


def this_python() -> Python:
    """The Python that runs pykvm."""
    stdlib = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    # the first entry is the directory of the program that runs, and no part of this Python
    return Python(sys.executable, sys.prefix, stdlib, tuple(sys.path[1:]))


def ask_python(program: Path, env: Mapping[str, str]) -> Python | None:
    """What the interpreter says of itself; None if it does not answer as a Python does."""
    try:
        asked = subprocess.run(
            [program, "-c", _ASK],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=True,
        )
        executable, prefix, stdlib, path = json.loads(asked.stdout)
        return Python(str(executable), str(prefix), tuple(map(str, stdlib)), tuple(map(str, path)))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def is_python(program: Path) -> bool:
    """Whether a program's name is that of a Python interpreter."""
    return program.name.startswith(("python", "pypy")) and not program.name.endswith((".py", "-config"))


def add_python(tree: Tree, python: Python) -> None:
    """Take the interpreter, its standard library without the tests, its environment, installed packages."""
    tree.add(python.executable)
    for library in dict.fromkeys(python.stdlib):
        # config-… is for building against Python: a static library is in it
        build = {entry.name for entry in Path(library).glob("config-*")}
        tree.add_tree(library, _PACKAGES | _NOT_NEEDED | build)
    if Path(python.prefix, ENVIRONMENT_MARK).is_file():
        tree.add_tree(python.prefix)
    for entry in python.path:
        if Path(entry).name in _PACKAGES:
            tree.add_tree(entry)


def compile_below(where: Path, python: str) -> None:
    """Compile the modules below `where`, a copy of the root, that are not compiled yet or have changed since.

    In a software CPU that takes a hundred times as long. What can't be compiled stays as it is.
    """
    command = [python, "-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), "-s", str(where), "-p", "/"]
    try:
        subprocess.run([*command, str(where)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return
