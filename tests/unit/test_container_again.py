"""Containers that have ended: their changes over each other, their files, next start and image."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_parts import docker_archive, entry, layer, tar_of

from pykvm.containers.archive import load
from pykvm.containers.changes import upper_of
from pykvm.containers.copying import pack
from pykvm.containers.ended import EndedFiles
from pykvm.containers.image_use import InUseError
from pykvm.containers.kept import files_of, kept_layer
from pykvm.containers.layer import LayerReader
from pykvm.containers.limits import Limits
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.records import ContainerStore, NameTakenError, Record, StateError, new_id
from pykvm.containers.removal import collect_garbage, remove
from pykvm.containers.run_options import RunOptions
from pykvm.containers.store import ImageStore
from pykvm.containers.tarstream import buffered
from pykvm.containers.tree import FileTree
from pykvm.containers.uppers import merge
from pykvm.containers.users import User
from pykvm.errors import ConfigError, ImageNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

DIR, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
NAMES = ["a", "b", "c"]
PATHS = [*NAMES, *(f"{x}/{y}" for x in NAMES for y in NAMES), "a/b/a", "a/b/c", "b/a/c"]


def tar_from(wishes: dict[str, str], text: bytes) -> bytes:
    """A layer of sound entries: what stands below a file, or links to nothing, is left out."""
    parts = []
    kinds: dict[str, str] = {}
    folders = {path[:at]: "dir" for path in wishes for at, sign in enumerate(path) if sign == "/"}
    for path, kind in sorted((folders | wishes).items()):
        folder, _, name = path.rpartition("/")
        above = [path[:at] for at, sign in enumerate(path) if sign == "/"]
        if any(kinds.get(one, "dir") not in {"dir", "opaque"} for one in above):
            continue
        if kind == "link":
            target = next((one for one, what in kinds.items() if what == "file"), "")
            if not target:
                continue
            parts.append(entry(path, kind=LINK, linkname=target))
        elif kind in {"dir", "opaque"}:
            parts.append(entry(path, kind=DIR, mode=0o755 - len(text), mtime=len(text)))
            if kind == "opaque":
                parts.append(entry(f"{path}/.wh..wh..opq"))
        elif kind == "gone":
            parts.append(entry(f"{folder}/.wh.{name}".lstrip("/")))
        elif kind == "soft":
            parts.append(entry(path, kind=SYMLINK, linkname=text.decode()))
        else:
            parts.append(entry(path, text + path.encode()))
        kinds[path] = kind
    return layer(*parts)


LAYERS = st.dictionaries(
    st.sampled_from(PATHS), st.sampled_from(["file", "dir", "gone", "opaque", "link", "soft"]), max_size=9
)


def seen(*tars: bytes) -> dict[str, tuple[Any, ...]]:
    """All files of layers laid over each other."""
    tree = FileTree()
    for tar in tars:
        tree.apply(LayerReader(buffered(io.BytesIO(tar)), "layer", Limits()), with_content=True)
    return {
        path: (node.kind, node.mode, node.content, node.target, node.is_implied) for path, node in tree.walk()
    }


@given(LAYERS, LAYERS, LAYERS)
def test_two_tars_of_changes_are_one(below: dict[str, str], one: dict[str, str], two: dict[str, str]) -> None:
    """Whatever both change, over whatever image: the merged tar gives the files that the two give in turn."""
    image = tar_from({path: kind for path, kind in below.items() if kind not in {"gone", "opaque"}}, b"image")
    earlier, later = tar_from(one, b"earlier"), tar_from(two, b"later!!")
    merged = io.BytesIO()
    merge(io.BytesIO(earlier), io.BytesIO(later), merged)
    assert seen(image, merged.getvalue()) == seen(image, earlier, later)


BASE = layer(
    entry("etc", kind=DIR, mode=0o711, mtime=5),
    entry("etc/a", b"old"),
    entry("data", kind=DIR),
    entry("data/big", b"b" * 3000),
    entry("data/link", kind=LINK, linkname="data/big"),
    entry("way", kind=SYMLINK, linkname="/data"),
    entry("loop", kind=SYMLINK, linkname="loop"),
)
UPPER = layer(entry("etc", kind=DIR, mode=0o711, mtime=9), entry("etc/a", b"new"), entry("data/.wh.big"))


class Made:
    """An image, and a container of it that has ended."""

    def __init__(self, root: Path) -> None:
        self.images = ImageStore(root)
        self.image = load(self.images, io.BytesIO(tar_of(docker_archive([BASE], ["base"]))))[0].image
        self.containers = ContainerStore(root)
        self.record = self.add("web")
        (self.containers.folder(self.record) / "upper.tar").write_bytes(UPPER)
        self.record = self.containers.set(self.record.id, state="exited", status=3)

    def add(self, name: str, **parts: Any) -> Record:
        """One more."""
        record = Record(new_id(), name, "base", self.image.id, [], 1, "lab", ["x"], **parts)
        settings, root = {"Cmd": ["x"]}, User(0, 0, (), "")
        return self.containers.add(
            record, lambda one: oci_config(settings, RunOptions(), root, Place(one.id, one.first_id, (6, 1)))
        )

    def files(self) -> EndedFiles:
        """Those of the container, as they are now."""
        with upper_of(self.containers, self.record, None) as upper:
            return EndedFiles(self.images, self.image, io.BytesIO(upper.read()), self.record)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """An image and a container."""
    return Made(tmp_path / "data")


def copied(files: EndedFiles, path: str, **how: bool) -> dict[str, bytes]:
    """What `cp` would bring: names, and what is in the files."""
    target = io.BytesIO()
    files.copy_out(path, target, **({"follow": False} | how))
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as tar:
        return {
            one.name: (tar.extractfile(one) or io.BytesIO()).read() if one.isreg() or one.islnk() else b""
            for one in tar
        }


def test_files_come_out_of_a_container_that_has_ended(made: Made) -> None:
    """Changed ones as they are now, by links in the path, a hard link without the file that it was one to."""
    files = made.files()
    assert copied(files, "/etc") == {"etc": b"", "etc/a": b"new"}
    assert copied(files, "/way") == {"way": b""}
    with pytest.raises(ConfigError, match="Could not find the file /way/big in container web"):
        copied(files, "/way/big")
    with pytest.raises(ConfigError, match="too many levels"):
        copied(files, "/loop/x")
    (made.containers.folder(made.record) / "upper.tar").write_bytes(layer())
    assert copied(made.files(), "/way/link") == {"link": b"b" * 3000}
    whole = {"way": b"", "way/big": b"b" * 3000, "way/link": b"b" * 3000}
    assert copied(made.files(), "/way", follow=True) == whole


def test_files_go_into_a_container_that_has_ended(made: Made, tmp_path: Path) -> None:
    """By a link, beside what it changed; directories stay as they are; what does not fit changes nothing."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_bytes(b"host")
    tar = io.BytesIO()
    pack(tmp_path / "src", tar, "src")
    tar.seek(0)
    made.files().copy_in(made.containers, tar, "/way")
    assert copied(made.files(), "/data/src") == {"src": b"", "src/f": b"host"}
    assert copied(made.files(), "/etc/a") == {"a": b"new"}
    before = (made.containers.folder(made.record) / "upper.tar").read_bytes()
    for hostile in (
        layer(entry("etc", b"a file")),
        layer(entry("etc/a", kind=DIR)),
        layer(entry("good", b"1"), entry(".wh.etc")),
        layer(entry("etc/a/below", b"1")),
    ):
        with pytest.raises(ConfigError):
            made.files().copy_in(made.containers, io.BytesIO(hostile), "/")
    assert (made.containers.folder(made.record) / "upper.tar").read_bytes() == before
    node = made.files().tree.get("etc")
    assert node
    assert node.mode == 0o711


def test_a_next_start_has_free_users_and_its_own_files(made: Made) -> None:
    """Its changes become a layer; whoever has its users by now keeps them; one that runs is not started."""
    other = made.add("other")
    assert other.first_id == made.record.first_id
    key = kept_layer(made.images, made.containers, made.record, made.image)
    again = made.containers.revive(made.record, key)
    assert (again.state, again.status, again.kept) == ("created", 0, key)
    assert again.first_id != other.first_id
    linux = made.containers.config(again)["linux"]
    assert linux["uidMappings"][0]["hostID"] == linux["gidMappings"][0]["hostID"] == again.first_id
    (top,) = files_of(made.containers, again)
    assert (top.key, top.path.stat().st_size) == (key, top.size_bytes)
    assert kept_layer(made.images, made.containers, other, made.image) == "", "it has changed nothing"
    made.containers.set(again.id, state="running")
    with pytest.raises(StateError, match="running already"):
        made.containers.revive(again, "")


def test_a_name_is_given_anew(made: Made) -> None:
    """Not one that another has, nor one that is none."""
    made.add("other")
    assert made.containers.rename(made.record, "new").name == "new"
    assert made.containers.find("new").id == made.record.id
    with pytest.raises(NameTakenError, match="already in use"):
        made.containers.rename(made.record, "other")
    with pytest.raises(ConfigError, match="Invalid container name"):
        made.containers.rename(made.record, "../x")


def test_an_image_stays_while_a_container_needs_it(made: Made) -> None:
    """By name, by ID, or swept: refused in docker's words; forced, a running container keeps it, nameless."""
    digits = made.image.id[7:19]
    with pytest.raises(InUseError, match=r'"base:latest" \(must force\) - container .{12} is using'):
        remove(made.images, "base")
    with pytest.raises(InUseError, match=rf"delete {digits} \(must be forced\) - .* by stopped container"):
        remove(made.images, digits)
    made.images.tag(made.images.find("base").descriptor, None)
    made.containers.set(made.record.id, state="running")
    assert remove(made.images, "base", force=True).deleted == []
    with pytest.raises(InUseError, match="cannot be forced"):
        remove(made.images, digits, force=True)
    assert collect_garbage(made.images, untagged=True).deleted == []
    assert made.images.find(digits).name is None
    made.containers.remove(made.record)
    assert made.image.id in collect_garbage(made.images, untagged=True).deleted
    with pytest.raises(ImageNotFoundError):
        made.images.find(digits)


def test_a_stopped_container_loses_its_image_by_force(made: Made) -> None:
    """As docker has it; with another name left, none is needed."""
    made.images.tag(made.images.find("base").descriptor, replace(made.images.entries()[0].name, tag="2"))  # type: ignore[type-var]
    assert remove(made.images, "base:2").deleted == []
    assert made.image.id in remove(made.images, "base", force=True).deleted
