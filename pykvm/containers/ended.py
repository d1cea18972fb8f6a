"""The files of a container that has ended: its image's layers, and over them what it changed, as one tree.

They are read from the layers' tars and the container's own; no machine is needed. What is copied in becomes
part of what the container changed.
"""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, TYPE_CHECKING

from pykvm.containers.blobs import write_whole
from pykvm.containers.layer import Kind, LayerReader, Member
from pykvm.containers.limits import Limits
from pykvm.containers.tarstream import Sink, buffered
from pykvm.containers.tree import tree_of
from pykvm.containers.uppers import merge
from pykvm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.documents import Image
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore
    from pykvm.containers.tree import FileTree, Node

__all__ = ["EndedFiles"]

_MOST_LINKS = 40  # as Linux follows
_NO_FILES = frozenset({Kind.WHITEOUT, Kind.OPAQUE, Kind.DIRECTORY})


class EndedFiles:
    """All files of a container; `upper` is the tar of what it changed, and can be read again."""

    def __init__(self, store: ImageStore, image: Image, upper: IO[bytes], record: Record) -> None:
        """Raises ImageError for what is damaged."""
        self._store = store
        self._image = image
        self._upper = upper
        self._what = f"container {record.name}"
        self._record = record
        self.tree: FileTree = tree_of(store, image.layers, with_content=False)
        self.tree.apply(self._reader(), with_content=False)

    def _reader(self) -> LayerReader:
        self._upper.seek(0)
        return LayerReader(buffered(self._upper), self._what, Limits())

    # ---- looking

    def resolved(self, path: str, *, follow: bool) -> tuple[str, Node | None]:
        """Where an absolute path leads by symbolic links, relative to the root, and what is there, if any.

        Raises ConfigError for links in a circle.
        """
        todo = [part for part in path.split("/") if part not in {"", "."}]
        there: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                del there[-1:]
                continue
            node = self.tree.get("/".join([*there, part]))
            if node and node.kind is Kind.SYMLINK and (todo or follow):
                links += 1
                if links > _MOST_LINKS:
                    raise ConfigError(f"{path}: too many levels of symbolic links")
                there = [] if node.target.startswith("/") else there
                todo = [one for one in node.target.split("/") if one not in {"", "."}] + todo
                continue
            there.append(part)
        found = "/".join(there)
        return found, self.tree.get(found)

    def is_folder(self, path: str) -> bool | None:
        """Whether a path leads to a directory; None if nothing is there."""
        _, node = self.resolved(path, follow=True)
        return node.kind is Kind.DIRECTORY if node else None

    # ---- out

    def export(self, target: IO[bytes]) -> None:
        """All of it as one tar. Raises ImageError."""
        self._write(target, lambda path: path)

    def copy_out(self, path: str, target: IO[bytes], *, follow: bool) -> None:
        """A file or directory as a tar, named by the last part of `path`. Raises ConfigError."""
        top, node = self.resolved(path, follow=follow)
        if node is None:
            raise ConfigError(f"Could not find the file {path} in container {self._record.name}")
        name = posixpath.basename(posixpath.normpath(path)) or "."

        def renamed(one: str) -> str | None:
            if one == top:
                return name
            if top and not one.startswith(f"{top}/"):
                return None
            return posixpath.normpath(f"{name}/{one[len(top) :].lstrip('/')}")

        self._write(target, renamed)

    def _write(self, target: IO[bytes], renamed: Callable[[str], str | None]) -> None:
        tar = tarfile.TarFile(fileobj=Sink(target), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
        written = _Written(tar, self.tree, renamed)
        for at, layer in enumerate(self._image.layers):
            with self._store.open_layer(layer) as reader:
                written.add(reader, at)
        written.add(self._reader(), len(self._image.layers))
        tar.close()

    # ---- in

    def copy_in(self, containers: ContainerStore, packed: IO[bytes], folder: str) -> None:
        """Put what a tar holds into a directory. Raises ConfigError, ImageError.

        `folder` is there, by whatever links; nothing is changed if one of the files can't be put there.
        """
        top, _ = self.resolved(folder, follow=True)
        reader = LayerReader(buffered(packed), "what is copied", Limits())
        with containers.scratch() as later:
            tar = tarfile.TarFile(fileobj=Sink(later), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
            for member in reader:
                self._put(tar, reader, member, top)
            tar.close()
            with write_whole(containers.folder(self._record) / "upper.tar") as file:
                merge(self._upper, later, file)

    def _put(self, tar: tarfile.TarFile, reader: LayerReader, member: Member, top: str) -> None:
        path = f"{top}/{member.path}".strip("/")
        before = self.tree.get(path)
        if member.kind in {Kind.WHITEOUT, Kind.OPAQUE}:
            raise ConfigError(f"{member.info.name}: a name that a layer has a meaning for")
        for at in (at for at, sign in enumerate(path) if sign == "/"):
            above = self.tree.get(path[:at])
            if above and above.kind is not Kind.DIRECTORY:
                raise ConfigError(f'"/{path[:at]}" is not a directory')
        if before and (before.kind is Kind.DIRECTORY) is not (member.kind is Kind.DIRECTORY):
            what = ("directory", "non-directory")
            first, second = what if before.kind is Kind.DIRECTORY else what[::-1]
            raise ConfigError(f'cannot overwrite {first} "/{path}" with {second}')
        if not member.path or (before and before.kind is member.kind is Kind.DIRECTORY):
            return  # it stays as it is
        info = _renamed(member.info, path)
        if member.kind is Kind.HARD_LINK:
            info.linkname = f"{top}/{member.target}".strip("/")
        tar.addfile(info, reader.data(member) if info.isreg() else None)


class _Written:
    """A tar on its way: of each layer what no layer above hides, under new names."""

    def __init__(self, tar: tarfile.TarFile, tree: FileTree, renamed: Callable[[str], str | None]) -> None:
        self._tar = tar
        self._tree = tree
        self._renamed = renamed
        self._done: set[str] = set()
        self._names: dict[int, str] = {}
        self._heirs: dict[int, str] = {}
        for path, node in tree.walk():
            if node.kind is Kind.FILE and (name := renamed(path)):
                self._heirs.setdefault(id(node), name)
            elif node.kind is Kind.DIRECTORY and (name := renamed(path)):
                tar.addfile(_folder(node, name))  # before what is in them, whichever layer describes them

    def add(self, reader: LayerReader, at: int) -> None:
        """The entries of layer `at`."""
        for member in reader:
            node = self._tree.get(member.path) if member.path else None
            if node is None or node.layer != at or member.kind in _NO_FILES:
                continue
            if member.path in self._done:
                continue
            self._done.add(member.path)
            name = self._renamed(member.path)
            if member.kind is Kind.HARD_LINK:
                self._link(member, name, node, reader)
                continue
            if member.kind is Kind.FILE:  # perhaps outside, but a link to it is wanted
                name = name or self._heirs.get(id(node))
                self._names[id(node)] = name or ""
            if name:
                self._entry(member, name, reader)

    def _link(self, member: Member, name: str | None, node: Node, reader: LayerReader) -> None:
        first = self._names.get(id(node), "")
        if not name or name == first:
            return
        if not first:
            raise ImageError(f"/{member.path} is a link to a file that a layer above replaces: can't copy it")
        member.info.linkname = first
        self._entry(member, name, reader)

    def _entry(self, member: Member, name: str, reader: LayerReader) -> None:
        info = _renamed(member.info, name)
        self._tar.addfile(info, reader.data(member) if info.isreg() else None)


def _folder(node: Node, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, node.mode, node.uid, node.gid
    info.mtime = node.mtime_ns // 10**9
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in node.xattrs.items()
    }
    return info


def _renamed(info: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """The entry under another name; headers that say its old one in full are left out."""
    info.name, info.uname, info.gname = name, "", ""
    info.pax_headers = {key: one for key, one in info.pax_headers.items() if key not in {"path", "linkpath"}}
    return info
