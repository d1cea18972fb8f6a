"""The layers of an image as erofs files, each made once and kept; and all of them on one disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

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

__all__ = ["LayerFile", "LayerMaker", "files_of", "layer_files"]


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer as a file system; `key` is its diff_id, or its ChainID where it depends on those below."""

    key: str
    diff_id: str
    path: Path
    size_bytes: int


def layer_files(store: ImageStore, image: Image, progress: Progress = silent) -> list[LayerFile]:
    """The layers, lowest first. Those that are not in the cache yet are made. Raises ImageError."""
    found = []
    with store.using():
        maker = LayerMaker(store, image)
        for at, diff_id in enumerate(image.diff_ids):
            path = maker.path(at)
            if not path.exists():
                with write_whole(path) as file:
                    maker.write(at, file)
            size = path.stat().st_size
            progress(f"erofs {diff_id.removeprefix('sha256:')[:12]}", size, size)
            found.append(LayerFile(maker.key(at), diff_id, path, size))
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


class LayerMaker:
    """Makes the files of an image's layers; ask for them from the lowest up.

    A layer that has something in directories it does not describe (most tools describe them) shows these as
    the layers below have them; so it is kept for just that stack, under its ChainID.
    """

    def __init__(self, store: ImageStore, image: Image) -> None:
        self._store = store
        self._image = image
        self._tree = FileTree()

    def key(self, at: int) -> str:
        """What layer `at`, 0 the lowest, is kept under."""
        return self._image.chain[at] if self._depends(at) else self._image.diff_ids[at]

    def path(self, at: int) -> Path:
        """Where it is kept, or would be."""
        return self._store.root / "erofs" / f"{self.key(at).removeprefix('sha256:')}.erofs"

    def write(self, at: int, file: IO[bytes]) -> None:
        """Write it; the same each time. Raises ImageError."""
        below = self._below(at) if self._depends(at) else None
        uuid = bytes.fromhex(self.key(at).removeprefix("sha256:")[:32])
        with self._store.open_layer(self._image.layers[at]) as reader:
            write_erofs(reader, file, uuid, self._store.blobs.incoming, below)

    def _depends(self, at: int) -> bool:
        return at > 0 and self._store.note(self._image.layers[at]).implied > 0

    def _below(self, layers: int) -> FileTree:
        """The lowest `layers` laid over each other, read when they are asked for, and once."""
        while self._tree.layers < layers:
            with self._store.open_layer(self._image.layers[self._tree.layers]) as reader:
                self._tree.apply(reader, with_content=False)
        return self._tree
