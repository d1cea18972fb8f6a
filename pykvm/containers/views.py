"""What the commands show of images: rows, trees, histories; the words and units are docker's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pykvm.containers.names import parse_name
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from pykvm.containers.documents import Image
    from pykvm.containers.store import Entry, ImageStore

__all__ = [
    "LayerNode",
    "age",
    "history",
    "inspect",
    "layer_rows",
    "layer_tree",
    "rows",
    "short",
    "size",
    "tree_lines",
]

_NONE = "<none>"
_AGES = ((730, 365, "year"), (60, 30, "month"), (14, 7, "week"))  # at least so many days; days per unit
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(size_bytes: float) -> str:
    """As docker writes it: three digits and a power of 1000 (4.26MB)."""
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_UNITS[unit]}"


def short(digest: str) -> str:
    """The twelve digits that people see of a digest."""
    return digest.removeprefix("sha256:")[:12]


def age(created: object, now: datetime | None = None) -> str:
    """`3 weeks ago`, or N/A where a configuration does not say it, or not soundly."""
    try:
        then = datetime.fromisoformat(_python_time(str(created)))
    except ValueError:
        return "N/A"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = int(((now or datetime.now(UTC)) - then).total_seconds())
    if seconds < 60:
        return "Less than a minute ago" if seconds < 1 else f"{seconds} seconds ago"
    if seconds < 3600:
        return _ago(seconds // 60, "minute")
    if seconds < 48 * 3600:
        return _ago(seconds // 3600, "hour")
    days = seconds // 86400
    per, unit = next(((per, unit) for least, per, unit in _AGES if days >= least), (1, "day"))
    return _ago(days // per, unit)


def _ago(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def _python_time(text: str) -> str:
    """RFC 3339 with nanoseconds; Python knows microseconds."""
    head, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{head}{dot}{(digits + '000000')[:6]}{rest[len(digits) :]}" if dot else text


def rows(store: ImageStore, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One row for each name of each image, the newest first, and for images without a name.

    `names` takes only those of repositories or tags. What is wrong with an image that can't be read stands
    under "damage". Raises ConfigError for what is no name.
    """
    return sorted(
        map(partial(_row, store), _named(store, names)), key=lambda row: row["created"] or "", reverse=True
    )


def _named(store: ImageStore, names: tuple[str, ...]) -> list[Entry]:
    """The images of these names; all, if there are none."""
    wanted = [parse_name(name) for name in names]
    return [
        entry
        for entry in store.entries()
        if not wanted
        or any(
            entry.name and entry.name.repository == one.repository and one.tag in {"", entry.name.tag}
            for one in wanted
        )
    ]


def _row(store: ImageStore, entry: Entry) -> dict[str, Any]:
    name = entry.name
    row: dict[str, Any] = {
        "repository": name.familiar_repository if name else _NONE,
        "tag": (name.tag or _NONE) if name else _NONE,
        "id": entry.descriptor.digest,
        "digest": entry.descriptor.digest,
        "created": None,
        "size_bytes": 0,
        "layers": 0,
        "damage": "",
    }
    try:
        image = store.image(entry.descriptor)
        row |= {"id": image.id, "created": str(image.settings.get("created") or "") or None}
        row |= {"layers": len(image.layers)}
        row |= {"size_bytes": sum(store.note(layer).files_bytes for layer in image.layers)}
    except ImageError as error:
        row["damage"] = str(error)
    return row


def layer_rows(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    """Each layer, lowest first: digests and sizes in bytes."""
    found, virtual = [], 0
    for layer, diff_id, chain_id in zip(image.layers, image.diff_ids, image.chain, strict=True):
        note = store.note(layer)
        virtual += note.files_bytes
        found.append(
            {
                "digest": layer.digest,
                "diff_id": diff_id,
                "chain_id": chain_id,
                "media_type": layer.media_type,
                "packed_bytes": layer.size_bytes,
                "size_bytes": note.files_bytes,
                "virtual_bytes": virtual,
                "entries": note.entries,
            }
        )
    return found


def history(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    """Every step that made the image, the last one first; steps without a layer have size 0."""
    left = list(image.layers)
    found = []
    steps = image.settings.get("history") or [{} for _ in left]
    for step in steps:
        layer = None if step.get("empty_layer") or not left else left.pop(0)
        found.append(
            {
                "id": "<missing>",
                "created": step.get("created"),
                "created_by": str(step.get("created_by", "")),
                "size_bytes": store.note(layer).files_bytes if layer else 0,
                "comment": str(step.get("comment", "")),
                "layer": layer.digest if layer else None,
            }
        )
    if found:
        found[-1]["id"] = image.id
    return found[::-1]


def inspect(store: ImageStore, entry: Entry) -> dict[str, Any]:
    """All about an image, under docker's keys, and each layer."""
    image = store.image(entry.descriptor)
    names = [one.name for one in store.entries() if one.name and one.descriptor.digest == image.digest]
    layers = layer_rows(store, image)
    settings = image.settings
    return {
        "Id": image.id,
        "RepoTags": [name.familiar for name in names if name.tag],
        "RepoDigests": sorted({f"{name.familiar_repository}@{image.digest}" for name in names}),
        "Created": settings.get("created"),
        "Author": settings.get("author", ""),
        "Architecture": settings.get("architecture", ""),
        "Os": settings.get("os", ""),
        "Size": sum(layer["size_bytes"] for layer in layers),
        "Config": settings.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Descriptor": entry.descriptor.as_json(),
        "Layers": layers,
    }


@dataclass(slots=True)
class LayerNode:
    """One layer upon another; images that share it share the node."""

    chain_id: str
    diff_id: str
    size_bytes: int
    virtual_bytes: int
    names: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    children: list[LayerNode] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "chain_id": self.chain_id,
            "diff_id": self.diff_id,
            "size_bytes": self.size_bytes,
            "virtual_bytes": self.virtual_bytes,
            "names": self.names,
            "images": self.images,
            "children": [child.as_json() for child in self.children],
        }


def layer_tree(store: ImageStore, names: tuple[str, ...] = ()) -> list[LayerNode]:
    """The lowest layers of all images, or of those of `names`, and what stands on each."""
    top = LayerNode("", "", 0, 0)
    nodes: dict[str, LayerNode] = {}
    for entry in _named(store, names):
        image, node = store.image(entry.descriptor), top
        for row in layer_rows(store, image):
            below, node = node, nodes.get(row["chain_id"], top)
            if node is top:
                node = LayerNode(row["chain_id"], row["diff_id"], row["size_bytes"], row["virtual_bytes"])
                nodes[node.chain_id] = node
                below.children.append(node)
        node.names.extend([entry.name.familiar] if entry.name else [])
        if image.id not in node.images:
            node.images.append(image.id)
    return top.children


def tree_lines(nodes: list[LayerNode], before: str = "") -> list[str]:
    """The hierarchy drawn."""
    lines = []
    for node in nodes:
        is_last = node is nodes[-1]
        names = ", ".join(node.names) or ("<none>" if node.images else "")
        tags = f"  Tags: {names}" if names else ""
        lines.append(
            f"{before}{'└─ ' if is_last else '├─ '}{short(node.diff_id)}  "
            f"Size: {size(node.size_bytes)}  Virtual Size: {size(node.virtual_bytes)}{tags}"
        )
        lines += tree_lines(node.children, before + ("   " if is_last else "│  "))
    return lines
