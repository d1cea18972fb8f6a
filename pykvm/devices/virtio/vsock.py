r"""Sockets between host and guest (virtio 1.2, section 5.10), on the host's side Unix sockets.

::

    the guest connects to port N of CID 2    ──►  the Unix socket PATH_N, where a program of the host listens
    a program connects to PATH and says      ──►  port N of the guest; the answer is "OK PORT\n" once it
    "CONNECT N\n"                                  has accepted, and the end of the stream if it refuses
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
from collections import deque
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["HEADER", "HOST_CID", "Op", "Vsock", "listen_on", "stop_listening"]

HOST_CID = 2
HEADER = struct.Struct("<QQIIIHHIII")
_RECEIVE, _TRANSMIT = 0, 1
_STREAM = 1
_NO_MORE_RECEIVE, _NO_MORE_SEND = 1, 2  # flags of a shutdown
_BUFFER_BYTES = 1 << 18  # what we take of the guest before the host's program has
_PACKET_BYTES = 1 << 16
_CONNECTIONS_MOST = 1023
_PENDING_MOST = 1024
_LINE_BYTES = 32
_FIRST_PORT = 1 << 30


class Op(IntEnum):
    """Operations (5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class _Packet(NamedTuple):
    """What the guest is to be told without data."""

    host_port: int
    guest_port: int
    op: Op
    flags: int = 0


class _Connection:
    """One stream, and how much each side may still send (5.10.6.3)."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_open = False
        self.out = bytearray()  # for the host's program
        self.forwarded = self.told = 0  # bytes that it took; those that the guest knows of
        self.sent = 0  # bytes to the guest
        self.peer_room = self.peer_forwarded = 0
        self.is_read = False  # the host's program sends no more
        self.half_ends = False  # the guest sends no more: say so when `out` is empty
        self.ends = False  # nor does it receive: close then

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        return max(self.peer_room - ((self.sent - self.peer_forwarded) & 0xFFFFFFFF), 0)


class Vsock(VirtioDevice):
    """The socket device of the guest with `cid`; `path` is the Unix socket for programs of the host."""

    device_id = 19
    queue_sizes = (128, 128, 16)
    name = "vsock"

    def __init__(self, cid: int, path: Path) -> None:
        """Raises ConfigError for a CID that no guest may have, or a path where no socket can be."""
        super().__init__()
        if not HOST_CID < cid < 0xFFFFFFFF:
            raise ConfigError(f"vsock: the CID {cid} is none of a guest; give one from 3 to {0xFFFFFFFE}")
        self._cid = cid
        self._path = path
        self._listener, self._inode = listen_on(path, "vsock")
        self._connections: dict[tuple[int, int], _Connection] = {}
        self._by_fd: dict[int, tuple[int, int]] = {}
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._pending: deque[_Packet] = deque()
        self._has_room = True  # the driver has buffers for packets
        self._last_port = _FIRST_PORT

    def config(self) -> bytes:
        """struct virtio_vsock_config (5.10.4)."""
        return struct.pack("<Q", self._cid)

    def activate(self) -> None:
        """A driver has come."""
        self._has_room = True

    def deactivate(self) -> None:
        """The driver has gone, and with it all streams."""
        for key in list(self._connections):
            self._drop(key)
        self._pending.clear()

    def close(self) -> None:
        """End all streams and take the socket away."""
        self.deactivate()
        for client, _ in self._clients.values():
            client.close()
        self._clients = {}
        stop_listening(self._listener, self._path, self._inode)

    # ---- what is waited for

    def watched(self) -> Mapping[int, int]:
        """The listener, programs that have not said what they want, and the streams."""
        found = {self._listener.fileno(): select.POLLIN}
        found |= dict.fromkeys(self._clients, select.POLLIN)
        for fd, key in self._by_fd.items():
            stream = self._connections[key]
            reads = stream.is_open and not stream.is_read and self._has_room and stream.credit > 0
            mask = (select.POLLIN if reads else 0) | (select.POLLOUT if stream.out else 0)
            if mask:
                found[fd] = mask
        return found

    def on_ready(self, fd: int) -> None:
        """A program connects, says what it wants, sends, or takes."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._clients:
            self._hear_client(fd)
        elif fd in self._by_fd:
            key = self._by_fd[fd]
            self._flush(key)
            if key in self._connections:
                self._forward(key)
        self._deliver()

    def on_notify(self, index: int) -> None:
        """The guest has sent packets, or has room for ours."""
        if index == _RECEIVE and not self._has_room:
            self._has_room = True
            self.watch_changed()
        self._deliver()
        if index in (_RECEIVE, _TRANSMIT):
            self._take_packets()
            self._deliver()

    # ---- programs of the host

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            if len(self._connections) + len(self._clients) >= _CONNECTIONS_MOST:
                client.close()
            else:
                self._clients[client.fileno()] = client, bytearray()

    def _hear_client(self, fd: int) -> None:
        """Its line, byte by byte: what follows is the guest's."""
        client, line = self._clients[fd]
        try:
            while not line.endswith(b"\n") and len(line) < _LINE_BYTES:
                byte = client.recv(1)
                if not byte:
                    break
                line += byte
        except BlockingIOError:
            return
        except OSError:
            line.clear()
        del self._clients[fd]
        word, _, number = bytes(line).strip().partition(b" ")
        port = int(number) if number.isdigit() and line.endswith(b"\n") else 1 << 32
        if word != b"CONNECT" or port >= 1 << 32:
            client.close()
            return
        while (key := (self._last_port, port)) in self._connections or self._last_port == _FIRST_PORT:
            self._last_port = self._last_port + 1 if self._last_port < (1 << 31) else _FIRST_PORT + 1
        key = self._last_port, port
        self._last_port += 1
        self._add(key, client)
        self._tell(key, Op.REQUEST)

    def _add(self, key: tuple[int, int], sock: socket.socket) -> _Connection:
        stream = self._connections[key] = _Connection(sock)
        self._by_fd[sock.fileno()] = key
        return stream

    def _drop(self, key: tuple[int, int]) -> None:
        stream = self._connections.pop(key)
        del self._by_fd[stream.sock.fileno()]
        stream.sock.close()

    def _reset(self, key: tuple[int, int]) -> None:
        """End a stream on both sides."""
        self._drop(key)
        self._tell(key, Op.RST)

    def _flush(self, key: tuple[int, int]) -> None:
        """Hand on what waits for the host's program."""
        stream = self._connections[key]
        try:
            while stream.out:
                done = stream.sock.send(stream.out)
                del stream.out[:done]
                stream.forwarded += done
        except BlockingIOError:
            pass
        except OSError:
            self._reset(key)
            return
        if stream.forwarded - stream.told >= _BUFFER_BYTES // 2:
            self._tell(key, Op.CREDIT_UPDATE)
        if stream.out:
            return
        if stream.ends:
            self._reset(key)
        elif stream.half_ends:
            with suppress(OSError):
                stream.sock.shutdown(socket.SHUT_WR)

    def _forward(self, key: tuple[int, int]) -> None:
        """Read what the host's program sends into the guest's buffers, of which each is a packet.

        Linux gives small ones (4 KiB): what there is to read goes into many of them at once.
        """
        stream = self._connections[key]
        if not stream.is_open or stream.is_read or not stream.credit or self._pending:
            return
        chains = self._buffers(min(stream.credit, _PACKET_BYTES))
        if not chains:
            return
        room = sum(chain.writable_bytes - HEADER.size for chain in chains)
        try:
            data = stream.sock.recv(min(stream.credit, _PACKET_BYTES, room))
        except BlockingIOError:
            self._take_back(chains)
            return
        except OSError:
            self._take_back(chains)
            self._reset(key)
            return
        if not data:
            self._take_back(chains)
            stream.is_read = True
            self._tell(key, Op.SHUTDOWN, _NO_MORE_SEND)
            return
        stream.sent += len(data)
        at = 0
        while at < len(data):
            chain = chains.popleft()
            piece = data[at : at + chain.writable_bytes - HEADER.size]
            chain.write(self._header(_Packet(*key, Op.RW), len(piece)) + piece)
            self.queues[_RECEIVE].push(chain, HEADER.size + len(piece))
            at += len(piece)
        self._take_back(chains)

    def _buffers(self, wanted: int) -> deque[Chain]:
        """Buffers of the driver's for so many bytes, or as many as it has."""
        found: deque[Chain] = deque()
        while wanted > 0 and (chain := self._buffer()):
            found.append(chain)
            wanted -= chain.writable_bytes - HEADER.size
        return found

    def _take_back(self, chains: deque[Chain]) -> None:
        """They come again next time, the first one first."""
        self._has_room |= bool(chains)
        while chains:
            self.queues[_RECEIVE].take_back(chains.pop())

    # ---- packets to the guest

    def _tell(self, key: tuple[int, int], op: Op, flags: int = 0) -> None:
        self._pending.append(_Packet(*key, op, flags))

    def _header(self, packet: _Packet, size: int = 0) -> bytes:
        stream = self._connections.get((packet.host_port, packet.guest_port))
        forwarded = stream.forwarded if stream else 0
        if stream:
            stream.told = forwarded
        ports = (packet.host_port, packet.guest_port)
        rest = (size, _STREAM, packet.op, packet.flags, _BUFFER_BYTES, forwarded & 0xFFFFFFFF)
        return HEADER.pack(HOST_CID, self._cid, *ports, *rest)

    def _buffer(self) -> Chain | None:
        """The driver's next buffer; without one nothing is read until it has some."""
        queue = self.queues[_RECEIVE]
        while (chain := queue.pop()) is None:
            if queue.is_idle():
                self._has_room = False
                return None
        if chain.writable_bytes <= HEADER.size:
            raise QueueError(f"a buffer of {chain.writable_bytes} bytes for a packet")
        return chain

    def _deliver(self) -> None:
        while self._pending and (chain := self._buffer()):
            chain.write(self._header(self._pending.popleft()))
            self.queues[_RECEIVE].push(chain, HEADER.size)

    # ---- packets of the guest

    def _take_packets(self) -> None:
        """All that wait, unless it leaves our answers unread."""
        queue = self.queues[_TRANSMIT]
        while len(self._pending) < _PENDING_MOST:
            chain = queue.pop()
            if chain:
                self._take(chain)
                queue.push(chain, 0)
            elif queue.is_idle():
                return

    def _take(self, chain: Chain) -> None:
        head = chain.read(HEADER.size)
        if len(head) < HEADER.size:
            raise QueueError(f"a packet of {len(head)} bytes")
        source, target, guest_port, host_port, size, kind, op, flags, room, forwarded = HEADER.unpack(head)
        key = host_port, guest_port
        stream = self._connections.get(key)
        is_right = (source, target, kind) == (self._cid, HOST_CID, _STREAM)
        if not is_right or size > chain.readable_bytes - HEADER.size or size > _BUFFER_BYTES:
            if op != Op.RST and is_right:
                self._tell(key, Op.RST)
            return
        if stream:
            stream.peer_room, stream.peer_forwarded = room, forwarded
        if op == Op.REQUEST:
            self._connect(key, room, forwarded)
        elif stream is None:
            if op != Op.RST:
                self._tell(key, Op.RST)
        elif op == Op.RW:
            self._write(key, chain, size)
        else:
            self._control(key, op, flags)

    def _connect(self, key: tuple[int, int], room: int, forwarded: int) -> None:
        """The guest wants a program of the host."""
        if key in self._connections:
            self._reset(key)
            return
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        is_full = len(self._connections) >= _CONNECTIONS_MOST
        if is_full or sock.connect_ex(f"{self._path}_{key[0]}"):  # nobody listens, or its queue is full
            sock.close()
            self._tell(key, Op.RST)
            return
        stream = self._add(key, sock)
        stream.is_open = True
        stream.peer_room, stream.peer_forwarded = room, forwarded
        self._tell(key, Op.RESPONSE)

    def _write(self, key: tuple[int, int], chain: Chain, size: int) -> None:
        """Hand the guest's bytes on, from its memory if the host's program takes them at once."""
        stream = self._connections[key]
        if not stream.is_open or stream.half_ends or len(stream.out) + size > _BUFFER_BYTES:
            self._reset(key)  # more than it was told that there is room for
            return
        done = 0
        if not stream.out and chain.readable_bytes == HEADER.size + size:
            with suppress(OSError):  # of which _flush() hears again
                done = chain.send(stream.sock.fileno(), HEADER.size)
        stream.forwarded += done
        stream.out += chain.read(size - done, HEADER.size + done)
        self._flush(key)

    def _control(self, key: tuple[int, int], op: int, flags: int) -> None:
        stream = self._connections[key]
        if op == Op.RESPONSE and not stream.is_open:
            stream.is_open = True
            with suppress(OSError):
                stream.sock.send(f"OK {key[0]}\n".encode())
        elif op == Op.RST:
            self._drop(key)
        elif op == Op.SHUTDOWN:
            stream.half_ends |= bool(flags & _NO_MORE_SEND)
            stream.ends |= stream.half_ends and bool(flags & _NO_MORE_RECEIVE)
            self._flush(key)
        elif op == Op.CREDIT_REQUEST:
            self._tell(key, Op.CREDIT_UPDATE)
        elif op != Op.CREDIT_UPDATE:
            self._reset(key)


def listen_on(path: Path, what: str) -> tuple[socket.socket, int]:
    """A Unix socket at `path`, and its inode; one that nobody listens on any more is replaced.

    Raises ConfigError, which says that it is for `what`.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        if _is_dead_socket(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen(64)
    except (OSError, ValueError) as error:
        listener.close()
        raise ConfigError(f"{what}: {path}: {getattr(error, 'strerror', None) or error}") from None
    return listener, os.lstat(path).st_ino


def stop_listening(listener: socket.socket, path: Path, inode: int) -> None:
    """Take a socket of listen_on() away, unless somebody has put another one there."""
    listener.close()
    with suppress(OSError):
        if os.lstat(path).st_ino == inode:
            path.unlink()


def _is_dead_socket(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
