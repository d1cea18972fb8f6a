"""Which sources a trace gets: those that can be had and may be wanted; for the others one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.trace import layers
from pykvm.trace.layers import Remark, add_layers
from pykvm.trace.select import Selection
from pykvm.trace.tracefs import TracefsError


class FakeMachine:
    """As much of a machine as gets sources."""

    def __init__(self, kind: str = "elf") -> None:
        self.image = SimpleNamespace(kind=kind)
        self.sources: list[Any] = []

    def add_source(self, source: Any) -> None:
        self.sources.append(source)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of tracefs, which is not there, and of the tap."""
    found: list[Any] = []

    def kernel_source(**wants: bool) -> Any:
        found.append(wants)
        raise TracefsError("tracefs is not mounted")

    monkeypatch.setattr(layers, "KernelSource", kernel_source)
    monkeypatch.setattr("pykvm.tap.add_tap", lambda _, how, **more: found.append((how, more)))
    return found


def _kinds(asked: list[Any]) -> list[Any]:
    return [(one["kvm"], one["host_calls"]) if isinstance(one, dict) else one for one in asked]


NOTHING = {"syscalls": (), "processes": ()}


@pytest.mark.parametrize(
    ("chosen", "tap", "wanted"),
    [
        ({}, "auto", [("auto", NOTHING), (True, True)]),
        ({}, "off", [(True, True)]),
        ({"only": ["exit"]}, "auto", []),
        ({"only": ["exit"]}, "patch", [("patch", NOTHING)]),
        ({"without": ["host", "syscall"]}, "auto", [(True, False)]),
        ({"only": ["host"]}, "auto", [(False, True)]),
    ],
)
def test_only_what_may_be_wanted_is_asked_for(
    asked: list[Any], chosen: dict[str, Any], tap: str, wanted: list[Any]
) -> None:
    """What is filtered out costs nothing; a tap that was asked for by name comes anyhow."""
    machine: Any = FakeMachine()
    add_layers(machine, Selection(**chosen), tap=tap)
    assert _kinds(asked) == wanted
    assert len(machine.sources) == sum(isinstance(one, dict) for one in asked)


def test_what_can_not_be_had_is_said_once(asked: list[Any]) -> None:
    """As a note; the trace goes on."""
    machine: Any = FakeMachine()
    add_layers(machine, Selection(), tap="off")
    (remark,) = machine.sources
    ((note,), until) = remark.take()
    assert (note.kind, until) == ("note", 1 << 63)
    assert note.name.endswith("in this trace: tracefs is not mounted")
    assert (list(remark.take()[0]), list(remark.finish())) == ([], [])


def test_a_remark_that_nobody_took_comes_at_the_end() -> None:
    """Of a run that was over at once."""
    assert [event.name for event in Remark("so").finish()] == ["so"]
