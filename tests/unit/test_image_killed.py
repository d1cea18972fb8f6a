"""Work on images, killed at random or done by several at once: the store is whole whenever one looks."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import image_work
import pytest
from image_parts import layout
from image_work import APP, BASE, MAKES, NOISE, TAKES
from registry_fake import FakeRegistry

from pykvm.containers.removal import collect_garbage, remove
from pykvm.containers.store import ImageStore
from pykvm.containers.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 8
SEED = 20_260_101


class Workers:
    """The program that forks a process for each piece of work."""

    def __enter__(self) -> Self:
        argv = [sys.executable, str(Path(image_work.__file__))]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, **request: object) -> tuple[list[int], float]:
        """The exit statuses, and how long it took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer["statuses"], answer["seconds"]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as workers:
        yield workers


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "big").write_bytes(NOISE)
    return ImageStore(tmp_path / "store")


@pytest.fixture
def host() -> Iterator[str]:
    with FakeRegistry() as registry:
        registry.add("app", "1", layout([BASE, APP]))
        yield registry.host


def names_in(store: ImageStore) -> set[str]:
    """The names there are; all that is kept is read, and must be as it should be."""
    assert not verify(store).damage
    return {one.name.familiar for one in store.entries() if one.name}


def check_clean(store: ImageStore) -> None:
    """After gc there is nothing but what images need."""
    collect_garbage(store, untagged=True)
    left = [path.name for path in store.root.rglob("*") if path.name.startswith((".new-", "part-"))]
    assert left == []
    wanted: set[str] = set()
    for one in store.entries():
        image = store.image(one.descriptor)
        wanted |= {image.digest, image.id, *(blob.digest for blob in image.layers)}
    assert {f"sha256:{path.name}" for path in store.blobs.directory.iterdir()} == wanted


@pytest.mark.parametrize("work", [*MAKES, *TAKES])
def test_killed_at_any_moment_nothing_is_damaged(
    workers: Workers, store: ImageStore, host: str, work: str
) -> None:
    """What was there stays; the image is there whole or not at all; gc collects the rest; again, it works."""
    chance = random.Random(f"{SEED} {work}")  # noqa: S311 - the same each time
    name = f"{host}/app:1" if work == "pull" else "app:1"
    request: dict[str, object] = {"work": work, "root": str(store.root), "host": host}
    image_work.load_base(store)
    killed, fastest_s = 0, 0.0
    for turn in range(ROUNDS):
        if work in TAKES:
            image_work.load_other(store)
        after_s = chance.uniform(0, fastest_s) if turn else None
        (status,), _ = workers.ask(**request, after_s=after_s)
        assert status in {0, -signal.SIGKILL}, f"round {turn}, after {after_s} s"
        killed += status != 0
        names = names_in(store)
        assert {"base:1"} <= names <= {"base:1", "app:2", name}
        if work in TAKES and name not in names:
            image_work.load_other(store)
        statuses, seconds = workers.ask(**request)
        assert statuses == [0]
        fastest_s = min(fastest_s or seconds, seconds)
        assert (name in names_in(store)) == (work != "rm")
        if work in MAKES:
            remove(store, name)
        check_clean(store)
    assert killed > 1  # or it has shown nothing


def test_several_work_on_one_store_at_once(workers: Workers, store: ImageStore, host: str) -> None:
    """Four that load, pull, build, commit, save, tag, remove and collect, from before there is a store."""
    seeds = [SEED + at for at in range(4)]
    assert workers.ask(root=str(store.root), host=host, seeds=seeds)[0] == [0] * 4
    assert "base:1" in names_in(store)
    check_clean(store)
