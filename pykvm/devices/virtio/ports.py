"""Several ports of one console device (virtio 1.2, section 5.3), each a stream to the host.

::

    queues 0, 1    port 0's, in both directions
           2, 3    control messages {port, event, value}, in both directions
           4, 5    port 1's, and so on

A port is a character device in the guest (/dev/vport0p1, and by its name /dev/virtio-ports/NAME) and a Unix
socket on the host, which one program at a time has. The device of the terminal (console.py) stays one by
itself: its size stands in its configuration, where kernels of every age agree on the order of its fields.
"""

from __future__ import annotations

import select
import struct
from collections import deque
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import QueueError
from pykvm.devices.virtio.vsock import listen_on, stop_listening
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pykvm.devices.virtio.queue import Chain

__all__ = ["PORTS_MOST", "Control", "Ports"]

PORTS_MOST = 15
_CONTROL_RECEIVE, _CONTROL_TRANSMIT = 2, 3
_MESSAGE = struct.Struct("<IHH")
_PENDING_MOST = 1024
_OUT_BYTES = 1 << 18  # of a port that the host's program has not taken yet
_PIECE = 1 << 16


class PortsFeature(IntFlag):
    """Feature bits (5.3.3)."""

    MULTIPORT = 1 << 1


class Control(IntEnum):
    """Events of control messages (5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class _Port:
    """One stream: who listens on the host, who has it there, and what he has not taken yet."""

    def __init__(self, number: int, name: str, path: Path) -> None:
        self.number, self.name, self.path = number, name, path
        self.receive = 0 if number == 0 else 2 + 2 * number
        self.transmit = self.receive + 1
        self.listener, self.inode = listen_on(path, f"port {name}")
        self.client: socket.socket | None = None
        self.out = bytearray()
        self.is_ready = False  # the driver knows it
        self.is_open = False  # and somebody in the guest has it: what comes before that Linux throws away
        self.has_room = True  # and has buffers for what comes

    def close(self) -> None:
        if self.client:
            self.client.close()
        stop_listening(self.listener, self.path, self.inode)


class Ports(VirtioDevice):
    """One device for all ports of a guest: (name, path of a Unix socket) pairs."""

    device_id = 3
    features = PortsFeature.MULTIPORT
    name = "ports"

    def __init__(self, ports: Sequence[tuple[str, Path]]) -> None:
        """Raises ConfigError for more than 15 ports, a name twice, and a path where no socket can be."""
        super().__init__()
        names = [name for name, _ in ports]
        if not 0 < len(ports) <= PORTS_MOST or len(set(names)) < len(names):
            raise ConfigError(f"ports {', '.join(names)}: give 1 to {PORTS_MOST}, each a name of its own")
        self.queue_sizes = (64, 64, 32, 32, *(64,) * (2 * (len(ports) - 1)))
        self._ports: list[_Port] = []
        self._pending: deque[bytes] = deque()
        try:
            for number, (name, path) in enumerate(ports):
                self._ports.append(_Port(number, name, path))
        except BaseException:
            self.close()
            raise

    def config(self) -> bytes:
        """struct virtio_console_config (5.3.4): no size, and how many ports there may be."""
        return struct.pack("<HHII", 0, 0, len(self._ports), 0)

    def deactivate(self) -> None:
        """The driver has gone, and with it who had a port."""
        self._pending.clear()
        for port in self._ports:
            port.is_ready, port.is_open, port.has_room = False, False, True
            self._hang_up(port)

    def close(self) -> None:
        """Close all sockets and take them away."""
        for port in self._ports:
            port.close()
        self._ports = []

    # ---- what is waited for

    def watched(self) -> Mapping[int, int]:
        """Programs that come, that send while the guest has room, and that take what waits for them."""
        found = {}
        for port in self._ports:
            if port.client is None:
                found[port.listener.fileno()] = select.POLLIN
                continue
            reads = port.is_open and port.has_room
            mask = select.POLLIN * reads | select.POLLOUT * bool(port.out)
            if mask:
                found[port.client.fileno()] = mask
        return found

    def on_ready(self, fd: int) -> None:
        """A program comes, sends, or takes."""
        for port in self._ports:
            if fd == port.listener.fileno():
                self._accept(port)
            elif port.client and fd == port.client.fileno():
                self._flush(port)
                self._take_output(port)
                self._feed(port)

    def on_notify(self, index: int) -> None:
        """The driver says something of a port, or on one, or has room."""
        if index == _CONTROL_TRANSMIT:
            self._hear()
        elif index == _CONTROL_RECEIVE:
            self._tell()
        for port in self._ports:
            if index == port.transmit:
                self._take_output(port)
            elif index == port.receive:
                port.has_room = True
        self.watch_changed()

    # ---- control messages

    def _hear(self) -> None:
        queue = self.queues[_CONTROL_TRANSMIT]
        while True:
            while chain := queue.pop():
                message = chain.read(_MESSAGE.size)
                queue.push(chain, 0)
                if len(message) < _MESSAGE.size:
                    raise QueueError(f"a control message of {len(message)} bytes")
                self._obey(*_MESSAGE.unpack(message))
            if queue.is_idle():
                break
        self._tell()

    def _obey(self, number: int, event: int, value: int) -> None:
        """What the driver says; of ports that are not there it may say what it likes."""
        if event == Control.DEVICE_READY:
            for port in self._ports if value else ():
                self._say(port, Control.DEVICE_ADD, 1)
        elif event == Control.PORT_READY and value and number < len(self._ports):
            port = self._ports[number]
            port.is_ready = True
            self._say(port, Control.PORT_NAME, 1, port.name.encode() + b"\0")
            self._say(port, Control.PORT_OPEN, int(port.client is not None))
        elif event == Control.PORT_OPEN and number < len(self._ports):
            self._ports[number].is_open = bool(value)

    def _say(self, port: _Port, event: Control, value: int, more: bytes = b"") -> None:
        if len(self._pending) >= _PENDING_MOST:
            raise QueueError(f"more than {_PENDING_MOST} control messages that the driver has no buffers for")
        self._pending.append(_MESSAGE.pack(port.number, event, value) + more)

    def _tell(self) -> None:
        queue = self.queues[_CONTROL_RECEIVE]
        while self._pending:
            chain = queue.pop()
            if chain is None:
                if queue.is_idle():
                    return
                continue
            queue.push(chain, chain.write(self._pending.popleft()))

    # ---- the host's program

    def _accept(self, port: _Port) -> None:
        try:
            client, _ = port.listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        client.setblocking(False)
        port.client = client
        self._opened(port, is_open=True)

    def _opened(self, port: _Port, *, is_open: bool) -> None:
        if port.is_ready:
            self._say(port, Control.PORT_OPEN, int(is_open))
            self._tell()

    def _hang_up(self, port: _Port) -> None:
        if port.client:
            port.client.close()
            port.client = None
            port.out.clear()
            self._opened(port, is_open=False)

    def _flush(self, port: _Port) -> None:
        """What waits for the program, as far as it takes it."""
        try:
            while port.client and port.out:
                del port.out[: port.client.send(port.out[:_PIECE])]
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(port)

    def _take_output(self, port: _Port) -> None:
        """What the guest writes; without a program on the other side it goes nowhere."""
        queue = self.queues[port.transmit]
        while len(port.out) < _OUT_BYTES:
            chain = queue.pop()
            if chain is None:
                if queue.is_idle():
                    return
                continue
            self._put(port, chain)
            queue.push(chain, 0)

    def _put(self, port: _Port, chain: Chain) -> None:
        if port.client:
            port.out += chain.read(_OUT_BYTES)
            self._flush(port)

    def _feed(self, port: _Port) -> None:
        """What the program sends, as far as the guest has buffers."""
        queue = self.queues[port.receive]
        while port.client and port.is_open:
            chain = queue.pop()
            if chain is None:
                port.has_room = not queue.is_idle()  # on_notify() says when there are buffers
                return
            if not chain.writable_bytes:
                raise QueueError("a buffer without room for what comes")
            try:
                data = port.client.recv(min(chain.writable_bytes, _PIECE))
            except BlockingIOError:
                queue.take_back(chain)
                return
            except OSError:
                data = b""
            if not data:
                queue.take_back(chain)
                self._hang_up(port)
                return
            queue.push(chain, chain.write(data))
