"""What a Linux guest is made of: Debian's cloud kernel and busybox, fetched once into the lab's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.errors import ImageNotFoundError
from pykvm.guests import built_folder
from pykvm.lab.packages import cached_kernel, cached_program, fetch_kernel, fetch_program
from pykvm.lab.store import DamageError, Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pykvm.lab.backend import Progress
    from pykvm.lab.kernel import Kernel

__all__ = ["FLAVOUR", "Kit", "cached_kit", "fetch_kit", "kit"]

FLAVOUR = "cloud-amd64"
_VMLINUX = "vmlinux"
_BUSYBOX = ("busybox-static", "bin/busybox")


class Kit(NamedTuple):
    """A kernel with its modules, the shell of its initramfs, and its first process."""

    kernel: Kernel
    busybox: Path
    init: Path
    store: Store

    @property
    def vmlinux(self) -> Path:
        """The ELF file inside the kernel's image, unpacked once into the cache. Raises LabError."""
        image = self.kernel.image

        def build(where: Path) -> Mapping[str, Any]:
            from pykvm.boot.linux import unpacked  # noqa: PLC0415 - only the first run pays

            (where / _VMLINUX).write_bytes(unpacked(image))
            return {"kernel": self.kernel.release}

        return self.store.obtain(_VMLINUX, self.kernel.key, build, lambda _text: None, keep=2).path / _VMLINUX


def cached_kit(store: Store) -> Kit | None:
    """What the cache has; None if a part is missing. Raises DamageError for a part that is damaged."""
    kernel, busybox = cached_kernel(FLAVOUR, store), cached_program(_BUSYBOX[0], store)
    return Kit(kernel, busybox, _init(), store) if kernel and busybox else None


def fetch_kit(store: Store, progress: Progress) -> Kit:
    """Debian's newest, fetched unless the cache has it. Raises LabError in one line."""
    kernel = fetch_kernel(FLAVOUR, store, progress)
    return Kit(kernel, fetch_program(*_BUSYBOX, store, progress), _init(), store)


def kit(store: Store, progress: Progress) -> Kit:
    """The cached kit, else a fetched one."""
    try:
        return cached_kit(store) or fetch_kit(store, progress)
    except DamageError:
        return fetch_kit(store, progress)  # which says so and makes it anew


def _init() -> Path:
    path = built_folder() / "linux_init"
    if not path.exists():
        raise ImageNotFoundError("the first process of Linux guests has not been built; run `make guests`")
    return path
