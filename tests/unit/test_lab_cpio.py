"""The cpio writer's archives say what was put in, in the words of the format."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.lab import cpio


def read_archive(data: bytes) -> dict[str, tuple[int, int, tuple[int, int], bytes]]:
    """A reader of its own: name -> mode, links, rdev, data; it takes every field from its place."""
    found: dict[str, tuple[int, int, tuple[int, int], bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        _, mode, uid, gid, links, mtime, size, _, _, major, minor, name_bytes, check = fields
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        start = at + 110
        assert data[start + name_bytes - 1] == 0
        name = data[start : start + name_bytes - 1].decode()
        content = (start + name_bytes + 3) & ~3
        if name == "TRAILER!!!":
            assert len(data) % 512 == 0
            assert not any(data[content:])
            return found
        assert name not in found
        found[name] = (mode, links, (major, minor), data[content : content + size])
        at = (content + size + 3) & ~3


def test_every_kind_of_member_is_read_back_as_it_was_written() -> None:
    """Files, directories, links and device nodes keep mode, numbers and content."""
    archive = read_archive(
        cpio.pack(
            [
                cpio.file("init", b"\x7fELF", 0o755),
                cpio.directory("dev"),
                cpio.device("dev/console", "c", 5, 1),
                cpio.device("dev/sda", "b", 8, 0, 0o660),
                cpio.symlink("dev/fd", "/proc/self/fd"),
                cpio.file("empty", b""),
            ]
        )
    )
    assert archive == {
        "init": (stat.S_IFREG | 0o755, 1, (0, 0), b"\x7fELF"),
        "dev": (stat.S_IFDIR | 0o755, 2, (0, 0), b""),
        "dev/console": (stat.S_IFCHR | 0o600, 1, (5, 1), b""),
        "dev/sda": (stat.S_IFBLK | 0o660, 1, (8, 0), b""),
        "dev/fd": (stat.S_IFLNK | 0o777, 1, (0, 0), b"/proc/self/fd"),
        "empty": (stat.S_IFREG | 0o644, 1, (0, 0), b""),
    }


@given(st.dictionaries(st.from_regex(r"[a-z.]{3,20}", fullmatch=True), st.binary(max_size=600), max_size=8))
def test_any_names_and_contents_survive(files: dict[str, bytes]) -> None:
    """Padding and lengths are right for every length of name and data, and archives repeat."""
    files.pop("...", None)
    entries = [cpio.file(name, data) for name, data in files.items()]
    packed = cpio.pack(entries)
    assert {name: member[3] for name, member in read_archive(packed).items()} == files
    assert packed == cpio.pack(entries)


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "../x", "a/../b", ".", "a\0b", "TRAILER!!!"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """No member can climb out of the root or end the archive early."""
    with pytest.raises(ValueError, match="cpio"):
        cpio.pack([cpio.directory("a"), cpio.file(path, b"")])


def test_a_member_needs_its_directory_first_and_comes_once() -> None:
    """Linux makes no missing directories: the writer refuses what the reader would lose."""
    with pytest.raises(ValueError, match="before its directory"):
        cpio.pack([cpio.file("a/b", b"")])
    with pytest.raises(ValueError, match="twice"):
        cpio.pack([cpio.file("a", b""), cpio.file("a", b"")])
