"""The files of an image: layers laid over each other as a union file system does, and their differences."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pykvm.containers.layer import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pykvm.containers.documents import Descriptor, Image
    from pykvm.containers.layer import LayerReader, Member
    from pykvm.containers.store import ImageStore

__all__ = [
    "Change",
    "FileTree",
    "LayerChanges",
    "Node",
    "changes_between",
    "layered_changes",
    "read_file",
    "tree_of",
]

_CHUNK = 1 << 18


@dataclass(slots=True)
class Node:
    """One file or directory as the layers up to `layer` have it. `content` is a file's sha256, in hex.

    A directory that no layer describes but that has something in it has `is_implied`.
    """

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    content: str = ""
    layer: int = 0
    mtime_ns: int = 0
    is_implied: bool = False
    children: dict[str, Node] = field(default_factory=dict)

    def looks_like(self, other: Node) -> bool:
        """Whether nothing but the time of change and what is below may differ."""
        return self._look() == other._look()

    def _look(self) -> tuple[object, ...]:
        what = (self.kind, self.mode, self.uid, self.gid, self.size_bytes)
        return (*what, self.target, self.device, self.xattrs, self.content)


@dataclass(frozen=True, slots=True)
class Change:
    """A path that was added (A), changed (C) or deleted (D), in docker's letters."""

    kind: str
    path: str
    size_bytes: int

    def as_json(self) -> dict[str, object]:
        """For machines."""
        return {"kind": self.kind, "path": f"/{self.path}", "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class LayerChanges:
    """What one layer changes. `side`: = for a layer of both images, - of the first, + of the second.

    `created_by` is the step of the image's history that made it, as far as that is told.
    """

    side: str
    diff_id: str
    changes: list[Change]
    created_by: str = ""

    def as_json(self) -> dict[str, object]:
        """For machines."""
        changes = [change.as_json() for change in self.changes]
        return {
            "side": self.side,
            "diff_id": self.diff_id,
            "created_by": self.created_by,
            "changes": changes,
        }


class FileTree:
    """The union of layers, lowest first."""

    def __init__(self) -> None:
        self.root = Node(Kind.DIRECTORY, is_implied=True)
        self.layers = 0

    def get(self, path: str) -> Node | None:
        """What is at a path; links are not followed."""
        node: Node | None = self.root
        for part in path.split("/") if path else ():
            node = node.children.get(part) if node else None
        return node

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path and what is there, sorted, a directory before what it holds."""
        yield from _walk("", self.root)

    def apply(self, layer: LayerReader, *, with_content: bool) -> list[Change]:
        """Lay one more layer over; what that changes. `with_content` reads and hashes the files."""
        own: dict[int, Node] = {}
        changes: dict[str, Change] = {}
        for member in layer:
            if member.kind is Kind.WHITEOUT:
                self._parent(member.path.rpartition("/")[0], own)
                self._hide(member.path, own, changes)
            elif member.kind is Kind.OPAQUE:
                for name in list(self._parent(member.path, own).children):
                    self._hide(f"{member.path}/{name}".lstrip("/"), own, changes)
            else:
                content = _digest(layer, member) if with_content and member.kind is Kind.FILE else ""
                self._put(member, content, own, changes)
        self.layers += 1
        return sorted(changes.values(), key=lambda change: change.path)

    def _hide(self, path: str, own: dict[int, Node], changes: dict[str, Change]) -> None:
        """Take away what lower layers have at a path; what this layer put there stays."""
        folder, _, name = path.rpartition("/")
        parent = self.get(folder)
        node = parent.children.get(name) if parent else None
        if not parent or not node:
            return
        for child in list(node.children):
            self._hide(f"{path}/{child}", own, changes)
        if id(node) not in own:
            if not node.children:
                del parent.children[name]
            changes[path] = Change("D", path, 0)

    def _put(self, member: Member, content: str, own: dict[int, Node], changes: dict[str, Change]) -> None:
        node = self._node(member, content)
        if not member.path:
            node.children, self.root = self.root.children, node
            own[id(node)] = node
            return
        folder, _, name = member.path.rpartition("/")
        parent = self._parent(folder, own)
        before = parent.children.get(name)
        if before and node.kind is before.kind is Kind.DIRECTORY:
            node.children = before.children
        parent.children[name] = node
        own[id(node)] = node
        if before is None or not node.looks_like(before):
            was_there = before or (member.path in changes and changes[member.path].kind == "D")
            changes[member.path] = Change("C" if was_there else "A", member.path, node.size_bytes)
        elif member.path in changes:
            del changes[member.path]

    def _parent(self, folder: str, own: dict[int, Node]) -> Node:
        node = self.root
        for part in folder.split("/") if folder else ():
            child = node.children.get(part)
            if child is None or child.kind is not Kind.DIRECTORY:
                child = node.children[part] = Node(Kind.DIRECTORY, is_implied=True, layer=self.layers)
            own.setdefault(id(child), child)
            node = child
        return node

    def _node(self, member: Member, content: str) -> Node:
        if member.kind is Kind.HARD_LINK:
            found = self.get(member.target)
            if found:
                return found
        return Node(
            member.kind,
            member.mode,
            member.uid,
            member.gid,
            member.size_bytes,
            member.target,
            member.device,
            member.xattrs,
            content,
            self.layers,
            member.mtime_ns,
        )


def tree_of(store: ImageStore, layers: Sequence[Descriptor], *, with_content: bool) -> FileTree:
    """The files of layers that are in the store, lowest first."""
    tree = FileTree()
    for layer in layers:
        with store.open_layer(layer) as reader:
            tree.apply(reader, with_content=with_content)
    return tree


def read_file(store: ImageStore, layers: Sequence[Descriptor], path: str, limit: int) -> bytes | None:
    """The first `limit` bytes of a regular file as the layers show it, or None if they show none there."""
    for at, layer in reversed(list(enumerate(layers))):
        found: bytes | None = None
        link, is_hidden = "", False
        with store.open_layer(layer) as reader:
            for member in reader:
                if member.path == path and member.kind is Kind.FILE:
                    found = reader.data(member).read(limit)
                elif member.path == path and member.kind is Kind.HARD_LINK:
                    link = member.target
                is_hidden = is_hidden or _hides(member, path)
        if link:
            return read_file(store, layers[at : at + 1], link, limit)
        if found is not None or is_hidden:
            return found
    return None


def _hides(member: Member, path: str) -> bool:
    """Whether an entry takes away the file that lower layers have at `path`."""
    is_there_or_below = f"{member.path}/".startswith(f"{path}/")  # if below, it is a directory
    if member.kind is Kind.DIRECTORY:
        return is_there_or_below
    return is_there_or_below or path.startswith(f"{member.path}/") or not member.path


def changes_between(store: ImageStore, old: Image, new: Image) -> list[Change]:
    """What must be done to the files of `old` to get those of `new`, sorted by path."""
    before = dict(tree_of(store, old.layers, with_content=True).walk())
    after = dict(tree_of(store, new.layers, with_content=True).walk())
    changes = [Change("D", path, 0) for path in before.keys() - after.keys()]
    for path, node in after.items():
        if path not in before:
            changes.append(Change("A", path, node.size_bytes))
        elif not node.looks_like(before[path]):
            changes.append(Change("C", path, node.size_bytes))
    return sorted(changes, key=lambda change: change.path)


def layered_changes(store: ImageStore, old: Image, new: Image | None) -> list[LayerChanges]:
    """Layer by layer, lowest first: what both images share (without its changes), then each one's own.

    Without `new`, every layer of `old`, marked with +.
    """
    if new is None:
        return _own_layers(store, old, 0, "+")
    both = zip(old.diff_ids, new.diff_ids, strict=False)
    shared = next((at for at, (one, other) in enumerate(both) if one != other), None)
    if shared is None:
        shared = min(len(old.diff_ids), len(new.diff_ids))
    found = [LayerChanges("=", diff_id, []) for diff_id in old.diff_ids[:shared]]
    return found + _own_layers(store, old, shared, "-") + _own_layers(store, new, shared, "+")


def _own_layers(store: ImageStore, image: Image, start: int, side: str) -> list[LayerChanges]:
    tree, found = FileTree(), []
    history = image.settings.get("history") or []
    steps = [str(step.get("created_by", "")) for step in history if not step.get("empty_layer")]
    for at, layer in enumerate(image.layers):
        with store.open_layer(layer) as reader:
            changes = tree.apply(reader, with_content=True)
        if at >= start:
            step = steps[at] if at < len(steps) else ""
            found.append(LayerChanges(side, image.diff_ids[at], changes, step))
    return found


def _digest(layer: LayerReader, member: Member) -> str:
    digest, data = hashlib.sha256(), layer.data(member)
    while chunk := data.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _walk(path: str, node: Node) -> Iterator[tuple[str, Node]]:
    for name, child in sorted(node.children.items()):
        below = f"{path}/{name}" if path else name
        yield below, child
        if child.kind is Kind.DIRECTORY:
            yield from _walk(below, child)
