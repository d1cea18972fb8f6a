"""What a container changed in its files: listed, made a layer, and laid over its image.

It is the upper directory of its overlay as a layer's tar, which the agent makes: from a container that runs
now, from one that has ended when it did. What pykvm itself writes into every container is left out.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from pykvm.containers.kept import keep_changes
from pykvm.containers.layer import Kind, LayerReader, Member
from pykvm.containers.limits import Limits
from pykvm.containers.records import StateError
from pykvm.containers.tarstream import Sink, buffered
from pykvm.containers.tree import Change, FileTree, Node, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.documents import Image
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["changes_of", "upper_of", "write_layer"]

_OURS = frozenset({"etc/hosts", "etc/hostname", "etc/resolv.conf"})
_MOUNT_POINTS = frozenset({"dev", "proc", "sys", "dev/pts", "dev/shm", "dev/mqueue", "dev/console"})


@contextmanager
def upper_of(
    containers: ContainerStore, record: Record, client: AgentClient | None, *, content: bool = True
) -> Iterator[IO[bytes]]:
    """The tar of what a container changed, in all its runs. Raises StateError for a lost one."""
    if client is not None:
        with containers.scratch() as file:
            keep_changes(containers, record, client, file, content=content)
            file.seek(0)
            yield file
        return
    try:
        file = (containers.folder(record) / "upper.tar").open("rb")
    except FileNotFoundError:
        if record.state != "created":
            why = f": {record.error}" if record.error else ""
            raise StateError(f"container {record.name}: what it changed was not kept{why}") from None
        file = io.BytesIO(bytes(10240))
    with file:
        yield file


def _reader(upper: IO[bytes], record: Record) -> LayerReader:
    return LayerReader(buffered(upper), f"container {record.name}", Limits())


def _is_ours(member: Member, implied: FileTree | None = None) -> bool:
    below = implied.get(member.path) if implied else None
    if member.path in _MOUNT_POINTS and member.kind is Kind.DIRECTORY and below is None:
        return True
    return member.path in _OURS or not member.path


def changes_of(store: ImageStore, image: Image, upper: IO[bytes], record: Record) -> list[Change]:
    """As `docker diff`: A added, C changed (also a directory in which something was), D deleted."""
    below = tree_of(store, image.layers, with_content=False)
    found = []
    for member in _reader(upper, record):
        if _is_ours(member, below):
            continue
        before = below.get(member.path)
        if member.kind is Kind.WHITEOUT:
            if before:
                found.append(Change("D", member.path, 0))
        elif member.kind is Kind.OPAQUE:
            names = before.children if before else {}
            found += [Change("D", f"{member.path}/{name}", 0) for name in names]
        elif before is None:
            found.append(Change("A", member.path, member.size_bytes))
        elif not _is_untouched(before, member):
            found.append(Change("C", member.path, member.size_bytes))
    again = {one.path for one in found if one.kind != "D"}
    return sorted(
        (one for one in found if one.kind != "D" or one.path not in again), key=lambda change: change.path
    )


def _is_untouched(before: Node, member: Member) -> bool:
    """Whether a directory is only there because of what is below it, deeper."""
    if not before.kind is member.kind is Kind.DIRECTORY:
        return False
    same = (before.mode, before.uid, before.gid) == (member.mode, member.uid, member.gid)
    return same and before.mtime_ns // 10**9 == member.mtime_ns // 10**9


def write_layer(upper: IO[bytes], target: IO[bytes], record: Record, below: FileTree) -> None:
    """The tar as a layer of an image, without what is ours."""
    reader = _reader(upper, record)
    tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
    for member in reader:
        if _is_ours(member, below) and member.kind not in {Kind.WHITEOUT, Kind.OPAQUE}:
            continue
        info = member.info
        info.uname = info.gname = ""
        info.name = info.name.rstrip("/")
        tar.addfile(info, reader.data(member) if info.isreg() else None)
    tar.close()
