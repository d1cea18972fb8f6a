"""All that the store holds, read again and held against the digests; what is damaged can be taken out.

Blobs have their digest as name. A layer's note and its erofs image follow from the layer, so they are made
again and compared.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from pykvm.containers.layer_files import LayerMaker
from pykvm.containers.progress import silent
from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pykvm.containers.documents import Descriptor, Image
    from pykvm.containers.progress import Progress
    from pykvm.containers.store import Entry, ImageStore

__all__ = ["Damage", "Verified", "verify"]

_CHUNK = 1 << 18
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it should be; `was_repaired` if nothing is missing because of it any more."""

    what: str
    why: str
    was_repaired: bool = False


@dataclass(slots=True)
class Verified:
    """What has been looked at, and what is wrong."""

    images: int = 0
    blobs: int = 0
    file_systems: int = 0
    read_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    @property
    def lost(self) -> list[Damage]:
        """What only the images' source can bring back."""
        return [one for one in self.damage if not one.was_repaired]


def verify(store: ImageStore, *, repair: bool = False, progress: Progress = silent) -> Verified:
    """Read everything. `repair` takes out damaged blobs, for `load` and `pull` to bring them anew, and makes
    again what can be made from sound ones. Raises OSError where a disk can't be read or written.
    """
    with store.alone() if repair else store.using():
        return _Verifier(store, repair, progress).run()


class _Verifier:
    def __init__(self, store: ImageStore, repair: bool, progress: Progress) -> None:
        self._store = store
        self._repair = repair
        self._progress = progress
        self._found = Verified()
        self._bad: set[str] = set()
        self._done: set[str] = set()
        kept = [path for name in ("blobs/sha256", "erofs") for path in (store.root / name).iterdir()]
        self._all_bytes = sum(path.stat().st_size for path in kept)

    def run(self) -> Verified:
        for path in sorted(self._store.blobs.directory.iterdir()):
            self._blob(path)
        try:
            entries = self._store.entries()
        except ImageError as error:
            self._wrong("index.json", str(error))
            entries = []
        manifests = {entry.descriptor.digest: entry for entry in reversed(entries)}
        for entry in reversed(manifests.values()):
            self._image(entry)
        return self._found

    def _wrong(self, what: str, why: str, mend: Callable[[], None] | None = None) -> None:
        """Note damage, and mend it if that can be done and is wanted."""
        mends = self._repair and mend is not None
        if mends and mend:
            mend()
        self._found.damage.append(Damage(what, why, mends))

    def _blob(self, path: Path) -> None:
        """Read a blob. One that is taken out is not mended by that: an image may need it."""
        self._found.blobs += 1
        if not _HEX.fullmatch(path.name) or not path.is_file():
            self._wrong(f"blobs/sha256/{path.name}", "is no blob")
            return
        digest = f"sha256:{path.name}"
        try:
            with self._store.blobs.open(digest) as blob:
                while data := blob.read(_CHUNK):
                    self._count(len(data))
        except ImageError:
            self._bad.add(digest)
            self._wrong(digest, "its content has another" + (", so it is removed" if self._repair else ""))
            if self._repair:
                path.unlink()
                self._store.note_path(digest).unlink(missing_ok=True)

    def _count(self, size_bytes: int) -> None:
        self._found.read_bytes += size_bytes
        self._progress("verified", self._found.read_bytes, self._all_bytes)

    def _image(self, entry: Entry) -> None:
        """An image whose parts are here: do they fit each other?"""
        name = entry.name.familiar if entry.name else entry.descriptor.digest
        self._found.images += 1
        try:
            image = self._store.image(entry.descriptor)
            for layer in image.layers:
                self._check_there(layer)
        except ImageError as error:
            self._wrong(name, _short(str(error)))
            return
        for at, layer in enumerate(image.layers):
            if layer.digest not in self._done:
                self._layer(name, layer, image.diff_ids[at])
        maker = LayerMaker(self._store, image)
        for at in range(len(image.layers)):
            with suppress(ImageError):  # it has been told of
                self._file_system(image, maker, at)

    def _check_there(self, layer: Descriptor) -> None:
        if layer.digest in self._bad:
            raise ImageError(f"{layer.digest}: this layer is damaged")
        size = self._store.blobs.size(layer.digest)
        if size != layer.size_bytes:
            raise ImageError(f"{layer.digest}: this layer has {size} bytes and not {layer.size_bytes}")

    def _layer(self, name: str, layer: Descriptor, diff_id: str) -> None:
        """Whether a layer is a sound tar, has its diff_id, and its note tells of it what is so."""
        self._done.add(layer.digest)
        try:
            note = self._store.examine(layer)
        except ImageError as error:
            self._wrong(name, _short(str(error)))
            return
        if note.diff_id != diff_id:
            self._wrong(name, f"{layer.digest}: its content is {note.diff_id} and not {diff_id}")
        path = self._store.note_path(layer.digest)
        try:
            is_right = json.loads(path.read_bytes()) == asdict(note)
        except FileNotFoundError:
            is_right = True
        except ValueError:
            is_right = False
        if not is_right:
            self._wrong(f"layers/{path.name}", "does not fit its layer", path.unlink)

    def _file_system(self, image: Image, maker: LayerMaker, at: int) -> None:
        """Make a layer's file again, if there is one, and compare."""
        path = maker.path(at)
        if path.name in self._done or not path.exists():
            return
        self._done.add(path.name)
        self._found.file_systems += 1
        with self._store.blobs.temporary() as fresh, path.open("rb") as kept:
            maker.write(at, fresh)
            fresh.seek(0)
            if not _are_equal(fresh, kept):
                of = f"does not fit its layer {image.layers[at].digest}"
                self._wrong(f"erofs/{path.name}", of, partial(path.unlink, missing_ok=True))
            self._count(kept.tell())


def _are_equal(one: IO[bytes], other: IO[bytes]) -> bool:
    while True:
        data = one.read(_CHUNK)
        if data != other.read(_CHUNK):
            return False
        if not data:
            return True


def _short(text: str) -> str:
    """An error without its advice, which stands at the end of the report."""
    return text.partition(";")[0]
