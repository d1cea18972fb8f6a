"""What a job takes along to a lab that can't see this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.lab import selection
from pykvm.lab.backend import Job, Options
from pykvm.lab.libraries import Libraries
from pykvm.lab.pythons import Python, ask_python, compile_below, is_python, this_python
from pykvm.lab.selection import base_tree, job_tree, project_of, python_of
from pykvm.lab.tree import Tree

OPTIONS = Options(mem_mib=1536, smp=1)


def put(path: Path, text: str = "x", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def empty() -> Tree:
    return Tree(Libraries({}, {}))


def taken(job: Job, base: Tree, said: list[str] | None = None, options: Options = OPTIONS) -> Tree:
    return job_tree(job, options, base, (said if said is not None else []).append)


def test_the_base_has_a_userland_and_this_python() -> None:
    """A shell, its loader, the interpreter, its library, the environment's packages; no tests of Python."""
    tree = base_tree(Libraries(os.environ), this_python())
    stdlib = Path(this_python().stdlib[0])
    for path in ("/bin/sh", "/etc/passwd", sys.executable, stdlib / "os.py", pytest.__file__):
        assert path in tree or Path(path).resolve() in tree
    assert stdlib / "test" not in tree
    assert any("ld-linux" in path for path in map(str, tree.paths()))
    assert len(tree) > 1000


def test_the_project_goes_along_without_what_can_be_made_again(empty: Tree, tmp_path: Path) -> None:
    """From its top, wherever in it the user is; other environments and the shared directory stay."""
    put(tmp_path / "pyproject.toml")
    put(tmp_path / "src/module.py")
    put(tmp_path / ".git/objects/pack")
    put(tmp_path / ".venv/pyvenv.cfg")
    put(tmp_path / ".venv/lib/module.py")
    put(tmp_path / "out/result")
    job = Job(("true",), cwd=str(tmp_path / "src"), env={})
    tree = taken(job, empty, options=Options(1536, 1, share=tmp_path / "out"))
    assert tmp_path / "src/module.py" in tree
    for path in (".git", ".venv", "out"):
        assert tmp_path / path not in tree


def test_a_project_is_found_upwards(tmp_path: Path) -> None:
    """The nearest mark counts; without one it is the directory itself."""
    put(tmp_path / "outer/.git/HEAD")
    put(tmp_path / "outer/inner/pyproject.toml")
    (tmp_path / "outer/inner/a/b").mkdir(parents=True)
    (tmp_path / "outer/other").mkdir()
    assert project_of(tmp_path / "outer/inner/a/b") == tmp_path / "outer/inner"
    assert project_of(tmp_path / "outer/other") == tmp_path / "outer"


def test_a_project_that_is_too_much_is_told_and_left(
    empty: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command still runs, in its directory."""
    monkeypatch.setattr(selection, "_PROJECT_LIMIT_BYTES", 10)
    put(tmp_path / "setup.py", "x" * 100)
    said: list[str] = []
    tree = taken(Job(("true",), cwd=str(tmp_path), env={}), empty, said)
    assert any(str(tmp_path) in text and "--tree" in text for text in said)
    assert tmp_path in tree
    assert tmp_path / "setup.py" not in tree


def test_files_that_the_command_line_names_go_along(empty: Tree, tmp_path: Path) -> None:
    """Relative and absolute ones, and behind an option's `=`; words that are none do no harm."""
    outside = tmp_path / "outside"
    for name in ("a", "b", "c"):
        put(outside / name)
    (tmp_path / "cwd").mkdir()
    words = ("true", "../outside/a", str(outside / "b"), f"--input={outside}/c", "no\0name", "x" * 5000, "")
    tree = taken(Job(words, cwd=str(tmp_path / "cwd"), env={}), empty)
    assert all(outside / name in tree for name in ("a", "b", "c"))


def test_what_the_tree_option_names_must_be_there(empty: Tree, tmp_path: Path) -> None:
    """A whole directory, or one line that says what is missing."""
    put(tmp_path / "data/deep/file")
    job = Job(("true",), cwd="/", env={})
    tree = taken(job, empty, options=Options(1536, 1, tree=(tmp_path / "data",)))
    assert tmp_path / "data/deep/file" in tree
    with pytest.raises(ConfigError, match=r"--tree .*nothing: there is no such file"):
        taken(job, empty, options=Options(1536, 1, tree=(tmp_path / "nothing",)))


def test_a_script_brings_its_interpreter(empty: Tree, tmp_path: Path) -> None:
    """Also through `env`, and an interpreter that is a script itself."""
    put(tmp_path / "bin/inner", "#!/bin/sh\n", 0o755)
    put(tmp_path / "bin/outer", f"#!{tmp_path}/bin/inner -x\n", 0o755)
    put(tmp_path / "bin/tool", "#!/usr/bin/env -S A=1 outer\n", 0o755)
    tree = taken(Job(("tool",), cwd="/", env={"PATH": str(tmp_path / "bin")}), empty)
    assert all(tmp_path / "bin" / name in tree for name in ("tool", "outer", "inner"))
    assert Path("/bin/sh").resolve() in tree


def test_home_and_python_path_are_there(empty: Tree, tmp_path: Path) -> None:
    """The home directory empty, the other one whole."""
    put(tmp_path / "home/secret")
    put(tmp_path / "modules/m.py")
    env = {"HOME": str(tmp_path / "home"), "PYTHONPATH": f"{tmp_path}/modules:"}
    tree = taken(Job(("true",), cwd="/", env=env), empty)
    assert tmp_path / "home" in tree
    assert tmp_path / "home/secret" not in tree
    assert tmp_path / "modules/m.py" in tree


def test_a_shim_is_replaced_by_the_python_it_leads_to(empty: Tree, tmp_path: Path) -> None:
    """In the lab there is no version manager that would look for it."""
    shim = put(tmp_path / "shims/python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n', 0o755)
    job = Job(("python3", "-c", "1"), cwd="/", env={"PATH": f"{tmp_path}/shims:/usr/bin:/bin"})
    tree = taken(job, empty)
    where = tmp_path / "copy"
    where.mkdir()
    tree.copy_to(where)
    assert (where / str(shim).lstrip("/")).readlink() == Path(sys.executable)


def test_the_command_s_python_is_asked(tmp_path: Path) -> None:
    """Another interpreter's answer is its own; a program that answers nonsense is told of."""
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said: list[str] = []
    assert python_of(Job(("sh", "-c", "true"), cwd="/", env=env), said.append) == this_python()
    assert python_of(Job((sys.executable,), cwd="/", env=env), said.append) == this_python()
    put(tmp_path / "python9", f'#!/bin/sh\nexec {sys.executable} -I "$@"\n', 0o755)
    found = python_of(Job(("python9",), cwd="/", env=env), said.append)
    assert (found.executable, found.prefix) == (sys.executable, sys.prefix)
    assert said == []
    put(tmp_path / "python8", "#!/bin/sh\necho nonsense\n", 0o755)
    assert python_of(Job(("python8",), cwd="/", env=env), said.append) == this_python()
    assert len(said) == 1
    assert "python8" in said[0]


def test_a_python_that_is_none_has_no_answer(tmp_path: Path) -> None:
    """Missing, failing, or silent."""
    assert ask_python(tmp_path / "nothing", {}) is None
    assert ask_python(put(tmp_path / "python", "#!/bin/sh\nexit 1\n", 0o755), {}) is None
    assert ask_python(put(tmp_path / "python3", "#!/bin/sh\necho '[1]'\n", 0o755), {}) is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("python", True),
        ("python3.11", True),
        ("pypy3", True),
        ("python3-config", False),
        ("python.py", False),
    ],
)
def test_pythons_are_known_by_their_names(name: str, *, is_one: bool) -> None:
    """Not scripts about Python."""
    assert is_python(Path("/usr/bin", name)) is is_one


def test_modules_are_compiled_for_the_place_they_get(tmp_path: Path) -> None:
    """The compiled file is valid for the source's time, and names the path in the lab."""
    source = put(tmp_path / "copy/opt/m.py", "def f(): pass\n")
    os.utime(source, (1_600_000_000, 1_600_000_000))
    compile_below(tmp_path / "copy", sys.executable)
    (compiled,) = source.parent.glob("__pycache__/m.*.pyc")
    data = compiled.read_bytes()
    assert b"/opt/m.py" in data
    assert str(tmp_path).encode() not in data
    assert int.from_bytes(data[8:12], "little") == 1_600_000_000
    compile_below(tmp_path / "copy", str(tmp_path / "no-python"))


def test_an_environment_goes_with_its_python(tmp_path: Path) -> None:
    """pyvenv.cfg, scripts, packages; build files and tests of the library stay."""
    put(tmp_path / "venv/pyvenv.cfg")
    put(tmp_path / "venv/bin/tool")
    put(tmp_path / "lib/os.py")
    put(tmp_path / "lib/test/test_os.py")
    put(tmp_path / "lib/config-3.11-x86_64/libpython.a")
    put(tmp_path / "lib/site-packages/not_on_the_path.py")
    put(tmp_path / "more/site-packages/module.py")
    put(tmp_path / "other/module.py")
    python = Python(
        str(put(tmp_path / "venv/bin/python", mode=0o755)),
        str(tmp_path / "venv"),
        (str(tmp_path / "lib"),) * 2,
        (str(tmp_path / "lib"), str(tmp_path / "more/site-packages"), str(tmp_path / "other")),
    )
    tree = Tree(Libraries({}, {}))
    from pykvm.lab.pythons import add_python

    add_python(tree, python)
    files = {str(path.relative_to(tmp_path)) for path in tree.paths() if path.is_file()}
    assert files == {
        "lib/os.py",
        "more/site-packages/module.py",
        "venv/bin/python",
        "venv/bin/tool",
        "venv/pyvenv.cfg",
    }
