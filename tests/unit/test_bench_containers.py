"""The bench of containers as far as it goes without a guest: what is counted, and what is measured where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bench import __main__ as bench
from bench.container_guest import _COUNT, _is_of
from bench.container_machine import Outcome
from bench.containers import many_files
from bench.figures import Figure

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

HIST = """
{ common_pid: init             [         1], common_pid:          1 } hitcount:        150
{ common_pid: runc:[2:INIT]    [        99], common_pid:         99 } hitcount:         40
{ common_pid: cat              [       100], common_pid:        100 } hitcount:          9
"""


def test_system_calls_are_told_apart_by_process() -> None:
    """The agent's and its children's by one name; another runtime's are all that nobody else makes."""
    rows = [(comm.strip(), int(count)) for comm, count in _COUNT.findall(HIST)]
    assert [count for comm, count in rows if _is_of(comm, "pykvm")] == [150]
    assert [count for comm, count in rows if _is_of(comm, "runc")] == [40]


def test_a_guest_that_tells_nothing_is_an_error() -> None:
    """No figure is made of what did not come."""
    assert Outcome({}, b"bench from 10 0\nbench now 25 0\n", 0, 0.0).told("now") == (25, 0)
    with pytest.raises(ConfigError, match="told nothing of now"):
        Outcome({}, b"error", 1, 0.0).told("now")


def test_the_files_of_a_layer_are_the_same_every_time() -> None:
    """So that figures can be compared; in so many layers as are wanted."""
    assert many_files(30, 3) == many_files(30, 3)
    assert len(many_files(30, 3)) == 3


def test_what_needs_no_guest_is_measured_outside_the_lab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both in one table and one file; the promises about containers stand, wherever they are measured."""
    asked: list[Sequence[str]] = []

    def measure_in(_cpu: str, parts: Sequence[str], **_: object) -> dict[str, Any]:
        asked.append(parts)
        row = {"name": "start", "value": 1.0, "unit": "of crun's", "limit": 0.5, "is_met": False}
        return {"where": {"kvm": "kvm_amd", "quick": True}, "figures": {"start": row}}

    monkeypatch.setattr(bench, "measure_in", measure_in)
    monkeypatch.setattr(bench, "Programs", lambda folder: folder)
    monkeypatch.setattr(bench, "as_json", lambda figures, **_: json.dumps({"figures": {figures[0].name: {}}}))
    monkeypatch.setattr(bench, "_measure", lambda parts, *_, **__: [Figure(parts[0], 2.0, "s", 3)])
    assert bench.main(["containers", "guest", "--lab", "amd", "--quick", "--json", "-"]) == 0
    assert asked == [["guest"]]
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"start", "(not in the lab) containers"}
    assert bench.main(["containers", "guest", "--lab", "amd", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "<= 0.5" in shown
    assert "<= 3" in shown
