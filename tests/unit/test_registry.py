"""Machines by name: who lives is known, who died leaves nothing, and nobody else gets in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.cli import main
from pykvm.errors import ConfigError
from pykvm.registry import NotRunningError, Room, room_path, stop

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

HOLDS_A_NAME = """
import sys, pathlib
from pykvm.registry import Room
seat = Room(pathlib.Path(sys.argv[1])).enter("dead", {})
link = seat.listen()
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    """A room of its own, at a path that is too long for a socket's address."""
    folder = tmp_path / ("long" * 30)
    with Room(folder) as found:
        yield found


def test_a_name_is_there_as_long_as_it_is_held(room: Room) -> None:
    """With what the machine says of itself; then nothing is left."""
    with room.enter("one", {"image": "x"}) as seat, seat.listen():
        ((name, about),) = room.entries()
        assert (name, about["image"], about["pid"]) == ("one", "x", os.getpid())
        seat.tell({})
        assert "image" not in room.entries()[0].about
        with room.connect("one"):
            pass
        assert room.is_running("one")
    assert room.entries() == []
    assert list(room.path.iterdir()) == []


def test_a_name_is_given_once(room: Room) -> None:
    """The second is told so; another name is another machine."""
    with room.enter("one"), room.enter("two"):
        with pytest.raises(ConfigError, match="named one runs already"):
            room.enter("one")
        assert [entry.name for entry in room.entries()] == ["one", "two"]
    room.enter("one").close()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "ä", "-x", "a\n"])
def test_what_is_no_name_is_refused(room: Room, name: str) -> None:
    """In one line; nothing is made, nothing is reached."""
    with pytest.raises(ConfigError, match="no name for a machine"):
        room.enter(name)
    with pytest.raises(NotRunningError):
        room.connect(name)
    assert list(room.path.iterdir()) == []


def test_what_a_dead_machine_has_left_is_swept_up(room: Room) -> None:
    """Killed, it could clean up nothing; the name is free at once, and the directory empty."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_NAME, str(room.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        assert room.is_running("dead")
        child.send_signal(signal.SIGKILL)
    assert len(list(room.path.iterdir())) == 2
    with room.enter("dead") as seat, seat.listen():
        assert len(room.entries()) == 1
    assert room.entries() == []
    assert list(room.path.iterdir()) == []
    with pytest.raises(NotRunningError, match="none has a name"):
        room.connect("dead")


def test_many_want_one_name_and_one_has_it(room: Room) -> None:
    """However they run into each other's sweeping."""
    had: list[int] = []
    inside: list[int] = []

    def grab(number: int) -> None:
        for _ in range(30):
            try:
                with room.enter("one"):
                    inside.append(number)
                    assert len(inside) == 1
                    inside.clear()
                    had.append(number)
            except ConfigError:
                room.entries()

    threads = [threading.Thread(target=grab, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert had
    assert inside == []
    assert room.entries() == []


def test_the_directory_is_the_user_s_alone(tmp_path: Path) -> None:
    """Not a link, not open to others, not unreachable: one line each."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for path, words in ((open_to_all, "not yours alone"), (tmp_path / "link", "Not a directory|symbolic")):
        with pytest.raises(ConfigError, match=words):
            Room(path)
    with pytest.raises(ConfigError, match="No such file"):
        Room(tmp_path / "no" / "where")
    with Room(tmp_path / "new") as room:
        assert room.path.stat().st_mode & 0o777 == 0o700


def test_the_directory_is_where_the_system_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else among the temporary files, with the user's number."""
    assert room_path({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "pykvm"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/somewhere")
    for env in ({}, {"XDG_RUNTIME_DIR": "relative"}, {"XDG_RUNTIME_DIR": "/no/such/place"}):
        assert room_path(env, uid=4_000_000) == Path("/somewhere/pykvm-4000000")


def test_a_machine_that_does_not_end_is_named_with_its_process(room: Room) -> None:
    """It has been told, and is still there."""
    with room.enter("stuck") as seat, seat.listen() as listener:

        def answer() -> None:
            link: socket.socket = listener.accept()[0]
            with link:
                link.recv(1000)
                link.sendall(b'{"ok": true}\n')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Exception, match=rf"still runs after 0.05 s \(process {os.getpid()}\)"):
            stop(room, "stuck", timeout_s=0.05)
        thread.join()


def test_the_commands_say_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ps as a table, as names, as JSON; stop of a name that nobody has is one line and a status."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["ps"]) == 0
    assert capfd.readouterr().out.split() == ["NAME", "PID", "VCPUS", "MEMORY", "RUNS", "FOR", "IMAGE"]
    with Room() as room, room.enter("one", {"image": "x.elf", "vcpus": 2, "memory_bytes": 64 << 20}):
        assert main(["ps"]) == 0
        assert capfd.readouterr().out.splitlines()[1].split() == (
            ["one", str(os.getpid()), "2", "64", "MiB", "0", "s", "x.elf"]
        )
        assert main(["ps", "-q"]) == 0
        assert capfd.readouterr().out == "one\n"
        assert main(["ps", "--json"]) == 0
        assert '"name": "one"' in capfd.readouterr().out
        assert main(["stop", "two"]) == 125
        assert capfd.readouterr().err == "pykvm: no machine named two runs; there are one\n"
    assert main(["trace", "--attach", "one"]) == 125
    assert "no machine named one runs" in capfd.readouterr().err
