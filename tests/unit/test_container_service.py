"""The service of a machine with containers: what it keeps is true, whoever comes, goes or is killed."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from agent_fake import FakeAgent, FakeProcess

from pykvm.containers.calls import AgentClient, AgentError, AgentGoneError, Data
from pykvm.containers.logs import LogWriter, follow, last_lines, read_log
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.records import (
    LOST_STATUS,
    ContainerStore,
    NameTakenError,
    NoContainerError,
    Record,
    new_id,
)
from pykvm.containers.run_options import RunOptions
from pykvm.containers.service import Service
from pykvm.containers.talk import ServicePeer, converse
from pykvm.containers.users import User
from pykvm.containers.wire import DATA_MOST
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VM, STARTED_NS = "lab", 7


def record_of(name: str, args: list[str], **more: Any) -> Record:
    return Record(new_id(), name, "busybox", "sha256:0", [], 1, VM, args, **more)


def add(store: ContainerStore, record: Record, **options: Any) -> Record:
    return store.add(
        record,
        lambda one: oci_config(
            {},
            RunOptions(command=tuple(one.command), **options),
            User(0, 0, (), ""),
            Place(one.id, 0, (6, 1)),
        ),
    )


PIECES = 5  # just more than a quarter of the window


def hello(process: FakeProcess) -> None:
    process.write(1, b"hello\n")
    process.write(2, b"\xff\0oops")
    process.end(7)


def cat(process: FakeProcess) -> None:
    while data := process.stdin.get(timeout=10):
        process.write(1, data)
    process.end(0)


def wait_for_signal(process: FakeProcess) -> None:
    process.end(128 + process.signals.get(timeout=10), signal=15)


def forever(process: FakeProcess) -> None:
    process.write(1, b"still here\n")


def much(process: FakeProcess) -> None:
    for _ in range(PIECES):
        process.write(1, bytes(DATA_MOST))
    process.write(1, b"last")


PROGRAMS: dict[str, Callable[[FakeProcess], None]] = {
    "hello": hello,
    "much": much,
    "cat": cat,
    "wait": wait_for_signal,
    "forever": forever,
}


class Rig:
    """A service on a fake agent, and the containers of a directory."""

    def __init__(self, root: Path) -> None:
        self.agent = FakeAgent(PROGRAMS)
        self.store = ContainerStore(root)
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []
        self.links: list[socket.socket] = []
        self.service = Service(VM, STARTED_NS, lambda *_: None, self.ended.set)
        self.service.begin(lambda: AgentClient(self.agent.host))

    def run(self, record: Record, **request: Any) -> ServicePeer:
        ours, theirs = socket.socketpair()
        words = {"root": str(self.store.root.parent), "id": record.id, "attach": True, **request}
        answer = self.service.answers()["container"]
        thread = threading.Thread(target=answer, args=(None, theirs, words), daemon=True)
        thread.start()
        self.threads.append(thread)
        self.links += [ours, theirs]
        ours.settimeout(10)
        return ServicePeer(ours)

    def close(self) -> None:
        """End all of it."""
        self.agent.die()
        self.service.finish()
        for thread in self.threads:
            thread.join(10)
        for link in self.links:
            link.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """One rig."""
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def talk(peer: ServicePeer, typed: bytes | None = None) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """All that comes until the end: stdout, stderr, events."""
    if typed is not None:
        peer.type(typed)
        peer.type(b"")
    out = {1: b"", 2: b""}
    events = []
    for item in peer.items():
        if isinstance(item, Data):
            out[item.stream] += item.data
        else:
            events.append(item)
            if item["event"] in {"exit", "failed"}:
                break
    return out[1], out[2], events


def test_a_container_runs_and_all_of_it_is_kept(rig: Rig) -> None:
    """Bytes to the viewer and to the log, status, what it changed; the guest is rid of it."""
    record = add(rig.store, record_of("one", ["hello"]))
    out, err, events = talk(rig.run(record))
    assert (out, err, events[-1]["status"]) == (b"hello\n", b"\xff\0oops", 7)
    found = rig.store.get(record.id)
    assert (found.state, found.status, found.pid) == ("exited", 7, 0)
    assert 0 < found.started_ns < found.finished_ns
    folder = rig.store.folder(found)
    assert (folder / "upper.tar").read_bytes() == b"a tar"
    assert [(one.stream, one.data) for one in read_log(folder / "log")] == [
        (1, b"hello\n"),
        (2, b"\xff\0oops"),
    ]
    assert [one["op"] for one in rig.agent.asked] == ["create", "info", "diff", "delete"]
    creation = rig.agent.asked[0]
    assert creation["name"] == record.id[:12]
    assert len(creation["seccomp"]) % 16 == 0
    assert "seccomp" not in creation["config"]["linux"]


def test_input_comes_through_in_any_amount(rig: Rig) -> None:
    """More than a window goes in and comes out again, in order, and its end arrives."""
    record = add(rig.store, record_of("cat", ["cat"], auto_remove=True))
    typed = bytes(range(256)) * 2000
    peer = rig.run(record)

    def send_all() -> None:
        for at in range(0, len(typed), 9999):
            peer.type(typed[at : at + 9999])

    sender = threading.Thread(target=send_all)
    sender.start()
    out = b""
    for item in peer.items():
        if isinstance(item, Data):
            out += item.data
            if len(out) == len(typed):
                sender.join()
                peer.type(b"")
        elif item["event"] == "exit":
            break
    assert out == typed
    with pytest.raises(NoContainerError):
        rig.store.get(record.id)


def test_a_program_that_is_not_there_is_127_and_leaves_a_true_record(rig: Rig) -> None:
    """The viewer hears the step that failed; the record says what it was."""
    record = add(rig.store, record_of("none", ["nonesuch"]))
    _, _, events = talk(rig.run(record, explain=True))
    assert [one["event"] for one in events] == ["step", "failed"]
    assert events[-1]["status"] == 127
    found = rig.store.get(record.id)
    assert (found.state, found.status) == ("created", 127)
    assert "no such file" in found.error
    gone = add(rig.store, record_of("gone", ["nonesuch"], auto_remove=True))
    talk(rig.run(gone))
    assert [one.name for one in rig.store.all()] == ["none"]


def test_a_viewer_may_go_and_signals_reach_the_container(rig: Rig) -> None:
    """Killed while attached, the command leaves the container as it is."""
    record = add(rig.store, record_of("w", ["wait"]))
    peer = rig.run(record)
    started = next(item for item in peer.items() if not isinstance(item, Data))
    assert started == {"event": "started", "pid": 42}
    peer._link.close()
    assert rig.store.get(record.id).state == "running"
    other = add(rig.store, record_of("x", ["wait"]))
    peer = rig.run(other)
    next(iter(peer.items()))
    peer.tell("signal", signal=15)
    assert converse(peer, reads=False, is_tty=False, forwards=False)["status"] == 143
    rig.agent.containers[record.id[:12]].signals.put(9)
    rig.service.finish()
    assert rig.store.get(record.id).status == 137


def test_a_detached_container_tells_that_it_runs_and_is_left_alone(rig: Rig) -> None:
    """The request is over with the start; a machine of its own ends with it."""
    record = add(rig.store, record_of("d", ["wait"], own_vm=True))
    peer = rig.run(record, attach=False)
    assert next(iter(peer.items())) == {"event": "started", "pid": 42}
    assert rig.store.get(record.id).vm_started_ns == STARTED_NS
    keepers = list(rig.service._keepers)
    rig.agent.containers[record.id[:12]].signals.put(15)
    for keeper in keepers:
        keeper.join(10)
    assert [one["op"] for one in rig.agent.asked] == ["create", "info", "diff", "delete", "shutdown"]


def test_stopping_a_machine_ends_its_containers_in_order(rig: Rig) -> None:
    """They get their signal first, and what they changed is kept, before the guest is switched off."""
    record = add(rig.store, record_of("w", ["wait"], stop_signal=10))
    items = rig.run(record).items()
    next(iter(items))
    rig.service.shut_down()
    assert [one["op"] for one in rig.agent.asked] == [
        "create",
        "signal",
        "info",
        "diff",
        "delete",
        "shutdown",
    ]
    assert rig.store.get(record.id).status == 138


def test_a_machine_that_nobody_uses_ends(rig: Rig) -> None:
    """The command that made it was killed before it could ask for its container."""
    rig.service.end_unless_used(0)
    assert [one["op"] for one in rig.agent.asked] == ["shutdown"]


def test_when_the_guest_dies_its_containers_have_died(rig: Rig) -> None:
    """The viewer is told, and the record says why; one whose service was killed is found by who looks."""
    record = add(rig.store, record_of("f", ["forever"]))
    peer = rig.run(record)
    for item in peer.items():
        if isinstance(item, Data):
            rig.agent.die()
            rig.service.finish("reset; its words")
            break
    _, _, events = talk(peer)
    assert events[-1]["status"] == 137
    found = rig.store.get(record.id)
    assert (found.state, found.status) == ("exited", 137)
    assert found.error == "its machine lab ended before it: reset; its words"
    lost = rig.store.set(add(rig.store, record_of("l", ["x"])).id, state="running", vm_started_ns=STARTED_NS)
    rig.store.sweep(lambda _: STARTED_NS)
    assert rig.store.get(lost.id).state == "running"
    rig.store.sweep(lambda _: 8)
    found = rig.store.get(lost.id)
    assert (found.state, found.status) == ("exited", LOST_STATUS)
    with pytest.raises(AgentGoneError):
        rig.service._client.ask("list")  # type: ignore[union-attr]


def test_records_are_found_by_name_id_and_prefix(tmp_path: Path) -> None:
    """A name is one container's; users and addresses are shared by none that live; damage is left out."""
    store = ContainerStore(tmp_path)
    first = add(store, record_of("a", ["x"], network="bridge"))
    second = add(store, record_of("b", ["x"], network="bridge"))
    assert (first.first_id, second.first_id) == (165_536, 231_072)
    assert (first.address, second.address) == ("10.88.0.2", "10.88.0.3")
    assert store.find("a") == store.find(first.id) == store.find(first.id[:13]) == first
    with pytest.raises(NoContainerError, match="No such container: none"):
        store.find("none")
    with pytest.raises(NameTakenError, match="already in use by container"):
        add(store, record_of("a", ["x"]))
    with pytest.raises(ConfigError, match="Invalid container name"):
        add(store, record_of("../x", ["x"]))
    assert store.set(first.id, state="exited").state == "exited"
    assert add(store, record_of("c", ["x"])).first_id == 165_536
    (store.folder(second) / "record.json").write_bytes(b"{")
    assert {one.name for one in store.all()} == {"a", "c"}
    store.remove(first)
    assert not store.folder(first).exists()
    with pytest.raises(NoContainerError):
        store.change(first.id, lambda record: replace(record, status=1))


def test_logs_keep_bytes_turn_over_and_end_where_they_were_cut(tmp_path: Path) -> None:
    """Old entries go, new ones stay; a torn entry ends reading; followers see all; lines are found."""
    path = tmp_path / "log"
    log = LogWriter(path, most_bytes=4000)
    for at in range(100):
        log.write(1, b"%03d " % at + b"x" * 40)
    log.close()
    found = [one.data[:3] for one in read_log(path)]
    assert found == [b"%03d" % at for at in range(100 - len(found), 100)]
    assert 36 < len(found) < 100
    assert path.stat().st_size < 4000
    with path.open("ab") as file:
        file.write(b"\1" * 20)
    assert [one.data[:3] for one in read_log(path)] == found
    other = tmp_path / "other"
    log = LogWriter(other)
    seen = []
    rounds = iter([(1, b"a\nb"), (2, b"E\n"), (1, b"c\nd\r")])
    over = threading.Event()

    def step(_: float) -> None:
        if entry := next(rounds, None):
            log.write(*entry)
        else:
            over.set()

    seen = list(follow(other, over.is_set, step))
    assert b"".join(one.data for one in seen) == b"a\nbE\nc\nd\r"
    assert [(one.stream, one.data) for one in last_lines(seen, 3)] == [(2, b"E\n"), (1, b"bc\n"), (1, b"d\r")]
    assert last_lines(seen, 0) == []


def test_the_client_sorts_answers_and_errors(rig: Rig) -> None:
    """An error says its step; requests cross; a slow taker gives no more credit than he has taken."""
    client = rig.service._client
    assert client
    with pytest.raises(AgentError) as caught:
        client.ask("signal", name="none", signal=9)
    assert (caught.value.errno, caught.value.step) == (3, "signal")
    rig.agent.answers["stats"] = {"files": {}}
    assert client.ask("stats", 10, name="x") == {"files": {}}
    call = client.open("create", name="slow", config={"process": {"args": ["much"]}})
    assert call.answer(10)["pid"] == 42
    items = iter(call)
    for _ in range(PIECES):
        assert next(items) == Data(1, bytes(DATA_MOST))
    client.ask("list", 10)
    assert call.id not in rig.agent.credit  # the last one is still in use
    assert next(items) == Data(1, b"last")
    client.ask("list", 10)
    assert rig.agent.credit[call.id] == PIECES * DATA_MOST
