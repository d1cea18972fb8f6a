"""The options of `pykvm run` that put virtio devices on a Linux guest's board."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.boot import linux, vmlinux
from pykvm.boot.source import opened
from pykvm.errors import ConfigError, ImageError
from pykvm.memory import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.linux.initramfs import Job
    from pykvm.machine import Machine

__all__ = ["add_devices", "by_hypercall", "is_linux"]

_ONLY_LINUX = {
    "rng": "--rng",
    "shares": "--share",
    "nets": "--net",
    "vsock": "--vsock",
    "streams": "--stream",
    "balloon": "--balloon",
}
DHCP = (
    "ip link set {card} up && timeout 20 udhcpc -q -n -f -t 15 -T 1 -s /etc/udhcpc.script -i {card} "
    ">/dev/null 2>&1"
)
_SHARE_PATH = "/share"
_PORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_NAME_PORTS = (
    "mkdir -p /dev/virtio-ports; cd /sys/class/virtio-ports; tries=0; "
    "until [ $(cat */name 2>/dev/null | wc -l) = {count} ] || [ $tries = 100 ]; "
    "do tries=$((tries+1)); usleep 50000; done; "
    'for name in */name; do ln -s "../${{name%/name}}" "/dev/virtio-ports/$(cat $name)"; done'
)
_PORTS = re.compile(r"\d{1,5}(:\d{1,5})?")


def is_linux(image: Path) -> bool:
    """Whether the file is a Linux kernel. What is wrong with it is the loader's to say."""
    try:
        with opened(image, "") as source:
            return linux.read_header(source) is not None or vmlinux.release(source) is not None
    except ImageError:
        return False


def by_hypercall(options: Mapping[str, Any]) -> str | None:
    """The one disk of a guest that is no Linux, None without any. Raises ConfigError for more than that."""
    for name, word in _ONLY_LINUX.items():
        if options.get(name):
            raise ConfigError(f"{word} is for Linux kernels")
    disks = options.get("disks") or ()
    if len(disks) > 1:
        raise ConfigError("a guest that is no Linux kernel has one disk; give --disk once")
    return disks[0] if disks else None


def add_devices(machine: Machine, options: Mapping[str, Any], job: Job | None = None) -> list[str]:
    """Put the devices on the machine's board; the modules that a guest needs for them.

    `job` learns what the guest's first process is to do with them. Raises ConfigError and ImageError.
    """
    modules: list[str] = []
    for text in options.get("disks") or ():
        _add_disk(machine, text)
        modules.append("virtio_blk")
    for number, text in enumerate(options.get("shares") or ()):
        _add_share(machine, text, f"share{number}", job, is_first=not number)
        modules.append("virtiofs")
    for number, text in enumerate(text for text in options.get("nets") or () if text != "none"):
        _add_net(machine, text, number, job)
        modules.append("virtio_net")
    if streams := options.get("streams"):
        _add_streams(machine, streams, job)
        modules.append("virtio_console")
    if text := options.get("vsock"):
        _add_vsock(machine, text)
        modules.append("vmw_vsock_virtio_transport")
    if size := options.get("balloon"):
        from pykvm.devices.virtio.balloon import Balloon  # noqa: PLC0415 - who has none does not pay

        machine.virtio.add(Balloon(machine.memory.discard, target_bytes=parse_size(size)))
        modules.append("virtio_balloon")
    if options.get("rng"):
        from pykvm.devices.virtio.rng import Rng  # noqa: PLC0415 - who has no such device does not pay

        machine.virtio.add(Rng())
        modules.append("virtio_rng")
    return ["virtio_mmio", *modules] if modules else []


def _add_disk(machine: Machine, text: str) -> None:
    """FILE[,ro|,snapshot][,serial=TEXT]; a comma in FILE is doubled."""
    from pykvm.devices.virtio.block import Block  # noqa: PLC0415 - as above
    from pykvm.devices.virtio.disk_files import Overlay, RawFile  # noqa: PLC0415 - as above

    path, words = _split(text)
    serial, kinds = "", set()
    for word in words:
        key, _, value = word.partition("=")
        if key == "serial" and value:
            serial = value
        elif word in ("ro", "snapshot"):
            kinds.add(word)
        else:
            raise ConfigError(f"--disk {text}: {word!r} is none of ro, snapshot and serial=TEXT")
    if len(kinds) == 2:
        raise ConfigError(f"--disk {text}: it is ro or snapshot, not both")
    raw = RawFile(Path(path), read_only=bool(kinds))
    backend = Overlay(raw) if "snapshot" in kinds else raw
    try:
        disk = Block(backend, serial=serial, on_error=_tell)
    except ConfigError:
        backend.close()
        raise
    machine.virtio.add(disk)


def _add_share(machine: Machine, text: str, tag: str, job: Job | None, *, is_first: bool) -> None:
    """DIR[:PATH][,ro]; a guest's first process mounts it there, another kernel by its tag."""
    from pykvm.devices.virtio.fs import Fs  # noqa: PLC0415 - as above
    from pykvm.devices.virtio.host_folder import HostFolder  # noqa: PLC0415 - as above

    place, words = _split(text)
    folder, colon, where = place.rpartition(":")
    if not colon or not where.startswith("/"):
        folder, where = place, _SHARE_PATH if is_first else ""
    if not where:
        raise ConfigError(f"--share {text}: say where the guest has it: DIR:/PATH")
    if unknown := [word for word in words if word != "ro"]:
        raise ConfigError(f"--share {text}: {unknown[0]!r} is not ro")
    if job and set(where) & set(" \n"):
        raise ConfigError(f"--share {text}: the guest's path has no spaces")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the guest's kernel knows many files at once
    machine.virtio.add(Fs(HostFolder(Path(folder), read_only=bool(words)), tag))
    if job:
        job.add("mount", "virtiofs", tag, where, "ro" if words else "rw")
        if is_first:
            job.add("dir", where)


def _add_net(machine: Machine, text: str, number: int, job: Job | None) -> None:
    """tap[=NAME], fd=N, user or none, and mac=MAC; by default a local address of its own."""
    from pykvm.devices.virtio.net import Net, open_tap, parse_mac  # noqa: PLC0415 - as above

    kind, words = _split(text)
    mac, ports = bytes([0x52, 0x54, 0, *os.urandom(2), number]), []
    for word in words:
        key, _, value = word.partition("=")
        if key == "mac":
            mac = parse_mac(value)
        elif key == "tcp" and kind == "user" and _PORTS.fullmatch(value):
            ports.append(value)
        else:
            also = " or tcp=HOSTPORT[:GUESTPORT]" if kind == "user" else ""
            raise ConfigError(f"--net {text}: {word!r} is not mac=MAC{also}")
    if kind == "user":
        from pykvm.passt import UserNet  # noqa: PLC0415 - as above

        machine.virtio.add(UserNet(mac, ports=ports, on_error=_tell))
        if job:
            job.add("start", DHCP.format(card=f"eth{number}"))
        return
    word, _, value = kind.partition("=")
    if word == "tap":
        fd = open_tap(value)
    elif word == "fd" and value.isdigit():
        fd = _frames_fd(text, int(value))
    else:
        raise ConfigError(
            f"--net {text}: give user, tap, tap=NAME, none, or fd=N for a socket that another process has"
        )
    machine.virtio.add(Net(fd, mac, has_headers=word == "tap"))


def _frames_fd(text: str, fd: int) -> int:
    """A descriptor of our own for a socket that keeps frames apart."""
    import socket  # noqa: PLC0415 - who has no network does not pay

    try:
        fd = os.dup(fd)
    except OSError as error:
        raise ConfigError(f"--net {text}: {error.strerror}") from None
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type & 0xF in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
                return fd
    except OSError:
        pass
    os.close(fd)
    raise ConfigError(f"--net {text}: that is no socket of datagrams or packets")


def _add_streams(machine: Machine, texts: Sequence[str], job: Job | None) -> None:
    """NAME=PATH each: /dev/virtio-ports/NAME in the guest, a Unix socket of the host."""
    from pykvm.devices.virtio.ports import Ports  # noqa: PLC0415 - as above

    found = []
    for text in texts:
        name, _, path = text.partition("=")
        if not _PORT_NAME.fullmatch(name) or not path:
            raise ConfigError(f"--stream {text}: give NAME=PATH, as in agent=/tmp/agent.sock")
        found.append((name, Path(path)))
    machine.virtio.add(Ports(found))
    if job:
        job.add("start", _NAME_PORTS.format(count=len(found)))


def _add_vsock(machine: Machine, text: str) -> None:
    """CID:PATH."""
    from pykvm.devices.virtio.vsock import Vsock  # noqa: PLC0415 - as above

    cid, _, path = text.partition(":")
    if not cid.isdigit() or not path:
        raise ConfigError(f"--vsock {text}: give CID:PATH, as in 3:/tmp/guest.sock")
    machine.virtio.add(Vsock(int(cid), Path(path)))


def _split(text: str) -> tuple[str, list[str]]:
    """The file, and the words behind it."""
    path, *words = text.replace(",,", "\0").split(",")
    return path.replace("\0", ","), [word.replace("\0", ",") for word in words]


def _tell(what: str) -> None:
    if sys.stderr:
        sys.stderr.write(f"pykvm: {what}\n")
        sys.stderr.flush()
