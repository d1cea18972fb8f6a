"""A figure of the bench, and a set of them as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pykvm.errors import ConfigError
from pykvm.kvm import Kvm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

__all__ = ["Figure", "as_json", "as_table", "figures_in", "in_turn", "measured", "read_baseline"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: the median of `samples` measurements, which lay between `low` and `high`.

    `limit` is what pykvm promises, at least where `more_is_better` and at most elsewhere; None where it
    promises nothing and the figure is there to explain another.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    more_is_better: bool = False
    low: float = 0.0
    high: float = 0.0
    samples: int = 1

    @property
    def is_met(self) -> bool | None:
        """Whether the promise holds here and now; None where there is none."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.more_is_better else self.value <= self.limit


def measured(
    name: str, values: Sequence[float], unit: str, limit: float | None = None, *, more: bool = False
) -> Figure:
    """The figure of several measurements; `more` is better."""
    return Figure(name, median(values), unit, limit, more, min(values), max(values), len(values))


def in_turn(what: str, names: Sequence[str], samples: int, progress: Callable[[str], None]) -> Iterator[str]:
    """Every name, as often as there are samples, in turn: a busy host slows them all."""
    for sample in range(samples):
        for name in names:
            progress(f"{what}, {name}, {sample + 1} of {samples}")
            yield name


def as_json(figures: Sequence[Figure], *, quick: bool) -> str:
    """The figures, and where they were taken."""
    with Kvm() as kvm:
        module = kvm.module()
    where = {
        "kvm": module,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "quick": quick,
    }
    rows = {figure.name: asdict(figure) | {"is_met": figure.is_met} for figure in figures}
    return json.dumps({"where": where, "figures": rows}, indent=2) + "\n"


def read_baseline(path: Path) -> Mapping[str, Any]:
    """What as_json() wrote. Raises ConfigError if it is not that."""
    try:
        found = json.loads(path.read_text())
        return {"where": found["where"], "figures": found["figures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a baseline of the bench: {error}") from None


def figures_in(found: Mapping[str, Any]) -> list[Figure]:
    """The figures that as_json() wrote. Raises ConfigError if they are not that."""
    try:
        return [
            Figure(**{name: value for name, value in row.items() if name != "is_met"})
            for row in found["figures"].values()
        ]
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"not figures of the bench: {error}") from None


def as_table(figures: Sequence[Figure], title: str, baseline: Mapping[str, Any] | None) -> Table:
    """The figures for people; with the change since `baseline` if there is one."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for column in ("median", "from", "to"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    promises = any(figure.limit is not None for figure in figures)
    for column in ("promised", "holds") if promises else ():
        table.add_column(column, justify="right")
    if baseline:
        quick = ", quick" if baseline["where"].get("quick") else ""
        table.add_column(f"was ({baseline['where'].get('kvm')}{quick})", justify="right")
        table.add_column("change", justify="right")
    for figure in figures:
        cells = _cells(figure) + (_promise(figure) if promises else ())
        table.add_row(*cells, *(_change(figure, baseline) if baseline else ()))
    return table


def _cells(figure: Figure) -> tuple[str, ...]:
    spread = (_number(figure.low), _number(figure.high)) if figure.samples > 1 else ("", "")
    return (figure.name, _number(figure.value), *spread, figure.unit)


def _promise(figure: Figure) -> tuple[str, str]:
    if figure.limit is None:
        return "", ""
    return f"{'>=' if figure.more_is_better else '<='} {figure.limit:g}", "yes" if figure.is_met else "no"


def _change(figure: Figure, baseline: Mapping[str, Any]) -> tuple[str, str]:
    before = baseline["figures"].get(figure.name, {}).get("value")
    if before is None:
        return "", "new"
    return _number(
        before
    ), f"{(figure.value - before) / before:+.1%}" if before else f"{figure.value - before:+g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
