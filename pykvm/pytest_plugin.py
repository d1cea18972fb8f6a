"""The pytest plugin: assemble or compile a tiny guest in a test, boot it, assert on what it did.

::

    def test_greeting(boot):
        result = boot.asm("mov $'!', %al; out %al, $0xe9; hlt", mode="real16")
        result.check(reason="halt", console="!", exits={"IO": 1, "HLT": 1})

A failing test shows each of its guests: how it ended, registers, code around RIP, last exits. Where
there is no KVM a test that boots is skipped with the reason; --pykvm-required makes that a failure.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest reads the fixture's annotations
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from pykvm.result import RunResult

__all__ = ["Boot", "boot"]

_RUNS: pytest.StashKey[list[RunResult]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--pykvm-required, --pykvm-timeout and the ini key of the same name."""
    group = parser.getgroup("pykvm", "guests booted by pykvm")
    group.addoption("--pykvm-required", action="store_true", help="fail, do not skip, where there is no KVM")
    group.addoption("--pykvm-timeout", type=float, metavar="S", help="time limit of each guest, in seconds")
    parser.addini("pykvm_timeout", "time limit of each guest, in seconds", default="10")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "pykvm_timeout(seconds): time limit of each guest of this test")


class Boot:
    """What the fixture `boot` gives: three ways to a RunResult, from source, from C, from an image.

    Every option that Machine takes may be given (`memory`, `vcpus`, `unclaimed`, `trace`, `handlers` …), and
    those of Machine.load (`mode`, `address`, `cmdline` …). `timeout` is the test's by default.
    """

    def __init__(self, folder: Path, timeout: float, runs: list[RunResult]) -> None:
        self._folder = folder
        self._timeout = timeout
        self._runs = runs

    def asm(self, text: str, *, mode: str = "long64", **options: Any) -> RunResult:
        """Boot a few lines of GNU assembler, entered at the first; `guest.h` is included.

        Raises ToolchainError with the assembler's complaint.
        """
        source = self._folder / f"guest{len(self._runs)}.S"
        source.write_text(f'#include "guest.h"\nGUEST_START\n#line 1 "assembler text"\n{text}\n')
        return self._compiled(source, mode, options)

    def c(self, source: str | Path, *, mode: str = "long64", **options: Any) -> RunResult:
        """Boot a C file, or C text, whose `int main(void)` gives the exit code; `guest.h` can be included."""
        if isinstance(source, str):
            path = self._folder / f"guest{len(self._runs)}.c"
            path.write_text(source)
            source = path
        return self._compiled(source, mode, options, lib=["start.S"])

    def image(self, image: str | Path | bytes, **options: Any) -> RunResult:
        """Boot an image: a guest's name, a file, or bytes."""
        from pykvm.machine import Machine  # noqa: PLC0415 - pytest loads this plugin for every project

        loading = {name: options.pop(name) for name in _LOAD_OPTIONS if name in options}
        timeout = options.pop("timeout", self._timeout)
        typed = options.pop("typed", b"")
        with Machine(**options) as machine:
            machine.load(image, **loading)
            machine.send(typed)
            result = machine.run(timeout=timeout, registers=True)
        self._runs.append(result)
        return result

    def _compiled(
        self, source: Path, mode: str, options: dict[str, Any], lib: tuple[str, ...] | list[str] = ()
    ) -> RunResult:
        from pykvm.guests import built_folder  # noqa: PLC0415 - as above
        from pykvm.toolchain import compile_program  # noqa: PLC0415 - as above

        root = built_folder()
        out = self._folder / f"{source.stem}.{mode}.{'bin' if mode == 'real16' else 'elf'}"
        compile_program([source, *(root / "lib" / name for name in lib)], out, mode=mode, root=root)
        return self.image(out, mode=mode, **options)


_LOAD_OPTIONS = ("mode", "address", "entry", "cmdline", "modules", "disk", "read_only", "snapshot")


@pytest.fixture
def boot(request: pytest.FixtureRequest, tmp_path: Path) -> Boot:
    """Boots guests for this test; see `Boot`."""
    from pykvm.errors import KvmUnavailableError  # noqa: PLC0415 - as above
    from pykvm.kvm import Kvm  # noqa: PLC0415 - as above

    try:
        Kvm().close()
    except KvmUnavailableError as error:
        if request.config.getoption("--pykvm-required"):
            pytest.fail(f"no KVM: {error}", pytrace=False)
        pytest.skip(f"no KVM: {error}")
    runs: list[RunResult] = []
    request.node.stash[_RUNS] = runs
    return Boot(tmp_path, _time_limit(request), runs)


def _time_limit(request: pytest.FixtureRequest) -> float:
    marker = request.node.get_closest_marker("pykvm_timeout")
    if marker:
        return float(marker.args[0])
    given = request.config.getoption("--pykvm-timeout")
    return float(given if given is not None else request.config.getini("pykvm_timeout"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the guests that it booted."""
    report = yield
    if call.when == "call" and report.failed:
        runs: list[RunResult] = item.stash.get(_RUNS, [])
        for number, result in enumerate(runs, start=1):
            report.sections.append((f"guest {number}: {result}", _describe(result)))
    return report


def _describe(result: RunResult) -> str:
    from pykvm.report import render  # noqa: PLC0415 - as above

    exits = ", ".join(f"{count} {name}" for name, count in result.exits.items()) or "none"
    return f"console: {result.console!r}\nexits: {exits}\n{render(result)}"
