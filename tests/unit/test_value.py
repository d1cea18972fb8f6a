"""Values that are cheap to define, and what JSON gets of them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, NamedTuple

import pytest

from pykvm.exits import DebugExit, HltExit, IoExit, ShutdownExit
from pykvm.value import as_plain, value


@value
class _Point:
    """Two numbers."""

    x: int
    y: int = 7

    def __str__(self) -> str:
        return f"({self.x}|{self.y})"


class _Line(NamedTuple):
    ends: tuple[_Point, ...]
    names: dict[str, _Point]


def test_a_value_is_what_it_holds() -> None:
    """Fields in order, defaults, equality with its own kind alone, a hash, a repr, methods, match."""
    point, others = _Point(1), [(1, 7), HltExit(), ShutdownExit()]
    assert (point.x, point.y, str(point), repr(point)) == (1, 7, "(1|7)", "_Point(x=1, y=7)")
    assert point == _Point(1, y=7) != _Point(1, 8)
    assert {point, _Point(1, 7)} == {point}
    assert point not in others
    assert others.index(ShutdownExit()) == 2
    match point:
        case _Point(x, y):
            assert (x, y) == (1, 7)


def test_a_value_has_no_other_fields() -> None:
    """A wrong name, one too many or too few are errors at once."""
    point: Any = _Point(1)
    with pytest.raises(AttributeError):
        point.z = 1
    wrong: Any = IoExit
    for arguments in ((), (1, 2, 3, 4, 5, 6)):
        with pytest.raises(TypeError):
            wrong(*arguments)


@pytest.mark.parametrize("found", [_Point(3, 4), IoExit(0x3F8, 1, 1, True, b"a"), HltExit()])
def test_a_value_travels(found: object) -> None:
    """By pickle and by copy."""
    assert pickle.loads(pickle.dumps(found)) == copy.copy(found) == copy.deepcopy(found) == found  # noqa: S301


def test_plain_values_are_json() -> None:
    """Values and named tuples become objects, at any depth; tuples become lists."""
    line = _Line((_Point(1), _Point(2, 3)), {"a": _Point(4)})
    plain = as_plain(line)
    assert plain == {"ends": [{"x": 1, "y": 7}, {"x": 2, "y": 3}], "names": {"a": {"x": 4, "y": 7}}}
    assert json.loads(json.dumps(plain)) == plain
    assert as_plain(HltExit()) == {}
    assert as_plain(DebugExit(1, 2, 3, 4)) == {"exception": 1, "pc": 2, "dr6": 3, "dr7": 4}
