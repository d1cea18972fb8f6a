"""What containers have of the host: folders under names, with owners moved; ports that lead in."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from agent_fake import FakeAgent

from pykvm.containers.calls import AgentClient
from pykvm.containers.publishing import Publisher
from pykvm.containers.volumes import VOLUME_FIRST_ID, VolumeFolder
from pykvm.containers.wire import Kind, encode
from pykvm.devices.virtio.host_folder import ROOT
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_folders_stand_under_names_and_nothing_else_does(tmp_path: Path) -> None:
    """Only what is shared is found, only while it is; owners are the containers', both ways."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_text("x")
    folder = VolumeFolder(tmp_path / "empty", read_only=False)
    folder.share("one", tmp_path / "data")
    number, _ = folder.look_up(ROOT, b"one")
    _, about = folder.look_up(number, b"f")
    assert about.st_size == 1
    assert folder.shown_owner(about) == (VOLUME_FIRST_ID, VOLUME_FIRST_ID)
    assert folder.real_owner(VOLUME_FIRST_ID, VOLUME_FIRST_ID) == (os.geteuid(), os.getegid())
    for outside in (0, VOLUME_FIRST_ID - 1, VOLUME_FIRST_ID + 65_536):
        with pytest.raises(PermissionError):
            folder.real_owner(outside, VOLUME_FIRST_ID)
    for wrong in (b"two", b"..", b"data"):
        with pytest.raises(OSError, match=r".") as caught:
            folder.look_up(ROOT, wrong)
        assert caught.value.errno in {errno.ENOENT, errno.EINVAL}
    folder.unshare("one")
    with pytest.raises(FileNotFoundError):
        folder.look_up(ROOT, b"one")
    folder.close()


class _DiallingAgent(FakeAgent):
    """Answers `dial` with a peer that says what it was told, backwards."""

    def _dial(self, number: int, request: dict[str, Any]) -> None:
        if request["port"] == 81:
            self._answer(number, error={"errno": 111, "step": "connect", "text": "refused"})
            return
        self._answer(number)
        self.send(encode(Kind.DATA, number, 1, f"{request['address']} ".encode()))
        self.send(encode(Kind.DATA, number, 1, b""))


def test_a_published_port_leads_to_the_container() -> None:
    """Who connects gets what the agent's peer says, then the end; a refused one the end; a port is one's."""
    agent = _DiallingAgent({})
    with AgentClient(agent.host) as client:
        with Publisher(client, "10.88.0.2", [["127.0.0.1", 0, 80], ["127.0.0.1", 0, 81]]) as published:
            (_, open_port, inside), (_, closed_port, _) = published.ports
            assert inside == 80
            for port, said in ((open_port, b"10.88.0.2 "), (closed_port, b"")):
                with socket.create_connection(("127.0.0.1", int(str(port))), 10) as link:
                    assert link.recv(100) == said
                    assert link.recv(100) == b""
            end = time.monotonic() + 20
            while client._calls and time.monotonic() < end:
                time.sleep(0.001)
            assert not client._calls, "nothing is left of connections that are over"
            with pytest.raises(ConfigError, match=r"Bind for 127\.0\.0\.1:"):
                Publisher(client, "10.88.0.2", [["127.0.0.1", open_port, 80]])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(str(open_port))), 10)
    agent.die()
