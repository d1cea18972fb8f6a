"""Images loaded, kept, named, shown, saved and removed."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from image_parts import digest, docker_archive, entry, layer, layout, tar_of

from pykvm.cli import main
from pykvm.containers import views
from pykvm.containers.archive import load, save
from pykvm.containers.layer_files import layer_files
from pykvm.containers.names import parse_name
from pykvm.containers.removal import collect_garbage, remove
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import changes_between, layered_changes
from pykvm.containers.verify import verify
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIR = tarfile.DIRTYPE
BASE = layer(
    entry("bin", kind=DIR), entry("bin/sh", b"#!" * 50), entry("etc", kind=DIR), entry("etc/a", b"1")
)
APP = layer(entry("etc", kind=DIR), entry("etc/.wh.a"), entry("etc/b", b"22"), entry("bin/sh", b"new"))
MORE = layer(entry("opt", kind=DIR), entry("opt/x", b"xyz"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def loaded(store: ImageStore, files: dict[str, bytes]) -> list[str]:
    return [one.image.id for one in load(store, io.BytesIO(tar_of(files)))]


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def whole(store: ImageStore) -> list[str]:
    """Read every byte of every image; their names."""
    for found in store.entries():
        for one in store.image(found.descriptor).layers:
            with store.open_layer(one) as reader:
                assert list(reader)
    return [found.name.familiar if found.name else "" for found in store.entries()]


def test_each_form_of_archive_gives_the_same_image(store: ImageStore, tmp_path: Path) -> None:
    """Old docker archives, OCI layouts as tar and directory, packed in and out: one ID, same layers."""
    files = layout([BASE, APP], name="docker.io/library/app:1")
    ids = loaded(store, docker_archive([BASE, APP], ["app:1"])) + loaded(store, files)
    for name, data in files.items():
        path = tmp_path / "layout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    ids += [one.image.id for one in load(store, tmp_path / "layout")]
    for packed in (gzip.compress(tar_of(files)), zstandard.compress(tar_of(files))):
        (tmp_path / "packed").write_bytes(packed)
        ids += [one.image.id for one in load(store, tmp_path / "packed", parse_name("x/y").with_tag())]
    gzipped = [gzip.compress(BASE[:3000]) + gzip.compress(BASE[3000:]), zstandard.compress(APP)]
    ids += loaded(store, layout([BASE, APP], gzipped, name="a:packed"))
    assert len(set(ids)) == 1
    assert {"app:1", "x/y:latest", "a:packed"} <= set(whole(store))
    notes = [store.note(one) for one in store.image(store.find("a:packed").descriptor).layers]
    assert [note.diff_id for note in notes] == [digest(BASE), digest(APP)]


def test_saved_is_loaded_again_with_the_same_digests(store: ImageStore, tmp_path: Path) -> None:
    """What is saved has every name and digest, is the same each time, and needs no manifest.json for OCI."""
    loaded(store, docker_archive([BASE, APP], ["app:1", "host:5000/app:2"]))
    loaded(store, docker_archive([BASE, MORE], ["more"]))
    entries = [store.find(name) for name in ("app:1", "host:5000/app:2", "more")]
    save(store, entries, tmp_path / "saved")
    again = io.BytesIO()
    save(store, entries, again)
    assert (tmp_path / "saved").read_bytes() == again.getvalue()
    names = names_in(tmp_path / "saved")
    assert len(names) == len(set(names))
    assert sum(name.startswith("blobs/sha256/") for name in names) == 3 + 2 + 2
    other = ImageStore(tmp_path / "other")
    load(other, tmp_path / "saved")
    assert {(one.descriptor.digest, one.name) for one in other.entries()} == {
        (one.descriptor.digest, one.name) for one in entries
    }
    save(store, entries[:1], tmp_path / "oci", docker=False)
    assert "manifest.json" not in names_in(tmp_path / "oci")
    with tarfile.open(tmp_path / "saved") as saved:  # the way docker goes
        only = {name: saved.extractfile(name).read() for name in names if saved.getmember(name).isreg()}  # type: ignore[union-attr]
    del only["index.json"]
    third = ImageStore(tmp_path / "third")
    assert sorted(set(loaded(third, only))) == sorted({store.image(one.descriptor).id for one in entries})


def test_layers_are_shared_and_go_with_their_last_image(store: ImageStore) -> None:
    """Two images with a common base keep it once; removing one leaves the other whole."""
    loaded(store, docker_archive([BASE, APP], ["one"]))
    loaded(store, docker_archive([BASE, MORE], ["two"]))
    assert len(list(store.blobs.directory.iterdir())) == 3 + 2 + 2
    with store.using():
        store.tag(store.find("one").descriptor, parse_name("also:3"))
    assert remove(store, "one").deleted == []
    assert digest(APP) in remove(store, "also:3").deleted
    assert whole(store) == ["two:latest"]
    with pytest.raises(ImageNotFoundError, match="no such image: one"):
        store.find("one")
    removed = remove(store, store.image(store.find("two").descriptor).id[7:15])
    assert removed.untagged == ["two:latest"]
    assert not list(store.blobs.directory.iterdir())


def test_a_name_that_moves_leaves_an_image_without_one(store: ImageStore) -> None:
    """The image it stood for stays, is shown as <none>, and goes with gc --untagged, not before."""
    first = loaded(store, docker_archive([BASE], ["app"]))[0]
    loaded(store, docker_archive([BASE, MORE], ["app"]))
    assert [row["repository"] for row in views.rows(store)].count("<none>") == 1
    assert store.image(store.find(first).descriptor).id == first
    assert not collect_garbage(store).deleted
    would = collect_garbage(store, untagged=True, dry_run=True)
    assert collect_garbage(store, untagged=True).deleted == would.deleted != []
    assert whole(store) == ["app:latest"]


def test_a_killed_load_leaves_the_store_whole(store: ImageStore) -> None:
    """Killed before any of its renames and syncs: what the index names is complete, the rest is swept."""
    loaded(store, docker_archive([BASE], ["base"]))
    data, ended, step = tar_of(docker_archive([BASE, APP], ["app"])), False, 0
    while not ended:
        step += 2
        child = os.fork()
        if child == 0:
            left = [step]

            def counted(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def call(*words: Any) -> Any:
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*words)

                return call

            os.replace, os.fsync = counted(os.replace), counted(os.fsync)
            try:
                load(store, io.BytesIO(data))
            finally:
                os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert whole(store)[:1] == ["base:latest"]
        (store.blobs.incoming / ".new-folder").mkdir()
        collect_garbage(store)
        assert not list(store.blobs.incoming.iterdir())
    assert step > 15  # there were that many places to die at
    assert whole(store) == ["base:latest", "app:latest"]


def test_a_damaged_blob_is_told_and_not_passed_on(store: ImageStore, tmp_path: Path) -> None:
    """Reading, saving and comparing verify: a flipped bit is an error, and no file appears."""
    loaded(store, docker_archive([BASE], ["app"]))
    path = store.blobs.path(digest(BASE))
    path.write_bytes(BASE.replace(b"#!", b"#?", 1))
    with pytest.raises(ImageError, match="damaged"):
        save(store, [store.find("app")], tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".new")]
    with pytest.raises(ImageError, match="damaged"):
        whole(store)
    store.blobs.path(store.image(store.find("app").descriptor).id).unlink()
    row = views.rows(store)[0]
    assert (row["repository"], row["size_bytes"]) == ("app", 0)
    assert "not in the store" in row["damage"]
    loaded(store, docker_archive([BASE], ["app"]))
    assert whole(store) == ["app:latest"]


def test_verify_finds_every_kind_of_damage(store: ImageStore) -> None:
    """In blobs, notes, file systems, the index, what is missing; repaired and loaded again, all is well."""
    loaded(store, docker_archive([BASE, APP], ["app"]))
    loaded(store, docker_archive([BASE, MORE], ["more"]))
    image = store.image(store.find("app").descriptor)
    kept = [one.path for one in layer_files(store, image)]
    sound = verify(store)
    assert (sound.images, sound.blobs, sound.file_systems, sound.damage) == (2, 7, 2, [])
    for harm, told in (
        (store.blobs.path(digest(MORE)), [digest(MORE), "more:latest"]),
        (store.blobs.path(image.id), [image.id, "app:latest"]),
        (store.blobs.path(image.digest), [image.digest, "app:latest"]),
        (store.note_path(digest(APP)), [f"layers/{digest(APP)[7:]}.json"]),
        (kept[1], [f"erofs/{kept[1].name}"]),
    ):
        data = bytearray(harm.read_bytes())
        data[len(data) // 2] ^= 1
        harm.write_bytes(data)
        assert [one.what for one in verify(store).damage] == told
        repaired = verify(store, repair=True)
        assert [one.what for one in repaired.damage] == told
        assert len(repaired.lost) == (len(told) if len(told) == 2 else 0)
        again = [one.what for one in verify(store).damage]
        assert again == told[1:]
        loaded(store, docker_archive([BASE, APP], ["app"]))
        loaded(store, docker_archive([BASE, MORE], ["more"]))
        assert verify(store).damage == []
    (store.blobs.directory / "left").touch()
    assert [one.what for one in verify(store).damage] == ["blobs/sha256/left"]
    (store.root / "index.json").write_bytes(b"{")
    assert [one.what for one in verify(store).lost] == ["blobs/sha256/left", "index.json"]


def test_what_is_damaged_comes_anew_with_its_image(store: ImageStore) -> None:
    """Loading an image again puts sound documents in the place of damaged ones."""
    loaded(store, docker_archive([BASE], ["app"]))
    for one in store.blobs.directory.iterdir():
        one.write_bytes(bytes(one.stat().st_size))
    assert len(verify(store).damage) == 4
    loaded(store, docker_archive([BASE], ["app"]))
    assert verify(store).damage == []


def test_differences_of_images_and_layers(store: ImageStore) -> None:
    """Between images and layer by layer: added, changed, deleted, whiteouts done, times left alone."""
    touched = layer(entry("etc", kind=DIR, mtime=5), entry("etc/a", b"1", mtime=7))
    loaded(store, docker_archive([BASE, touched], ["old"]))
    loaded(store, docker_archive([BASE, APP, MORE], ["new"]))
    old, new = (store.image(store.find(name).descriptor) for name in ("old", "new"))
    assert [(one.kind, one.path) for one in changes_between(store, old, new)] == [
        ("C", "bin/sh"),
        ("D", "etc/a"),
        ("A", "etc/b"),
        ("A", "opt"),
        ("A", "opt/x"),
    ]
    found = layered_changes(store, old, new)
    assert [(one.side, one.diff_id) for one in found] == [
        ("=", digest(BASE)),
        ("-", digest(touched)),
        ("+", digest(APP)),
        ("+", digest(MORE)),
    ]
    assert [(one.kind, one.path) for one in found[2].changes] == [
        ("C", "bin/sh"),
        ("D", "etc/a"),
        ("A", "etc/b"),
    ]
    assert found[1].changes == []


def test_the_tree_shows_shared_layers_once(store: ImageStore) -> None:
    """Virtual sizes add up along the way, tags stand at the top layers."""
    loaded(store, docker_archive([BASE, APP], ["one"]))
    loaded(store, docker_archive([BASE, MORE], ["two"]))
    assert views.tree_lines(views.layer_tree(store)) == [
        f"└─ {digest(BASE)[7:19]}  Size: 101B  Virtual Size: 101B",
        f"   ├─ {digest(APP)[7:19]}  Size: 5B  Virtual Size: 106B  Tags: one:latest",
        f"   └─ {digest(MORE)[7:19]}  Size: 3B  Virtual Size: 104B  Tags: two:latest",
    ]


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("me/app:1.2", "docker.io/me/app:1.2", "me/app:1.2"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("host:5000/a/b:c", "host:5000/a/b:c", "host:5000/a/b:c"),
        ("index.docker.io/library/x", "docker.io/library/x:latest", "x:latest"),
        (f"x@sha256:{'a' * 64}", f"docker.io/library/x@sha256:{'a' * 64}", f"x@sha256:{'a' * 64}"),
    ],
)
def test_names_are_docker_s(text: str, full: str, familiar: str) -> None:
    """Left-out parts are filled in, and left out again for people."""
    name = parse_name(text).with_tag()
    assert (name.full, name.familiar) == (full, familiar)


@pytest.mark.parametrize(
    "text", ["", "Busybox", "a:", "a b", "../x", "a//b", "a@sha256:12", "a:b c", "x" * 300, "-a/b:c"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """In one line that names it."""
    with pytest.raises(ConfigError, match="is no image name"):
        parse_name(text)


def test_the_commands_speak_docker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """load, ls, history, inspect, diff, tag, rm, gc and save, and what they print."""
    monkeypatch.setenv("PYKVM_DATA", str(tmp_path / "data"))
    steps = [{"created_by": "COPY . /"}, {"created_by": "ENV A=1", "empty_layer": True}]
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        tar_of(docker_archive([BASE], ["app:1"], history=steps, created="2020-01-01T00:00:00Z"))
    )

    def says(*words: str, status: int = 0) -> str:
        assert main(["image", *words]) == status
        out, err = capsys.readouterr()
        return err if status else out

    assert says("load", "-i", str(archive)) == "Loaded image: app:1\n"
    head, row = says("ls").splitlines()
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert row.split()[:2] + row.split()[-1:] == ["app", "1", "101B"]
    image_id = json.loads(says("ls", "--json"))[0]["id"]
    assert says("ls", "-q") == f"{image_id[7:19]}\n"
    assert [one.split()[0] for one in says("history", "app:1").splitlines()] == [
        "IMAGE",
        image_id[7:19],
        "<missing>",
    ]
    shown = json.loads(says("inspect", "app:1"))[0]
    assert shown["Id"] == image_id
    assert shown["RootFS"]["Layers"] == [digest(BASE)]
    assert says("tag", "app:1", "app:2") == ""
    assert says("diff", "app:1", "app:2") == ""
    assert "    A /etc/a\n" in says("diff", "app:1")
    assert says("save", "-o", str(tmp_path / "out.tar"), "app:2") == ""
    assert says("verify").startswith("images: 1, blobs: 3, file systems: 0; ")
    assert json.loads(says("verify", "--json"))["damage"] == []
    assert says("ls", "app:2", "-q") == says("ls", "app", "-q") == f"{image_id[7:19]}\n"
    assert says("ls", "other", "-q") == says("ls", "other", "--tree") == ""
    assert "is no image name" in says("ls", "a b", status=125)
    assert "+ layer " + digest(BASE)[7:19] + "  COPY . /\n" in says("diff", "app:1")
    assert (
        says("rm", "gone", "app:1", "Bad", status=125)
        .splitlines()[0]
        .startswith("pykvm: no such image: gone")
    )
    assert json.loads(says("rm", "--json", "app:2"))["untagged"] == ["app:2"]
    assert says("gc") == "Total reclaimed space: 0B\n"
    assert says("ls", "--tree") == ""
    told = json.loads(says("load", "--json", "-i", str(tmp_path / "out.tar")))
    assert [(one["name"], one["id"]) for one in told] == [("app:2", image_id)]
    assert "no such image: nothing" in says("rm", "nothing", status=127)
    assert "no such file" in says("load", "-i", str(tmp_path / "none"), status=127)
    assert "app:2: this image has several" not in says("rm", image_id[7:19])
