"""Files chosen for a lab: paths with their links, what is left out, the key, the copy."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pykvm.errors import ConfigError
from pykvm.lab.libraries import Libraries
from pykvm.lab.tree import Tree


@pytest.fixture
def tree() -> Tree:
    return Tree(Libraries({}, {}))


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(tree: Tree, top: Path, where: Path) -> set[str]:
    """What a copy of the tree has below `top`, by its path there."""
    where.mkdir()
    tree.copy_to(where)
    copied = where / str(top).lstrip("/")
    return {str(path.relative_to(copied)) for path in copied.rglob("*")}


def test_a_path_comes_with_every_link_on_the_way(tree: Tree, tmp_path: Path) -> None:
    """A link to a directory, a relative one with `..`, one to another link: all work in the copy."""
    put(tmp_path / "real/data/file", "text")
    (tmp_path / "real/again").symlink_to("data")
    (tmp_path / "link").symlink_to(tmp_path / "real/again")
    (tmp_path / "real/data/up").symlink_to("../../link/file")
    assert tree.add(tmp_path / "link/up") == tmp_path / "real/data/file"
    assert names(tree, tmp_path, tmp_path / "copy") == {
        "link",
        "real",
        "real/again",
        "real/data",
        "real/data/file",
        "real/data/up",
    }
    copied = tmp_path / "copy" / str(tmp_path).lstrip("/")
    assert (copied / "real/again/file").read_text() == "text"


def test_dots_in_a_link_are_those_of_the_place_it_leads_to(tree: Tree, tmp_path: Path) -> None:
    """`link/../file`, where link leads elsewhere, is the file beside what it leads to."""
    put(tmp_path / "far/away/file")
    (tmp_path / "far/away/place").mkdir()
    (tmp_path / "link").symlink_to("far/away/place")
    assert tree.add(f"{tmp_path}/link/../file") == tmp_path / "far/away/file"


def test_links_in_a_circle_lead_nowhere(tree: Tree, tmp_path: Path) -> None:
    """It ends, and says that there is nothing."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert tree.add(tmp_path / "a") is None


def test_what_a_lab_has_of_its_own_is_not_taken(tree: Tree, tmp_path: Path) -> None:
    """/proc and /dev stay, also through a link; so do pipes, and what is not there."""
    (tmp_path / "link").symlink_to("/proc/self/status")
    os.mkfifo(tmp_path / "pipe")
    paths = ("/proc/self/status", "/dev/null", tmp_path / "link", tmp_path / "pipe", tmp_path / "nothing")
    assert [tree.add(path) for path in paths] == [None] * 5


def test_a_directory_is_taken_without_what_is_left_out(tree: Tree, tmp_path: Path) -> None:
    """Names anywhere below, and paths; links stay links, whatever they point to."""
    put(tmp_path / "top/a/keep")
    put(tmp_path / "top/a/.git/big")
    put(tmp_path / "top/.git/big")
    put(tmp_path / "top/out/result")
    put(tmp_path / "outside")
    (tmp_path / "top/link").symlink_to("../outside")
    tree.add_tree(tmp_path / "top", {".git"}, not_in={tmp_path / "top/out"})
    assert names(tree, tmp_path, tmp_path / "copy") == {"top", "top/a", "top/a/keep", "top/link"}


def test_too_much_is_refused_and_nothing_of_it_stays(tree: Tree, tmp_path: Path) -> None:
    """The error names the directory and the limit."""
    put(tmp_path / "top/a", "x" * 3000)
    put(tmp_path / "top/b", "x" * 3000)
    with pytest.raises(ConfigError, match=r"top.*2 files .* at most .* of 0 MiB"):
        tree.add_tree(tmp_path / "top", limit_bytes=5000)
    assert tmp_path / "top/a" not in tree


def test_the_whole_tree_has_a_limit_too(tmp_path: Path) -> None:
    """A single file that passes it is refused."""
    with pytest.raises(ConfigError, match="big"):
        Tree(Libraries({}, {}), limit_bytes=4096).add(put(tmp_path / "big", "x" * 5000))


def test_what_the_base_has_is_not_taken_again(tree: Tree, tmp_path: Path) -> None:
    """Only directories are, for their mode is that of the upper layer."""
    put(tmp_path / "d/old")
    tree.add(tmp_path / "d/old")
    upper = Tree(Libraries({}, {}), below=tree)
    put(tmp_path / "d/new")
    upper.add_tree(tmp_path / "d")
    assert tmp_path / "d/old" in upper
    assert names(upper, tmp_path, tmp_path / "copy") == {"d", "d/new"}


def test_libraries_of_libraries_are_taken(tmp_path: Path) -> None:
    """Program, library, the library's library; each once."""

    class Fake(Libraries):
        def needed_by(self, path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a generator of the base's type
            needed = {"program": "one.so", "one.so": "two.so", "two.so": "one.so"}
            if path.name in needed:
                yield tmp_path / needed[path.name]

    put(tmp_path / "program").chmod(0o755)
    put(tmp_path / "one.so")
    put(tmp_path / "two.so")
    tree = Tree(Fake({}, {}))
    tree.add(tmp_path / "program")
    tree.add_libraries()
    assert all(tmp_path / name in tree for name in ("program", "one.so", "two.so"))


def test_the_key_is_that_of_the_content(tmp_path: Path) -> None:
    """The same files give the same key; a new time, size, mode, link or file another."""

    def key() -> str:
        tree = Tree(Libraries({}, {}))
        tree.add_tree(tmp_path / "d")
        return tree.key()

    file = put(tmp_path / "d/file")
    os.utime(file, (1, 1))
    keys = [key(), key()]
    os.utime(file, (2, 2))
    keys.append(key())
    file.chmod(0o755)
    keys.append(key())
    (tmp_path / "d/link").symlink_to("a")
    keys.append(key())
    (tmp_path / "d/link").unlink()
    (tmp_path / "d/link").symlink_to("b")
    keys.append(key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_the_copy_has_times_and_modes(tree: Tree, tmp_path: Path) -> None:
    """So that compiled Python is still valid, and programs can be run."""
    file = put(tmp_path / "d/file")
    file.chmod(0o751)
    os.utime(file, ns=(1, 1_000_000_007))
    tree.add(file)
    (tmp_path / "copy").mkdir()
    tree.copy_to(tmp_path / "copy")
    status = (tmp_path / "copy" / str(file).lstrip("/")).stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o751, 1_000_000_007)


def test_a_file_that_vanished_is_not_missed(tree: Tree, tmp_path: Path) -> None:
    """Others work in the same directory while it is copied."""
    put(tmp_path / "d/stays")
    gone = put(tmp_path / "d/goes")
    tree.add_tree(tmp_path / "d")
    gone.unlink()
    assert names(tree, tmp_path, tmp_path / "copy") == {"d", "d/stays"}


def test_a_link_can_be_put_where_there_is_another_file(tree: Tree, tmp_path: Path) -> None:
    """In the lab `python` is the interpreter itself, not the script that looks for it."""
    script = put(tmp_path / "shims/python", "#!/bin/sh\n")
    tree.add(script)
    tree.add_link(script, "/opt/python")
    (tmp_path / "copy").mkdir()
    tree.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / str(script).lstrip("/")).readlink() == Path("/opt/python")
    assert script.read_text() == "#!/bin/sh\n"


def test_what_may_not_be_read_is_named(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, not an error."""
    put(tmp_path / "d/open")
    secret = put(tmp_path / "d/secret")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(secret))
    tree.add_tree(tmp_path / "d")
    assert tree.unread == (str(secret),)
    assert secret not in tree
