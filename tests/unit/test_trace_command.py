"""pykvm trace without a guest: its options, and every wrong one in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pykvm.cli import COMMANDS, main
from pykvm.cli.run import command as run_command
from pykvm.cli.trace import command
from pykvm.errors import ConfigError
from pykvm.trace.command import FORMATS, TraceOptions

if TYPE_CHECKING:
    from pathlib import Path


def test_trace_takes_every_option_that_run_takes() -> None:
    """Under the same names, but for --detach; only -c, which strace has taught everybody, is the summary."""
    ours = {name for option in command.params for name in option.opts + option.secondary_opts}
    theirs = {name for option in run_command.params for name in option.opts + option.secondary_opts}
    assert theirs - ours == {"-d", "--detach"}, "a trace has somebody who reads it"
    assert next(option.name for option in command.params if "-c" in option.opts) == "summary"
    assert next(option.name for option in run_command.params if "-c" in option.opts) == "vcpus"
    assert "trace" in COMMANDS


@pytest.mark.parametrize(
    ("output", "form"),
    [
        ("", "live"),
        ("-", "live"),
        ("x.txt", "live"),
        ("x.log", "live"),
        ("noend", "live"),
        ("x.jsonl", "jsonl"),
        ("x.NDJSON", "jsonl"),
        ("x.pftrace", "perfetto"),
        ("a.b/x.html", "html"),
    ],
)
def test_the_file_s_end_chooses_the_form(output: str, form: str) -> None:
    """And an option overrides it."""
    assert TraceOptions(output=output).chosen_form == form
    for other in FORMATS:
        assert TraceOptions(output=output, form=other).chosen_form == other


def test_an_unknown_end_is_asked_about() -> None:
    """With all that are known."""
    with pytest.raises(ConfigError, match=r"^x\.json: which form is that\? .*\.jsonl .*\.pftrace .*\.html"):
        _ = TraceOptions(output="x.json").chosen_form


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "hypercal"], "'hypercal' is no kind of event"),
        (["--not", "nonsense,exit"], "'nonsense' is no kind of event"),
        (["--port", "0x400-0x300"], "'0x400-0x300' is no range of ports"),
        (["-o", "trace.xml"], "trace.xml: which form is that?"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    capfd: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    """Before anything is started; the exit status is 125."""
    assert main(["trace", "01_hello", *arguments]) == 125
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"pykvm: {complaint}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--step", "0"], ["--step", "x"], ["--format", "xml"]])
def test_wrong_usage_is_status_two(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """As with every command."""
    assert main(["trace", "01_hello", *arguments]) == 2
    assert "Usage: pykvm trace" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attach", "one", "01_hello"], "IMAGE can't be chosen"),
        (["--attach=one", "--smp", "2"], "--smp can't be chosen"),
        (["--attach", "one", "--step", "3"], "--step can't be chosen"),
        ([], "Missing argument 'IMAGE'"),
        (["-c", "--", "--attach"], "no such file"),
    ],
)
def test_a_machine_that_runs_is_what_it_is(
    capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """--attach goes with what a trace shows, and with nothing that makes a machine."""
    assert main(["trace", *arguments]) in (2, 127)
    assert words in capfd.readouterr().err


def test_a_wrong_image_costs_nobody_an_old_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file is opened when the image has been loaded; the status is that of `run`."""
    path = tmp_path / "trace.jsonl"
    path.write_text("old")
    assert main(["trace", "no_such_guest", "-o", str(path)]) == 127
    assert capfd.readouterr().err.count("\n") == 1
    assert path.read_text() == "old"
