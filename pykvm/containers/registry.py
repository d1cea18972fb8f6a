"""Images from registries and to them, by the OCI distribution specification (registry API v2).

What is here already is not fetched, what is there already is not sent, and each digest is verified on its
way. A transfer that broke off goes on where it was, even in another process.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import IO, TYPE_CHECKING
from urllib.parse import urlencode

from pykvm.containers.blobs import digest_of, parse_digest
from pykvm.containers.documents import (
    INDEX_TYPES,
    MANIFEST_TYPE,
    MANIFEST_TYPES,
    Descriptor,
    Image,
    Platform,
    choose,
    descriptors_of,
    parse_image,
    parse_json,
)
from pykvm.containers.http import BlobStream, Client, Request
from pykvm.containers.limits import JSON_BYTES
from pykvm.containers.progress import Counted, silent
from pykvm.containers.views import short
from pykvm.errors import ConfigError, ImageError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.names import Name
    from pykvm.containers.progress import Progress
    from pykvm.containers.store import Entry, ImageStore

__all__ = ["Registry"]

_MOST_NESTED = 4
_BUFFER = 1 << 18
_MOST_TRIES = 3
_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))


class Registry:
    """One repository of a registry. `notice` is told each step, in docker's words."""

    def __init__(
        self,
        store: ImageStore,
        name: Name,
        *,
        plain: bool = False,
        progress: Progress = silent,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._name = name.with_tag()
        self._client = Client(name.domain, plain=plain)
        self._progress = progress
        self._notice = notice

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def pull(self, platform: Platform | None = None) -> Image:
        """Fetch the image and name it. Raises RegistryError, ImageError."""
        self._client.scope(self._name.path, "pull")
        what = self._name.digest or self._name.tag
        self._notice(f"{what}: Pulling from {self._name.path}")
        with self._store.using():
            manifest, top = self._manifest(platform or Platform())
            document = parse_json(manifest, self._name.familiar)
            config = descriptors_of({"config": [document.get("config")]}, "config", self._name.familiar)[0]
            image = parse_image(manifest, self._small(config), self._name.familiar, self._store.limits)
            left = self._store.limits.image_bytes
            for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
                left -= self._layer(layer, diff_id, left)
            before = self._store.find_named(self._name.familiar)
            self._store.add_image(manifest, image.config, self._name)
        self._notice(f"Digest: {top}")
        is_same = before is not None and before.descriptor.digest == image.digest
        text = "Image is up to date for" if is_same else "Downloaded newer image for"
        self._notice(f"Status: {text} {self._name.familiar}")
        return image

    def push(self, entry: Entry) -> str:
        """Send the image under this name; the manifest's digest. Raises RegistryError, ImageError."""
        if self._name.digest:
            raise ConfigError(f"{self._name.familiar}: push to a tag; the digest follows from the image")
        self._notice(f"The push refers to repository [{self._name.repository}]")
        with self._store.using():
            image = self._store.image(entry.descriptor)
            self._client.scope(self._name.path, "pull,push")
            for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
                self._notice(f"{short(diff_id)}: {self._send_layer(layer)}")
            if not self._has(image.id):
                self._send_blob(image.config_descriptor, self._upload(""))
            media = str(parse_json(image.manifest, image.digest).get("mediaType") or MANIFEST_TYPE)
            request = Request(
                "PUT",
                self._url("manifests", self._name.tag),
                {"Content-Type": media},
                image.manifest,
                fine=(201,),
            )
            _, response = self._client.document(request)
        said = response.headers.get("Docker-Content-Digest") or image.digest
        if said != image.digest:
            raise RegistryError(
                f"{self._name.domain}: says it has kept {said[:80]!a} instead of {image.digest}"
            )
        self._notice(f"{self._name.tag}: digest: {image.digest} size: {len(image.manifest)}")
        return image.digest

    def _url(self, kind: str, what: str) -> str:
        return f"/v2/{self._name.path}/{kind}/{what}"

    def _manifest(self, platform: Platform) -> tuple[bytes, str]:
        """The manifest for a platform, and the digest of what the name stands for."""
        what, top = self._name.digest or self._name.tag, ""
        for _ in range(_MOST_NESTED):
            data, response = self._client.document(
                Request("GET", self._url("manifests", what), {"Accept": _ACCEPT})
            )
            digest = digest_of(data)
            wanted = (
                what if what.startswith("sha256:") else response.headers.get("Docker-Content-Digest", digest)
            )
            if parse_digest(wanted, self._name.domain) != digest:
                raise RegistryError(f"{self._name.domain}: sends a manifest {digest} for {wanted}")
            top = top or digest
            document = parse_json(data, self._name.familiar)
            if "manifests" not in document:
                return data, top
            found = descriptors_of(document, "manifests", self._name.familiar)
            what = choose(found, platform, self._name.familiar).digest
        raise RegistryError(f"{self._name.domain}: an index in an index in an index")

    def _small(self, blob: Descriptor) -> bytes:
        with suppress(ImageError):  # it is not here, or is damaged
            return self._store.blobs.read(blob.digest, JSON_BYTES)
        if blob.size_bytes > JSON_BYTES:
            raise ImageError(f"{self._name.familiar}: a configuration of {blob.size_bytes} bytes")
        data = BlobStream(self._client, self._url("blobs", blob.digest), blob.size_bytes).readall()
        if digest_of(data) != blob.digest:
            raise RegistryError(f"{self._name.domain}: sends {digest_of(data)} for {blob.digest}")
        return data

    def _layer(self, layer: Descriptor, diff_id: str, most_bytes: int) -> int:
        """Fetch a layer unless it is here; the bytes of its files."""
        while not self._is_here(layer):
            with self._store.blobs.resumed(layer.digest) as (incoming, part):
                stream = _Resumed(part, self._client, self._url("blobs", layer.digest), layer.size_bytes)
                if self._is_here(layer):  # another pull, for which this one has waited
                    continue
                try:
                    _, note = self._store.read_layer(
                        stream, incoming, layer.digest, layer, diff_id, self._progress, most_bytes
                    )
                except ImageError:
                    incoming.drop()
                    if not stream.is_resumed:
                        raise
                    continue  # the part that an earlier try has left may be what is wrong
                self._notice(f"{short(layer.digest)}: Pull complete")
                return note.files_bytes
        self._notice(f"{short(layer.digest)}: Already exists")
        return self._store.note(layer).files_bytes

    def _is_here(self, layer: Descriptor) -> bool:
        blobs = self._store.blobs
        return blobs.has(layer.digest) and blobs.size(layer.digest) == layer.size_bytes

    def _has(self, digest: str) -> bool:
        response = self._client.ask(Request("HEAD", self._url("blobs", digest), fine=(200, 404)))
        response.read()
        return response.status == 200

    def _send_layer(self, layer: Descriptor) -> str:
        """What became of it: already there, mounted from another repository, or sent."""
        if self._has(layer.digest):
            return "Layer already exists"
        for other in self._elsewhere(layer.digest):
            where = self._upload(urlencode({"mount": layer.digest, "from": other}))
            if not where:
                return f"Mounted from {other}"
            self._send_blob(layer, where)
            return "Pushed"
        self._send_blob(layer, self._upload(""))
        return "Pushed"

    def _elsewhere(self, digest: str) -> list[str]:
        """Repositories of the same registry that this store knows to have a layer."""
        found = []
        for entry in self._store.entries():
            name = entry.name
            if not name or name.domain != self._name.domain or name.path == self._name.path:
                continue
            if any(layer.digest == digest for layer in self._store.image(entry.descriptor).layers):
                found.append(name.path)
        return sorted(set(found))[:1]

    def _upload(self, query: str) -> str:
        """Where to send a blob; "" if it has been mounted and need not be sent."""
        url = self._url("blobs", "uploads/") + (f"?{query}" if query else "")
        request = Request("POST", url, {"Content-Length": "0"}, fine=(201, 202) if query else (202,))
        response = self._client.ask(request)
        where = self._client.location(response, request)
        return "" if response.status == 201 else where

    def _send_blob(self, blob: Descriptor, where: str) -> None:
        """Send a blob in one piece; a broken connection begins again, elsewhere if the registry says so."""
        for left in reversed(range(_MOST_TRIES)):
            with self._store.blobs.open(blob.digest) as file:
                counted = Counted(file, blob.digest, blob.size_bytes, self._progress)
                body: IO[bytes] = io.BufferedReader(counted, _BUFFER)
                joint = "&" if "?" in where else "?"
                request = Request(
                    "PUT",
                    f"{where}{joint}{urlencode({'digest': blob.digest})}",
                    {"Content-Length": str(blob.size_bytes), "Content-Type": "application/octet-stream"},
                    body,
                    fine=(201,),
                )
                try:
                    self._client.document(request)
                except RegistryError as error:
                    if not left or "can't be reached" not in str(error):
                        raise
                else:
                    return
            if self._has(blob.digest):
                return
            where = self._upload("")


class _Resumed(io.RawIOBase):
    """The part of a blob that is here, then the rest from the registry."""

    def __init__(self, part: IO[bytes], client: Client, url: str, size_bytes: int) -> None:
        here = min(part.seek(0, 2), size_bytes)
        part.seek(0)
        self._part = part
        self._left = here
        self.is_resumed = here > 0
        self._rest = BlobStream(client, url, size_bytes, here)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._left:
            data = self._part.read(min(size if size >= 0 else _BUFFER, self._left))
            self._left -= len(data)
            if data:
                return data
            self._left = 0
        return self._rest.read(size if size >= 0 else _BUFFER) or b""
