"""Layers as erofs images and as one disk, read back by a reader that shares nothing with the writer."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from erofs_reader import Erofs, File
from hypothesis import given, settings
from hypothesis import strategies as st
from image_parts import docker_archive, entry, layer, tar_of
from virtio_driver import Driver

from pykvm.containers.archive import load
from pykvm.containers.erofs import write_erofs
from pykvm.containers.layer import LayerReader
from pykvm.containers.layer_disk import LayerDisk, partition_name
from pykvm.containers.layer_files import layer_files
from pykvm.containers.limits import Limits
from pykvm.containers.removal import collect_garbage
from pykvm.containers.store import ImageStore
from pykvm.devices.virtio.block import Block
from pykvm.devices.virtio.mmio import Register
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

DIR, LINK, SYMLINK, CHAR = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE


def image_of(tar: bytes, room: Path | str = "/tmp") -> bytes:  # noqa: S108 - a temporary file without a name
    target = io.BytesIO()
    reader = LayerReader(io.BufferedReader(io.BytesIO(tar)), "layer", Limits())
    size = write_erofs(reader, target, bytes(16), room)  # type: ignore[arg-type]
    assert size == len(target.getvalue())
    return target.getvalue()


def files_of(*entries: tuple[tarfile.TarInfo, bytes]) -> dict[str, File]:
    return Erofs(image_of(layer(*entries))).walk()


def test_every_kind_of_file_is_what_the_tar_says() -> None:
    """Files, directories, links of both kinds, devices, pipes: modes, owners, times, attributes, contents."""
    said = {"SCHILY.xattr.user.a": "b", "SCHILY.xattr.security.capability": "\x01\udcff", "mtime": "-1.25"}
    found = files_of(
        entry("./", kind=DIR, mode=0o711),
        entry("d", kind=DIR, mode=0o1777, uid=1, gid=70000),
        entry("d/f", b"text" * 3, mode=0o4755, uid=0xFFFF_FFFE, mtime=7),
        entry("d/x", b"", pax_headers=said),
        entry("h", kind=LINK, linkname="d/f"),
        entry("s", kind=SYMLINK, linkname="/d/../ü"),
        entry("long", kind=SYMLINK, linkname="t" * 4090),
        entry("tty", kind=CHAR, devmajor=5, devminor=0x12345, mode=0o620),
        entry("sda", kind=tarfile.BLKTYPE, devmajor=259, devminor=1),
        entry("pipe", kind=tarfile.FIFOTYPE),
    )
    assert stat.S_IMODE(found[""].mode) == 0o711
    assert (found["d"].mode, found["d"].uid, found["d"].gid) == (stat.S_IFDIR | 0o1777, 1, 70000)
    file = found["d/f"]
    assert file == found["h"]
    assert (file.mode, file.uid, file.links) == (stat.S_IFREG | 0o4755, 0xFFFF_FFFE, 2)
    assert (file.mtime_ns, file.data) == (7 * 10**9, b"texttexttext")
    assert found["d/x"].xattrs == {"user.a": b"b", "security.capability": b"\x01\xff"}
    assert found["d/x"].mtime_ns == -1_250_000_000
    assert found["s"].data.decode() == "/d/../ü"
    assert found["long"].data == b"t" * 4090
    assert found["tty"].rdev == (0x45 | 5 << 8 | 0x12300 << 12)
    assert (found["sda"].mode & 0o170000, found["sda"].rdev) == (stat.S_IFBLK, 1 | 259 << 8)
    assert stat.S_ISFIFO(found["pipe"].mode)


def test_whiteouts_are_overlay_s() -> None:
    """A device 0:0 for a file taken away, an attribute for a directory, neither for what this layer has."""
    found = files_of(
        entry("a/.wh.gone"),
        entry("b/.wh..wh..opq"),
        entry("b", kind=DIR, mode=0o700),
        entry("c/x", b"1"),
        entry(".wh.c"),
        entry(".wh.e"),
        entry("e", b"new"),
        entry(".wh..wh.plnk", kind=DIR),
    )
    assert (found["a/gone"].mode, found["a/gone"].rdev) == (stat.S_IFCHR, 0)
    opaque = {"trusted.overlay.opaque": b"y"}
    assert (found["b"].xattrs, found["b"].mode) == (opaque, stat.S_IFDIR | 0o700)
    assert (found["c"].xattrs, found["c/x"].data) == (opaque, b"1")
    assert found["e"].data == b"new"
    assert set(found) == {"", "a", "a/gone", "b", "c", "c/x", "e"}


SIZES = [0, 1, 4031, 4032, 4033, 4096, 4097, 65535, 65537, 1 << 20, (1 << 20) + 5]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_every_edge(size: int) -> None:
    """Files that end at, before and behind blocks, chunks and what fits beside an inode."""
    data = bytes(at % 251 for at in range(1000)) * (size // 1000 + 1)
    found = files_of(entry("a", data[:size]), entry("b", b"!" + data[: max(size - 1, 0)]))
    assert found["a"].data == data[:size]
    assert found["b"].data[1:] == data[: max(size - 1, 0)]


def test_a_large_file_is_in_one_piece_and_a_small_one_beside_its_inode() -> None:
    """One read is enough for either: the last part of a file is not apart from its blocks."""
    data = bytes(at % 251 for at in range(3 * 4096 + 700))
    assert data in image_of(layer(entry("large", data), entry("small", b"small" * 100)))
    small = layer(*(entry(f"small{at}", b"%d" % at * 100) for at in range(10)))
    assert len(image_of(small)) == 2 * 4096  # the superblock, and all else


def test_holes_take_no_room() -> None:
    """Zeros are not stored: in front, within and behind data, and in a tar's own sparse file."""
    solid = bytes(range(1, 256)) * 300
    data = bytes(3 << 20) + solid + bytes(5 << 20) + solid[:70000]
    assert len(image_of(layer(entry("a", data)))) < 400_000
    for one in (data, data + bytes(1 << 20), data + b"x", solid[:65536] + bytes(65536 + 5), bytes(65536)):
        assert files_of(entry("a", one))["a"].data == one
    said = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "s"}
    said |= {"GNU.sparse.size": str(1 << 20), "GNU.sparse.map": "0,3,1000000,4"}
    found = files_of(entry("s", b"abcwxyz", pax_headers=said))
    assert found["s"].data == b"abc" + bytes(1000000 - 3) + b"wxyz" + bytes((1 << 20) - 1000004)


def test_directories_of_every_size() -> None:
    """Empty, of one block, of many; names of 1 to 255 bytes, sorted as bytes, before and behind the dots."""
    names = [f"{'n' * (at % 240)}{at}" for at in range(700)] + ["!", "-", "/".join(["deep"] * 9), "ü" * 127]
    found = files_of(*(entry(f"d/{name}", name.encode()) for name in names), entry("empty", kind=DIR))
    assert all(found[f"d/{name}"].data == name.encode() for name in names)
    assert found["empty"].links == 2


tree = st.recursive(
    st.binary(max_size=6000) | st.integers(0, 300_000).map(bytes),
    lambda below: st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9).filter(
            lambda name: name not in {".", ".."} and not name.startswith(".wh.")
        ),
        below,
        max_size=6,
    ),
    max_leaves=20,
)


@settings(max_examples=25)
@given(
    tree, st.dictionaries(st.sampled_from(["user.a", "trusted.b", "security.c"]), st.binary(max_size=5000))
)
def test_what_goes_in_comes_out(files: Any, xattrs: dict[str, bytes]) -> None:
    """Any tree of files and directories, with attributes of any length."""
    wanted: dict[str, bytes | None] = {}
    _flatten("top", files, wanted)
    said = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()}
    entries = [
        entry(path, data or b"", kind=DIR if data is None else tarfile.REGTYPE, pax_headers=said)
        for path, data in wanted.items()
    ]
    image = image_of(layer(*entries))
    assert image == image_of(layer(*entries))
    found = Erofs(image).walk()
    del found[""]
    assert {path: None if stat.S_ISDIR(one.mode) else one.data for path, one in found.items()} == wanted
    assert all(one.xattrs == xattrs for one in found.values())


def _flatten(path: str, files: Any, found: dict[str, bytes | None]) -> None:
    found[path] = None if isinstance(files, dict) else files
    for name, below in files.items() if isinstance(files, dict) else ():
        _flatten(f"{path}/{name}", below, found)


def test_memory_does_not_grow_with_files_data(tmp_path: Path) -> None:
    """A layer of 24 MB takes a few: data pass through."""
    tar = layer(*(entry(f"f{at}", b"\1" * (6 << 20)) for at in range(4)))
    with (tmp_path / "image").open("w+b") as file:
        tracemalloc.start()
        reader = LayerReader(io.BufferedReader(io.BytesIO(tar)), "layer", Limits())
        write_erofs(reader, file, bytes(16), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


BASE = layer(entry("etc", kind=DIR, mode=0o750, uid=3), entry("etc/a", b"1" * 5000))
BARE = layer(entry("etc/b", b"2"))


def test_layers_are_made_once_and_shared(tmp_path: Path) -> None:
    """By diff_id; directories that one passes through without describing them look as they do below."""
    store = ImageStore(tmp_path)
    one, two = (
        load(store, io.BytesIO(tar_of(docker_archive(layers, tags))))[0].image
        for layers, tags in (([BASE, BARE], ["one"]), ([BASE], ["two"]))
    )
    first, second = layer_files(store, one)
    again = layer_files(store, two)
    assert again == [first]
    assert (first.key, first.diff_id) == (one.diff_ids[0], one.diff_ids[0])
    assert second.key == one.chain[1]
    folder = Erofs(second.path.read_bytes()).walk()["etc"]
    assert (folder.mode, folder.uid) == (stat.S_IFDIR | 0o750, 3)
    stamp = first.path.stat().st_mtime_ns
    assert layer_files(store, one) == [first, second]
    assert first.path.stat().st_mtime_ns == stamp
    collect_garbage(store)
    assert first.path.exists()
    assert second.path.exists()


def test_one_disk_has_all_layers_and_copies_none(tmp_path: Path) -> None:
    """Both tables are sound, each partition is its file, any range reads as the whole does; no write."""
    store = ImageStore(tmp_path)
    image = load(store, io.BytesIO(tar_of(docker_archive([BASE, BARE], ["one"]))))[0].image
    layers = layer_files(store, image)
    with LayerDisk(layers * 2) as disk:
        whole = disk.bytes_at(0, disk.size_bytes)
        assert len(disk.extents) == 2
        for at in (512, disk.size_bytes - 512):
            _check_table(whole, at, layers)
        assert whole[510:512] == b"\x55\xaa"
        for at, size in (
            (0, 513),
            (500, 40000),
            ((1 << 20) - 3, 5000),
            ((2 << 20) - 7, 90),
            (len(whole) - 9, 9),
        ):
            assert disk.bytes_at(at, size) == whole[at : at + size]
        for extent in disk.extents:
            fd, at = disk.place(extent.at + 5, extent.size_bytes - 5) or (-1, 0)
            assert os.pread(fd, 10, at) == disk.bytes_at(extent.at + 5, 10)
            assert disk.place(extent.at + 5, extent.size_bytes - 4) is None
        assert disk.place(512, 512) is None
        pieces = [memoryview(bytearray(4096)), memoryview(bytearray(100))]
        disk.read(pieces, 1 << 20)
        assert b"".join(pieces) == whole[1 << 20 : (1 << 20) + 4196]
        for wrong in (-1, len(whole) - 1):
            with pytest.raises(OSError, match="beyond the disk"):
                disk.bytes_at(wrong, 2)
        with pytest.raises(OSError, match="Read-only"):
            disk.write(pieces, 0)
    with pytest.raises(ConfigError, match="255 partitions"):
        LayerDisk([type(layers[0])(f"{at:064x}", "", layers[0].path, 512) for at in range(256)])


def test_a_disk_grows_and_its_driver_hears_of_it(tmp_path: Path) -> None:
    """Layers come behind those that are there, both tables are sound again; the driver sees the size."""
    store = ImageStore(tmp_path)
    image = load(store, io.BytesIO(tar_of(docker_archive([BASE, BARE], ["one"]))))[0].image
    first, second = layer_files(store, image)
    disk = LayerDisk([first])
    block = Block(disk)
    with Driver(block) as driver:
        before = driver.config(0, 8)
        assert disk.grow([first, second])
        assert not disk.grow([second])
        block.resized()
        (fd,) = block.watched()
        driver.transport.serve(lambda: block.on_ready(fd))
        assert struct.unpack("<Q", driver.config(0, 8))[0] * 512 == disk.size_bytes
        assert struct.unpack("<Q", before)[0] * 512 < disk.size_bytes
        assert driver.get(Register.INTERRUPT_STATUS) & 2
        with LayerDisk([first, second]) as fresh:
            assert disk.bytes_at(0, disk.size_bytes) == fresh.bytes_at(0, fresh.size_bytes)
        with pytest.raises(FileNotFoundError):
            disk.grow([replace(second, key="sha256:" + "0" * 64, path=tmp_path / "none")])
        assert disk.layers == (first, second)
        block.close()


def _check_table(disk: bytes, at: int, layers: list[Any]) -> None:
    header = bytearray(disk[at : at + 92])
    magic, _, size, crc = struct.unpack_from("<8sIII", header)
    struct.pack_into("<I", header, 16, 0)
    assert (magic, size, crc) == (b"EFI PART", 92, zlib.crc32(header))
    own, other, first, last = struct.unpack_from("<4Q", header, 24)
    assert {own * 512, other * 512} == {512, len(disk) - 512}
    assert own * 512 == at
    table, count, each, table_crc = struct.unpack_from("<QIII", header, 72)
    entries = disk[table * 512 : table * 512 + count * each]
    assert zlib.crc32(entries) == table_crc
    for index, one in enumerate(layers):
        start, end, _, name = struct.unpack_from("<QQQ72s", entries, index * each + 32)
        assert first <= start <= end <= last
        assert name.decode("utf-16-le").rstrip("\0") == partition_name(one)
        assert disk[start * 512 : (end + 1) * 512] == one.path.read_bytes()
