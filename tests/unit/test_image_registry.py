"""Images pulled and pushed, from and to a registry that may be honest, slow of wit, broken, or a liar."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from image_parts import digest, entry, layer, layout
from registry_fake import FakeRegistry

from pykvm.cli import main
from pykvm.containers.documents import Platform
from pykvm.containers.limits import Limits
from pykvm.containers.names import parse_name
from pykvm.containers.registry import Registry
from pykvm.containers.removal import remove
from pykvm.containers.store import ImageStore
from pykvm.errors import ImageError, PykvmError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASE = layer(entry("a", bytes(range(256)) * 2000))
APP = layer(entry("b", b"b" * 100))
FILES = layout([BASE, APP], [gzip.compress(BASE, mtime=0), APP])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def pull(store: ImageStore, fake: FakeRegistry, what: str = "app:1", **options: Any) -> list[str]:
    said: list[str] = []
    registry = Registry(store, parse_name(f"{fake.host}/{what}"), notice=said.append)
    try:
        registry.pull(**options)
    finally:
        registry.close()
    return said


def push(store: ImageStore, fake: FakeRegistry, source: str, target: str) -> list[str]:
    said: list[str] = []
    registry = Registry(store, parse_name(f"{fake.host}/{target}"), notice=said.append)
    try:
        registry.push(store.find(source))
    finally:
        registry.close()
    return said


def with_configuration(store: ImageStore, fake: FakeRegistry) -> None:
    """Keep the configuration, so that what goes wrong goes wrong with layers."""
    with store.using():
        store.blobs.put(next(data for data in fake.blobs.values() if data.startswith(b'{"arch')))


def whole(store: ImageStore, name: str) -> int:
    """Read all of an image; how many entries it has."""
    count = 0
    for one in store.image(store.find(name).descriptor).layers:
        with store.open_layer(one) as reader:
            count += len(list(reader))
    return count


def test_pulled_is_what_the_registry_has(store: ImageStore, fake: FakeRegistry) -> None:
    """By tag and by digest, in docker's words; a second time nothing is fetched."""
    wanted = fake.add("app", "1", FILES)
    said = pull(store, fake)
    assert said[0] == "1: Pulling from app"
    assert [line.partition(": ")[2] for line in said[1:3]] == ["Pull complete"] * 2
    assert said[3:] == [f"Digest: {wanted}", f"Status: Downloaded newer image for {fake.host}/app:1"]
    assert whole(store, f"{fake.host}/app:1") == 2
    fake.asked.clear()
    said = pull(store, fake)
    assert said[-1] == f"Status: Image is up to date for {fake.host}/app:1"
    assert fake.asked == ["GET /v2/app/manifests/1"]
    pull(store, fake, f"app@{wanted}")
    assert store.find(f"{fake.host}/app@{wanted}").descriptor.digest == wanted
    assert not list(store.blobs.incoming.iterdir())


def test_the_platform_is_chosen_from_an_index(store: ImageStore, fake: FakeRegistry) -> None:
    """One of several by --platform; what there is none for is said with what there is."""
    one = fake.add("app", "x", FILES)
    other = fake.add("app", "y", layout([APP]))
    listed = [
        {"digest": wanted, "size": 1, "mediaType": "m", "platform": {"os": "linux", "architecture": cpu}}
        for wanted, cpu in ((one, "amd64"), (other, "arm64"))
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    fake.manifests["app", "1"] = "application/vnd.oci.image.index.v1+json", index
    assert f"Digest: {digest(index)}" in pull(store, fake)
    assert store.find(f"{fake.host}/app:1").descriptor.digest == one
    pull(store, fake, platform=Platform.parse("linux/arm64"))
    assert store.find(f"{fake.host}/app:1").descriptor.digest == other
    with pytest.raises(ImageError, match="nothing for linux/s390x, but for linux/amd64, linux/arm64"):
        pull(store, fake, platform=Platform.parse("linux/s390x"))


def test_a_token_is_fetched_and_not_carried_elsewhere(
    store: ImageStore, fake: FakeRegistry, tmp_path: Path
) -> None:
    """With the login that docker has stored; a redirect to another host comes without it."""
    fake.add("app", "1", FILES)
    fake.token, fake.login = "secret", base64.b64encode(b"me:word").decode()
    fake.redirects_to = f"http://localhost:{fake.port}/elsewhere?repo={{repo}}&digest={{digest}}"
    with pytest.raises(RegistryError, match=r"login refused: 401 UNAUTHORIZED who are you\? \[31m"):
        pull(store, fake)
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {fake.host: {"auth": fake.login}}}))
    fake.asked.clear()
    with FakeRegistry(fake.blobs) as other:  # has no token and takes none
        fake.redirects_to = f"http://{other.host}/elsewhere?repo={{repo}}&digest={{digest}}"
        pull(store, fake)
        assert all(not line.startswith("+token") for line in other.asked)
        assert len(other.asked) == 3
    assert "scope repository:app:pull" in fake.asked
    assert whole(store, f"{fake.host}/app:1") == 2


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_transfer_that_breaks_off_goes_on(
    store: ImageStore, fake: FakeRegistry, knows_ranges: bool
) -> None:
    """In the same pull, and in the next one where this one gave up; nothing comes twice."""
    fake.add("app", "1", FILES)
    fake.knows_ranges = knows_ranges
    fake.break_after, fake.breaks = 300, 3
    pull(store, fake)
    assert whole(store, f"{fake.host}/app:1") == 2
    remove(store, f"{fake.host}/app:1")
    big = "app", digest(gzip.compress(BASE, mtime=0))
    with store.using():
        (store.blobs.incoming / f"part-{big[1][7:]}").write_bytes(fake.blobs[big][:500])
    fake.asked.clear()
    pull(store, fake)
    assert whole(store, f"{fake.host}/app:1") == 2
    assert not list(store.blobs.incoming.iterdir())
    assert "range bytes=500-" in fake.asked


def test_a_registry_that_never_gets_to_the_end(store: ImageStore, fake: FakeRegistry) -> None:
    """It is given up in one line; what came stays for the next time, and then it goes on there."""
    fake.add("app", "1", FILES)
    with_configuration(store, fake)
    fake.break_after, fake.breaks = 0, 100
    with pytest.raises(RegistryError, match="broke off at byte 0 of"):
        pull(store, fake)
    assert store.entries() == []
    fake.breaks = 0
    pull(store, fake)
    assert whole(store, f"{fake.host}/app:1") == 2


def test_lies_are_refused(store: ImageStore, fake: FakeRegistry) -> None:
    """Other bytes than the digest says, for blobs and manifests; longer, shorter; circles; no such thing."""
    wanted = fake.add("app", "1", FILES)
    fake.lie = gzip.compress(BASE + BASE)
    with pytest.raises(PykvmError, match=r"sends sha256|forged|damaged|broke off"):
        pull(store, fake)
    with_configuration(store, fake)
    for lie in (b"x" * 5000, APP, gzip.compress(APP)):
        fake.lie = lie
        with pytest.raises(PykvmError, match=r"forged|damaged|too early|no sound tar|broke off|unpacked"):
            pull(store, fake)
    fake.lie = b""
    fake.digest_header = digest(b"other")
    with pytest.raises(RegistryError, match="sends a manifest"):
        pull(store, fake)
    fake.digest_header = "../../etc"
    with pytest.raises(ImageError, match="is no sha256 digest"):
        pull(store, fake)
    fake.digest_header = ""
    fake.redirects_to = "/loop"
    with pytest.raises(RegistryError, match="redirects in a circle"):
        pull(store, fake)
    fake.redirects_to = "file:///etc/passwd"
    with pytest.raises(RegistryError, match="file:, which is no HTTP"):
        pull(store, fake)
    with pytest.raises(RegistryError, match="404 MANIFEST_UNKNOWN manifest unknown; is it spelled so"):
        pull(store, fake, "app:2")
    fake.manifests["app", "1"] = "x", b"{" + b" " * (5 << 20)
    with pytest.raises(RegistryError, match="an answer of more than"):
        pull(store, fake)
    fake.redirects_to = ""
    fake.manifests["app", "1"] = fake.manifests["app", wanted]
    pull(store, fake)
    assert whole(store, f"{fake.host}/app:1") == 2


def test_a_registry_that_sends_without_end(fake: FakeRegistry, tmp_path: Path) -> None:
    """A layer said to be huge is given up at the limit, and what came is dropped."""
    fake.add("app", "1", FILES)
    store = ImageStore(tmp_path / "small", Limits(image_bytes=1 << 20))
    fake.lie = gzip.compress(BASE, mtime=0) + bytes(4 << 20)
    big = json.loads(fake.manifests["app", "1"][1])
    big["layers"][0]["size"] = 1 << 60
    fake.manifests["app", "1"] = fake.manifests["app", "1"][0], json.dumps(big).encode()
    with_configuration(store, fake)
    with pytest.raises(ImageError, match="even packed"):
        pull(store, fake)
    assert not list(store.blobs.incoming.iterdir())
    assert store.entries() == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "can't be reached: SSH-2.0"),
        (b"", "can't be reached: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "can't be reached|no sound JSON"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "can't be reached|no sound JSON"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "can't be reached: got more than"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "redirects in a circle"),
        (b"HTTP/1.1 500 \x1b[31m\r\nContent-Length: 0\r\n\r\n", "500"),
        (None, "can't be reached: timed out"),
    ],
    ids=["ssh", "hangs up", "cut short", "bad chunk", "headers", "nowhere", "failure", "silence"],
)
def test_what_is_no_registry_is_one_line(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, said: bytes | None, why: str
) -> None:
    """Other protocols, answers cut short, no answer at all: an error, and soon."""
    monkeypatch.setattr("pykvm.containers.http._TIMEOUT_S", 30 if said is not None else 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_all, args=(server, said))
        thread.start()
        port = server.getsockname()[1]
        registry = Registry(store, parse_name(f"127.0.0.1:{port}/app:1"))
        try:
            with pytest.raises(PykvmError, match=why) as caught:
                registry.pull()
        finally:
            registry.close()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert str(caught.value).isprintable()
    assert store.entries() == []


def _answer_all(server: socket.socket, said: bytes | None) -> None:
    """Answer each connection with the same, whatever it wants, until the server is shut down."""
    held = []
    with suppress(OSError):
        while True:
            peer, _ = server.accept()
            held.append(peer)
            if said is not None:
                peer.recv(65536)
                peer.sendall(said)
                peer.close()
    for peer in held:
        peer.close()


def test_a_registry_s_indexes_lead_somewhere(store: ImageStore, fake: FakeRegistry) -> None:
    """An index that leads to itself, or to an index to an index, is given up."""
    kind = "application/vnd.oci.image.index.v1+json"
    data = b'{"schemaVersion":2,"manifests":[]}'
    for at in range(6):
        fake.manifests["app", digest(data)] = kind, data
        listed = [{"digest": digest(data), "size": len(data), "mediaType": kind}]
        data = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
        fake.manifests["app", str(at)] = kind, data
    with pytest.raises(RegistryError, match="an index in an index"):
        pull(store, fake, "app:5")
    with pytest.raises(ImageError, match="has nothing for linux/amd64"):
        pull(store, fake, "app:0")


def test_pushed_is_pulled_again(store: ImageStore, fake: FakeRegistry, tmp_path: Path) -> None:
    """What is there is not sent: said as docker says it; another repository's layers are mounted."""
    fake.token = "t"  # noqa: S105 - the fake's
    fake.add("start", "1", FILES)
    pull(store, fake, "start:1")
    source = f"{fake.host}/start:1"
    said = push(store, fake, source, "new/app:2")
    assert said[0] == f"The push refers to repository [{fake.host}/new/app]"
    assert [line.partition(": ")[2] for line in said[1:3]] == ["Mounted from start"] * 2
    assert (
        said[3]
        == f"2: digest: {store.find(source).descriptor.digest} size: {len(fake.manifests['new/app', '2'][1])}"
    )
    assert "scope repository:new/app:pull,push" in fake.asked
    said = push(store, fake, source, "new/app:3")
    assert [line.partition(": ")[2] for line in said[1:3]] == ["Layer already exists"] * 2
    fake.can_mount, fake.breaks = False, 2
    said = push(store, fake, source, "third:1")
    assert [line.partition(": ")[2] for line in said[1:3]] == ["Pushed"] * 2
    other = ImageStore(tmp_path / "other")
    pull(other, fake, "third:1")
    assert other.find(f"{fake.host}/third:1").descriptor.digest == store.find(source).descriptor.digest
    fake.digest_header = digest(b"x")
    with pytest.raises(RegistryError, match="says it has kept"):
        push(store, fake, source, "third:2")
    store.blobs.path(digest(APP)).write_bytes(APP[:-1] + b"x")
    fake.digest_header = ""
    with pytest.raises(PykvmError, match=r"damaged|can't be reached"):
        push(store, fake, source, "fourth:1")


def test_nobody_there_is_one_line(store: ImageStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A closed port, by the command, with status 125."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert main(["image", "--root", str(store.root), "pull", f"127.0.0.1:{port}/x"]) == 125
    assert capsys.readouterr().err == f"pykvm: 127.0.0.1:{port}: can't be reached: Connection refused\n"


def test_the_commands(store: ImageStore, fake: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    """pull prints the full name at last, push -q the digest."""
    wanted = fake.add("app", "1", FILES)
    root = ["image", "--root", str(store.root)]
    assert main([*root, "pull", f"{fake.host}/app:1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{fake.host}/app:1"
    assert main([*root, "push", "-q", f"{fake.host}/app:1", f"{fake.host}/b:2"]) == 0
    assert capsys.readouterr().out == f"{fake.host}/b@{wanted}\n"
    for words in (["pull", "--json", f"{fake.host}/app:1"], ["push", "--json", f"{fake.host}/app:1"]):
        assert main([*root, *words]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["name"], told["digest"]) == (f"{fake.host}/app:1", wanted)
