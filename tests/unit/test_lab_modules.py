"""Modules load after what they need, whatever their compression, and what is missing is named."""

from __future__ import annotations

import gzip
import lzma
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import LabError
from pykvm.lab.modules import ModuleTree, modinfo, read_module, without_signature

if TYPE_CHECKING:
    from pathlib import Path


def module_image(**info: str) -> bytes:
    """A 64-bit ELF file with nothing but a .modinfo section and the section names."""
    text = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    table = 64 + len(text) + len(names)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<II4QIIQQ", 1, 1, 0, 0, 64, len(text), 0, 0, 1, 0)
    sections += struct.pack("<II4QIIQQ", 10, 3, 0, 0, 64 + len(text), len(names), 0, 0, 1, 0)
    return header + text + names + sections


def make_tree(root: Path, modules: dict[str, str], builtin: str = "") -> ModuleTree:
    """A module directory where each module depends on what its value lists."""
    where = root / "kernel/drivers"
    where.mkdir(parents=True)
    for name, depends in modules.items():
        (where / f"{name}.ko").write_bytes(module_image(license="GPL", depends=depends, vermagic="6.1.0 SMP"))
    (root / "modules.builtin").write_text(builtin)
    return ModuleTree(root)


def names(tree: ModuleTree, *wanted: str) -> list[str]:
    return [module.name for module in tree.in_order(wanted)]


def test_each_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    """The order is that of the dependencies, each module once, dashes and underscores the same."""
    tree = make_tree(tmp_path, {"kvm-amd": "kvm,ccp", "kvm": "irqbypass", "ccp": "", "irqbypass": ""})
    assert names(tree, "kvm_amd", "kvm") == ["irqbypass", "kvm", "ccp", "kvm_amd"]
    assert names(tree, "ccp", "kvm-amd") == ["ccp", "irqbypass", "kvm", "kvm_amd"]


def test_what_is_built_in_needs_no_loading(tmp_path: Path) -> None:
    """A dependency or a wanted module that modules.builtin names is left out."""
    tree = make_tree(tmp_path, {"9p": "9pnet,netfs"}, "kernel/net/9p/9pnet.ko\nkernel/fs/netfs/netfs.ko\n")
    assert names(tree, "9p", "netfs") == ["9p"]
    assert "9pnet" in tree
    assert "overlay" not in tree


def test_a_missing_module_is_named_with_who_needs_it(tmp_path: Path) -> None:
    """The error says what is missing and for whom."""
    tree = make_tree(tmp_path, {"a": "b"})
    with pytest.raises(LabError, match=r"no module b \(needed by a\)"):
        tree.in_order(["a"])
    with pytest.raises(LabError, match="no module c;"):
        tree.in_order(["c"])


def test_a_circle_is_told_and_does_not_hang(tmp_path: Path) -> None:
    """Modules that need each other are an error with the way round."""
    with pytest.raises(LabError, match="a -> b -> a"):
        make_tree(tmp_path, {"a": "b", "b": "a"}).in_order(["a"])


def test_a_directory_without_modules_is_an_error(tmp_path: Path) -> None:
    """So that a wrong --modules is told at once."""
    with pytest.raises(LabError, match="no kernel modules there"):
        ModuleTree(tmp_path)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_module_is_read_whatever_its_compression(tmp_path: Path, suffix: str, pack: object) -> None:
    """.ko, .ko.xz and .ko.gz hold the same image; a damaged file is one line."""
    path = tmp_path / f"kernel/a.ko{suffix}"
    path.parent.mkdir()
    image = module_image(depends="", vermagic="6.1.0 SMP")
    path.write_bytes(pack(image))  # type: ignore[operator]  # bytes or a compressor
    (module,) = ModuleTree(tmp_path).in_order(["a"])
    assert module.image == image
    path.write_bytes(pack(image)[:20])  # type: ignore[operator]  # as above
    with pytest.raises(LabError, match=r"a kernel module|a\.ko"):
        modinfo(read_module(path))


@given(st.binary(max_size=200), st.integers(0, 600))
def test_no_bytes_make_the_reader_stumble(noise: bytes, at: int) -> None:
    """Whatever a file holds, it is read as a module or refused in one line."""
    image = bytearray(module_image(depends="x"))
    image[at : at + len(noise)] = noise
    with suppress(LabError):
        modinfo(bytes(image))


def test_the_signature_is_cut_off_and_nothing_else() -> None:
    """What sign-file appended goes; an image without a signature stays as it is."""
    image = module_image(depends="")
    signature = b"S" * 300
    info = bytes(8) + struct.pack(">I", len(signature))
    assert without_signature(image + signature + info + b"~Module signature appended~\n") == image
    assert without_signature(image) == image
    broken = image + bytes(8) + b"\xff" * 4 + b"~Module signature appended~\n"
    assert without_signature(broken) == broken
