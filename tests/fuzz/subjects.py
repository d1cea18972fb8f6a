"""The devices under fuzz, each with its host's side: how it is made, what is asked, what must stay true."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pykvm.devices.virtio.balloon import Balloon
from pykvm.devices.virtio.block import Block
from pykvm.devices.virtio.console import Console
from pykvm.devices.virtio.disk_files import Overlay, RawFile
from pykvm.devices.virtio.fs import Fs
from pykvm.devices.virtio.fuse import IN_HEADER
from pykvm.devices.virtio.host_folder import HostFolder
from pykvm.devices.virtio.net import Net
from pykvm.devices.virtio.ports import Ports
from pykvm.devices.virtio.rng import Rng
from pykvm.devices.virtio.vsock import HEADER, Vsock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from pykvm.devices.virtio.device import VirtioDevice
    from pykvm.memory import GuestMemory

__all__ = ["SUBJECTS", "Subject"]

SECRET = b"what the guest must never see"
_SECTORS = 64
_NUMBERS = (0, 1, 2, 3, 7, 8, 63, 64, 511, 512, 4095, 4096, 65535, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40)


def number(rng: Random, bits: int = 64) -> int:
    """A number that is likely to be an edge."""
    value = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(bits)
    return (value + rng.choice((0, 0, 0, 1, -1))) & ((1 << bits) - 1)


class Subject(Protocol):
    """A device and its surroundings, made anew for each case in `folder`, which is its own."""

    device: VirtioDevice

    def request(self, rng: Random) -> tuple[bytes, int]:
        """What a driver might ask: the bytes to read, and how much room for an answer."""
        ...

    def host(self, rng: Random) -> None:
        """Something happens on the host's side."""

    def check(self, memory: GuestMemory) -> None:
        """Assert what must be true whatever the guest did; the device is closed."""

    def close(self) -> None:
        """Give the surroundings back."""


class _Plain:
    """What most have in common: nothing on the host's side."""

    device: VirtioDevice

    def request(self, rng: Random) -> tuple[bytes, int]:
        return rng.randbytes(rng.randrange(64)), rng.choice((0, 1, 16, 4096))

    def host(self, rng: Random) -> None:
        pass

    def check(self, memory: GuestMemory) -> None:
        pass

    def close(self) -> None:
        pass


class _Rng(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.device = Rng(rng.randbytes)


class _Balloon(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.device = self.balloon = Balloon(memory.discard, target_bytes=1 << 16)

    def request(self, rng: Random) -> tuple[bytes, int]:
        if rng.random() < 0.3:
            tags = (struct.pack("<HQ", number(rng, 16), number(rng)) for _ in range(rng.randrange(20)))
            return b"".join(tags), 0
        frames = (struct.pack("<I", rng.randrange(200, 300)) for _ in range(rng.randrange(64)))
        return b"".join(frames), rng.choice((0, 4096))

    def host(self, rng: Random) -> None:
        self.balloon.set_target(number(rng, 40))


class _Console(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.printed = 0
        self.device = self.console = Console(self._print, columns=80, rows=25, hold=rng.random() < 0.1)

    def _print(self, data: bytes) -> None:
        self.printed += len(data)

    def host(self, rng: Random) -> None:
        if rng.random() < 0.5:
            self.console.receive(rng.randbytes(rng.randrange(300)))
        elif rng.random() < 0.5:
            self.console.resize(rng.getrandbits(16), rng.getrandbits(16))
        else:
            self.console.release()


class _Ports(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.paths = [folder / "p0", folder / "p1"]
        self.links: list[socket.socket] = []
        self.device = Ports([(path.name, path) for path in self.paths])

    def request(self, rng: Random) -> tuple[bytes, int]:
        if rng.random() < 0.6:
            event = rng.randrange(9) if rng.random() < 0.9 else number(rng, 16)
            return struct.pack("<IHH", rng.choice((0, 0, 1, 2, number(rng, 32))), event, rng.randrange(3)), 64
        return rng.randbytes(rng.choice((0, 1, 7, 100, 5000))), rng.choice((0, 1, 64, 4096))

    def host(self, rng: Random) -> None:
        if len(self.links) < 3:
            link = socket.socket(socket.AF_UNIX)
            link.setblocking(False)
            self.links.append(link)
            with suppress(OSError):
                link.connect(str(rng.choice(self.paths)))
        link = rng.choice(self.links)
        with suppress(OSError):
            if rng.random() < 0.6:
                link.send(rng.randbytes(rng.randrange(1, 3000)))
            elif rng.random() < 0.7:
                link.recv(4096)
            else:
                self.links.remove(link)
                link.close()

    def check(self, memory: GuestMemory) -> None:
        assert not any(path.exists() for path in self.paths), "a socket is still there"

    def close(self) -> None:
        for link in self.links:
            link.close()


class _Disk(_Plain):
    """A raw image: it never changes its size, nor anything else where it is not the guest's to change."""

    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.path = folder / "disk"
        self.before = bytes(range(256)) * (2 * _SECTORS)
        self.path.write_bytes(self.before)
        self.is_kept = False
        self.device = Block(self.backend(), serial="fuzz")

    def backend(self) -> RawFile | Overlay:
        return RawFile(self.path)

    def request(self, rng: Random) -> tuple[bytes, int]:
        kind = rng.choice((0, 0, 1, 1, 4, 8, 11, 13, number(rng, 32)))
        sector = rng.randrange(_SECTORS + 2) if rng.random() < 0.8 else number(rng)
        head = struct.pack("<IIQ", kind, number(rng, 32), sector)
        size = rng.choice((0, 1, 512, 512, 1024, 4096, 513))
        if kind in (11, 13):
            count = rng.choice((0, 1, 1, 2, 255))
            segments = (
                struct.pack("<QII", number(rng), number(rng, 32), rng.randrange(4)) for _ in range(count)
            )
            return head + b"".join(segments), 1
        return (head + rng.randbytes(size), 1) if kind == 1 else (head, size + 1)

    def check(self, memory: GuestMemory) -> None:
        after = self.path.read_bytes()
        assert len(after) == len(self.before), "the image has another size"
        assert not self.is_kept or after == self.before, "the image has changed"


class _ReadOnlyDisk(_Disk):
    def backend(self) -> RawFile | Overlay:
        self.is_kept = True
        return RawFile(self.path, read_only=True)


class _OverlayDisk(_Disk):
    def backend(self) -> RawFile | Overlay:
        self.is_kept = True
        return Overlay(RawFile(self.path, read_only=True))


class _Net(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = Net(ours.detach(), bytes(6))
        self.peer.setblocking(False)

    def request(self, rng: Random) -> tuple[bytes, int]:
        return rng.randbytes(rng.choice((0, 11, 12, 13, 60, 1514, 9000))), rng.choice((0, 12, 1526, 65562))

    def host(self, rng: Random) -> None:
        with suppress(OSError):
            self.peer.send(rng.randbytes(rng.choice((1, 60, 1514, 9000))))
        with suppress(OSError):
            self.peer.recv(1 << 16)
        if rng.random() < 0.02:
            self.peer.close()

    def close(self) -> None:
        self.peer.close()


class _Vsock(_Plain):
    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.path = folder / "v"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.path}_1")
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.links: list[socket.socket] = []
        self.device = Vsock(3, self.path)

    def request(self, rng: Random) -> tuple[bytes, int]:
        data = rng.randbytes(rng.choice((0, 0, 1, 100, 5000)))
        size = len(data) if rng.random() < 0.8 else number(rng, 32)
        ports = [rng.choice((1, 2, 1 << 30, (1 << 30) + 1)) for _ in range(2)]
        op = rng.choice((1, 2, 3, 4, 5, 5, 6, 7, number(rng, 16)))
        cids = (3, 2) if rng.random() < 0.95 else (number(rng), number(rng))
        kind = 1 if rng.random() < 0.95 else number(rng, 16)
        head = HEADER.pack(*cids, *ports, size, kind, op, rng.randrange(4), number(rng, 32), number(rng, 32))
        return head + data, rng.choice((0, 44, 300, 65580))

    def host(self, rng: Random) -> None:
        with suppress(OSError):
            self.links.append(self.listener.accept()[0])
        if rng.random() < 0.5:
            link = socket.socket(socket.AF_UNIX)
            self.links.append(link)
            with suppress(OSError):
                link.connect(str(self.path))
                link.send(
                    rng.choice((b"CONNECT 1\n", b"CONNECT 99999999999\n", b"x" * 40, b"CONNECT 5\nmore"))
                )
        for link in self.links:
            with suppress(OSError):
                link.setblocking(False)
                if rng.random() < 0.4:
                    link.send(rng.randbytes(99))
                elif rng.random() < 0.7:
                    link.recv(4096)
                else:
                    link.close()

    def check(self, memory: GuestMemory) -> None:
        assert not self.path.exists(), "the socket is still there"

    def close(self) -> None:
        for link in (self.listener, *self.links):
            link.close()


_NAMES = (
    b"file",
    b"new",
    b"folder",
    b"out",
    b"up",
    b"..",
    b".",
    b"",
    b"a/b",
    b"/etc",
    b"n" * 300,
    b"file\0x",
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class _Folder(_Plain):
    """A share: the guest sees nothing of what is beside it, and changes nothing there."""

    is_read_only = False

    def __init__(self, folder: Path, memory: GuestMemory, rng: Random) -> None:
        self.secret = folder / "secret"
        share = folder / "share"
        (share / "folder").mkdir(parents=True)
        self.secret.write_bytes(SECRET)
        (share / "file").write_bytes(b"contents")
        (share / "out").symlink_to("../secret")
        (share / "up").symlink_to("..")
        self.share = share
        self.around = _names(folder)
        self.device = Fs(HostFolder(share, read_only=self.is_read_only), "share")

    def request(self, rng: Random) -> tuple[bytes, int]:
        words = [
            number(rng, 32) if rng.random() < 0.5 else rng.randrange(6) for _ in range(rng.randrange(12))
        ]
        body = struct.pack(f"<{len(words)}I", *words)
        if rng.random() < 0.6:
            body = (
                (body if rng.random() < 0.5 else b"")
                + rng.choice(_NAMES)
                + b"\0"
                + rng.choice(_NAMES)
                + b"\0"
            )
        opcode = rng.choice((1, 14, 26, rng.randrange(53), number(rng, 32)))
        node = rng.randrange(8) if rng.random() < 0.9 else number(rng)
        size = IN_HEADER.size + len(body) if rng.random() < 0.9 else number(rng, 32)
        head = IN_HEADER.pack(size, opcode, number(rng), node, 0, 0, 0, 0, 0)
        return head + body, rng.choice((0, 15, 16, 144, 4112))

    def check(self, memory: GuestMemory) -> None:
        assert self.secret.read_bytes() == SECRET, "a file beside the share has changed"
        assert _names(self.share.parent) == self.around, "there is something new beside the share"
        assert SECRET not in bytes(memory.view(0, memory.size_bytes)), (
            "the guest sees a file beside the share"
        )


class _ReadOnlyFolder(_Folder):
    is_read_only = True

    def check(self, memory: GuestMemory) -> None:
        super().check(memory)
        assert _names(self.share) == ["file", "folder", "out", "up"]
        assert (self.share / "file").read_bytes() == b"contents"


SUBJECTS: dict[str, Callable[[Path, GuestMemory, Random], Subject]] = {
    "rng": _Rng,
    "balloon": _Balloon,
    "console": _Console,
    "ports": _Ports,
    "disk": _Disk,
    "disk-ro": _ReadOnlyDisk,
    "disk-snapshot": _OverlayDisk,
    "net": _Net,
    "vsock": _Vsock,
    "share": _Folder,
    "share-ro": _ReadOnlyFolder,
}
"""Every device by name: called with a folder of its own, the guest's memory, and the source of chance."""
