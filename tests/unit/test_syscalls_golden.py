"""Calls of a real program, recorded with their memory, get the lines that strace printed for them.

`syscalls_recorder.py` made the recording, by ptrace, of what `syscalls_recorded.c` does when it is built
for x86-64 and for i386, and kept the calls of which strace made the same line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from syscalls_recorder import line_of

GOLDEN = json.loads(Path(__file__).with_name("syscalls_golden.json").read_text())


@pytest.mark.parametrize("abi", ["x86-64", "i386"])
def test_recorded_calls_get_straces_lines(abi: str) -> None:
    """From number, arguments, result and the same memory comes the same line."""
    lines = [(kept["line"], line_of(kept)) for kept in GOLDEN["calls"] if kept["abi"] == abi]
    assert [line for line in lines if line[0] != line[1]] == []


def test_the_recording_is_strace_6s_and_has_many_kinds_of_calls() -> None:
    """Both widths of program are there, with errors, and with dozens of different syscalls."""
    assert GOLDEN["source"].startswith("strace -- version 6")
    for abi in ("x86-64", "i386"):
        lines = [kept["line"] for kept in GOLDEN["calls"] if kept["abi"] == abi]
        assert len({line.split("(")[0] for line in lines}) > 70
        assert sum(" = -1 E" in line for line in lines) > 30
