"""ext4 images made of directories and read back."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import LabError
from pykvm.lab import ext4
from pykvm.lab.tools import find_program

if TYPE_CHECKING:
    from pathlib import Path


def debugfs(image: Path, *commands: str) -> None:
    """Change an image as a hostile lab may."""
    script = image.with_suffix(".commands")
    script.write_text("".join(f"{command}\n" for command in commands))
    program = find_program("debugfs") or "debugfs"
    subprocess.run([program, "-w", "-f", script, image], check=True, capture_output=True)


def shape(top: Path) -> dict[str, str]:
    """Each name below `top` with what it is."""
    found = {}
    for path in top.rglob("*"):
        kind = f"-> {path.readlink()}" if path.is_symlink() else "dir" if path.is_dir() else path.read_text()
        found[str(path.relative_to(top))] = kind
    return found


@pytest.fixture
def content(tmp_path: Path) -> Path:
    top = tmp_path / "content"
    (top / "a/b c").mkdir(parents=True)
    (top / "a/b c/file").write_text("text")
    (top / "a/link").symlink_to("../nowhere")
    (top / "empty").mkdir()
    (top / "name with \"quotes' and ö").write_text("odd")
    return top


def test_what_goes_in_comes_out(content: Path, tmp_path: Path) -> None:
    """Files, directories, links, odd names; no lost+found."""
    ext4.make_image(tmp_path / "i", content, "label", free_bytes=1 << 20)
    ext4.read_image(tmp_path / "i", tmp_path / "out")
    assert shape(tmp_path / "out") == shape(content)


def test_the_image_is_what_bochs_and_the_init_expect(content: Path, tmp_path: Path) -> None:
    """Whole cylinders; the label where the init reads it."""
    ext4.make_image(tmp_path / "i", content, "pykvm-job")
    image = (tmp_path / "i").read_bytes()
    assert len(image) % ext4.CYLINDER_BYTES == 0
    assert image[0x478:0x488].rstrip(b"\0") == b"pykvm-job"


def test_there_is_room_for_results(content: Path, tmp_path: Path) -> None:
    """What was asked to be free is free, and the file is mostly a hole."""
    ext4.make_image(tmp_path / "i", content, "x", free_bytes=300 << 20)
    status = (tmp_path / "i").stat()
    assert status.st_size > 300 << 20
    assert status.st_blocks * 512 < 20 << 20
    with (tmp_path / "i").open("rb") as image:
        blocks = int.from_bytes(image.read(0x410)[0x40C:], "little")
    assert blocks * 4096 >= 300 << 20


def test_many_small_files_fit(tmp_path: Path) -> None:
    """Inodes and blocks are counted, not guessed."""
    top = tmp_path / "content"
    for number in range(400):
        path = top / f"d{number % 40}" / f"a file with a rather long name {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number % 5000))
    ext4.make_image(tmp_path / "i", top, "x")
    ext4.read_image(tmp_path / "i", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*"))) == 440


def test_a_disk_without_room_is_one_line(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space is looked at before anything is written."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    with pytest.raises(LabError, match="MiB are needed and 1 MiB are free"):
        ext4.make_image(tmp_path / "i", content, "x")


class _Usage:
    free = 1 << 20


def test_what_mke2fs_says_is_told(tmp_path: Path) -> None:
    """A directory that is not there."""
    (tmp_path / "content").mkdir()
    (tmp_path / "content").rmdir()
    with pytest.raises(LabError, match="mke2fs: "):
        ext4.make_image(tmp_path / "i", tmp_path / "content", "x")


def test_an_unfinished_file_system_is_repaired(content: Path, tmp_path: Path) -> None:
    """As it is when the lab was stopped while it wrote: the rest comes out."""
    ext4.make_image(tmp_path / "i", content, "x", free_bytes=1 << 20)
    debugfs(tmp_path / "i", "clri /a/link", "set_super_value state 0")
    ext4.read_image(tmp_path / "i", tmp_path / "out")
    assert shape(tmp_path / "out")["a/b c/file"] == "text"


def test_a_name_that_is_there_twice_leads_nowhere_else(content: Path, tmp_path: Path) -> None:
    """A link out of the tree, and behind it a file of the same name: nothing outside is written to."""
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "evil").write_text("evil")
    ext4.make_image(tmp_path / "i", content, "x", free_bytes=1 << 20)
    debugfs(tmp_path / "i", f"symlink trap {outside}", f"write {tmp_path}/evil second", "ln second trap")
    ext4.read_image(tmp_path / "i", tmp_path / "out")
    assert outside.read_text() == "untouched"


def test_what_is_no_file_system_is_an_error(tmp_path: Path) -> None:
    """The lab wrote over all of it."""
    (tmp_path / "i").write_bytes(b"x" * ext4.CYLINDER_BYTES)
    with pytest.raises(LabError, match="can't be repaired"):
        ext4.read_image(tmp_path / "i", tmp_path / "out")
    assert not (tmp_path / "out").exists()
