"""What a probe found, as plain values."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Figure", "Outcome", "Result", "differs", "fails", "needless", "works"]


class Result(enum.StrEnum):
    """The word for what a probe found."""

    WORKS = "works"
    FAILS = "does not"
    HANGS = "hangs"
    DIFFERS = "differs"
    NEEDLESS = "not needed"  # a way round something that this KVM does not lack
    BROKEN = "broken"  # the probe itself went wrong: pykvm's own fault, not the KVM's


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: `what` took `value` `unit`."""

    what: str
    value: float
    unit: str

    def __str__(self) -> str:
        digits = 0 if self.value >= 100 else 1 if self.value >= 10 else 2
        return f"{self.what} {self.value:.{digits}f} {self.unit}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A probe's result, what there is to say about it, and what it measured."""

    result: Result
    detail: str = ""
    figures: tuple[Figure, ...] = ()

    @property
    def works(self) -> bool:
        """Whether what the probe asked for is there, as the manuals have it."""
        return self.result is Result.WORKS

    def __str__(self) -> str:
        return f"{self.result}: {self.detail}" if self.detail else str(self.result)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, which from_json() takes."""
        return {
            "result": str(self.result),
            "detail": self.detail,
            "figures": [asdict(figure) for figure in self.figures],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The outcome that as_json() wrote. Raises KeyError, TypeError or ValueError for anything else."""
        figures = tuple(Figure(**figure) for figure in found["figures"])
        return cls(Result(found["result"]), found["detail"], figures)


def works(detail: str = "", *figures: Figure) -> Outcome:
    """It is there and does what the manuals say."""
    return Outcome(Result.WORKS, detail, figures)


def fails(detail: str) -> Outcome:
    """It is not there."""
    return Outcome(Result.FAILS, detail)


def needless(detail: str) -> Outcome:
    """It is a way round something that is all right here."""
    return Outcome(Result.NEEDLESS, detail)


def differs(detail: str, *figures: Figure) -> Outcome:
    """It is there and does something else than the manuals say."""
    return Outcome(Result.DIFFERS, detail, figures)
