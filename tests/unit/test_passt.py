"""A network card on passt: frames there and back, and what is said where there is no passt."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigError
from pykvm.passt import UserNet, join_frames

if TYPE_CHECKING:
    from pathlib import Path

MAC = bytes.fromhex("525400123456")
PASST = """#!{python} -S
import socket, sys
with open("{folder}/words", "w") as file:
    print(*sys.argv[1:], file=file)
link = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
while link.recv(4096):
    pass
with open("{folder}/over", "w") as file:
    print("over", file=file)
"""


def test_frames_keep_their_borders_both_ways() -> None:
    """Several in one piece of the stream, one in several pieces; the end of one side is the other's."""
    stream, far = socket.socketpair()
    frames, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with stream, far, frames, near:
        threads = join_frames(stream, frames)
        near.send(b"a frame")
        assert far.recv(100) == struct.pack("!I", 7) + b"a frame"
        whole = struct.pack("!I", 3) + b"one" + struct.pack("!I", 0) + struct.pack("!I", 5000) + bytes(5000)
        for at in range(0, len(whole), 1000):
            far.sendall(whole[at : at + 1000])
        assert (near.recv(9000), near.recv(9000)) == (b"one", bytes(5000))
        far.sendall(struct.pack("!I", 1 << 31) + b"no frame")
        assert near.recv(100) == b""
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passt of the test's own on PATH."""
    path = folder / "passt"
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_passt_gets_its_words_and_ends_with_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end of a socket and the ports; nothing of it is left, neither process nor descriptor."""
    program(tmp_path, PASST.format(python=sys.executable, folder=tmp_path), monkeypatch)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - their number
    card = UserNet(MAC, ports=["8080:80"])
    until = time.monotonic() + 20
    while not (tmp_path / "words").exists() and time.monotonic() < until:
        time.sleep(0.01)
    card.close()
    assert (tmp_path / "words").read_text().endswith(" --tcp-ports 8080:80\n")
    assert "--mtu 1500 --fd " in (tmp_path / "words").read_text()
    assert (tmp_path / "over").read_text() == "over\n"
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_a_passt_that_is_not_there_or_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own last words, without what it says of itself; or how to get one."""
    program(
        tmp_path,
        "#!/bin/sh\necho no interface >&2\necho Failed to send 3 bytes to syslog >&2\nexit 1\n",
        monkeypatch,
    )
    with pytest.raises(ConfigError, match=r"--net user: passt: no interface$"):
        UserNet(MAC)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt-get install passt"):
        UserNet(MAC)
