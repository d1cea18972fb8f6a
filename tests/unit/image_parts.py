"""What the image tests are made of: layers, configurations, archives, all written by the standard library."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

__all__ = ["config_of", "digest", "docker_archive", "entry", "layer", "layout", "tar_of"]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a tar; `fields` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer's tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    return layer(*(entry(name, data) for name, data in files.items()))


def config_of(layers: list[bytes], **settings: Any) -> bytes:
    diff_ids = [digest(one) for one in layers]
    base = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return json.dumps(base | settings).encode()


def docker_archive(layers: list[bytes], tags: list[str], **settings: Any) -> dict[str, bytes]:
    """The files of `docker save` as it was before version 25."""
    config = config_of(layers, **settings)
    name = f"{digest(config)[7:]}.json"
    names = [f"{at:064x}/layer.tar" for at in range(len(layers))]
    manifest = [{"Config": name, "RepoTags": tags, "Layers": names}]
    return dict(zip(names, layers, strict=True)) | {
        name: config,
        "manifest.json": json.dumps(manifest).encode(),
    }


def layout(
    layers: list[bytes], packed: list[bytes] | None = None, name: str = "", **settings: Any
) -> dict[str, bytes]:
    """The files of an OCI layout; `packed` is what stands for the layers."""
    config = config_of(layers, **settings)
    blobs = packed or layers
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": "c", "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": "l", "digest": digest(one), "size": len(one)} for one in blobs],
        }
    ).encode()
    annotations = {"org.opencontainers.image.ref.name": name} if name else {}
    described = {
        "mediaType": "m",
        "digest": digest(manifest),
        "size": len(manifest),
        "annotations": annotations,
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    files = {f"blobs/sha256/{digest(one)[7:]}": one for one in [*blobs, config, manifest]}
    return files | {"index.json": index, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
