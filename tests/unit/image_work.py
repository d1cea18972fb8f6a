"""Work on images, each piece done by a process of its own, which is killed when its time is over.

Run as a program, this reads a request a line, {"work": …, "root": …, "host": …, "after_s": …, "seeds": …},
and answers each with the statuses and the seconds it took. It has no threads, so its forks are sound.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from image_parts import docker_archive, entry, layer, tar_of

from pykvm.containers.archive import load, save
from pykvm.containers.build import build
from pykvm.containers.committing import commit
from pykvm.containers.layer_files import layer_files
from pykvm.containers.names import parse_name
from pykvm.containers.records import Record
from pykvm.containers.registry import Registry
from pykvm.containers.removal import collect_garbage, remove
from pykvm.containers.store import ImageStore
from pykvm.errors import ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["APP", "BASE", "MAKES", "NOISE", "TAKES", "UPPER", "load_base", "load_other"]

NOISE = random.Random(7).randbytes(400_000)  # noqa: S311 - the same each time
BASE = layer(entry("etc", kind=tarfile.DIRTYPE), entry("etc/a", NOISE[:150_000]), entry("usr/b", b"b"))
APP = layer(entry("etc/c", NOISE[150_000:]), entry("etc/.wh.a"))
UPPER = layer(entry("etc", kind=tarfile.DIRTYPE), entry("etc/new", NOISE[:90_000]))
ARCHIVE = tar_of(docker_archive([BASE, APP], ["app:1"]))


def load_base(store: ImageStore) -> None:
    """What must live through everything."""
    load(store, io.BytesIO(tar_of(docker_archive([BASE], ["base:1"]))))
    layer_files(store, store.image(store.find("base:1").descriptor))


def load_other(store: ImageStore) -> None:
    """An image, and another that has lost its name to it."""
    load(store, io.BytesIO(ARCHIVE))
    load(store, io.BytesIO(tar_of(docker_archive([BASE, UPPER], ["app:2"]))))
    with store.using():
        store.tag(store.find("app:1").descriptor, parse_name("app:2"))


def do_load(store: ImageStore, _: str) -> None:
    load(store, io.BytesIO(ARCHIVE))


def do_pull(store: ImageStore, host: str) -> None:
    Registry(store, parse_name(f"{host}/app:1")).pull()


def do_build(store: ImageStore, _: str) -> None:
    text = "FROM base:1\nCOPY . /srv/\nCOPY big /usr/\nENV A=1\n"
    build(store, store.root.parent / "context", text, "Pykvmfile", parse_name("app:1"))


def do_commit(store: ImageStore, _: str) -> None:
    record = Record("c" * 64, "c", "base:1", "", [], 1, "vm", ["sh"])
    image = store.image(store.find("base:1").descriptor)
    commit(store, image, record, io.BytesIO(UPPER), parse_name("app:1"))


def do_file_systems(store: ImageStore, _: str) -> None:
    with store.using():
        do_load(store, "")
        layer_files(store, store.image(store.find("app:1").descriptor))


def do_remove(store: ImageStore, _: str) -> None:
    remove(store, "app:1")


def do_collect(store: ImageStore, _: str) -> None:
    collect_garbage(store, untagged=True)


MAKES: dict[str, Callable[[ImageStore, str], None]] = {
    "load": do_load,
    "pull": do_pull,
    "build": do_build,
    "commit": do_commit,
    "file systems": do_file_systems,
}
TAKES: dict[str, Callable[[ImageStore, str], None]] = {"rm": do_remove, "gc": do_collect}


def do_save(store: ImageStore, _: str) -> None:
    save(store, [store.find("app:1")], io.BytesIO())


def do_tag(store: ImageStore, _: str) -> None:
    with store.using():
        store.tag(store.find("app:1").descriptor, parse_name("app:3"))


def some_of_everything(store: ImageStore, host: str, seed: int) -> None:
    """Begin stores, then work in one in an order of one's own."""
    chance = random.Random(seed)  # noqa: S311 - the same each time
    for at in range(20):  # nothing but the beginning
        collect_garbage(ImageStore(store.root.parent / f"begun-{at}"))
    load_base(store)
    for _ in range(12):
        does = chance.choice([*MAKES.values(), *TAKES.values(), do_save, do_tag])
        try:
            does(store, host)
        except ImageNotFoundError:  # another has removed it, or not made it yet
            assert does in {do_remove, do_save, do_tag, do_file_systems}


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _answer(said: dict[str, object]) -> dict[str, object]:
    store, host, seeds = ImageStore(Path(str(said["root"]))), str(said["host"]), said.get("seeds")
    since = time.monotonic()
    if isinstance(seeds, list):
        children = [_fork(partial(some_of_everything, store, host, seed)) for seed in seeds]
    else:
        does = (MAKES | TAKES)[str(said["work"])]
        children = [_fork(lambda: does(store, host))]
    if isinstance(after_s := said.get("after_s"), float):
        time.sleep(after_s)  # it is the moment of the kill that is asked for
        os.kill(children[0], signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"statuses": statuses, "seconds": time.monotonic() - since}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)  # noqa: T201 - that is its protocol
