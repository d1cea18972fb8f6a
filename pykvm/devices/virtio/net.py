"""A network card (virtio 1.2, section 5.1): frames between the guest and a file descriptor of the host.

The descriptor gives and takes one Ethernet frame a read or write: a tap device, or an end of a socket pair
whose other end is another guest's card. A tap device of a Linux host takes the driver's own header too: then
checksums and the cutting of large frames are the host's business, or nobody's, and a frame has up to 64 KiB.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from contextlib import suppress
from enum import IntFlag
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Net", "NetFeature", "open_tap", "parse_mac"]

_RECEIVE, _TRANSMIT = 0, 1
_HEADER = struct.pack("<10xH", 1)  # struct virtio_net_hdr, with num_buffers as VERSION_1 has it
_HEADER_BYTES = len(_HEADER)
_FRAME_BYTES = 65_550
_LINK_UP = 1
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x4004_54CA, 0x4004_54D0, 0x4004_54D8  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFNAMSIZ = 2, 0x1000, 0x4000, 16
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_BATCH = 64  # frames that are received before somebody else has a turn
_GONE = {errno.EBADF, errno.ECONNRESET, errno.EIO, errno.ENOTCONN, errno.EPIPE, errno.EBADFD}


class NetFeature(IntFlag):
    """Feature bits (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    STATUS = 1 << 16


_TO_HOST = NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6
_OFFLOADS = {
    NetFeature.GUEST_CSUM: _TUN_F_CSUM,
    NetFeature.GUEST_TSO4: _TUN_F_TSO4,
    NetFeature.GUEST_TSO6: _TUN_F_TSO6,
}


class Net(VirtioDevice):
    """One pair of queues; the card owns `fd`, which it sets to non-blocking.

    A frame that the other side has no room for, or that is larger than the driver's buffer, is lost, as on
    any wire: `dropped` counts them.
    """

    device_id = 1
    features = NetFeature.MTU | NetFeature.MAC | NetFeature.STATUS
    queue_sizes = (256, 256)
    name = "network card"

    def __init__(self, fd: int, mac: bytes, *, mtu: int = 1500, has_headers: bool = False) -> None:
        """`mac` are the 6 bytes of the card's address; `has_headers`: `fd` is a tap of open_tap()."""
        super().__init__()
        self._has_headers = has_headers
        if has_headers:
            self.features = Net.features | _TO_HOST | NetFeature(sum(_OFFLOADS))
        self._frame_at = 0 if has_headers else _HEADER_BYTES
        self._fd = fd
        self._mac = mac
        self._mtu = mtu
        self._is_up = True
        self._wants_frames = True
        self.dropped = 0
        os.set_blocking(fd, False)

    def config(self) -> bytes:
        """struct virtio_net_config (5.1.4), up to the MTU."""
        return self._mac + struct.pack("<HHH", _LINK_UP if self._is_up else 0, 1, self._mtu)

    def activate(self) -> None:
        """A driver has come; the host is told what it can take."""
        self._wants_frames = True
        if self._has_headers:
            wanted = sum(bit for feature, bit in _OFFLOADS.items() if self.accepted & feature)
            with suppress(OSError):  # a device that is gone already, as its first use tells
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, wanted)

    def watched(self) -> Mapping[int, int]:
        """The wire, as long as the driver has buffers for what comes."""
        return {self._fd: select.POLLIN} if self._is_up and self._wants_frames else {}

    def on_ready(self, fd: int) -> None:  # noqa: ARG002 - there is one
        """Frames have come."""
        self._receive()

    def on_notify(self, index: int) -> None:
        """The driver sends, or has new buffers."""
        if index == _TRANSMIT:
            self._transmit()
        elif not self._wants_frames:
            self._wants_frames = True
            self.watch_changed()

    def _transmit(self) -> None:
        queue = self.queues[_TRANSMIT]
        while True:
            while chain := queue.pop():
                self._send(chain)
                queue.push(chain, 0)
            if queue.is_idle():
                return

    def _send(self, chain: Chain) -> None:
        size = chain.readable_bytes
        if size < _HEADER_BYTES:
            raise QueueError(f"a frame of {size} bytes, less than its header")
        if size > _HEADER_BYTES + _FRAME_BYTES or size == _HEADER_BYTES:
            self.dropped += 1
            return
        try:
            chain.send(self._fd, self._frame_at)
        except BlockingIOError:
            self.dropped += 1
        except OSError as error:
            self._lost(error)

    def _receive(self) -> None:
        queue = self.queues[_RECEIVE]
        for _ in range(_BATCH):
            chain = queue.pop()
            if chain is None:
                self._wants_frames = not queue.is_idle()  # on_notify() says when there are buffers again
                return
            if chain.writable_bytes < _HEADER_BYTES:
                raise QueueError(f"a buffer of {chain.writable_bytes} bytes for a frame")
            size = self._read(chain)
            while size is not None and self._frame_at + size > chain.writable_bytes:
                self.dropped += 1
                size = self._read(chain)
            if size is None:
                queue.take_back(chain)
                return
            if self._has_headers:
                chain.write(_HEADER[-2:], _HEADER_BYTES - 2)  # one buffer, of which a tap knows nothing
            else:
                chain.write(_HEADER)
            queue.push(chain, self._frame_at + size)

    def _read(self, chain: Chain) -> int | None:
        """The size of what comes next, in the driver's buffer; None if there is nothing now."""
        try:
            size = chain.receive(self._fd, self._frame_at)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lost(error)
            return None
        if not size:
            self._lost(OSError(errno.EPIPE, ""))
        return size or None

    def _lost(self, error: OSError) -> None:
        """The other end has gone: the cable is out. Other errors lose a frame."""
        if error.errno in _GONE:
            self._is_up = False
            self.config_changed()
        else:
            self.dropped += 1

    def close(self) -> None:
        """Close the wire."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_tap(name: str) -> int:
    """A tap device of the host, made if it is not there; "" lets the host choose. Raises ConfigError.

    Its frames have struct virtio_net_hdr before them.
    """
    if len(name.encode()) >= _IFNAMSIZ:
        raise ConfigError(f"tap {name}: a name of {_IFNAMSIZ} bytes or more")
    fd = -1
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER_BYTES))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        hint = "; it needs CAP_NET_ADMIN, or a device made for this user: ip tuntap add mode tap user NAME"
        needs = hint if error.errno == errno.EPERM else ""
        raise ConfigError(f"tap {name or 'device'}: {error.strerror}{needs}") from None
    return fd


def parse_mac(text: str) -> bytes:
    """The 6 bytes of "52:54:00:12:34:56". Raises ConfigError for anything else, and for a group's address."""
    try:
        mac = bytes(int(part, 16) for part in text.split(":"))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise ConfigError(f"{text!r} is no address of a network card; give one like 52:54:00:12:34:56")
    return mac
