"""The images on this host, kept as one OCI image layout that other tools read too.

::

    ROOT/                $PYKVM_DATA, else $XDG_DATA_HOME/pykvm, else ~/.local/share/pykvm
      oci-layout         the layout's version
      index.json         every image: its manifest's digest, and its name if it has one
      blobs/sha256/      manifests, configurations, layers, each under its digest; shared between images
      layers/            what reading a layer through has told: diff_id, sizes
      erofs/             layers as read-only file systems, by diff_id
      incoming/          what is not finished; what a killed process left there is swept away
      lock, index.lock   held shared by whoever uses blobs, alone by whoever removes them

Everything appears by one rename after an fsync. A process killed at any point leaves a store that is whole.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pykvm.containers.blobs import Blobs, Ingest, parse_digest, write_whole
from pykvm.containers.documents import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Image,
    canonical,
    descriptors_of,
    manifest_for,
    parse_image,
    parse_json,
)
from pykvm.containers.layer import LayerReader
from pykvm.containers.limits import JSON_BYTES, Limits
from pykvm.containers.names import Name, parse_name
from pykvm.containers.progress import silent
from pykvm.containers.unpack import Unpacked
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import WriteableBuffer

    from pykvm.containers.progress import Progress

__all__ = ["Entry", "ImageStore", "LayerNote", "data_root"]

_REF = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
_BUFFER = 1 << 18


def data_root() -> Path:
    """Where images are kept: $PYKVM_DATA, $XDG_DATA_HOME/pykvm or ~/.local/share/pykvm.

    As the XDG base directory specification has it, a relative path counts as not set.
    """
    if own := os.environ.get("PYKVM_DATA"):
        return Path(own).absolute()
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".local" / "share") / "pykvm"
    except RuntimeError as error:
        raise ConfigError("there is no home directory for images; set PYKVM_DATA") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index: a manifest and the name it goes by, if any."""

    descriptor: Descriptor
    name: Name | None


@dataclass(frozen=True, slots=True)
class LayerNote:
    """What reading a layer through has told.

    `files_bytes` is what docker calls its size, `implied` the number of directories that it has something in
    but does not describe.
    """

    diff_id: str
    files_bytes: int
    tar_bytes: int
    entries: int
    packing: str
    implied: int = 0


class ImageStore:
    """All images of one user. Methods that change it do so under a lock, and whole or not at all."""

    def __init__(
        self,
        root: Path | None = None,
        limits: Limits | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`notice` is told in one line when this has to wait for another process."""
        self.root = root or data_root()
        self.limits = limits or Limits()
        self.blobs = Blobs(self.root)
        self._notice = notice

    @contextmanager
    def using(self) -> Iterator[ImageStore]:
        """While this is held, nobody removes blobs. Makes the store if there is none."""
        self._make()
        with self._locked("lock", fcntl.LOCK_SH):
            yield self

    @contextmanager
    def alone(self) -> Iterator[ImageStore]:
        """While this is held, nobody else reads or adds blobs: for removing them."""
        self._make()
        with self._locked("lock", fcntl.LOCK_EX):
            yield self

    def entries(self) -> list[Entry]:
        """Every image and name, in the order of their coming. Raises ImageError for a damaged index."""
        path = self.root / "index.json"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = descriptors_of(parse_json(data, str(path)), "manifests", str(path))
        return [
            Entry(one, parse_name(one.annotations[_REF]) if _REF in one.annotations else None)
            for one in found
        ]

    def find(self, text: str) -> Entry:
        """The image of a name, or of an ID's first digits. Raises ImageNotFoundError, ConfigError."""
        if by_name := self.find_named(text):
            return by_name
        digits = _ID.fullmatch(text)
        found: dict[str, Entry] = {}
        for entry in self.entries() if digits else []:
            digests = {entry.descriptor.digest}
            with suppress(ImageError):  # one that is damaged has its manifest's digest still
                digests.add(self.image(entry.descriptor).id)
            if digits and any(one.removeprefix("sha256:").startswith(digits[1]) for one in digests):
                found.setdefault(entry.descriptor.digest, entry)
        if len(found) > 1:
            raise ConfigError(f"{text}: {len(found)} images have an ID that begins so; give more digits")
        for entry in found.values():
            return entry
        raise ImageNotFoundError(f"no such image: {text}; `pykvm image ls` lists those there are")

    def find_named(self, text: str) -> Entry | None:
        """The image of a name. Raises ConfigError for what can be neither name nor ID."""
        if text.startswith("sha256:"):
            return None
        name = parse_name(text).with_tag()
        return next((entry for entry in self.entries() if _is_named(entry, name)), None)

    def image(self, descriptor: Descriptor) -> Image:
        """The image that a manifest describes, verified. Raises ImageError."""
        manifest = self.blobs.read(descriptor.digest, JSON_BYTES)
        document = parse_json(manifest, descriptor.digest)
        config = document.get("config")
        digest = parse_digest(config.get("digest") if isinstance(config, dict) else None, descriptor.digest)
        data = self.blobs.read(digest, JSON_BYTES)
        return parse_image(manifest, data, descriptor.digest, self.limits)

    def add_image(self, manifest: bytes, config: bytes, name: Name | None) -> Image:
        """Keep an image whose layers are all here. Raises ImageError if one is not, or is another."""
        image = parse_image(manifest, config, name.familiar if name else "image", self.limits)
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
            if self.note(layer).diff_id != diff_id:
                raise ImageError(
                    f"{layer.digest}: its content is {self.note(layer).diff_id} and not {diff_id}"
                )
        self.blobs.put(config)
        digest = self.blobs.put(manifest)
        media = str(parse_json(manifest, digest).get("mediaType") or MANIFEST_TYPE)
        self.tag(Descriptor(media, digest, len(manifest)), name)
        return image

    def add_built(self, config: bytes, layers: list[Descriptor], name: Name | None) -> Image:
        """Keep an image of which there is no manifest yet; the same parts make the same digests."""
        return self.add_image(manifest_for(config, layers), config, name)

    def tag(self, descriptor: Descriptor, name: Name | None) -> None:
        """Let `name` stand for this image; the image that it stood for before stays, without a name."""
        plain = replace(descriptor, annotations={}, platform={})
        with self._changing() as entries:
            kept = [_unnamed(entry) if name and entry.name == name else entry for entry in entries]
            mine = [entry for entry in kept if entry.descriptor.digest == plain.digest]
            if name or not mine:
                kept.append(Entry(plain, name))
            entries[:] = _tidy(kept)

    def untag(self, entry: Entry) -> bool:
        """Take one name from an image, or remove one that has none. Whether the image has gone with it."""
        with self._changing() as entries:
            entries[:] = [one for one in entries if not _same(one, entry)]
            return all(one.descriptor.digest != entry.descriptor.digest for one in entries)

    def sweep(self) -> int:
        """Remove all that killed processes left unfinished; the bytes that are free now. Be `alone`."""
        freed = self.blobs.sweep()
        with self._locked("index.lock", fcntl.LOCK_EX):
            for path in self.root.glob(".new-*"):
                freed += path.stat().st_size
                path.unlink()
        return freed

    def add_layer(
        self,
        source: IO[bytes] | io.RawIOBase,
        what: str,
        expected: Descriptor | None = None,
        diff_id: str = "",
        progress: Progress = silent,
        most_bytes: int | None = None,
    ) -> tuple[str, LayerNote]:
        """Read a layer through, check all of it, keep it; its digest and what it told.

        Raises ImageError for wrong digests, a tar that is not sound or is hostile, too many bytes.
        """
        with self.blobs.ingest() as incoming:
            return self.read_layer(source, incoming, what, expected, diff_id, progress, most_bytes)

    def read_layer(
        self,
        source: IO[bytes] | io.RawIOBase,
        incoming: Ingest,
        what: str,
        expected: Descriptor | None = None,
        diff_id: str = "",
        progress: Progress = silent,
        most_bytes: int | None = None,
    ) -> tuple[str, LayerNote]:
        """As `add_layer`, through an ingest that is the caller's."""
        size = expected.size_bytes if expected else None
        most = self.limits.image_bytes if most_bytes is None else most_bytes
        tee = _Tee(source, incoming, what, size or 0, most + most // 64 + _BUFFER, progress)
        note = self._read_through(tee, what, most_bytes)
        tee.drain()
        note = replace(note, diff_id=note.diff_id or incoming.digest)
        if size is None or size == incoming.size_bytes:  # else commit has more to say
            _check_diff_id(what, note.diff_id, diff_id)
        digest = incoming.commit(expected.digest if expected else "", size)
        self._write_note(digest, note)
        return digest, note

    def note(self, layer: Descriptor) -> LayerNote:
        """What is known of a layer; it is read through again where the note is lost."""
        path = self.note_path(layer.digest)
        try:
            return LayerNote(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            note = self.examine(layer)
            self._write_note(layer.digest, note)
            return note

    def examine(self, layer: Descriptor) -> LayerNote:
        """Read a layer that is here through, and verify it. Raises ImageError."""
        with self.blobs.open(layer.digest) as blob:
            note = self._read_through(blob, layer.digest, None)
            while blob.read(_BUFFER):
                pass
        return replace(note, diff_id=note.diff_id or layer.digest)

    @contextmanager
    def open_layer(self, layer: Descriptor) -> Iterator[LayerReader]:
        """The entries of a layer that is here; the blob is verified when all have been read."""
        with self.blobs.open(layer.digest) as blob:
            unpacked = Unpacked(blob, self.limits.image_bytes, layer.digest)
            yield LayerReader(io.BufferedReader(unpacked, _BUFFER), layer.digest, self.limits)

    def _read_through(self, source: io.RawIOBase, what: str, most_bytes: int | None) -> LayerNote:
        limits = self.limits if most_bytes is None else replace(self.limits, image_bytes=most_bytes)
        unpacked = Unpacked(source, limits.image_bytes, what)
        reader = LayerReader(io.BufferedReader(unpacked, _BUFFER), what, limits)
        entries = sum(1 for _ in reader)
        return LayerNote(
            unpacked.digest(),
            reader.size_bytes,
            unpacked.size_bytes,
            entries,
            unpacked.packing,
            len(reader.implied),
        )

    def note_path(self, digest: str) -> Path:
        """Where the note of a layer is or would be."""
        return self.root / "layers" / f"{digest.removeprefix('sha256:')}.json"

    def _write_note(self, digest: str, note: LayerNote) -> None:
        path = self.note_path(digest)
        if not path.exists():
            with write_whole(path) as file:
                file.write(canonical(asdict(note)))

    def _make(self) -> None:
        try:
            for name in ("blobs/sha256", "incoming", "layers", "erofs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            is_new = not (self.root / "oci-layout").exists()
        except OSError as error:
            raise _refused(error, self.root) from error
        if is_new:
            with self._locked("index.lock", fcntl.LOCK_EX), write_whole(self.root / "oci-layout") as file:
                file.write(_LAYOUT)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        try:
            fd = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused(error, self.root) from error
        try:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                self._notice("waiting for another pykvm that works on the images")
                fcntl.flock(fd, how)
            yield
        except OSError as error:
            ours = error.filename is None or Path(str(error.filename)).is_relative_to(self.root)
            if ours and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}:
                raise _refused(error, self.root) from error
            raise
        finally:
            os.close(fd)

    @contextmanager
    def _changing(self) -> Iterator[list[Entry]]:
        """The index, to be changed in place and written when the block ends."""
        self._make()
        with self._locked("index.lock", fcntl.LOCK_EX):
            entries = self.entries()
            yield entries
            document = {
                "schemaVersion": 2,
                "mediaType": INDEX_TYPE,
                "manifests": [_as_json(entry) for entry in entries],
            }
            with write_whole(self.root / "index.json") as file:
                file.write(canonical(document))


class _Tee(io.RawIOBase):
    """What is read from a stream is also kept, if it is not more than `most_bytes`.

    Much may come that unpacks to nothing: empty frames, zeros behind the end.
    """

    def __init__(
        self,
        source: IO[bytes] | io.RawIOBase,
        incoming: Ingest,
        what: str,
        size_bytes: int,
        most_bytes: int,
        progress: Progress,
    ) -> None:
        self._source = source
        self._incoming = incoming
        self._what = what
        self._size = size_bytes
        self._most = most_bytes
        self._progress = progress

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size) or b""
        self._incoming.write(data)
        if self._incoming.size_bytes > self._most:
            raise ImageError(f"{self._what}: more than {self._most} bytes, even packed (--max-size)")
        self._progress(self._what, self._incoming.size_bytes, self._size)
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def drain(self) -> None:
        """Read what is left: bytes behind a packed stream's end are the blob's, too."""
        while self.read(_BUFFER):
            pass


def _check_diff_id(what: str, found: str, wanted: str) -> None:
    if wanted and found != wanted:
        raise ImageError(f"{what}: unpacked, its digest is {found} and not {wanted}")


def _is_named(entry: Entry, name: Name) -> bool:
    if not entry.name or entry.name.repository != name.repository:
        return False
    if name.digest:
        return name.digest in {entry.descriptor.digest, entry.name.digest}
    return entry.name.tag == name.tag


def _same(one: Entry, other: Entry) -> bool:
    return one.descriptor.digest == other.descriptor.digest and one.name == other.name


def _unnamed(entry: Entry) -> Entry:
    return Entry(entry.descriptor, None)


def _tidy(entries: list[Entry]) -> list[Entry]:
    """Each once, and none without a name that has one elsewhere."""
    named = {entry.descriptor.digest for entry in entries if entry.name}
    seen: dict[tuple[str, Name | None], Entry] = {}
    for entry in entries:
        if entry.name or entry.descriptor.digest not in named:
            seen.setdefault((entry.descriptor.digest, entry.name), entry)
    return list(seen.values())


def _as_json(entry: Entry) -> dict[str, object]:
    annotations = {_REF: entry.name.full} if entry.name else {}
    return replace(entry.descriptor, annotations=annotations).as_json()


def _refused(error: OSError, root: Path) -> ConfigError:
    return ConfigError(
        f"{error.filename or root}: {error.strerror or error}; images are kept below {root}, "
        "which --root or PYKVM_DATA can change"
    )
