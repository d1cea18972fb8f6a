"""Kernel modules: where they are, what they depend on, and in which order they load.

The order comes from the modules themselves: the `.modinfo` section of each says `depends=`, as modpost wrote
it. Neither depmod nor kmod is needed; a minimal system has neither.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Module", "ModuleTree", "modinfo", "read_module", "without_signature"]

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
_SIGNATURE_END = b"~Module signature appended~\n"
_DAMAGED = "is no kernel module that can be read"


@dataclass(frozen=True, slots=True)
class Module:
    """One loadable module: its name with underscores, its file, its ELF image without compression."""

    name: str
    path: Path
    image: bytes


class ModuleTree:
    """The modules of one kernel, below a directory such as /lib/modules/6.1.0-1-amd64."""

    def __init__(self, root: Path) -> None:
        """Raises LabError if there is no module below `root`."""
        self.root = root
        self._files = dict(_find(root))
        self._builtin = _builtin(root)
        if not self._files:
            raise LabError(f"{root}: no kernel modules there; name a directory such as /lib/modules/VERSION")

    def __contains__(self, name: str) -> bool:
        name = _plain(name)
        return name in self._files or name in self._builtin

    def any_file(self) -> Path:
        """Some module, to ask it for which kernel it was built."""
        return next(iter(self._files.values()))

    def in_order(self, wanted: Iterable[str]) -> list[Module]:
        """The modules `wanted` and all they depend on, each after what it needs; built-in ones left out.

        Raises LabError naming the module that is missing and who needs it, or the circle.
        """
        done: dict[str, Module] = {}
        for name in wanted:
            self._visit(_plain(name), done, ())
        return list(done.values())

    def _visit(self, name: str, done: dict[str, Module], path: tuple[str, ...]) -> None:
        if name in done or name in self._builtin:
            return
        if name in path:
            raise LabError(f"{self.root}: modules depend on each other: {' -> '.join((*path, name))}")
        if name not in self._files:
            needed = f" (needed by {path[-1]})" if path else ""
            raise LabError(
                f"{self.root}: this kernel has no module {name}{needed}; use another kernel (--kernel)"
            )
        module = Module(name, self._files[name], read_module(self._files[name]))
        for other in filter(None, modinfo(module.image).get("depends", "").split(",")):
            self._visit(_plain(other), done, (*path, name))
        done[name] = module


def modinfo(image: bytes) -> dict[str, str]:
    """The `.modinfo` section of a module as key and value; the first of several values of a key.

    Raises LabError if `image` is no 64-bit little-endian ELF file with such a section.
    """
    pairs = (item.partition(b"=") for item in _section(image, b".modinfo").split(b"\0") if item)
    found: dict[str, str] = {}
    for key, _, value in pairs:
        found.setdefault(key.decode("latin-1"), value.decode("latin-1"))
    return found


def read_module(path: Path) -> bytes:
    """The ELF image in the file, whatever its compression. Raises LabError."""
    try:
        data = path.read_bytes()
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".zst":
                return _unzstd(path, data)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise LabError(f"{path}: {_DAMAGED}: {error}") from error
    return data


def without_signature(image: bytes) -> bytes:
    """The module without the signature that sign-file appended.

    The lab's kernel does not insist on one, and checking it in a software CPU takes longer than loading. The
    layout is that of struct module_signature: the signature's length is its last field, big-endian.
    """
    if not image.endswith(_SIGNATURE_END):
        return image
    body = image[: -len(_SIGNATURE_END)]
    (length,) = struct.unpack(">I", body[-4:])
    return body[: -12 - length] if 12 + length <= len(body) else image


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _find(root: Path) -> Iterable[tuple[str, Path]]:
    for where, _, names in os.walk(root):
        for name in names:
            stem, dot, rest = name.partition(".")
            if dot + rest in _SUFFIXES:
                yield _plain(stem), Path(where, name)


def _builtin(root: Path) -> frozenset[str]:
    try:
        lines = (root / "modules.builtin").read_text().split()
    except FileNotFoundError:
        return frozenset()
    return frozenset(_plain(Path(line).name.partition(".")[0]) for line in lines)


def _unzstd(path: Path, data: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise LabError(f"{path}: compressed with zstd, and there is no zstd here; apt-get install zstd")
    done = subprocess.run([program, "-dcq"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{path}: {_DAMAGED}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _section(image: bytes, wanted: bytes) -> bytes:
    """The bytes of a section of a 64-bit little-endian ELF file, by the gABI's section header table."""
    try:
        for name, offset, length in _sections(image):
            if name == wanted:
                return image[offset : offset + length]
    except (IndexError, OverflowError, struct.error):
        pass
    raise LabError(f"a kernel module {_DAMAGED}: no {wanted.decode()} section of a 64-bit ELF file")


def _sections(image: bytes) -> Iterator[tuple[bytes, int, int]]:
    if image[:6] != b"\x7fELF\x02\x01":
        return
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", image, 0x3A)
    headers = [struct.unpack_from("<II4Q", image, table + size * number) for number in range(count)]
    names = image[headers[names_at][4] :][: headers[names_at][5]]
    for at, _, _, _, offset, length in headers:
        yield names[at : names.find(b"\0", at)], offset, length
