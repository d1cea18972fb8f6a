"""Others judge our images: skopeo, umoci, Debian's registry and erofs-utils read what we write, and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.needs import NOT_HERE
from harness.programs import PACKAGES

from pykvm.cli import main
from pykvm.containers.layer import Kind
from pykvm.containers.layer_files import layer_files
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import tree_of
from pykvm.containers.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pykvm.containers.documents import Image
    from pykvm.containers.tree import Node

FILE = """FROM debian: busybox-static
COPY --chown=7:70000 tree /srv/tree
COPY {own} /etc/own
ENV WHO=me
LABEL org.what=it
CMD ["/bin/busybox", "sh"]
"""
LIMIT_S = 120


def program(name: str, *words: object) -> str:
    """Run a judge; what it prints. Any complaint fails."""
    done = subprocess.run(
        [needed(name), *map(str, words)], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needed(name: str) -> str:
    """Where a program is; a skip if it is not."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{NOT_HERE}{name}: there is no {name}; apt-get install {PACKAGES.get(name, name)}")
    return found


def skopeo_copy(source: str, target: str, *options: str) -> None:
    tls = [f"--{side}-tls-verify=false" for side in ("src", "dest")]
    program("skopeo", "copy", "--insecure-policy", *tls, *options, source, target)


def pykvm(store: ImageStore, *words: object) -> None:
    assert main(["image", "--root", str(store.root), *map(str, words)]) == 0


def image_of(store: ImageStore, name: str) -> Image:
    return store.image(store.find(name).descriptor)


def nodes_of(store: ImageStore, image: Image) -> dict[str, Node]:
    """What is at each path, as we lay the layers over each other."""
    return dict(tree_of(store, image.layers, with_content=True).walk())


def check_same(root: Path, nodes: dict[str, Node], bits: int = 0o7777) -> None:
    """Below a directory of the host is what the image has: kinds, modes, owners, contents, links."""
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == set(nodes)
    for name, node in nodes.items():
        about = (root / name).lstat()
        if not os.geteuid():
            assert (about.st_uid, about.st_gid) == (node.uid, node.gid), name
        if node.kind is Kind.SYMLINK:
            assert str((root / name).readlink()) == node.target
            continue
        assert about.st_mode & bits == node.mode & bits, name
        assert stat.S_ISDIR(about.st_mode) == (node.kind is Kind.DIRECTORY), name
        if node.kind is Kind.FILE:
            assert hashlib.sha256((root / name).read_bytes()).hexdigest() == node.content, name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """app:1 and app:2: three layers each, of Debian's packages and files; two of them shared."""
    needed("apt-get")
    folder = tmp_path_factory.mktemp("judged")
    tree = folder / "context" / "tree"
    (tree / "deep" / "empty").mkdir(parents=True)
    (tree / "large").write_bytes(bytes(range(256)) * 5000 + b"end")  # no hole: fsck.erofs 1.5 leaves them out
    (tree / "nothing").touch()
    (tree / ("n" * 200)).write_text("a long name")
    (tree / "ünï").symlink_to("../../etc/own")
    (tree / "deep" / "tool").write_text("#!/bin/sh\n")
    (tree / "deep" / "tool").chmod(0o4755)
    store = ImageStore(folder / "store")
    for at, own in enumerate(("one", "two"), 1):
        (folder / "context" / own).write_text(own)
        (folder / own).write_text(FILE.format(own=own))
        pykvm(store, "build", "-q", "-t", f"app:{at}", "-f", folder / own, folder / "context")
    return store


@pytest.fixture(scope="module")
def layout(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """app:1 saved as an OCI layout, in a directory."""
    folder = tmp_path_factory.mktemp("layout")
    pykvm(store, "save", "--format", "oci", "-o", folder / "saved.tar", "app:1")
    (folder / "oci").mkdir()
    subprocess.run(["tar", "-xf", folder / "saved.tar", "-C", folder / "oci"], check=True)
    return folder / "oci"


def test_skopeo_reads_what_we_save(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    """OCI layout and archive, docker's archive: the same digests, configuration and layers."""
    saved = tmp_path / "saved.tar"
    pykvm(store, "save", "-o", saved, "app:1", "app:2")
    one, two = image_of(store, "app:1"), image_of(store, "app:2")
    assert one.layers[:2] == two.layers[:2]
    told = json.loads(program("skopeo", "inspect", f"oci:{layout}:1"))
    assert (told["Digest"], told["Layers"]) == (one.digest, [layer.digest for layer in one.layers])
    assert "WHO=me" in told["Env"]
    assert told["Labels"] == {"org.what": "it"}
    told = json.loads(program("skopeo", "inspect", f"oci-archive:{saved}:2"))
    assert told["Digest"] == two.digest
    for source, image in (
        (f"docker-archive:{saved}:app:2", two),
        (f"oci-archive:{saved}:1", one),
        (f"oci:{layout}:1", one),
    ):
        config = json.loads(program("skopeo", "inspect", "--config", "--raw", source))
        assert config == image.settings
        skopeo_copy(source, f"dir:{tmp_path / 'copied'}", "--dest-decompress")
        files = {path.name for path in (tmp_path / "copied").iterdir()}
        assert {diff_id.removeprefix("sha256:") for diff_id in image.diff_ids} <= files
        shutil.rmtree(tmp_path / "copied")


def test_umoci_unpacks_what_we_save(store: ImageStore, layout: Path, tmp_path: Path) -> None:
    """Every file is what we take it for; what umoci then changes and packs is the difference that we see."""
    shutil.copytree(layout, tmp_path / "oci")
    image, steps = image_of(store, "app:1"), store.image(store.find("app:1").descriptor).settings["history"]
    told = json.loads(program("umoci", "stat", "--json", "--image", f"{layout}:1"))
    assert [one["layer"] and one["layer"]["digest"] for one in told["history"]] == [
        *[layer.digest for layer in image.layers],
        None,
        None,
        None,
    ]
    assert [one["created_by"] for one in told["history"]] == [one["created_by"] for one in steps]
    rootless = ["--rootless"] if os.geteuid() else []
    bundle = tmp_path / "bundle"
    program("umoci", "unpack", *rootless, "--image", f"{tmp_path / 'oci'}:1", bundle)
    check_same(bundle / "rootfs", nodes_of(store, image))

    shutil.rmtree(bundle / "rootfs" / "srv" / "tree" / "deep")
    (bundle / "rootfs" / "etc" / "own").write_text("umoci")
    (bundle / "rootfs" / "new").mkdir()
    (bundle / "rootfs" / "new" / "file").write_text("made by umoci")
    program("umoci", "repack", "--image", f"{tmp_path / 'oci'}:changed", bundle)
    program("umoci", "rm", "--image", f"{tmp_path / 'oci'}:1")
    pykvm(store, "load", "-q", "-t", "changed", "-i", tmp_path / "oci")
    changed = image_of(store, "changed")
    assert changed.diff_ids[:3] == image.diff_ids
    assert {path for path, node in nodes_of(store, changed).items() if node.layer == 3} >= {
        "etc/own",
        "new",
        "new/file",
    }
    check_same(bundle / "rootfs", nodes_of(store, changed))
    assert not verify(store).damage


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("docker-archive:{}/a.tar:app:9", []),
        ("oci-archive:{}/a.tar:app:9", []),
        ("oci:{}/a.tar:app:9", ["--dest-compress-format", "zstd", "--dest-compress"]),
        ("oci:{}/a.tar:app:9", ["--dest-decompress"]),
    ],
    ids=["docker", "oci", "zstd", "plain"],
)
def test_we_read_what_skopeo_writes(
    store: ImageStore, layout: Path, tmp_path: Path, target: str, options: list[str]
) -> None:
    """Docker's old archive, an OCI archive, layouts packed with zstd or not: one ID, the same files."""
    skopeo_copy(f"oci:{layout}:1", target.format(tmp_path), *options)
    other = ImageStore(tmp_path / "other")
    pykvm(other, "load", "-q", "-i", tmp_path / "a.tar")
    wanted, found = image_of(store, "app:1"), image_of(other, "app:9")
    assert found.diff_ids == wanted.diff_ids
    assert nodes_of(other, found) == nodes_of(store, wanted)
    packings = {other.note(layer).packing for layer in found.layers}
    assert packings == {{"oci": "gzip"}.get(target.partition("-")[0], "")} or "oci:" in target
    assert ("zstd" in packings) == ("zstd" in options)
    if "docker" not in target:
        assert found.id == wanted.id
    assert not verify(other).damage


@contextmanager
def debian_registry(folder: Path) -> Iterator[str]:
    """Debian's registry on loopback; its host and port."""
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (folder / "registry.yml").write_text(json.dumps(config))  # YAML has JSON in it
    log = folder / "registry.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [needed("docker-registry"), "serve", str(folder / "registry.yml")], stdout=file, stderr=file
        )
    try:
        ends = time.monotonic() + LIMIT_S
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.02)
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def test_debian_s_registry_takes_and_gives(
    store: ImageStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second image sends only its own layer; pulled back, all digests are the same; skopeo agrees."""

    def says(*words: object, root: ImageStore = store) -> list[str]:
        capsys.readouterr()
        pykvm(root, *words)
        return [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]

    with debian_registry(tmp_path) as host:
        assert says("push", "app:1", f"{host}/me/app:1")[1:4] == ["Pushed"] * 3
        again = ["Layer already exists"] * 2
        assert says("push", "app:2", f"{host}/me/app:2")[1:4] == [*again, "Pushed"]
        assert says("push", "app:2", f"{host}/me/app:2")[1:4] == [*again, "Layer already exists"]
        pykvm(store, "tag", "app:1", f"{host}/me/app:1")
        assert says("push", f"{host}/me/app:1", f"{host}/you/app:1")[1:4] == ["Mounted from me/app"] * 3
        other = ImageStore(tmp_path / "other")
        assert says("pull", f"{host}/me/app:1", root=other)[1:4] == ["Pull complete"] * 3
        assert says("pull", f"{host}/me/app:2", root=other)[1:4] == ["Already exists"] * 2 + ["Pull complete"]
        for at in (1, 2):
            wanted, found = image_of(store, f"app:{at}"), image_of(other, f"{host}/me/app:{at}")
            assert (found.digest, found.id, found.layers) == (wanted.digest, wanted.id, wanted.layers)
        told: Any = json.loads(
            program("skopeo", "inspect", "--tls-verify=false", f"docker://{host}/you/app:1")
        )
        assert told["Digest"] == image_of(store, "app:1").digest
        skopeo_copy(
            f"docker://{host}/me/app:2", f"docker://{host}/skopeo:gz", "--dest-compress", "--format=v2s2"
        )
        pykvm(other, "pull", "-q", f"{host}/skopeo:gz")
        assert image_of(other, f"{host}/skopeo:gz").diff_ids == image_of(store, "app:2").diff_ids
    assert not verify(other).damage


def test_erofs_utils_take_what_we_write(store: ImageStore, tmp_path: Path) -> None:
    """fsck.erofs finds nothing wrong with a layer's file, and takes out of it the files that are in it."""
    image = image_of(store, "app:1")
    for at, file in enumerate(layer_files(store, image)):
        program("fsck.erofs", f"--extract={tmp_path / str(at)}", file.path)
        nodes = dict(tree_of(store, [image.layers[at]], with_content=True).walk())
        check_same(tmp_path / str(at), nodes, bits=0o777)  # it drops the others
