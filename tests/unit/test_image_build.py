"""Images built from pykvm-files: each instruction, the cache, digests that repeat, mistakes told."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_parts import docker_archive, entry, layer, tar_of

from pykvm.cli import main
from pykvm.containers.archive import load
from pykvm.containers.build import build
from pykvm.containers.debian import packages_for
from pykvm.containers.names import parse_name
from pykvm.containers.pykvmfile import expand, parse
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import read_file, tree_of
from pykvm.errors import ConfigError, PykvmError
from pykvm.lab.packages import Apt, Candidate

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.containers.tree import Node

DIR, SYMLINK = tarfile.DIRTYPE, tarfile.SYMTYPE
BASE = layer(
    entry("etc", kind=DIR, mode=0o750, uid=3),
    entry("etc/passwd", b"root:x:0:0::/:\nweb:x:33:44::/:\n"),
    entry("etc/group", b"web:x:44:\nstaff:x:50:a,b\n"),
    entry("usr", kind=DIR),
    entry("usr/bin", kind=DIR),
    entry("bin", kind=SYMLINK, linkname="usr/bin"),
)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "store")
    settings = {"Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv"}
    archive = docker_archive([BASE], ["base:1"], config=settings, history=[{"created_by": "base"}])
    load(store, io.BytesIO(tar_of(archive)))
    return store


@pytest.fixture
def context(tmp_path: Path) -> Path:
    top = tmp_path / "context"
    (top / "d" / "sub").mkdir(parents=True)
    (top / "a.txt").write_text("a")
    (top / "b.txt").write_text("b")
    (top / "d" / "x").write_text("x")
    (top / "d" / "sub" / "y").write_text("y")
    (top / "d" / "link").symlink_to("/etc/passwd")
    (top / "secret").write_text("s")
    (top / ".dockerignore").write_text("# what stays out\nsecret\n**/*.tmp\nd/sub\n!d/sub/y\n")
    (top / "d" / "z.tmp").write_text("t")
    for path in top.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return top


def made(
    store: ImageStore, context: Path, text: str, **options: Any
) -> tuple[dict[str, Any], dict[str, Node]]:
    """Build; the settings and the files."""
    image = build(store, context, text, "Pykvmfile", **options).image
    return image.settings, dict(tree_of(store, image.layers, with_content=True).walk())


def test_copy_puts_files_where_docker_does(store: ImageStore, context: Path) -> None:
    """Files, directories, patterns, relative targets, links in the image; parents keep their looks."""
    text = """FROM base:1
    COPY a.txt /new/deep/name
    COPY d /etc/d
    COPY *.txt sub/
    COPY --chown=web:staff --chmod=0755 a.txt /bin/tool
    COPY ["b.txt", "/with space/"]
    """
    settings, files = made(store, context, text)
    assert {path for path, node in files.items() if node.kind.value == "f"} == {
        "etc/passwd",
        "etc/group",
        "new/deep/name",
        "etc/d/x",
        "etc/d/sub/y",
        "srv/sub/a.txt",
        "srv/sub/b.txt",
        "usr/bin/tool",
        "with space/b.txt",
    }
    tool = files["usr/bin/tool"]
    assert (tool.mode, tool.uid, tool.gid) == (0o755, 33, 50)
    assert (files["etc"].mode, files["etc"].uid) == (0o750, 3)
    assert (files["a"].kind if "a" in files else None) is None
    assert files["etc/d/link"].target == "/etc/passwd"
    assert (files["new/deep"].mode, files["etc/d/x"].mode, files["etc/d/x"].mtime_ns) == (0o755, 0o644, 0)
    assert len(settings["history"]) == 6


def test_settings_are_inherited_and_set(store: ImageStore, context: Path) -> None:
    """ENV with variables and quotes, LABEL, WORKDIR step by step, USER; ENTRYPOINT drops the base's CMD."""
    text = """FROM base:1
    # a comment
    ENV B="two words" C='$A' D=${A}-${NONE:-none}${A:+set} \\
        E=back\\ slash
    ENV PATH $PATH:/more
    LABEL who="me" org.what=it
    WORKDIR app
    WORKDIR ../$A
    USER 5:6
    ENTRYPOINT ["/bin/tool", "-v"]
    """
    settings, _ = made(store, context, text)
    config = settings["config"]
    assert dict(one.split("=", 1) for one in config["Env"]) == {
        "PATH": "/bin:/more",
        "A": "1",
        "B": "two words",
        "C": "$A",
        "D": "1-noneset",
        "E": "back slash",
    }
    assert config["Labels"] == {"who": "me", "org.what": "it"}
    assert (config["WorkingDir"], config["User"]) == ("/srv/1", "5:6")
    assert config["Entrypoint"] == ["/bin/tool", "-v"]
    assert "Cmd" not in config
    settings, _ = made(store, context, "FROM base:1\nCMD run it\nENTRYPOINT exec")
    assert settings["config"]["Cmd"] == ["/bin/sh", "-c", "run it"]
    assert [one.get("empty_layer", False) for one in settings["history"]] == [False, True, True]


def test_what_has_not_changed_comes_from_the_cache(store: ImageStore, context: Path) -> None:
    """The same files give the same digests, with the cache and without; a change counts from there on."""
    text = "FROM scratch\nCOPY a.txt /\nCOPY d /d\nCMD x"
    first = build(store, context, text, "f")
    assert [cached for _, cached in first.steps] == [False, False, False, False]
    again = build(store, context, text, "f", parse_name("n:1"))
    assert [cached for _, cached in again.steps] == [False, True, True, False]
    (context / "a.txt").touch()
    assert (
        build(store, context, text, "f", use_cache=False).image.digest
        == first.image.digest
        == again.image.digest
    )
    (context / "d" / "x").write_text("new")
    changed = build(store, context, text, "f")
    assert [cached for _, cached in changed.steps] == [False, True, False, False]
    assert changed.image.layers[0] == first.image.layers[0]
    (context / "a.txt").write_text("new")
    assert [cached for _, cached in build(store, context, text, "f").steps] == [False, False, False, False]


def test_a_base_may_be_a_directory_or_a_tar(store: ImageStore, context: Path) -> None:
    """Its files become the first layer; a tar stays as it is."""
    (context / "base.tar").write_bytes(BASE)
    _, files = made(store, context, "FROM ./base.tar\nCOPY a.txt /bin/")
    assert {"etc/passwd", "usr/bin/a.txt"} <= set(files)
    _, files = made(store, context, "FROM ./d")
    assert set(files) == {"x", "sub", "sub/y", "link", "z.tmp"}


def test_debian_packages_are_a_base(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what they depend on, in one layer, each directory once; the same file in two is an error."""
    bodies = {
        "libx": layer(entry("./", kind=DIR), entry("./usr/", kind=DIR), entry("./usr/lib", b"lib", uid=0)),
        "prog": layer(
            entry("./usr/", kind=DIR),
            entry("./usr/prog", b"prog"),
            entry("./p", kind=SYMLINK, linkname="usr/prog"),
        ),
        "evil": layer(entry("./usr/", kind=DIR), entry("./usr/lib", b"other")),
    }
    monkeypatch.setattr(
        Apt, "closure", lambda _, names: [Candidate(one, "1", "ab", 1024, 1) for one in ("libx", *names)]
    )

    def download(_: Apt, wanted: list[Candidate], where: Path, progress: Any) -> list[Path]:
        for what in wanted:
            (where / f"{what.package}.deb").write_bytes(_deb(bodies[what.package]))
        return sorted(where.iterdir())

    monkeypatch.setattr(Apt, "download_all", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings, files = made(store, tmp_path, 'FROM debian: prog\nCMD ["/p"]')
    assert {path: node.size_bytes for path, node in files.items() if node.kind.value == "f"} == {
        "usr/lib": 3,
        "usr/prog": 4,
    }
    assert settings["config"]["Env"][0].startswith("PATH=")
    with pytest.raises(PykvmError, match="another package has /usr/lib"):
        made(store, tmp_path, "FROM debian: evil")
    assert not list(store.blobs.incoming.iterdir())
    with pytest.raises(ConfigError, match="is no name of a Debian package"):
        packages_for(["-o"], lambda _: None)


def _deb(tar: bytes) -> bytes:
    """A Debian package, deb(5): an ar archive of three files."""
    parts = [("debian-binary", b"2.0\n"), ("control.tar", layer()), ("data.tar", tar)]
    packed = b"!<arch>\n"
    for name, data in parts:
        packed += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )
    return packed


MISTAKES = {
    "": "there is no instruction",
    "COPY a b": "line 1: COPY: the first instruction must be FROM",
    "FROM scratch\nRUN make": "line 2: RUN: there is nothing yet that could run",
    "FROM scratch\nRUN --mount=type=cache x": "RUN has no options here",
    "FROM scratch\nADD a b": "line 2: ADD: no instruction of that name; there are FROM, COPY",
    "FROM scratch\nFROM scratch": "line 2: FROM: a second stage",
    "FROM none:1": "line 1: FROM: no such image: none:1",
    "FROM ./none": "no such file or directory",
    "FROM debian:": "name Debian's packages",
    "FROM scratch\n\nCOPY gone /": "line 3: COPY: gone: no such file",
    "FROM scratch\nCOPY ../secret /": "leads out of the context",
    "FROM scratch\nCOPY out /": "leads out of the context",
    "FROM scratch\nCOPY no*thing /": "fits",
    "FROM scratch\nCOPY a.txt b.txt /c": "several sources need a directory",
    "FROM scratch\nCOPY a.txt": "needs a source and a target",
    "FROM scratch\nCOPY 'a.txt /": "no closing quotation",
    "FROM scratch\nCOPY --chown=nobody a.txt /": "nobody: not in the image's /etc/passwd",
    "FROM scratch\nCOPY --chmod=9 a.txt /": "octal",
    "FROM scratch\nCOPY --from=x a.txt /": "--from=x: there are",
    "FROM scratch\nCOPY pipe /": "is no file, directory or link",
    'FROM scratch\nENV A="x': "is a quote missing",
    "FROM scratch\nENV 1A=x": "is no variable's name",
    "FROM scratch\nENV A": "needs NAME=VALUE",
    "FROM scratch\nUSER": "nothing stands behind it",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(store: ImageStore, context: Path, text: str) -> None:
    """With the file, the line and the instruction; nothing is kept."""
    import os

    os.mkfifo(context / "pipe")
    (context / "out").symlink_to("../store/oci-layout")
    with pytest.raises(PykvmError) as caught:
        build(store, context, text, "Pykvmfile", parse_name("n:1"))
    assert MISTAKES[text] in str(caught.value)
    assert str(caught.value).startswith("Pykvmfile: ")
    assert "\n" not in str(caught.value)
    assert len(store.entries()) == 1
    assert not list(store.blobs.incoming.iterdir())


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_instructions_or_one_error(text: str) -> None:
    """Parsing and putting in variables never fails otherwise."""
    try:
        for one in parse(f"FROM scratch\n{text}", "f"):
            expand(one.text, {"A": "1"})
    except ConfigError as error:
        assert "\n" not in str(error)


def test_the_command_builds(
    context: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In docker's words; -q prints the ID, --json everything; a file elsewhere by -f."""
    monkeypatch.setenv("PYKVM_DATA", str(tmp_path / "data"))
    (context / "Pykvmfile").write_text("FROM scratch\nCOPY a.txt /\n")
    assert main(["image", "build", "-t", "app", str(context)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Step 1/2 : FROM scratch"
    assert out[-1] == "Successfully tagged app:latest"
    assert main(["image", "build", "-q", "-f", str(context / "Pykvmfile"), str(context)]) == 0
    image_id = capsys.readouterr().out.strip()
    assert main(["image", "build", "--json", str(context)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["id"] == image_id
    assert [step["cached"] for step in told["steps"]] == [False, True]
    assert main(["image", "build", str(tmp_path)]) == 125
    assert "Pykvmfile: no such file" in capsys.readouterr().err
    store = ImageStore()
    assert read_file(store, store.image(store.find("app").descriptor).layers, "a.txt", 9) == b"a"
