"""A shared directory that went to the lab on a disk, and what came back."""

from __future__ import annotations

import os
import shutil
import stat
import time
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import LabError
from pykvm.lab.results import Packed, bring_back, pack

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def share(tmp_path: Path) -> Path:
    top = tmp_path / "share"
    (top / "d/deep").mkdir(parents=True)
    (top / "d/old").write_text("old")
    (top / "keep").write_text("keep")
    (top / "link").symlink_to("keep")
    os.mkfifo(top / "pipe")
    return top


@pytest.fixture
def results(share: Path, tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def packed(share: Path, results: Path) -> Packed:
    """What went to the lab; the lab did nothing with it yet."""
    return pack(share, results)


def test_files_links_and_directories_go_and_a_pipe_stays(packed: Packed, results: Path) -> None:
    """The copy is complete, and what went is remembered."""
    assert set(packed.entries) == {"d", "d/deep", "d/old", "keep", "link"}
    assert (results / "d/old").read_text() == "old"
    assert (results / "link").readlink().name == "keep"


def test_what_can_t_be_read_is_named(share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the option and the file."""

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "copy2", refuse)
    with pytest.raises(LabError, match=r"--share .*Permission denied"):
        pack(share, tmp_path / "results")


def test_nothing_done_changes_nothing(share: Path, results: Path, packed: Packed) -> None:
    """Not even a time: what is the same is not touched."""
    before = {path: path.lstat().st_mtime_ns for path in share.rglob("*")}
    bring_back(results, share, packed)
    assert {path: path.lstat().st_mtime_ns for path in share.rglob("*")} == before


def test_new_changed_and_removed_files_come_back(share: Path, results: Path, packed: Packed) -> None:
    """Contents, modes, links, empty directories."""
    (results / "d/old").write_text("new")
    (results / "a/b").mkdir(parents=True)
    (results / "a/b/file").write_bytes(bytes(range(256)))
    (results / "a/b/file").chmod(0o750)
    (results / "keep").unlink()
    (results / "link").unlink()
    (results / "link").symlink_to("d/old")
    (results / "d/deep").rmdir()
    bring_back(results, share, packed)
    assert (share / "d/old").read_text() == "new"
    assert (share / "a/b/file").read_bytes() == bytes(range(256))
    assert stat.S_IMODE((share / "a/b/file").stat().st_mode) == 0o750
    assert str((share / "link").readlink()) == "d/old"
    assert sorted(path.name for path in share.iterdir()) == ["a", "d", "link", "pipe"]
    assert not (share / "d/deep").exists()


def test_a_mode_alone_comes_back_without_its_set_user_id(share: Path, results: Path, packed: Packed) -> None:
    """Whoever is root in the lab is not root here."""
    (results / "keep").chmod(0o4755)
    bring_back(results, share, packed)
    assert stat.S_IMODE((share / "keep").stat().st_mode) == 0o755


def test_a_file_is_not_from_tomorrow(share: Path, results: Path, packed: Packed) -> None:
    """The lab's clock may be ahead."""
    (results / "keep").write_text("later")
    os.utime(results / "keep", (time.time() + 9999, time.time() + 9999))
    bring_back(results, share, packed)
    assert (share / "keep").stat().st_mtime <= time.time()


def test_what_others_did_here_meanwhile_stays(share: Path, results: Path, packed: Packed) -> None:
    """The lab removed a file that changed here, and a directory into which somebody put a file."""
    (share / "keep").write_text("changed here, longer")
    (share / "d/deep/theirs").write_text("theirs")
    (results / "keep").unlink()
    shutil.rmtree(results / "d")
    bring_back(results, share, packed)
    assert (share / "keep").read_text() == "changed here, longer"
    assert (share / "d/deep/theirs").read_text() == "theirs"
    assert not (share / "d/old").exists()


def test_no_link_is_followed(share: Path, results: Path, packed: Packed, tmp_path: Path) -> None:
    """Not one here, put where the lab has a directory or a file, and not one of the lab's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_text("outside")
    shutil.rmtree(share / "d")
    (share / "d").symlink_to(outside)
    (share / "keep").unlink()
    (share / "keep").symlink_to(outside / "old")
    (results / "d/old").write_text("new")
    (results / "keep").write_text("kept")
    bring_back(results, share, packed)
    assert (outside / "old").read_text() == "outside"
    assert sorted(path.name for path in outside.iterdir()) == ["old"]
    assert (share / "d/old").read_text() == "new"
    assert (share / "keep").read_text() == "kept"
    assert not (share / "keep").is_symlink()


def test_nothing_is_removed_behind_a_link(share: Path, results: Path, packed: Packed, tmp_path: Path) -> None:
    """A directory that became a link here is not the one that went to the lab."""
    moved = tmp_path / "moved"
    (share / "d").rename(moved)
    (share / "d").symlink_to(moved)
    shutil.rmtree(results / "d")
    bring_back(results, share, packed)
    assert (moved / "old").read_text() == "old"


def test_a_directory_with_files_is_not_replaced_by_a_file(share: Path, results: Path, packed: Packed) -> None:
    """The error names it, and what is in it stays."""
    (share / "new").mkdir()
    (share / "new/file").write_text("here")
    (results / "new").write_text("a file")
    with pytest.raises(LabError, match=r"bringing results to .*new: Directory not empty"):
        bring_back(results, share, packed)
    assert (share / "new/file").read_text() == "here"


def test_a_half_written_file_is_not_left_behind(
    share: Path, results: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stays when the disk is full."""

    def full(source: Path, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    (results / "keep").write_text("new")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(LabError, match="No space left on device"):
        bring_back(results, share, packed)
    assert (share / "keep").read_text() == "keep"
    assert not list(share.glob(".pykvm-*"))
