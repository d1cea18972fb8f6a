"""A shared folder (virtio 1.2, section 5.11): the guest's FUSE requests, served here without any daemon."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.fuse import IN_HEADER, NO_ANSWER, OUT_HEADER, FuseServer, Request
from pykvm.devices.virtio.queue import Chain, QueueError, split
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.devices.virtio.host_folder import HostFolder

__all__ = ["Fs"]

_TAG_BYTES = 36
_HEAD_BYTES = 8192  # names and fixed parts; what comes behind is a write's data
_WRITE = 16
_WRITE_HEAD = 40


class Fs(VirtioDevice):
    """One folder under a tag: `mount -t virtiofs TAG DIRECTORY`. Queue 0 is for what may not wait."""

    device_id = 26
    queue_sizes = (128, 512)

    def __init__(self, folder: HostFolder, tag: str) -> None:
        """Raises ConfigError for a tag that is empty or longer than 36 bytes."""
        super().__init__()
        self._tag = tag.encode()
        if not 0 < len(self._tag) <= _TAG_BYTES:
            raise ConfigError(f"the tag {tag!r} of a shared folder: give 1 to {_TAG_BYTES} bytes")
        self.name = f"share {tag}"
        self._folder = folder
        self._server = FuseServer(folder)

    def config(self) -> bytes:
        """struct virtio_fs_config (5.11.4)."""
        return self._tag.ljust(_TAG_BYTES, b"\0") + struct.pack("<I", len(self.queue_sizes) - 1)

    def deactivate(self) -> None:
        """The driver has gone, and so has all that it had open."""
        self._server.close()

    def on_notify(self, index: int) -> None:
        """Serve all requests that wait."""
        queue = self.queues[index]
        while True:
            while chain := queue.pop():
                queue.push(chain, self._serve(chain))
            if queue.is_idle():
                return

    def _serve(self, chain: Chain) -> int:
        """One request; how many bytes of its writable part were written."""
        head = chain.read(IN_HEADER.size)
        if len(head) < IN_HEADER.size:
            raise QueueError(f"a FUSE request of {len(head)} bytes")
        _, opcode, unique, node, *_ = IN_HEADER.unpack(head)
        _, rest = split(chain.readable, IN_HEADER.size)
        first, data = split(tuple(rest), _WRITE_HEAD if opcode == _WRITE else _HEAD_BYTES)
        out, room = split(chain.writable, OUT_HEADER.size)
        if out and sum(map(len, out)) < OUT_HEADER.size:
            raise QueueError("a FUSE request with room for a part of an answer's header")
        error, size = 0, 0
        try:
            answer = self._server.answer(opcode, Request(node, b"".join(first), data, room))
            if answer is NO_ANSWER or not out:
                return 0
            size = answer if isinstance(answer, int) else _fill(room, answer)
        except OSError as failed:
            error, size = -(failed.errno or errno.EIO), 0
        if not out:
            return 0
        chain.write(OUT_HEADER.pack(OUT_HEADER.size + size, error, unique))
        return OUT_HEADER.size + size

    def close(self) -> None:
        """Close the folder."""
        self._server.close()
        self._folder.close()


def _fill(room: Sequence[memoryview], answer: object) -> int:
    """Put the answer's bytes into `room`. Raises EIO where it has not enough."""
    assert isinstance(answer, bytes)  # noqa: S101 - for the type checker
    at = 0
    for piece in room:
        step = min(len(piece), len(answer) - at)
        piece[:step] = answer[at : at + step]
        at += step
    if at < len(answer):
        raise OSError(errno.EIO, "no room for the answer")
    return at
