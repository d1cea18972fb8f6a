"""A network card on passt(1): the guest's connections become sockets of the host, and nobody needs root.

::

    guest ── Net ── frames, a socket of packets ── two threads ── frames with their sizes, a stream ── passt

passt gives the guest by DHCP the address that the host has, and takes its connections to the gateway to the
host's own loopback. Its stream has before each frame its size in 4 bytes, the most significant first.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from pykvm.devices.virtio.net import Net
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["UserNet", "join_frames"]

_SIZE = struct.Struct("!I")
_FRAME_BYTES = 65_550
_FAILS_AT_ONCE_S = 0.15  # a passt that can't work has ended by then
_END_S = 2.0
_MTU = 1500
_NOISE = ("Failed to send", "Don't run as root")


class UserNet(Net):
    """A card on a passt of its own, which ends with it."""

    def __init__(
        self, mac: bytes, *, ports: Sequence[str] = (), on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        """`ports` are TCP ports of the host that lead to the guest, as in "8080:80".

        Raises ConfigError if passt is not here or can't work; `on_error` hears of it in one line when that
        shows later.
        """
        frames, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._passt = _Passt(theirs, ports)
            except BaseException:
                frames.close()
                raise
        super().__init__(frames.detach(), mac, mtu=_MTU)
        self._on_error = on_error

    def activate(self) -> None:
        """A driver has come: by now it is known whether passt works."""
        super().activate()
        if problem := self._passt.problem():
            self._on_error(problem)

    def close(self) -> None:
        """Close the card, and end passt."""
        super().close()
        self._passt.close()


class _Passt:
    """The process, and the threads between it and `frames`."""

    def __init__(self, frames: socket.socket, ports: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        ours, theirs = socket.socketpair()
        self._sockets = ours, frames.dup()
        try:
            with theirs:
                self._process = _start(theirs, ports, self._log.fileno())
            self._check()
        except BaseException:
            self._close_all()
            raise
        self._threads = join_frames(*self._sockets)

    def _check(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAILS_AT_ONCE_S)
        if problem := self.problem():
            raise ConfigError(problem)

    def problem(self) -> str:
        """Why the process has ended; "" if it has not."""
        return f"--net user: passt: {self._said()}" if self._process.poll() is not None else ""

    def _said(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        lines = os.pread(self._log.fileno(), size, 0).decode(errors="replace").splitlines()
        told = [line for line in lines if line and not line.startswith(_NOISE)]
        return told[-1] if told else f"it has ended with status {self._process.returncode}"

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._close_all()
        try:
            self._process.wait(_END_S)  # it ends with its socket
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_all(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._log.close()


def _start(link: socket.socket, ports: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    more = [word for port in ports for word in ("--tcp-ports", port)]
    argv = ["passt", "--foreground", "--stderr", "--quiet", "--mtu", str(_MTU), "--fd", str(link.fileno())]
    try:
        return subprocess.Popen(
            [*argv, *more],
            pass_fds=[link.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the machine, which ends it
        )
    except FileNotFoundError:
        raise ConfigError("--net user: there is no passt here; install it: apt-get install passt") from None
    except OSError as error:
        raise ConfigError(f"--net user: passt: {error.strerror}") from None


def join_frames(stream: socket.socket, frames: socket.socket) -> tuple[threading.Thread, ...]:
    """Threads that carry frames between a stream with sizes and a socket of packets, until one has ended."""

    def carry(work: Callable[[socket.socket, socket.socket], None]) -> None:
        with suppress(OSError):
            work(stream, frames)
        for sock in (stream, frames):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    threads = tuple(
        threading.Thread(target=carry, args=(work,), name="passt", daemon=True) for work in (_up, _down)
    )
    for thread in threads:
        thread.start()
    return threads


def _up(stream: socket.socket, frames: socket.socket) -> None:
    while frame := frames.recv(_FRAME_BYTES):
        stream.sendall(_SIZE.pack(len(frame)) + frame)


def _down(stream: socket.socket, frames: socket.socket) -> None:
    with stream.makefile("rb", 1 << 18) as file:
        while len(head := file.read(_SIZE.size)) == _SIZE.size:
            (size,) = _SIZE.unpack(head)
            if size > _FRAME_BYTES:
                return  # it has lost its way: nothing behind this can be a frame
            if len(frame := file.read(size)) < size:
                return
            if frame:
                frames.send(frame)
