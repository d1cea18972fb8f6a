"""Layers laid over each other are what a simple model says, however they hide, replace and come in order."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import docker_archive, entry, layer, tar_of

from pykvm.containers.archive import load
from pykvm.containers.layer import Kind, LayerReader
from pykvm.containers.limits import Limits
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import FileTree, changes_between, read_file

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pykvm.containers.documents import Image

DIR, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE

Model = dict[str, str]  # path -> d, or f and what is in it, or l and where it leads
Step = tuple[str, str, str]  # (f, d, l, whiteout or opaque; path; content)

paths = st.lists(st.sampled_from(["a", "b", "ü", ".c"]), min_size=1, max_size=3).map("/".join)
steps = st.tuples(st.sampled_from(["f", "f", "d", "l", "whiteout", "opaque"]), paths, st.sampled_from("xyz"))
layers = st.lists(st.lists(steps, max_size=6), min_size=1, max_size=4)


def below(path: str, model: Model) -> list[str]:
    return [one for one in model if one.startswith(f"{path}/")]


def sound(said: list[Step]) -> list[Step]:
    """Those steps that can stand in one tar together: each path once, below directories only."""
    found: list[Step] = []
    kinds: Model = {}
    for what, path, content in said:
        parts = path.split("/")
        above = ["/".join(parts[:at]) for at in range(1, len(parts))] + ([path] if what == "opaque" else [])
        is_entry = what not in {"whiteout", "opaque"}
        if any(kinds.get(one, "d") != "d" for one in above) or (is_entry and path in kinds):
            continue
        kinds |= dict.fromkeys(above, "d") | ({path: what} if is_entry else {})
        found.append((what, path, content))
    return found


def over(lower: Model, said: list[Step]) -> Model:
    """What is there with one more layer, by the words of the specification: first hide, then put."""
    model = dict(lower)
    for what, path, _ in said:
        gone = below(path, model) if what in {"whiteout", "opaque"} else []
        for one in gone + [path] * (what == "whiteout"):
            model.pop(one, None)
    for what, path, content in said:
        parts = path.split("/")
        for at in range(1, len(parts) + (what in {"opaque", "d"})):
            model["/".join(parts[:at])] = "d"
        if what in {"f", "l"}:
            for one in below(path, model):
                del model[one]
            model[path] = f"{what}{content}"
    return model


def tar(said: list[Step]) -> bytes:
    entries = []
    for what, path, content in said:
        folder, _, name = path.rpartition("/")
        if what == "whiteout":
            entries.append(entry(f"{folder}/.wh.{name}".lstrip("/")))
        elif what == "opaque":
            entries.append(entry(f"{path}/.wh..wh..opq"))
        elif what == "f":
            entries.append(entry(path, content.encode()))
        else:
            entries.append(entry(path, kind=DIR if what == "d" else SYMLINK, linkname=content))
    return layer(*entries)


def image_of(store: ImageStore, said: list[list[Step]]) -> Image:
    archive = docker_archive([tar(one) for one in said], [])
    return load(store, io.BytesIO(tar_of(archive)))[0].image


def shown(tree: FileTree) -> Model:
    marks = {Kind.DIRECTORY: "d", Kind.FILE: "f", Kind.SYMLINK: "l"}
    return {path: marks[node.kind] + node.target + node.content for path, node in tree.walk()}


@given(layers)
def test_layers_over_each_other_are_what_the_model_says(said: list[list[Step]]) -> None:
    """Whiteouts and opaque directories take away what is below and nothing of their own layer's."""
    tree, model = FileTree(), Model()
    for one in map(sound, said):
        model = over(model, one)
        reader = LayerReader(io.BufferedReader(io.BytesIO(tar(one))), "layer", Limits())
        tree.apply(reader, with_content=False)
        assert {path: text[:1] for path, text in shown(tree).items()} == {
            path: text[:1] for path, text in model.items()
        }


@settings(max_examples=20)
@given(layers)
def test_a_file_is_read_as_the_layers_show_it(
    tmp_path_factory: pytest.TempPathFactory, said: list[list[Step]]
) -> None:
    """From the topmost layer that has it, and not where one above hides it, or a directory above it."""
    store = ImageStore(tmp_path_factory.mktemp("store"))
    model: Model = {}
    for one in map(sound, said):
        model = over(model, one)
    image = image_of(store, [sound(one) for one in said])
    for path in {path for one in said for _, path, _ in one}:
        wanted = model.get(path, "")
        found = read_file(store, image.layers, path, 9)
        assert found == (wanted[1:].encode() if wanted.startswith("f") else None), path


@settings(max_examples=15)
@given(layers, layers)
def test_differences_are_those_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, one: list[list[Step]], other: list[list[Step]]
) -> None:
    """Between any two images: what is added, changed, deleted."""
    store = ImageStore(tmp_path_factory.mktemp("store"))
    models = []
    for said in (one, other):
        models.append(Model())
        for step in map(sound, said):
            models[-1] = over(models[-1], step)
    old, new = (image_of(store, [sound(step) for step in said]) for said in (one, other))
    found = {change.path: change.kind for change in changes_between(store, old, new)}
    before, after = models
    wanted = dict.fromkeys(before.keys() - after.keys(), "D")
    wanted |= dict.fromkeys(after.keys() - before.keys(), "A")
    wanted |= {path: "C" for path in before.keys() & after.keys() if before[path] != after[path]}
    assert found == wanted


def test_a_file_is_read_through_its_hard_link(tmp_path: Path) -> None:
    """A link's content is in its own layer, whatever is above its first name."""
    store = ImageStore(tmp_path)
    base = layer(entry("x", b"base"), entry("a", kind=LINK, linkname="x"))
    archive = docker_archive([base, layer(entry("x", b"new"))], [])
    image = load(store, io.BytesIO(tar_of(archive)))[0].image
    assert read_file(store, image.layers, "a", 9) == b"base"
    assert read_file(store, image.layers, "x", 9) == b"new"
