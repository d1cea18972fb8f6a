"""Archives made to do harm: each is refused in one line, and the store is as it was."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import config_of, digest, docker_archive, entry, layer, layout, tar_of

from pykvm.cli import main
from pykvm.containers.archive import load
from pykvm.containers.layer import Kind, LayerReader
from pykvm.containers.limits import Limits
from pykvm.containers.store import ImageStore
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

DIR, LINK, SYMLINK, CHAR = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE
GOOD = layer(entry("etc", kind=DIR), entry("etc/a", b"1" * 5000))
SMALL = Limits(image_bytes=1 << 20, entries=100, devices=4)


def refused(tmp_path: Path, files: dict[str, bytes] | bytes, why: str) -> None:
    """Loading raises ImageError with one line that says why, and leaves nothing behind."""
    store = ImageStore(tmp_path / "store", SMALL)
    data = files if isinstance(files, bytes) else tar_of(files)
    with pytest.raises(ImageError, match=why) as caught:
        load(store, io.BytesIO(data))
    assert "\n" not in str(caught.value)
    assert store.entries() == []
    assert not list(store.blobs.incoming.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


HOSTILE_LAYERS = {
    "absolute": ([entry("/etc/passwd", b"x")], "absolute"),
    "dot-dot": ([entry("a/../../x", b"x")], r"\.\."),
    "dot-dot whiteout": ([entry("a/.wh...")], "whiteout of nothing"),
    "empty whiteout": ([entry(".wh.")], "whiteout of nothing"),
    "below a link": ([entry("a", kind=SYMLINK, linkname="/"), entry("a/x", b"")], "no directory"),
    "below a file": ([entry("a", b""), entry("a/b/x", b"")], "no directory"),
    "a directory turned link": ([entry("a/x", b""), entry("a", kind=SYMLINK, linkname="/")], "twice"),
    "hard link out": ([entry("a", kind=LINK, linkname="../../etc/shadow")], r"\.\."),
    "hard link absolute": ([entry("a", kind=LINK, linkname="/etc/shadow")], "absolute"),
    "hard link to nothing": ([entry("a", kind=LINK, linkname="b")], "no file in this layer"),
    "hard link to itself": ([entry("a", kind=LINK, linkname="a")], "no file in this layer"),
    "hard link to a directory": ([entry("d", kind=DIR), entry("a", kind=LINK, linkname="d")], "no file in"),
    "empty symlink": ([entry("a", kind=SYMLINK, linkname="")], "symbolic link"),
    "twice": ([entry("a", b"1"), entry("./a", b"2")], "comes twice"),
    "not UTF-8": ([entry("caf\udce9", b"")], "not UTF-8"),
    "link not UTF-8": ([entry("a", kind=SYMLINK, linkname="\udcff")], "symbolic link"),
    "long name": ([entry("x" * 256, b"")], "255"),
    "long path": ([entry("x/" * 2100 + "y", b"")], "too long"),
    "devices": ([entry(f"d{n}", kind=CHAR, devmajor=1, devminor=n) for n in range(5)], "device nodes"),
    "whiteout in disguise": ([entry("a", kind=CHAR, devmajor=0, devminor=0)], "whiteout"),
    "root is a file": ([entry("./", b"", kind=SYMLINK, linkname="x")], "root is no directory"),
    "entries": ([entry(f"{n}", b"") for n in range(101)], "more than 100 entries"),
    "overlay attribute": (
        [entry("a", kind=DIR, pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/"})],
        "look elsewhere",
    ),
    "owner": ([entry("a", b"", uid=1 << 40)], "owner"),
    "negative size": (
        [entry("a", b"", pax_headers={"size": "-512"})],
        "back|below zero|no sound tar|damaged",
    ),
    "time": ([entry("a", b"", pax_headers={"mtime": "9" * 40})], "time"),
    "time of letters": ([entry("a", b"", pax_headers={"mtime": "x"})], "no sound tar|time"),
}


@pytest.mark.parametrize("name", HOSTILE_LAYERS)
def test_a_hostile_layer_is_refused(tmp_path: Path, name: str) -> None:
    """Names and links that lead out, devices, entries that come twice, and more of that kind."""
    entries, why = HOSTILE_LAYERS[name]
    refused(tmp_path, docker_archive([layer(*entries)], ["a"]), why)


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path: Path) -> None:
    """By unpacked size, in gzip and zstd; by what a sparse file claims; by the sum of layers; by a header."""
    zeros = layer(entry("zeros", bytes(2 << 20)))
    for packed in (gzip.compress(zeros), zstandard.compress(zeros)):
        refused(tmp_path, layout([zeros], [packed]), "max-size")
    sparse = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "s",
        "GNU.sparse.size": str(1 << 50),
    }
    refused(
        tmp_path,
        docker_archive([layer(entry("s", b"", pax_headers={**sparse, "GNU.sparse.map": "0,0"}))], []),
        "max-size",
    )
    half = layer(entry("half", bytes(600 << 10)))
    other = layer(entry("other", bytes(600 << 10)))
    refused(tmp_path, layout([half, other]), "max-size")
    huge = bytearray(layer(entry("x", b"", pax_headers={"comment": "y"})))
    huge[124:136] = b"77777777777\0"
    huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + sum(huge[156:512]) + 8 * 32)
    refused(tmp_path, docker_archive([bytes(huge)], []), "extended header of")
    record = b"%d comment=%s\n" % (400_016, b"x" * 400_000)
    chain = layer(*[entry("g", record, kind=tarfile.XGLTYPE)] * 3, entry("a", b""))
    with pytest.raises(ImageError, match="bytes of headers"):
        list(LayerReader(io.BufferedReader(io.BytesIO(chain)), "layer", Limits()))
    (tmp_path / "chain.tar").write_bytes(chain)
    with pytest.raises(ImageError, match="bytes of headers"):
        load(ImageStore(tmp_path / "store"), tmp_path / "chain.tar")


def test_what_unpacks_to_nothing_is_refused_in_time(tmp_path: Path) -> None:
    """Zeros and empty members behind a gzip stream, empty frames of zstd, a packed archive of zeros."""
    packed = gzip.compress(GOOD)
    empty = gzip.compress(b"") * (3 << 18 >> 3)
    skipped = b"\x50\x2a\x4d\x18\x00\x00\x0c\x00" + bytes(3 << 18)
    for tail in (bytes(3 << 19), empty):
        refused(tmp_path, layout([GOOD], [packed + tail]), "even packed")
    refused(tmp_path, layout([GOOD], [zstandard.compress(GOOD) + skipped * 2]), "even packed")
    refused(tmp_path, gzip.compress(bytes(9 << 20)), "max-size")


def test_descriptors_that_lie_are_refused(tmp_path: Path) -> None:
    """Sizes that are wrong, digests that are paths, indexes within indexes; paths to files of the host."""

    def described(data: bytes, **said: object) -> dict[str, object]:
        return {"mediaType": "m", "digest": digest(data), "size": len(data)} | said

    def index(*manifests: object) -> bytes:
        return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()

    def stored(*blobs: bytes) -> dict[str, bytes]:
        return {f"blobs/sha256/{digest(one)[7:]}": one for one in blobs}

    config = config_of([GOOD])
    for said, why in (
        ({"size": len(GOOD) + 1}, "bytes and not"),
        ({"size": len(GOOD) - 1}, "bytes and not"),
        ({"size": -1}, "no sound size"),
        ({"size": "1"}, "no sound size"),
        ({"digest": "sha256:../../../etc/passwd"}, "no sha256 digest"),
        ({"digest": "md5:" + "0" * 32}, "no sha256 digest"),
        ({"digest": digest(b"gone")}, "missing"),
    ):
        parts = {"schemaVersion": 2, "config": described(config), "layers": [described(GOOD, **said)]}
        manifest = json.dumps(parts).encode()
        files = stored(config, manifest, GOOD) | {"index.json": index(described(manifest))}
        refused(tmp_path, files, why)
    nested = [index()]
    for _ in range(6):
        nested.append(index(described(nested[-1], mediaType="application/vnd.oci.image.index.v1+json")))
    refused(tmp_path, stored(*nested) | {"index.json": nested[-1]}, "an index in an index")
    refused(tmp_path, stored(nested[0]) | {"index.json": nested[1]}, "nothing for linux/amd64")
    (tmp_path / "large.tar").write_bytes(tar_of({"index.json": b" " * (5 << 20)}))
    with pytest.raises(ImageError, match="larger than"):
        load(ImageStore(tmp_path / "store"), tmp_path / "large.tar")
    (tmp_path / "large.tar").unlink()
    for name in ("/etc/passwd", "../../etc/passwd", "\udcff"):
        for config_name, layers in ((name, []), ("c.json", [name])):
            one = {"Config": config_name, "Layers": layers}
            files = {"c.json": config, "manifest.json": json.dumps([one]).encode()}
            refused(tmp_path, files, r"absolute|\.\.|UTF-8")


def test_what_is_no_file_in_a_directory_is_refused(tmp_path: Path) -> None:
    """A pipe in place of a blob is not waited for."""
    for name, data in layout([GOOD]).items():
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    blob = tmp_path / "d" / "blobs" / "sha256" / digest(GOOD)[7:]
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(ImageError, match="no regular file"):
        load(ImageStore(tmp_path / "store"), tmp_path / "d")


def test_errors_and_lists_play_no_tricks_with_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences, line ends and broken characters in names and texts are shown, not sent."""
    root = ["image", "--root", str(tmp_path / "store")]
    evil = "a\x1b]0;owned\x07\nb\u202e"
    (tmp_path / "evil.tar").write_bytes(docker_tar([entry(evil, b"1"), entry(evil, b"2")]))
    assert main([*root, "load", "-i", str(tmp_path / "evil.tar")]) == 126
    told = capsys.readouterr().err
    assert told.startswith("pykvm: ")
    assert told[:-1].isprintable()
    (tmp_path / "twice.tar").write_bytes(layer(entry(evil, b"1"), entry(evil, b"2")))
    assert main([*root, "load", "-i", str(tmp_path / "twice.tar")]) == 126
    assert capsys.readouterr().err[:-1].isprintable()
    steps = [{"created_by": evil, "comment": evil}]
    (tmp_path / "good.tar").write_bytes(docker_tar([entry(evil, b"1")], history=steps))
    assert main([*root, "load", "-i", str(tmp_path / "good.tar")]) == 0
    for words in (["history", "--no-trunc", "app:1"], ["diff", "app:1"]):
        capsys.readouterr()
        assert main([*root, *words]) == 0
        assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def docker_tar(entries: list[tuple[tarfile.TarInfo, bytes]], **settings: Any) -> bytes:
    return tar_of(docker_archive([layer(*entries)], ["app:1"], **settings))


def test_wrong_digests_are_refused(tmp_path: Path) -> None:
    """Of a layer, packed and unpacked, of a configuration, of a manifest; and sizes that are wrong."""
    files = layout([GOOD])
    for name in [name for name in files if name.startswith("blobs/")]:
        refused(tmp_path, files | {name: files[name][:-1] + b" "}, "digest|forged|damaged|schema|JSON")
    refused(tmp_path, layout([GOOD], [gzip.compress(layer(entry("b")))]), "unpacked, its digest")
    archive = docker_archive([GOOD], ["a"])
    config = next(name for name in archive if name.endswith(".json") and name != "manifest.json")
    refused(tmp_path, archive | {config: archive[config] + b" "}, "forged")
    manifest = json.loads(archive["manifest.json"])
    renamed = json.dumps([manifest[0] | {"Config": "c.json"}]).encode()
    wrong = {"manifest.json": renamed, "c.json": config_of([layer(entry("b"))])}
    refused(tmp_path, archive | wrong, "unpacked, its digest")


def test_a_refused_layer_does_not_harm_what_is_there(tmp_path: Path) -> None:
    """A layer with a lie about its diff_id is refused; the same layer of another image stays."""
    store = ImageStore(tmp_path)
    load(store, io.BytesIO(tar_of(layout([GOOD], name="a:1"))))
    with pytest.raises(ImageError, match="unpacked"):
        load(store, io.BytesIO(tar_of(layout([layer(entry("b"))], [GOOD]))))
    assert store.blobs.read(digest(GOOD), 1 << 20) == GOOD


def test_what_is_cut_short_is_refused(tmp_path: Path) -> None:
    """The archive, a layer's tar, its gzip stream; garbage where a header should be."""
    whole = tar_of(docker_archive([GOOD], ["a"]))
    for size in (0, 100, 512, 700, 3000, len(whole) // 2):
        refused(tmp_path, whole[:size], "manifest.json|cut short|archive|missing|header")
    for cut in (GOOD[:1300], GOOD[:3000], GOOD[:1024] + b"garbage" * 100):
        refused(tmp_path, docker_archive([cut], ["a"]), "cut short|middle of a file|no sound tar|damaged")
    packed = gzip.compress(GOOD)
    for cut in (packed[:-9], packed[:20], packed[:60] + b"\xff" + packed[61:]):
        refused(tmp_path, layout([GOOD], [cut]), "too early|damaged|unpacked|forged")
    refused(
        tmp_path, layout([GOOD], [zstandard.compress(GOOD)[:-4]]), "unpacked|damaged|middle|cut|no sound tar"
    )


def test_an_archive_that_leads_out_is_refused(tmp_path: Path) -> None:
    """Symbolic links out of the archive or in circles, names that come twice, as tar and as directory."""
    archive = docker_archive([GOOD], ["a"])
    name = next(name for name in archive if name.endswith("layer.tar"))
    rest = [entry(one, data) for one, data in archive.items() if one != name]
    for target, why in (
        ("/etc/passwd", "out of"),
        ("../../x", "out of"),
        ("layer.tar", "circle"),
        ("gone", "missing"),
    ):
        refused(tmp_path, layer(*rest, entry(name, kind=SYMLINK, linkname=target)), why)
    refused(tmp_path, layer(*rest, entry(name, GOOD), entry(name, GOOD)), "twice")
    for one, data in archive.items():
        path = tmp_path / "d" / one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "secret").write_bytes(GOOD)
    (tmp_path / "d" / name).unlink()
    (tmp_path / "d" / name).symlink_to("../../secret")
    with pytest.raises(ImageError, match="leads out"):
        load(ImageStore(tmp_path / "store"), tmp_path / "d")


def test_a_docker_archive_may_link_layers_to_each_other(tmp_path: Path) -> None:
    """The old form links a layer that comes again to its first place."""
    archive = docker_archive([GOOD, GOOD], ["a"])
    first, second = (name for name in archive if name.endswith("layer.tar"))
    entries = [entry(one, data) for one, data in archive.items() if one != second]
    data = layer(*entries, entry(second, kind=SYMLINK, linkname=f"../{first}"))
    found = load(ImageStore(tmp_path), io.BytesIO(data))
    assert len(found[0].image.layers) == 2


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"{",
        b"[" * 100000,
        b'{"schemaVersion":2,"manifests":[{}]}',
        b'{"manifests":[1]}',
    ],
)
def test_documents_that_are_none_are_refused(tmp_path: Path, document: bytes) -> None:
    """As index, as docker's manifest, as configuration."""
    refused(tmp_path, layout([GOOD]) | {"index.json": document}, "index.json")
    archive = docker_archive([GOOD], ["a"])
    refused(tmp_path, archive | {"manifest.json": document}, "manifest.json")
    manifest = json.dumps([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]).encode()
    refused(tmp_path, {"manifest.json": manifest, "c": document, "l": GOOD}, "c: |diff_ids")


def test_too_many_layers_are_refused(tmp_path: Path) -> None:
    """Overlay takes 127; 128 are an error before any is read, in both kinds of archive; so are many files."""
    refused(tmp_path, docker_archive([GOOD] * 128, ["a"]), "127")
    refused(tmp_path, layout([GOOD] * 128), "127")
    small = layer(entry("a", b"1"))
    store = ImageStore(tmp_path / "other")
    assert len(load(store, io.BytesIO(tar_of(docker_archive([small] * 127, ["a"]))))[0].image.layers) == 127
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pykvm.containers.archive_files._MOST_MEMBERS", 5)
        refused(tmp_path / "few", tar_of({str(at): b"" for at in range(6)}), "more than 5 files")


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".wh.") and len(name.encode()) <= 255
)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
xattrs = st.dictionaries(st.sampled_from(["user.a", "security.capability", "user.é"]), st.binary(max_size=40))


@settings(max_examples=30)
@given(
    st.dictionaries(paths, st.tuples(st.binary(max_size=2000), xattrs), max_size=8),
    st.sampled_from([0, 1, 2]),
)
def test_what_a_tar_says_is_what_comes_out(
    files: dict[str, tuple[bytes, dict[str, bytes]]], form: int
) -> None:
    """Every path, content, owner, time and attribute survives, in each format of tar that can say it."""
    kept = {
        path: one for path, one in files.items() if not any(other.startswith(f"{path}/") for other in files)
    }
    fields: dict[str, Any] = {"uid": 70000, "gid": 5, "mtime": 1234.5 if form == 2 else 99, "mode": 0o4755}
    entries = []
    for path, (data, attributes) in kept.items():
        said = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in attributes.items()
        }
        entries.append(entry(path, data, **fields, pax_headers=said if form == 2 else {}))
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out,
        mode="w",
        format=(tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[form],
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    reader = LayerReader(io.BufferedReader(io.BytesIO(out.getvalue())), "layer", Limits())
    found = {}
    for member in reader:
        assert (member.kind, member.uid, member.gid, member.mode) == (Kind.FILE, 70000, 5, 0o4755)
        assert member.mtime_ns == int(float(fields["mtime"]) * 1e9)
        found[member.path] = reader.data(member).read(), member.xattrs
    assert found == {
        path: (data, attributes if form == 2 else {}) for path, (data, attributes) in kept.items()
    }


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, len(GOOD)),
)
def test_a_damaged_tar_is_an_image_error_and_nothing_else(flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever bytes are changed and wherever it is cut: it reads, or it raises ImageError."""
    data = bytearray(GOOD)
    for at, value in flips:
        data[at] = value
    reader = LayerReader(io.BufferedReader(io.BytesIO(bytes(data[:cut]))), "layer", SMALL)
    try:
        for member in reader:
            if member.kind is Kind.FILE:
                reader.data(member).read()
    except ImageError as error:
        assert "\n" not in str(error)
