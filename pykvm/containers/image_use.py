"""Which containers an image is needed for: it is not removed under them, in docker's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.containers.records import ContainerStore
from pykvm.containers.views import short
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pykvm.containers.records import Record
    from pykvm.containers.store import ImageStore

__all__ = ["InUseError", "check_unused", "images_in_use", "users_of"]


class InUseError(ConfigError):
    """A container needs the image."""

    exit_status = 1


def users_of(store: ImageStore, image_id: str) -> list[Record]:
    """The containers made of an image, those that run first."""
    found = [one for one in ContainerStore(store.root).all() if one.image_id == image_id]
    return sorted(found, key=lambda one: not one.is_live)


def images_in_use(store: ImageStore) -> set[str]:
    """The IDs of all images that a container was made of."""
    return {one.image_id for one in ContainerStore(store.root).all()}


def check_unused(users: list[Record], image_id: str, name: str, *, force: bool) -> None:
    """Raises InUseError if the image's last `name`, or without one the image itself, may not be removed."""
    if not users:
        return
    user, image = users[0], short(image_id)
    if name and not force:
        raise InUseError(
            f'conflict: unable to remove repository reference "{name}" (must force) - container {user.short} '
            f"is using its referenced image {image}"
        )
    if not name and (user.is_live or not force):
        can, state = ("cannot be", "running") if user.is_live else ("must be", "stopped")
        raise InUseError(
            f"conflict: unable to delete {image} ({can} forced) - image is being used by {state} container "
            f"{user.short}"
        )
