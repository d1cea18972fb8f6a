"""The layers of an image as erofs files, each made once and kept; and all of them on one disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.containers.blobs import write_whole
from pykvm.containers.erofs import write_erofs
from pykvm.containers.progress import silent
from pykvm.containers.tree import FileTree
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.containers.documents import Image
    from pykvm.containers.progress import Progress
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["LayerFile", "files_of", "layer_files"]


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer as a file system; `key` is its diff_id, or its ChainID where it depends on those below."""

    key: str
    diff_id: str
    path: Path
    size_bytes: int


def layer_files(store: ImageStore, image: Image, progress: Progress = silent) -> list[LayerFile]:
    """The layers, lowest first. Those that are not in the cache yet are made. Raises ImageError.

    A layer that has something in directories it does not describe (most tools describe them) shows these as
    the layers below have them; so it is kept for just that stack.
    """
    found = []
    below = _Below(store, image)
    with store.using():
        for at, (layer, diff_id, chain_id) in enumerate(
            zip(image.layers, image.diff_ids, image.chain, strict=True)
        ):
            depends = at > 0 and store.note(layer).implied > 0
            key = chain_id if depends else diff_id
            path = store.root / "erofs" / f"{key.removeprefix('sha256:')}.erofs"
            if not path.exists():
                tree = below.tree(at) if depends else None
                with write_whole(path) as file, store.open_layer(layer) as reader:
                    uuid = bytes.fromhex(key.removeprefix("sha256:")[:32])
                    write_erofs(reader, file, uuid, store.blobs.incoming, tree)
            size = path.stat().st_size
            progress(f"erofs {diff_id.removeprefix('sha256:')[:12]}", size, size)
            found.append(LayerFile(key, diff_id, path, size))
    return found


def files_of(containers: ContainerStore, record: Record) -> list[LayerFile]:
    """The layers' files of a container that has been made, lowest first. Raises ImageError if one is gone."""
    found = []
    for key in record.layers:
        path = containers.root.parent / "erofs" / f"{key.removeprefix('sha256:')}.erofs"
        try:
            found.append(LayerFile(key, key, path, path.stat().st_size))
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}; run the container anew") from None
    return found


class _Below:
    """The files of an image's lower layers, read when they are asked for, and once."""

    def __init__(self, store: ImageStore, image: Image) -> None:
        self._store = store
        self._image = image
        self._tree = FileTree()

    def tree(self, layers: int) -> FileTree:
        """The lowest `layers` laid over each other; ask for ever more, not for fewer."""
        while self._tree.layers < layers:
            with self._store.open_layer(self._image.layers[self._tree.layers]) as reader:
                self._tree.apply(reader, with_content=False)
        return self._tree
