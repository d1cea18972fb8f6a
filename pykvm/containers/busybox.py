"""The image `busybox`, made from Debian's busybox-static at first use: no registry is needed for it."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

from pykvm.containers.documents import LAYER_TYPE, Descriptor, canonical
from pykvm.containers.names import parse_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pykvm.containers.store import Entry, ImageStore

__all__ = ["BUSYBOX", "add_busybox", "busybox_layer"]

BUSYBOX = parse_name("busybox:latest")
_PACKAGE = ("busybox-static", "bin/busybox")
_FOLDERS = "bin dev etc home mnt proc root run sbin sys usr usr/bin usr/sbin var var/tmp".split()
_NOBODY = 65534
_PASSWD = f"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:{_NOBODY}:{_NOBODY}:nobody:/home:/bin/false
"""
_GROUP = f"""root:x:0:
daemon:x:1:
tty:x:5:
users:x:100:
www-data:x:33:
nogroup:x:{_NOBODY}:
"""
_FILES = {
    "etc/group": (_GROUP, 0o644),
    "etc/passwd": (_PASSWD, 0o644),
    "etc/shadow": ("root:*::0:99999:7:::\nnobody:*::0:99999:7:::\n", 0o600),
    "etc/nsswitch.conf": ("passwd: files\ngroup: files\nhosts: files dns\n", 0o644),
}


def add_busybox(store: ImageStore, notice: Callable[[str], None]) -> Entry:
    """Make the image and keep it. Raises LabError if Debian's package can't be had."""
    from pykvm.lab.packages import fetch_program  # noqa: PLC0415 - only who has no image yet pays
    from pykvm.lab.store import Store  # noqa: PLC0415 - as above
    from pykvm.linux.initramfs import applets  # noqa: PLC0415 - as above

    program = fetch_program(*_PACKAGE, Store(), notice)
    notice("making the image busybox of Debian's busybox-static")
    data = busybox_layer(program, applets(program))
    with store.using():
        digest, note = store.add_layer(io.BytesIO(data), "busybox")
        config = canonical(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {
                    "Cmd": ["sh"],
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                },
                "history": [
                    {"created": "1970-01-01T00:00:00Z", "created_by": "pykvm: Debian's busybox-static"}
                ],
                "rootfs": {"type": "layers", "diff_ids": [note.diff_id]},
            }
        )
        store.add_built(config, [Descriptor(LAYER_TYPE, digest, len(data))], BUSYBOX)
    return store.find(BUSYBOX.familiar)


def busybox_layer(program: Path, links: Iterable[str]) -> bytes:
    """The layer's tar, the same for the same program: it, a link for each applet, users and groups."""
    target = io.BytesIO()
    with tarfile.TarFile(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in _FOLDERS:
            _add(tar, name, tarfile.DIRTYPE, 0o700 if name == "root" else 0o755)
        _add(tar, "tmp", tarfile.DIRTYPE, 0o1777)
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        for path in sorted(links):
            _add(tar, path, tarfile.SYMTYPE, 0o777, target="/bin/busybox")
        for path, (text, mode) in _FILES.items():
            _add(tar, path, tarfile.REGTYPE, mode, text.encode())
    return target.getvalue()


def _add(
    tar: tarfile.TarFile, path: str, kind: bytes, mode: int, data: bytes = b"", target: str = ""
) -> None:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.linkname, info.size = kind, mode, target, len(data)
    tar.addfile(info, io.BytesIO(data) if data else None)
