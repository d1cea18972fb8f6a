"""A kernel mounts the layers of an image, from one disk and under overlay, and sees what the image says."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from pykvm.containers.archive import load
from pykvm.containers.layer_disk import LayerDisk
from pykvm.containers.layer_files import layer_files
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import tree_of

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from image_parts import docker_archive, entry, layer, tar_of

LIMIT_S = 300
DIR, LINK, SYMLINK, CHAR = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE
SOLID = bytes(range(256)) * 400
XATTR = {"SCHILY.xattr.user.a": "b", "SCHILY.xattr.security.x": "\x01\udcff"}
BASE = layer(
    entry("etc", kind=DIR, mode=0o750, uid=3, mtime=7),
    entry("etc/a", b"1" * 5000, mode=0o4755),
    entry("etc/gone", b"x"),
    entry("old", kind=DIR),
    entry("old/f", b"1"),
    entry("attributes", b"", pax_headers=XATTR),
    entry("hard", kind=LINK, linkname="etc/a"),
    entry("soft", kind=SYMLINK, linkname="etc/a", mode=0o777),
    entry("long", kind=SYMLINK, linkname="t" * 4090, mode=0o777),
    entry("tty", kind=CHAR, devmajor=5, devminor=0x12345),
    entry("sparse", bytes(3 << 20) + SOLID + bytes(1 << 20) + b"end"),
    entry("big", kind=DIR),
    *(entry(f"big/{'n' * (at % 240)}{at}", b"%d" % at * (at % 90)) for at in range(400)),
)
TOP = layer(entry("etc/.wh.gone"), entry("etc/b", b"2"), entry("old", kind=DIR), entry("old/.wh..wh..opq"))
SCRIPT = """
import hashlib, json, os, subprocess, sys, time

def run(*words): subprocess.run(words, check=True)

run("losetup", "-P", "-r", "/dev/loop0", sys.argv[1])
names = {}
while len(names) < 2:
    time.sleep(0.05)
    for part in ("loop0p1", "loop0p2"):
        try:
            told = open(f"/sys/block/loop0/{part}/uevent").read()
        except FileNotFoundError:
            continue
        if os.path.exists(f"/dev/{part}"):
            names[told.split("PARTNAME=")[1].split()[0]] = f"/dev/{part}"
for at in range(5):
    os.makedirs(f"/m/{at}")
for at, name in enumerate(sys.argv[2:]):
    run("mount", "-t", "erofs", "-o", "ro", names[name], f"/m/{at}")
run("mount", "-t", "tmpfs", "t", "/m/2")
os.mkdir("/m/2/u"), os.mkdir("/m/2/w")
run("mount", "-t", "overlay", "o", "-o", "lowerdir=/m/1:/m/0,upperdir=/m/2/u,workdir=/m/2/w", "/m/3")
found = {}
for top, folders, files in os.walk("/m/3"):
    for name in folders + files:
        path = os.path.join(top, name)
        about = os.lstat(path)
        data = b""
        if os.path.islink(path):
            data = os.readlink(path).encode()
        elif os.path.isfile(path):
            data = open(path, "rb").read()
        device = [os.major(about.st_rdev), os.minor(about.st_rdev)]
        look = [about.st_mode & 0o7777, about.st_uid, about.st_gid, about.st_mtime_ns, device]
        found[path[5:]] = [*look, hashlib.sha256(data).hexdigest()]
attributes = {name: os.getxattr("/m/0/attributes", name).hex() for name in os.listxattr("/m/0/attributes")}
print(json.dumps([found, attributes, os.stat("/m/3/hard").st_nlink]))
"""


def test_a_kernel_sees_in_the_layers_what_the_image_says(tmp_path: Path) -> None:
    """Partitions by name, erofs by its own driver, whiteouts by overlay: every file's looks and content."""
    store = ImageStore(tmp_path / "store")
    image = load(store, io.BytesIO(tar_of(docker_archive([BASE, TOP], ["a"]))))[0].image
    with LayerDisk(layer_files(store, image)) as disk:
        (tmp_path / "disk").write_bytes(disk.bytes_at(0, disk.size_bytes))
        names = [one.key[7:39] for one in disk.layers]
    lab = [sys.executable, "-m", "pykvm", "lab", "-q"]
    for module in ("loop", "crc32c_generic", "erofs"):
        lab += ["--load", module]
    done = subprocess.run(
        [*lab, "--", sys.executable, "-c", SCRIPT, str(tmp_path / "disk"), *names],
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    found, attributes, links = json.loads(done.stdout)
    assert found == _wanted(store, image)
    assert attributes == {"user.a": "62", "security.x": "01ff"}
    assert links == 2


def _wanted(store: ImageStore, image: Any) -> dict[str, list[Any]]:
    """The same from our own reading of the layers."""
    import hashlib

    wanted = {}
    for path, node in tree_of(store, image.layers, with_content=True).walk():
        content = node.content or hashlib.sha256(node.target.encode()).hexdigest()
        wanted[path] = [node.mode, node.uid, node.gid, node.mtime_ns, list(node.device), content]
    return wanted
