"""What the package offers by name: __all__ is sorted, complete and true everywhere."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import pykvm

PACKAGE = Path(pykvm.__file__).parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(pykvm.__path__, "pykvm.")
    if m.name not in ("pykvm._native", "pykvm.__main__")
)
SORTED_BY = {True: str, False: str.casefold}


def source_of(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def names_in_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            found: list[str] = ast.literal_eval(node.value)
            return found
    return None


def test_every_public_name_of_the_package_resolves() -> None:
    """Each name in pykvm.__all__ is there, is what its own module says, and nothing else is lazy."""
    assert pykvm.__all__ == sorted(pykvm.__all__)
    assert set(pykvm.__all__) == set(pykvm._HOMES)
    for name in pykvm.__all__:
        found = getattr(pykvm, name)
        assert found is getattr(importlib.import_module(f"pykvm.{pykvm._HOMES[name]}"), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Names are looked up, not made up."""
    with pytest.raises(AttributeError, match="no attribute 'Hypervisor'"):
        _ = pykvm.Hypervisor


def test_all_is_sorted_and_every_name_in_it_is_defined() -> None:
    """__all__ is in order (constants, then classes, then functions, as the linter sorts), without doubles."""
    for module in MODULES:  # not a test each: there are many, and a test costs more than what it does here
        names = names_in_all(source_of(module)) or []  # a module without public names has no __all__
        kinds = [(0 if n.isupper() else 1 if n[0].isupper() else 2, n) for n in names]
        assert kinds == sorted(kinds), module
        assert len(names) == len(set(names)), module
        loaded = importlib.import_module(module)
        assert [n for n in names if not hasattr(loaded, n)] == [], module


def test_every_module_says_what_it_is() -> None:
    """A first docstring line, and __all__ wherever something is public."""
    for module in MODULES:
        tree = source_of(module)
        assert ast.get_docstring(tree), module
        public = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        ]
        assert not public or names_in_all(tree) is not None, module
