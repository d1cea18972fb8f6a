"""Values made often and defined cheaply: `@value` makes a class of its annotated fields.

They are compared, hashed and printed by what they hold, as frozen dataclasses are; type checkers see those.
Defining one takes a fifth of the time, which counts at each start of the command, and making one half: at run
time nothing stops who writes to a field. Where a tuple does as well, a NamedTuple is the plainer choice.
"""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

__all__ = ["as_plain", "value"]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def value(cls: type[_T]) -> type[_T]:
    """`cls` with __slots__ and an initializer for its fields, in their order; those with a default last."""
    names = tuple(vars(cls).get("__annotations__", ()))
    defaults = {name: vars(cls)[name] for name in names if name in vars(cls)}
    given = "".join(f", {name}=defaults[{name!r}]" if name in defaults else f", {name}" for name in names)
    body = "\n".join(f"    self.{name} = {name}" for name in names) or "    pass"
    made: dict[str, Any] = {}
    exec(f"def __init__(self{given}):\n{body}", {"defaults": defaults}, made)  # noqa: S102 - our own fields' names
    left = {key: item for key, item in vars(cls).items() if key not in {*names, "__dict__", "__weakref__"}}
    methods = {"__eq__": _is_equal, "__hash__": _hash, "__repr__": _repr}
    changed: type[_T] = type(
        cls.__name__, cls.__bases__, {**left, **methods, **made, "__slots__": names, "__match_args__": names}
    )
    return changed


def as_plain(found: Any) -> Any:
    """`found` with its values, named tuples among them, as dicts, and its other tuples as lists: for JSON."""
    names = getattr(found, "_fields", getattr(found, "__match_args__", None))
    if names is not None:
        return {name: as_plain(getattr(found, name)) for name in names}
    if isinstance(found, dict):
        return {key: as_plain(item) for key, item in found.items()}
    return [as_plain(item) for item in found] if isinstance(found, (list, tuple)) else found


def _held(self: Any) -> tuple[object, ...]:
    return tuple(getattr(self, name) for name in self.__match_args__)


def _is_equal(self: object, other: object) -> bool:
    return _held(self) == _held(other) if self.__class__ is other.__class__ else NotImplemented


def _hash(self: object) -> int:
    return hash((self.__class__, _held(self)))


def _repr(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{self.__class__.__qualname__}({fields})"
