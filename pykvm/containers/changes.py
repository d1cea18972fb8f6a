"""What a container changed in its files: listed, made a layer, and laid over its image.

It is the upper directory of its overlay as a layer's tar, which the agent makes: from a container that runs
now, from one that has ended when it did. What pykvm itself writes into every container is left out.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from pykvm.containers.layer import Kind, LayerReader, Member
from pykvm.containers.limits import Limits
from pykvm.containers.records import StateError
from pykvm.containers.service import save_tar
from pykvm.containers.tarstream import Sink
from pykvm.containers.tree import Change, FileTree, Node, tree_of
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.documents import Image
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["buffered", "changes_of", "export_ended", "upper_of", "write_layer"]

_CHUNK = 1 << 18
_OURS = frozenset({"etc/hosts", "etc/hostname", "etc/resolv.conf"})
_MOUNT_POINTS = frozenset({"dev", "proc", "sys", "dev/pts", "dev/shm", "dev/mqueue", "dev/console"})


@contextmanager
def upper_of(
    containers: ContainerStore, record: Record, client: AgentClient | None, *, content: bool = True
) -> Iterator[IO[bytes]]:
    """The tar of what a container changed. Raises StateError if it has not run, ImageError for a lost one."""
    if client is not None:
        with containers.scratch() as file:
            save_tar(client, file, "diff", name=record.short, **({} if content else {"content": False}))
            file.seek(0)
            yield file
        return
    if record.state == "created":
        yield io.BytesIO(bytes(10240))
        return
    try:
        file = (containers.folder(record) / "upper.tar").open("rb")
    except FileNotFoundError:
        why = f": {record.error}" if record.error else ""
        raise StateError(f"container {record.name}: what it changed was not kept{why}") from None
    with file:
        yield file


def buffered(file: IO[bytes]) -> io.BufferedReader:
    """A reader of what a LayerReader takes; the file stays open when it goes."""
    return io.BufferedReader(_Lent(file), _CHUNK)


class _Lent(io.RawIOBase):
    """A file that is somebody else's to close."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)


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


def export_ended(
    store: ImageStore, image: Image, upper: IO[bytes], record: Record, target: IO[bytes]
) -> None:
    """All files of a container that has ended, its image's and its own, as one tar."""
    final = tree_of(store, image.layers, with_content=False)
    final.apply(_reader(upper, record), with_content=False)
    upper.seek(0)
    tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
    written: set[str] = set()
    for at, layer in enumerate(image.layers):
        with store.open_layer(layer) as reader:
            _copy_seen(reader, tar, final, at, written)
    _copy_seen(_reader(upper, record), tar, final, len(image.layers), written)
    tar.close()


def _copy_seen(
    reader: LayerReader, tar: tarfile.TarFile, final: FileTree, at: int, written: set[str]
) -> None:
    """Those entries of layer `at` that no layer above hides."""
    for member in reader:
        node = final.get(member.path) if member.path else None
        if node is None or node.layer != at or member.kind in {Kind.WHITEOUT, Kind.OPAQUE}:
            continue
        if member.path in written:
            continue
        if member.kind is Kind.HARD_LINK and final.get(member.target) is not node:
            raise ImageError(
                f"/{member.path} is a link to a file that a layer above replaces: can't export it"
            )
        written.add(member.path)
        info = member.info
        info.uname = info.gname = ""
        tar.addfile(info, reader.data(member) if info.isreg() else None)
