"""The cache holds complete entries or none, notices damage, and serves any number of processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.errors import LabError
from pykvm.lab.store import DamageError, Entry, Store, cache_root, need_space

if TYPE_CHECKING:
    from collections.abc import Mapping


def silent(text: str) -> None:
    """A progress that nobody watches."""


def build(where: Path) -> Mapping[str, Any]:
    (where / "sub").mkdir()
    (where / "sub/file").write_bytes(b"data")
    (where / "other").write_bytes(b"more")
    return {"version": "1"}


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "lock")


def test_an_entry_is_built_once_and_found_again(tmp_path: Path) -> None:
    """The second time nothing is built; what the builder told and wrote is there."""
    store = Store(tmp_path)
    assert store.get("things", "one") is None
    made = store.obtain("things", "one", build, silent)
    found = store.obtain("things", "one", lambda _: pytest.fail("built again"), silent)
    assert found == made
    assert found.about == {"version": "1"}
    assert found.size_bytes == 8
    assert (found.path / "sub/file").read_bytes() == b"data"
    assert store.kinds() == ["things"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither an entry nor a half-made directory stays, whatever was raised."""

    def stumble(where: Path) -> Mapping[str, Any]:
        build(where)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).obtain("things", "one", stumble, silent)
    assert everything(tmp_path) == ["things"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """ENOSPC while building says where, and what to do."""

    def full(where: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", str(where / "file"))

    with pytest.raises(LabError, match="No space left on device; make room, or set XDG_CACHE_HOME"):
        Store(tmp_path).obtain("things", "one", full, silent)
    assert everything(tmp_path) == ["things"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    """need_space names what is needed and what is free."""
    need_space(tmp_path, 1)
    with pytest.raises(LabError, match=r"MiB are needed and \d+ MiB are free"):
        need_space(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "other").write_bytes(b"MORE"),
        lambda path: (path / "sub/file").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("[1"),
        lambda path: (path / "manifest.json").write_text('{"files": [], "about": 1}'),
    ],
    ids=["changed", "gone", "no manifest", "cut manifest", "foreign manifest"],
)
def test_damage_is_told_and_repaired(tmp_path: Path, damage: Any) -> None:
    """Whatever happened to an entry, it is noticed, said once, and the entry made anew."""
    store = Store(tmp_path)
    damage(store.obtain("things", "one", build, silent).path)
    said: list[str] = []
    entry = store.obtain("things", "one", build, said.append)
    entry.check()
    assert len(said) == 1
    assert "damaged" in said[0]
    assert (entry.path / "other").read_bytes() == b"more"


def test_damage_is_listed_beside_what_is_sound(tmp_path: Path) -> None:
    """One bad entry does not hide the others."""
    store = Store(tmp_path)
    store.obtain("things", "good", build, silent)
    (store.obtain("things", "bad", build, silent).path / "manifest.json").unlink()
    kinds = {type(entry) for entry in store.entries("things")}
    assert kinds == {Entry, DamageError}


def test_two_builders_build_once(tmp_path: Path) -> None:
    """While one builds, another waits, says so, and takes what was built."""
    building, go_on = threading.Event(), threading.Event()
    builds: list[Path] = []
    said: list[str] = []

    def slow(where: Path) -> Mapping[str, Any]:
        builds.append(where)
        building.set()
        assert go_on.wait(10)
        return build(where)

    def says(text: str) -> None:
        said.append(text)
        go_on.set()

    first = threading.Thread(target=Store(tmp_path).obtain, args=("things", "one", slow, silent))
    first.start()
    assert building.wait(10)
    second = Store(tmp_path).obtain("things", "one", slow, says)
    first.join()
    second.check()
    assert len(builds) == 1
    assert said == ["waiting for another pykvm that sets the lab up"]


def test_only_what_was_used_last_is_kept(tmp_path: Path) -> None:
    """With a limit, a new entry takes the place of the one that was not used for longest."""
    store = Store(tmp_path)
    for age, key in ((3, "a"), (2, "b"), (1, "c")):
        entry = store.obtain("things", key, build, silent, keep=3)
        os.utime(entry.path, (1000 - age, 1000 - age))
    store.obtain("things", "a", build, silent, keep=3)
    store.obtain("things", "d", build, silent, keep=3)
    assert sorted(entry.key for entry in store.entries("things") if isinstance(entry, Entry)) == [
        "a",
        "c",
        "d",
    ]


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    """A half-made directory of a process that is gone does not stay for ever."""
    left = tmp_path / "things/.new-x"
    left.mkdir(parents=True)
    Store(tmp_path).obtain("things", "one", build, silent)
    assert not left.exists()


def test_a_room_lives_as_long_as_its_lab(tmp_path: Path) -> None:
    """It is private, counted, and gone at the end also when the lab failed."""
    store = Store(tmp_path)

    def fail_in_room() -> None:
        with store.room() as room:
            (room / "file").write_text("x")
            assert room.stat().st_mode & 0o777 == 0o700
            assert store.rooms() == 1
            raise LabError("no")

    with pytest.raises(LabError):
        fail_in_room()
    assert store.rooms() == 0
    assert everything(tmp_path) == ["run"]


def test_the_room_of_a_killed_lab_is_removed_by_the_next(tmp_path: Path) -> None:
    """A process that was killed leaves its room; the next one takes it away, but not that of a live one."""
    code = (
        "import sys, time; from pathlib import Path; from pykvm.lab.store import Store\n"
        "with Store(Path(sys.argv[1])).room() as room:\n"
        "    print(room, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        room = Path(process.stdout.readline().strip())
        with Store(tmp_path).room():
            assert room.is_dir()
        process.kill()
        process.wait()
        assert room.is_dir()
        with Store(tmp_path).room():
            assert not room.exists()


def test_cleaning_keeps_the_rooms_of_labs_that_run(tmp_path: Path) -> None:
    """Everything that can be made again goes, and its size is told."""
    store = Store(tmp_path)
    entry = store.obtain("things", "one", build, silent)
    with store.room() as room:
        assert store.remove() >= entry.size_bytes
        assert room.is_dir()
        assert not entry.path.exists()
    assert Store(tmp_path / "nothing").remove() == 0


def test_the_cache_is_where_the_xdg_specification_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME if it is absolute, else ~/.cache."""
    monkeypatch.setenv("HOME", "/home/user")
    for value, expected in (
        ("/x", "/x/pykvm/lab"),
        ("", "/home/user/.cache/pykvm/lab"),
        ("x", "/home/user/.cache/pykvm/lab"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_root() == Path(expected)


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "of yours"), (errno.EROFS, "can be written")])
def test_a_cache_that_can_not_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """The error names the directory and the variable that moves it."""

    def refuse(path: object, flags: int, mode: int = 0) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LabError, match=f"set XDG_CACHE_HOME to a directory .*{words}"):
        Store(tmp_path).obtain("things", "one", build, silent)
