"""Images removed, and with them what no other image needs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.containers.image_use import check_unused, images_in_use, users_of
from pykvm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.containers.store import Entry, ImageStore

__all__ = ["Removed", "collect_garbage", "remove"]


@dataclass(slots=True)
class Removed:
    """What has gone: names, images and layers by digest, and the bytes that are free now."""

    untagged: list[str]
    deleted: list[str]
    freed_bytes: int = 0


def remove(store: ImageStore, text: str, *, force: bool = False) -> Removed:
    """Take a name away, and the image with it if that was its last one, as `docker rmi` does.

    An ID takes all names away, if there is one or `force`. An image that a container needs is removed only
    by `force`; while the container runs, only its names are. Raises ImageNotFoundError, ConfigError.
    """
    with store.alone():
        by_name = store.find_named(text)
        entry = by_name or store.find(text)
        named = [one for one in store.entries() if one.descriptor.digest == entry.descriptor.digest]
        gone = [by_name] if by_name else named
        if len(gone) > 1 and not force:
            names = ", ".join(one.name.familiar for one in gone if one.name)
            raise ConfigError(f"{text}: this image has several names ({names}); --force removes them all")
        is_last = len(gone) == len(named)
        users = users_of(store, _id(store, entry)) if is_last else []
        familiar = by_name.name.familiar if by_name and by_name.name else ""
        check_unused(users, _id(store, entry), familiar, force=force)
        for one in gone:
            store.untag(one)
        removed = Removed([one.name.familiar for one in gone if one.name], [])
        if users and users[0].is_live:
            store.tag(entry.descriptor, None)  # it stays without a name, as long as they need it
        elif is_last:
            _sweep(store, removed, dry_run=False)
        return removed


def collect_garbage(store: ImageStore, *, untagged: bool = False, dry_run: bool = False) -> Removed:
    """Remove what no image needs: blobs, file systems of layers, what killed processes left unfinished.

    `untagged` removes images without a name before that; `dry_run` removes nothing and tells the same.
    """
    with store.alone():
        removed = Removed([], [])
        used = images_in_use(store) if untagged else set()
        nameless = [
            entry
            for entry in store.entries()
            if untagged and not entry.name and _id(store, entry) not in used
        ]
        if not dry_run:
            for entry in nameless:
                store.untag(entry)
            removed.freed_bytes += store.sweep()
        _sweep(store, removed, dry_run=dry_run, without={entry.descriptor.digest for entry in nameless})
        return removed


def _sweep(
    store: ImageStore, removed: Removed, *, dry_run: bool, without: set[str] | frozenset[str] = frozenset()
) -> None:
    blobs, diff_ids = _needed(store, without)
    doomed: list[Path] = []
    for path in sorted(store.blobs.directory.iterdir()):
        if path.name not in blobs:
            removed.deleted.append(f"sha256:{path.name}")
            doomed.append(path)
    doomed += [path for path in (store.root / "layers").iterdir() if path.name.partition(".")[0] not in blobs]
    doomed += [
        path for path in (store.root / "erofs").iterdir() if path.name.partition(".")[0] not in diff_ids
    ]
    doomed += [path for path in (store.root / "cache").glob("*") if _layer_of(path) not in blobs]
    for path in doomed:
        with suppress(FileNotFoundError):
            removed.freed_bytes += path.stat().st_size
            if not dry_run:
                path.unlink()


def _id(store: ImageStore, entry: Entry) -> str:
    """The image's ID, or its manifest's digest if it is damaged."""
    try:
        return store.image(entry.descriptor).id
    except ImageError:
        return entry.descriptor.digest


def _layer_of(path: Path) -> str:
    """The layer that an entry of the build cache is for."""
    try:
        return str(json.loads(path.read_bytes())["layer"]).removeprefix("sha256:")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _needed(store: ImageStore, without: set[str] | frozenset[str]) -> tuple[set[str], set[str]]:
    """The blobs that images need, and the diff_ids and ChainIDs of their layers, as hexadecimal digits.

    Raises ImageError for an image that can't be read: nothing is removed on a guess.
    """
    blobs: set[str] = set()
    diff_ids: set[str] = set()
    for entry in store.entries():
        if entry.descriptor.digest in without:
            continue
        try:
            image = store.image(entry.descriptor)
        except ImageError as error:
            name = entry.name.familiar if entry.name else entry.descriptor.digest
            raise ImageError(
                f"{name}: {error}; remove or load it again first, then the rest can be told"
            ) from None
        blobs |= {image.digest, image.id, *(layer.digest for layer in image.layers)}
        diff_ids |= {*image.diff_ids, *image.chain}
    return {one.removeprefix("sha256:") for one in blobs}, {one.removeprefix("sha256:") for one in diff_ids}
