"""The JSON documents of images: descriptors, indexes, manifests, configurations; each read with checks.

Source: the OCI image specification 1.1 (descriptor, image-index, manifest, config); docker's media types of
image manifest version 2, schema 2, mean the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pykvm.containers.blobs import digest_of, parse_digest
from pykvm.containers.limits import JSON_BYTES
from pykvm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from pykvm.containers.limits import Limits

__all__ = [
    "CONFIG_TYPE",
    "INDEX_TYPE",
    "INDEX_TYPES",
    "LAYER_TYPE",
    "MANIFEST_TYPE",
    "MANIFEST_TYPES",
    "Descriptor",
    "Image",
    "Platform",
    "canonical",
    "chain_ids",
    "choose",
    "descriptors_of",
    "manifest_for",
    "parse_image",
    "parse_json",
]

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
_MOST_NESTED = 4


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of a blob: its type, digest and size in bytes."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it stands in a document."""
        parts = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        extra = {"annotations": self.annotations, "platform": self.platform}
        return parts | {key: value for key, value in extra.items() if value}


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine an image is for, in Go's words: linux/amd64, linux/arm64/v8."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """The platform that `text` names, as in linux/arm64. Raises ConfigError."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ConfigError(f"{text!r} is no platform; linux/amd64 and linux/arm/v7 are")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fits(self, said: dict[str, Any]) -> bool:
        """Whether `said`, from an index, names this platform."""
        same = said.get("os") == self.os and said.get("architecture") == self.architecture
        return same and (not self.variant or said.get("variant", "") == self.variant)


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest with its configuration, checked against each other; bytes are kept as they came."""

    manifest: bytes
    config: bytes
    digest: str
    config_descriptor: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        """What docker calls the image's ID: the digest of the configuration."""
        return self.config_descriptor.digest

    @property
    def chain(self) -> list[str]:
        """The ChainID of every layer, lowest first."""
        return chain_ids(self.diff_ids)


def canonical(document: object) -> bytes:
    """JSON that is always the same for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def chain_ids(diff_ids: tuple[str, ...] | list[str]) -> list[str]:
    """ChainID(0) is the first diff_id; ChainID(n) = sha256(ChainID(n-1) + " " + diff_id(n))."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if chain else diff_id)
    return chain


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises ImageError naming `where`."""
    found = _parse(data, where)
    if not isinstance(found, dict):
        raise ImageError(f"{where}: is JSON, but no object")
    return found


def _parse(data: bytes, where: str) -> object:
    if len(data) > JSON_BYTES:
        raise ImageError(f"{where}: a document of {len(data)} bytes; {JSON_BYTES} are allowed")
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where}: is no sound JSON: {str(error)[:100]}") from None
    return found


def descriptors_of(document: dict[str, Any], key: str, where: str) -> list[Descriptor]:
    """The list of descriptors under `key`. Raises ImageError."""
    found = document.get(key)
    if not isinstance(found, list):
        raise ImageError(f"{where}: has no list {key!r}")
    return [_descriptor(one, f"{where}: {key}") for one in found]


def _descriptor(said: object, where: str) -> Descriptor:
    if not isinstance(said, dict):
        raise ImageError(f"{where}: a descriptor is no object")
    size = said.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise ImageError(f"{where}: a descriptor has no sound size")
    annotations, platform = said.get("annotations") or {}, said.get("platform") or {}
    if not isinstance(annotations, dict) or not isinstance(platform, dict):
        raise ImageError(f"{where}: a descriptor's annotations or platform are no object")
    text = {str(key): str(value) for key, value in annotations.items()}
    return Descriptor(
        str(said.get("mediaType", "")), parse_digest(said.get("digest"), where), size, text, platform
    )


def choose(found: list[Descriptor], platform: Platform, where: str) -> Descriptor:
    """The manifest for a platform; the only one there is where none of them names a platform."""
    fitting = [one for one in found if platform.fits(one.platform)]
    if fitting:
        return fitting[0]
    if len(found) == 1 and not found[0].platform:
        return found[0]
    names = [
        Platform(*(str(one.platform.get(key, "")) for key in ("os", "architecture", "variant")))
        for one in found
    ]
    there = ", ".join(sorted({str(name) for name in names} - {"", "unknown/unknown"})) or "nothing"
    raise ImageError(f"{where}: has nothing for {platform}, but for {there}; choose with --platform")


def parse_image(manifest: bytes, config: bytes, where: str, limits: Limits) -> Image:
    """The image that a manifest and its configuration describe. Raises ImageError where they differ."""
    document = parse_json(manifest, where)
    if document.get("schemaVersion") != 2:
        raise ImageError(f"{where}: a manifest of schema {document.get('schemaVersion')!r}; only 2 is known")
    layers = descriptors_of(document, "layers", where)
    described = _descriptor(document.get("config"), f"{where}: config")
    if digest_of(config) != described.digest:
        raise ImageError(
            f"{where}: the configuration's digest is {digest_of(config)} and not {described.digest}"
        )
    settings = parse_json(config, f"{where}: configuration")
    diff_ids = _diff_ids(settings, where)
    if len(layers) > limits.layers:
        raise ImageError(f"{where}: has {len(layers)} layers; overlay takes {limits.layers}")
    if len(layers) != len(diff_ids):
        raise ImageError(f"{where}: has {len(layers)} layers and {len(diff_ids)} diff_ids")
    _check_settings(settings, where)
    return Image(manifest, config, digest_of(manifest), described, tuple(layers), tuple(diff_ids), settings)


def _diff_ids(settings: dict[str, Any], where: str) -> list[str]:
    rootfs = settings.get("rootfs")
    if not isinstance(rootfs, dict) or not isinstance(found := rootfs.get("diff_ids") or [], list):
        raise ImageError(f"{where}: the configuration has no rootfs.diff_ids")
    return [parse_digest(one, f"{where}: diff_ids") for one in found]


def _check_settings(settings: dict[str, Any], where: str) -> None:
    if not isinstance(settings.get("config") or {}, dict):
        raise ImageError(f"{where}: the configuration's 'config' is no object")
    steps: Any = settings.get("history") or []
    if not isinstance(steps, list) or any(not isinstance(step, dict) for step in steps):
        raise ImageError(f"{where}: the configuration's 'history' is no list of objects")


def manifest_for(config: bytes, layers: list[Descriptor]) -> bytes:
    """The manifest of a configuration and layers, always the same for the same."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": Descriptor(CONFIG_TYPE, digest_of(config), len(config)).as_json(),
            "layers": [layer.as_json() for layer in layers],
        }
    )
