"""The bench's figures travel as JSON and are shown beside those that were kept; a lab takes them too."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from bench import __main__ as bench
from bench import labs
from bench.figures import Figure, as_table, figures_in, read_baseline
from rich.console import Console

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIGURES = [
    Figure("an exit", 2000.0, "ns", 2500.0, low=1900.0, high=2100.0, samples=3),
    Figure("fds", 0.0, "fds"),
]
WHERE = {"kvm": "kvm_intel", "quick": True}


def found(figures: list[Figure] = FIGURES, **where: object) -> dict[str, Any]:
    """What as_json() writes, without asking a KVM."""
    rows = {
        f.name: {
            "name": f.name, "value": f.value, "unit": f.unit, "limit": f.limit,
            "more_is_better": f.more_is_better, "low": f.low, "high": f.high, "samples": f.samples,
            "is_met": f.is_met,
        }
        for f in figures
    }  # fmt: skip
    return {"where": {**WHERE, **where}, "figures": rows}


def shown(figures: list[Figure], baseline: Mapping[str, Any] | None) -> list[list[str]]:
    """The cells of the table, row by row."""
    text = io.StringIO()
    Console(file=text, width=200).print(as_table(figures, "title", baseline))
    lines = text.getvalue().replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_figures_come_back_from_their_json(tmp_path: Path) -> None:
    """Nothing is lost; what is none of it is refused with the file's name."""
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(found()))
    assert figures_in(read_baseline(path)) == FIGURES
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"figures\.json: not a baseline"):
        read_baseline(path)
    with pytest.raises(ConfigError, match="not figures"):
        figures_in({"where": WHERE, "figures": {"x": {"colour": "red"}}})


def test_the_table_shows_the_change() -> None:
    """By how much a figure is another than the one kept; one that was not kept is new."""
    before = found([Figure("an exit", 1600.0, "ns")])
    assert [row[-2:] for row in shown(FIGURES, before)] == [
        ["was (kvm_intel, quick)", "change"], ["1,600", "+25.0%"], ["", "new"],
    ]  # fmt: skip
    assert shown(FIGURES, None)[1][-2:] == ["<= 2500", "yes"]


def test_a_lab_s_figures_stand_beside_those_in_the_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lab runs the bench with the programs made here; pykvm's promises are for CPUs in hardware."""
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(found([Figure("an exit", 1600.0, "ns")])))
    monkeypatch.setattr(labs, "Programs", lambda folder: None)
    monkeypatch.setitem(labs.KEPT, "intel", kept)

    def run(argv: list[str], *, cpu: str, share: Path, **more: object) -> int:
        assert (cpu, argv[1:4], "--quick" in argv) == ("intel", ["-m", "tests.bench", "exits"], True)
        (share / "figures.json").write_text(json.dumps(found()))
        return 0

    monkeypatch.setattr(labs, "run", run)
    assert bench.main(["exits", "--lab", "intel", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "pykvm on kvm_intel in the intel lab" in text
    assert "+25.0%" in text
    assert "promised" not in text
    assert bench.main(["exits", "--lab", "intel", "--quick", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found(lab="intel")


@pytest.mark.parametrize(
    ("status", "ends", "says"),
    [(130, 130, ""), (1, 125, "bench: the amd lab: the bench ended with status 1\n")],
)
def test_a_lab_that_fails_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, ends: int, says: str
) -> None:
    """One line; Ctrl-C in the lab is one here."""
    monkeypatch.setattr(labs, "Programs", lambda folder: None)
    monkeypatch.setattr(labs, "run", lambda *_, **__: status)
    assert bench.main(["--lab", "amd"]) == ends
    assert capsys.readouterr().err == says


def test_the_figures_in_the_tree_are_figures() -> None:
    """They can be read, are of the lab they stand for, and quick, as `make bench LAB=…` takes them."""
    for cpu, path in labs.KEPT.items():
        kept = read_baseline(path)
        assert {figure.unit for figure in figures_in(kept)} >= {"ns", "ms", "ratio"}
        assert (kept["where"]["lab"], kept["where"]["kvm"], kept["where"]["quick"]) == (
            cpu,
            f"kvm_{cpu}",
            True,
        )
