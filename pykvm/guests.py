"""The tiny guests that travel with pykvm: their images, what they do, and the machine they ask for."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pykvm.errors import ImageNotFoundError

__all__ = ["Guest", "all_guests", "built_folder", "find", "find_named"]


class Guest(NamedTuple):
    """One guest. `images` maps a CPU mode's word to the image's file; the first is the default.

    `machine` are arguments for Machine, `needs` names of `pykvm doctor`'s probes, `expect` what a
    right run looks like (exit_code, console, exits).
    """

    name: str
    description: str
    images: dict[str, str]
    machine: dict[str, Any]
    needs: tuple[str, ...]
    expect: dict[str, Any]

    def image(self, mode: str | None = None) -> Path:
        """The file of the image for `mode`, by default the first one's."""
        if mode is not None and mode not in self.images:
            raise ImageNotFoundError(f"{self.name} has no image for {mode}; it has {', '.join(self.images)}")
        return built_folder() / self.images[mode or next(iter(self.images))]


@cache
def built_folder() -> Path:
    """Where the built guests, their library and the firmware are."""
    return Path(__file__).parent / "_guests"


def all_guests() -> dict[str, Guest]:
    """Every guest by name, in order. Raises ImageNotFoundError if none were built."""
    path = built_folder() / "index.json"
    try:
        about = path.stat()
        return dict(_read_index(path, about.st_mtime_ns, about.st_ino))
    except OSError:
        raise ImageNotFoundError(
            "the guests have not been built; run `make guests` in the source tree"
        ) from None


@lru_cache(maxsize=1)
def _read_index(path: Path, _mtime_ns: int, _inode: int) -> dict[str, Guest]:
    """The index, read again when the file has changed: a program that makes many machines asks often."""
    import json  # noqa: PLC0415 - a guest by its path needs no index

    index = json.loads(path.read_text())
    return {
        name: Guest(name, e["description"], e["images"], e["machine"], tuple(e["needs"]), e["expect"])
        for name, e in index.items()
    }


def find(name: str) -> Guest | None:
    """The guest called `name`, with or without its number, None if there is none."""
    guests = all_guests()
    return guests.get(name) or next((g for n, g in guests.items() if n.partition("_")[2] == name), None)


def find_named(image: str) -> Guest | None:
    """The guest that the user's word `image` means; None if it means a file: a path, or one that is here."""
    return None if "/" in image or Path(image).exists() else find(image)
