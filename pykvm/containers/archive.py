"""Images in archives: OCI layouts (a directory or a tar) and what `docker save` writes, old and new.

The new form of `docker save` is an OCI layout that has a manifest.json, too; the old form has only that, and
layers in ID/layer.tar, some of them symbolic links to others. A tar may be packed with gzip or zstd.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pykvm.containers.archive_files import ArchiveFiles, opened
from pykvm.containers.blobs import digest_of, parse_digest, write_whole
from pykvm.containers.documents import (
    INDEX_TYPE,
    INDEX_TYPES,
    LAYER_TYPE,
    Descriptor,
    Image,
    Platform,
    canonical,
    choose,
    descriptors_of,
    manifest_for,
    parse_image,
    parse_json,
)
from pykvm.containers.limits import JSON_BYTES
from pykvm.containers.names import Name, parse_name
from pykvm.containers.progress import Counted, silent
from pykvm.containers.tarstream import Sink
from pykvm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from pykvm.containers.progress import Progress
    from pykvm.containers.store import Entry, ImageStore

__all__ = ["Loaded", "load", "save"]

_CHUNK = 1 << 18
_REF = "org.opencontainers.image.ref.name"
_CONTAINERD = "io.containerd.image.name"


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image that was loaded; `name` is None if the archive has none for it."""

    name: Name | None
    image: Image

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.name.familiar if self.name else None,
            "id": self.image.id,
            "digest": self.image.digest,
        }


def load(
    store: ImageStore,
    source: Path | IO[bytes],
    name: Name | None = None,
    platform: Platform | None = None,
    progress: Progress = silent,
) -> list[Loaded]:
    """Load all images of an archive. `name` is for an archive with one image, whatever it says itself.

    Raises ImageError, in one line, for anything wrong with it; images loaded before that stay.
    """
    with store.using(), opened(store, source) as files:
        loader = _Loader(store, files, platform or Platform(), progress)
        if "index.json" in files:
            found = loader.layout()
        elif "manifest.json" in files:
            found = loader.docker()
        else:
            known = "repositories" in files
            hint = (
                "docker 1.9 or older saved it; save it with a newer one"
                if known
                else "it is no image archive"
            )
            raise ImageError(f"{files.where}: has neither index.json nor manifest.json: {hint}")
        if name and len({one.image.digest for one in found}) > 1:
            raise ImageError(f"{files.where}: has {len(found)} images, so one name can't be given to it")
        if name:
            found = [Loaded(name, found[0].image)] if found else []
        for one in found:
            store.add_image(one.image.manifest, one.image.config, one.name)
        return found


class _Loader:
    def __init__(
        self, store: ImageStore, files: ArchiveFiles, platform: Platform, progress: Progress
    ) -> None:
        self._store = store
        self._files = files
        self._platform = platform
        self._progress = progress
        self._limits = store.limits

    def layout(self) -> list[Loaded]:
        """The images of an OCI layout."""
        where = f"{self._files.where}: index.json"
        found = descriptors_of(parse_json(self._read("index.json"), where), "manifests", where)
        found = [one for one in found if one.platform.get("architecture") != "unknown"]
        if not found:
            raise ImageError(f"{where}: lists no image")
        fitting = [one for one in found if not one.platform or self._platform.fits(one.platform)]
        return [self._described(one) for one in fitting or [choose(found, self._platform, where)]]

    def docker(self) -> list[Loaded]:
        """The images of a docker archive."""
        where = f"{self._files.where}: manifest.json"
        try:
            listed = json.loads(self._read("manifest.json"))
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{where}: is no sound JSON: {error}") from None
        if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
            raise ImageError(f"{where}: is no list of images")
        return [loaded for one in listed for loaded in self._saved(one, where)]

    def _described(self, descriptor: Descriptor) -> Loaded:
        """Follow indexes down to the manifest for the platform."""
        name = _name_in(descriptor.annotations, self._files.where)
        for _ in range(4):
            data = self._blob(descriptor)
            document = parse_json(data, descriptor.digest)
            if descriptor.media_type not in INDEX_TYPES and "manifests" not in document:
                return Loaded(name, self._complete(data, document, descriptor.digest))
            inner = descriptors_of(document, "manifests", descriptor.digest)
            descriptor = choose(inner, self._platform, f"{self._files.where}: {descriptor.digest}")
        raise ImageError(f"{self._files.where}: an index in an index in an index")

    def _complete(self, manifest: bytes, document: dict[str, Any], where: str) -> Image:
        config = descriptors_of({"config": [document.get("config")]}, "config", where)[0]
        image = parse_image(manifest, self._blob(config), where, self._limits)
        left = self._limits.image_bytes
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
            name = _blob_path(layer.digest)
            with self._files.open(name) as file:
                _, note = self._store.add_layer(file, layer.digest, layer, diff_id, self._progress, left)
            left -= note.files_bytes
        return image

    def _saved(self, said: dict[str, Any], where: str) -> list[Loaded]:
        config_name = said.get("Config")
        layer_names, tags = _texts(said.get("Layers"), where), _texts(said.get("RepoTags") or [], where)
        if not isinstance(config_name, str):
            raise ImageError(f"{where}: an image has no Config")
        config = self._read(config_name)
        _check_named_digest(config_name, config, self._files.where)
        settings = parse_json(config, f"{self._files.where}: {config_name}")
        rootfs = settings.get("rootfs")
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        diff_ids = [parse_digest(one, config_name) for one in diff_ids or []]
        if len(diff_ids) != len(layer_names) or len(diff_ids) > self._limits.layers:
            raise ImageError(
                f"{where}: {len(layer_names)} layers and {len(diff_ids)} diff_ids; "
                f"they must be as many, and at most {self._limits.layers}"
            )
        layers = self._saved_layers(list(zip(layer_names, diff_ids, strict=True)))
        image = parse_image(manifest_for(config, layers), config, where, self._limits)
        names = [_parsed(tag, where) for tag in tags]
        return [Loaded(name, image) for name in names] or [Loaded(None, image)]

    def _saved_layers(self, wanted: list[tuple[str, str]]) -> list[Descriptor]:
        layers, left = [], self._limits.image_bytes
        for name, diff_id in wanted:
            with self._files.open(name) as file:
                digest, note = self._store.add_layer(
                    file, name, diff_id=diff_id, progress=self._sized(file), most_bytes=left
                )
            left -= note.files_bytes
            media = f"{LAYER_TYPE}+{note.packing}" if note.packing else LAYER_TYPE
            layers.append(Descriptor(media, digest, self._store.blobs.size(digest)))
        return layers

    def _sized(self, file: IO[bytes]) -> Progress:
        """The progress of one who knows how large `file` is."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return lambda what, done, _: self._progress(what, done, size)

    def _blob(self, descriptor: Descriptor) -> bytes:
        data = self._read(_blob_path(descriptor.digest))
        if digest_of(data) != descriptor.digest:
            raise ImageError(
                f"{self._files.where}: {descriptor.digest}: damaged or forged: it is {digest_of(data)}"
            )
        return data

    def _read(self, name: str) -> bytes:
        with self._files.open(name) as file:
            data = file.read(JSON_BYTES + 1)
        if len(data) > JSON_BYTES:
            raise ImageError(f"{self._files.where}: {name}: larger than {JSON_BYTES} bytes")
        return data


def save(
    store: ImageStore,
    entries: list[Entry],
    target: Path | IO[bytes],
    docker: bool = True,
    progress: Progress = silent,
) -> None:
    """Write images into one tar, the same for the same images, each layer once.

    `docker` adds a manifest.json, so that docker of any age reads it. A file appears when it is complete.
    """
    with store.using():
        if isinstance(target, Path):
            with write_whole(target) as file:
                _Saver(store, file, progress).write(entries, docker=docker)
        else:
            _Saver(store, target, progress).write(entries, docker=docker)


class _Saver:
    def __init__(self, store: ImageStore, file: IO[bytes], progress: Progress) -> None:
        self._store = store
        self._tar = tarfile.TarFile(fileobj=Sink(file), mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]  # see there
        self._progress = progress

    def write(self, entries: list[Entry], *, docker: bool) -> None:
        images = [(entry, self._store.image(entry.descriptor)) for entry in entries]
        self._small("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self._small("index.json", canonical(_index(images)))
        if docker:
            self._small("manifest.json", canonical(_docker_manifest(images)))
        for folder in ("blobs", "blobs/sha256"):
            self._tar.addfile(_info(folder, 0, tarfile.DIRTYPE))
        wanted: set[str] = set()
        for entry, image in images:
            wanted |= {entry.descriptor.digest, image.id}
            wanted |= {layer.digest for layer in image.layers}
        for digest in sorted(wanted):
            self._blob(digest)
        self._tar.close()

    def _small(self, name: str, data: bytes) -> None:
        self._tar.addfile(_info(name, len(data)), io.BytesIO(data))

    def _blob(self, digest: str) -> None:
        size = self._store.blobs.size(digest)
        with self._store.blobs.open(digest) as blob:
            reader = io.BufferedReader(Counted(blob, digest, size, self._progress), _CHUNK)
            self._tar.addfile(_info(_blob_path(digest), size), reader)
            if reader.read(1):  # the end, where it is verified
                raise ImageError(f"{digest}: the blob has grown; load or pull its image again")


def _info(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info


def _index(images: list[tuple[Entry, Image]]) -> dict[str, Any]:
    manifests = []
    for entry, image in images:
        platform = {
            key: image.settings[key] for key in ("architecture", "os", "variant") if image.settings.get(key)
        }
        annotations = {}
        if entry.name:
            annotations = {_REF: entry.name.tag or entry.name.full, _CONTAINERD: entry.name.full}
        manifests.append(replace(entry.descriptor, annotations=annotations, platform=platform).as_json())
    return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}


def _docker_manifest(images: list[tuple[Entry, Image]]) -> list[dict[str, Any]]:
    """One element an image, with all its tags."""
    found: dict[str, dict[str, Any]] = {}
    for entry, image in images:
        one = found.setdefault(
            image.digest,
            {
                "Config": _blob_path(image.id),
                "RepoTags": [],
                "Layers": [_blob_path(layer.digest) for layer in image.layers],
            },
        )
        if entry.name:
            one["RepoTags"].append(entry.name.familiar)
    return list(found.values())


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _name_in(annotations: dict[str, str], where: str) -> Name | None:
    """The name an index gives to an image. A mere tag is none: it is the layout's own."""
    text = annotations.get(_CONTAINERD) or annotations.get(_REF, "")
    if not any(sign in text for sign in ":/@"):
        return None
    return _parsed(text, f"{where}: index.json")


def _parsed(text: str, where: str) -> Name:
    try:
        return parse_name(text).with_tag()
    except ConfigError as error:
        raise ImageError(f"{where}: {error}") from None


def _check_named_digest(name: str, data: bytes, where: str) -> None:
    """A configuration is often named by its digest; then it must have it."""
    stem = name.rpartition("/")[2].removesuffix(".json")
    if len(stem) == 64 and set(stem) <= set("0123456789abcdef") and digest_of(data) != f"sha256:{stem}":
        raise ImageError(f"{where}: {name}: damaged or forged: its digest is {digest_of(data)}")


def _texts(found: object, where: str) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ImageError(f"{where}: Layers and RepoTags must be lists of names")
    return found
