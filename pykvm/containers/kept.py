"""What a container changed, kept from its end to its next start, as a tar, then as its topmost layer."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING

from pykvm.containers.blobs import write_whole
from pykvm.containers.erofs import write_erofs
from pykvm.containers.layer import LayerReader
from pykvm.containers.layer_files import LayerFile
from pykvm.containers.layer_files import files_of as image_files_of
from pykvm.containers.limits import Limits
from pykvm.containers.tarstream import buffered
from pykvm.containers.transfers import save_tar
from pykvm.containers.tree import tree_of
from pykvm.containers.uppers import merge
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.documents import Image
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["files_of", "keep_changes", "kept_layer"]


def kept_layer(store: ImageStore, containers: ContainerStore, record: Record, image: Image) -> str:
    """Make a layer's file of what it has changed so far; the key, "" if it has changed nothing.

    Raises ImageError.
    """
    try:
        tar = (containers.folder(record) / "upper.tar").open("rb")
    except FileNotFoundError:
        return ""
    with tar:
        key = f"sha256:{hashlib.file_digest(tar, 'sha256').hexdigest()}"
        tar.seek(0)
        below = tree_of(store, image.layers, with_content=False)
        reader = LayerReader(buffered(tar), f"container {record.name}", Limits())
        with write_whole(_path(containers, record)) as file:
            write_erofs(reader, file, bytes.fromhex(key[7:39]), containers.root, below)
    return key


def files_of(containers: ContainerStore, record: Record) -> list[LayerFile]:
    """The files of all layers that a container starts with, lowest first. Raises ImageError."""
    found = image_files_of(containers, record)
    if record.kept:
        path = _path(containers, record)
        try:
            found.append(LayerFile(record.kept, record.kept, path, path.stat().st_size))
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}; start the container again") from None
    return found


def keep_changes(
    containers: ContainerStore,
    record: Record,
    client: AgentClient,
    target: IO[bytes],
    *,
    content: bool = True,
) -> None:
    """Write the tar of all that a running container has changed, in earlier runs too.

    Raises AgentError, AgentGoneError, ImageError.
    """
    words = {"name": record.short} | ({} if content else {"content": False})
    if not record.kept:
        save_tar(client, target, "diff", **words)
        return
    with containers.scratch() as later:
        save_tar(client, later, "diff", **words)
        with (containers.folder(record) / "upper.tar").open("rb") as earlier:
            merge(earlier, later, target)


def _path(containers: ContainerStore, record: Record) -> Path:
    return containers.folder(record) / "upper.erofs"
