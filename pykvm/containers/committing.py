"""A container's changes as a new image upon its own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pykvm.containers.changes import write_layer
from pykvm.containers.documents import LAYER_TYPE, Descriptor, canonical
from pykvm.containers.pykvmfile import pairs, parse, words
from pykvm.containers.tree import tree_of
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from typing import IO

    from pykvm.containers.documents import Image
    from pykvm.containers.names import Name
    from pykvm.containers.records import Record
    from pykvm.containers.store import ImageStore

__all__ = ["commit"]


def commit(
    store: ImageStore,
    image: Image,
    record: Record,
    upper: IO[bytes],
    name: Name | None,
    *,
    author: str = "",
    message: str = "",
    changes: tuple[str, ...] = (),
) -> Image:
    """Keep the image with one more layer. `changes` are instructions that set something, as in CMD ["sh"].

    Raises ConfigError for other instructions, ImageError for a layer that can't be.
    """
    settings = json.loads(json.dumps(image.settings))
    config = dict(settings.get("config") or {})
    for text in changes:
        _apply(config, text)
    with store.using():
        with store.blobs.ingest() as incoming:
            write_layer(upper, incoming, record, tree_of(store, image.layers, with_content=False))  # type: ignore[arg-type]  # it has write
            digest = incoming.commit()
        layer = Descriptor(LAYER_TYPE, digest, store.blobs.size(digest))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        step = {"created": now, "created_by": " ".join(record.command)}
        if message:
            step["comment"] = message
        if author:
            step["author"] = settings["author"] = author
        history = list(settings.get("history") or [{"created_by": "?"} for _ in image.layers])
        settings |= {
            "created": now,
            "config": config,
            "history": [*history, step],
            "rootfs": {"type": "layers", "diff_ids": [*image.diff_ids, store.note(layer).diff_id]},
        }
        return store.add_built(canonical(settings), [*image.layers, layer], name)


def _apply(config: dict[str, Any], text: str) -> None:
    steps = parse(f"FROM scratch\n{text}\n", "--change")[1:]
    if len(steps) != 1:
        raise ConfigError(f"--change {text!r}: is not one instruction")
    step = steps[0]
    if step.word in {"CMD", "ENTRYPOINT"}:
        key = step.word.title() if step.word == "CMD" else "Entrypoint"
        config[key] = words(step) or ["/bin/sh", "-c", step.text]
    elif step.word == "ENV":
        found = dict(one.split("=", 1) for one in config.get("Env") or [] if "=" in one)
        found.update(pairs(step, found))
        config["Env"] = [f"{name}={value}" for name, value in found.items()]
    elif step.word == "LABEL":
        config["Labels"] = {**(config.get("Labels") or {}), **dict(pairs(step, {}))}
    elif step.word == "USER":
        config["User"] = step.text
    elif step.word == "WORKDIR":
        config["WorkingDir"] = step.text
    else:
        raise ConfigError(f"{step.word} is not a valid change command")
