"""`pykvm lab` gives what stands after -- to the lab, and tells mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pykvm.lab.launch
from pykvm.cli import main
from pykvm.errors import ConfigError, LabError
from pykvm.lab.launch import backend_for, run, shell
from pykvm.lab.store import Store


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """What the command gave to `run`, which does nothing and returns 7."""
    seen: list[tuple[list[str], dict[str, Any]]] = []

    def fake(argv: list[str], **options: Any) -> int:
        seen.append((list(argv), options))
        return 7

    monkeypatch.setattr(pykvm.lab.launch, "run", fake)
    return seen


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Store()


@pytest.mark.parametrize("words", [["ls", "-l"], ["setup"], ["--help"], ["sh", "-c", "exit", "--", "x"]])
def test_what_stands_after_the_dashes_runs_as_it_is(runs: list[Any], words: list[str]) -> None:
    """Also if it looks like an option or a command of ours; its status is ours."""
    assert main(["lab", "--", *words]) == 7
    ((argv, _),) = runs
    assert argv == words


def test_options_reach_the_lab(runs: list[Any], tmp_path: Path) -> None:
    """Each with its meaning: sizes with units, times in seconds, names repeated."""
    arguments = "--cpu intel -m 2G -c 4 -t 1.5 --load tun --load loop -q -v --no-tty".split()
    main(["lab", *arguments, "--share", str(tmp_path), "--", "true"])
    ((_, options),) = runs
    assert options["cpu"] == "intel"
    assert (options["mem_mib"], options["smp"], options["timeout_s"]) == (2048, 4, 1.5)
    assert (options["load"], options["share"], options["terminal"]) == (("tun", "loop"), tmp_path, False)
    assert (options["quiet"], options["verbose"]) == (True, True)


def test_without_a_command_there_is_a_shell(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's, without a terminal where there is none."""
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setattr("os.isatty", lambda fd: False)
    assert main(["lab"]) == main(["lab", "--"]) == 7
    assert [(argv, options["terminal"]) for argv, options in runs] == [(["/bin/sh"], False)] * 2
    monkeypatch.setenv("SHELL", "/no/such/shell")
    assert shell() == ["/bin/sh"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "-l"], "pykvm lab -- ls -l"),
        (["setup", "--", "x"], "setup takes no command"),
        (["--tty", "--", "x"], "not a terminal"),
        (["--cpu", "arm"], "'arm' is not one of"),
        (["--timeout", "0", "--", "x"], "0"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    runs: list[Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    """Status 2, the reason, and nothing was run."""
    monkeypatch.setattr("os.isatty", lambda fd: False)
    assert main(["lab", *arguments]) == 2
    assert words in capfd.readouterr().err
    assert runs == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpu": "arm"}, "no lab 'arm'; there are amd and intel"),
        ({"mem_mib": 10}, "at least 256 MiB"),
        ({"smp": 0}, "at least one CPU"),
        ({"share": "/no/such/directory"}, "no such directory"),
        ({"share": "/"}, "the whole machine"),
        ({"kernel": Path("/no/such/kernel")}, "--kernel /no/such/kernel: No such file"),
        ({"modules": Path("/lib")}, "--modules goes with --kernel"),
    ],
)
def test_a_lab_that_can_not_be_is_refused_before_anything_is_done(
    cache: Store, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    """One line for each, and the cache is as it was."""
    monkeypatch.setattr("pykvm.lab.launch.check_tools", lambda *_: None)
    with pytest.raises((ConfigError, LabError), match=words):
        run(["true"], **options)
    assert not list(cache.root.glob("run/*"))


def test_no_command_is_refused() -> None:
    """The library runs no shell by itself."""
    with pytest.raises(ConfigError, match="no command"):
        run([])


def test_packages_are_printed_for_the_makefile(capfd: pytest.CaptureFixture[str]) -> None:
    """One line that apt-get install takes; `all` is both labs."""
    assert main(["lab", "setup", "--print-packages"]) == 0
    amd = capfd.readouterr().out.split()
    assert "qemu-system-x86" in amd
    assert main(["lab", "setup", "--cpu", "all", "--print-packages"]) == 0
    both = capfd.readouterr().out.split()
    assert set(amd) < set(both)
    assert "bochs" in both
    assert main(["lab", "--cpu", "intel", "setup", "--print-packages"]) == 0
    assert "bochs" in capfd.readouterr().out.split()


def test_status_tells_what_is_cached_and_what_is_damaged(
    cache: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sizes, versions and damage, for people and for machines; clean takes it away."""

    def build(where: Path) -> dict[str, Any]:
        (where / "vmlinux").write_bytes(bytes(3 << 20))
        return {"release": "6.1.0-test", "version": "6.1-1", "flavour": backend_for("amd").flavour}

    entry = cache.obtain("kernels", "6.1", build, lambda _: None)
    assert main(["lab", "status", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["cache"], found["size_bytes"], found["running"]) == (str(cache.root), 3 << 20, 0)
    assert found["labs"]["amd"]["kernel"]["release"] == "6.1.0-test"
    assert found["entries"][0]["damage"] is None
    (entry.path / "vmlinux").write_bytes(b"")
    assert main(["lab", "status"]) == 0
    shown = capfd.readouterr().out
    assert "3.0 MiB" in shown
    assert "6.1.0-test" in shown
    assert "damaged" in shown
    assert main(["lab", "clean"]) == 0
    assert str(cache.root) in capfd.readouterr().out
    assert not entry.path.exists()
