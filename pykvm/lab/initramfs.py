"""What a lab's kernel unpacks as its first root: our init, the modules it loads, and `/lab.conf`."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import ToolchainError
from pykvm.lab import cpio
from pykvm.lab.modules import Module, ModuleTree, without_signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pykvm.lab.backend import Progress
    from pykvm.lab.kernel import Kernel
    from pykvm.lab.store import Store

__all__ = ["build_initramfs", "compile_init"]

_HERE = Path(__file__).parent
_SOURCES = ("init.c", "channel.c", "relay.c", "init.h")
_FLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra")
_NAME = "initramfs.cpio"
_KEPT = 8  # several checkouts, both labs, with and without --load
_INSTALL = (
    "a compiler and a static C library are needed: apt-get install gcc libc6-dev (elsewhere: glibc-static)"
)


def compile_init(store: Store, progress: Progress) -> Path:
    """The init as a static program, compiled once for each state of its sources.

    Raises ToolchainError with the compiler's first complaint.
    """
    parts = [(_HERE / name).read_bytes() for name in _SOURCES]
    key = _key(*parts, " ".join(_FLAGS).encode())

    def build(where: Path) -> dict[str, Any]:
        progress("compiling the lab's init")
        sources = [str(_HERE / name) for name in _SOURCES if name.endswith(".c")]
        _compile(["gcc", *_FLAGS, "-o", str(where / "init"), *sources])
        return {"flags": list(_FLAGS)}

    return store.obtain("init", key, build, progress, keep=_KEPT).path / "init"


def build_initramfs(
    kernel: Kernel,
    wanted: Sequence[str],
    config: Sequence[str],
    *,
    store: Store,
    room: Path,
    progress: Progress,
) -> Path:
    """The initramfs with the modules `wanted`, what they depend on, and the lines `config` of /lab.conf.

    The cache keeps it if the kernel is of the cache too; else it is made in `room`. The `module` lines
    of /lab.conf are written here. Raises LabError if the kernel lacks one of the modules.
    """
    init = compile_init(store, progress)

    def build(where: Path) -> dict[str, Any]:
        modules = ModuleTree(kernel.modules).in_order(wanted)
        (where / _NAME).write_bytes(cpio.pack(list(_members(init.read_bytes(), modules, config))))
        return {"kernel": kernel.release, "modules": [module.name for module in modules]}

    if not kernel.key:
        build(room)
        return room / _NAME
    key = _key(*(part.encode() for part in (kernel.key, init.parent.name, *wanted, "", *config)))
    return store.obtain("initramfs", key, build, progress, keep=_KEPT).path / _NAME


def _members(init: bytes, modules: Sequence[Module], config: Sequence[str]) -> Iterable[cpio.Entry]:
    files = [f"modules/{module.name}.ko" for module in modules]
    lines = [*(f"module /{name}" for name in files), *config]
    yield cpio.file("init", init, 0o755)
    yield cpio.file("lab.conf", "".join(f"{line}\n" for line in lines).encode())
    yield cpio.directory("dev")
    yield cpio.device("dev/console", "c", 5, 1)
    yield cpio.directory("modules")
    for name, module in zip(files, modules, strict=True):
        yield cpio.file(name, without_signature(module.image))


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolchainError(f"the lab's init: there is no gcc; {_INSTALL}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        raise ToolchainError(f"the lab's init: {(lines or ['gcc failed'])[0]}; {_INSTALL}")


def _key(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]
