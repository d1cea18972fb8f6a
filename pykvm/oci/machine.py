"""The machine around one container: the process that `pykvm-oci create` leaves behind."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from pykvm.containers.calls import AgentGoneError
from pykvm.containers.dialling import connect_agent
from pykvm.containers.guest_boot import load_agent
from pykvm.devices.virtio.fs import Fs
from pykvm.devices.virtio.host_folder import HostFolder
from pykvm.devices.virtio.vsock import Vsock
from pykvm.errors import PykvmError
from pykvm.machine import Machine
from pykvm.oci.process import take_terminal, write_pid
from pykvm.oci.state import AGENT, State, States, begin_of
from pykvm.oci.streams import Streams, open_console

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.containers.calls import AgentClient, Call
    from pykvm.linux.kit import Kit
    from pykvm.oci.bundle import Bundle
    from pykvm.oci.process import Told

__all__ = ["Wanted", "hold_container"]

_CID = 3
_CREATE_S = 120.0
_END_S = 20.0


class Wanted(NamedTuple):
    """What `create` was asked for."""

    bundle: Bundle
    kit: Kit
    console_socket: str
    pid_file: Path | None


def hold_container(states: States, state: State, wanted: Wanted, told: Told) -> int:
    """Boot a machine, have its agent create the container, be there until its end: its status."""
    bundle, folder = wanted.bundle, states.folder(state.id)
    with Machine(memory=bundle.memory_bytes, vcpus=bundle.vcpus) as machine:
        machine.virtio.add(Vsock(_CID, folder / AGENT))
        for share in bundle.shares:
            machine.virtio.add(Fs(HostFolder(share.folder, read_only=share.read_only), share.tag))
        load_agent(machine, wanted.kit, state.id)
        keeper = _Keeper(states, state, wanted, told, machine)
        signal.signal(signal.SIGWINCH, lambda *_: keeper.resize())
        thread = threading.Thread(target=keeper.run, name="keeper", daemon=True)
        thread.start()
        result = machine.run()
        keeper.end(f"the machine ended: {result.reason} {result.detail}".strip())
        thread.join(_END_S)
    return keeper.status


class _Keeper:
    """Speaks with the agent while the machine runs."""

    def __init__(self, states: States, state: State, wanted: Wanted, told: Told, machine: Machine) -> None:
        self._states, self._state, self._wanted = states, state, wanted
        self._told, self._machine = told, machine
        self._terminal: tuple[AgentClient, Streams] | None = None
        self.status = 1

    def run(self) -> None:
        """From the machine's start to its end."""
        try:
            with connect_agent(self._states.folder(self._state.id) / AGENT) as client:
                self._hold(client)
        except (PykvmError, TimeoutError, OSError) as error:
            self._told.line(str(error) or "the agent in the machine does not answer")
        finally:  # whatever it was, a machine without its keeper is nobody's
            self._machine.stop()

    def end(self, why: str) -> None:
        """The machine is no more."""
        self._told.line(why)

    def _hold(self, client: AgentClient) -> None:
        call = client.open("create", name=self._state.id, **self._wanted.bundle.create)
        call.answer(_CREATE_S)
        streams = self._streams(client, call)
        pid = os.getpid()
        self._state = replace(self._state, status="created", pid=pid, started=begin_of(pid))
        self._states.put(self._state)
        write_pid(self._wanted.pid_file)
        self._told.ready()
        streams.begin()
        self.status = streams.follow(self._exited)
        with suppress(AgentGoneError, TimeoutError):
            client.ask("shutdown", _END_S)

    def _streams(self, client: AgentClient, call: Call) -> Streams:
        if not self._wanted.bundle.has_terminal:
            return Streams(call, (0, 1, 2), is_tty=False)
        fd = open_console(self._wanted.console_socket)
        take_terminal(fd)
        self._terminal = client, Streams(call, (fd, fd, fd), is_tty=True)
        return self._terminal[1]

    def resize(self) -> None:
        """The terminal's window has another size."""
        if self._terminal:
            client, streams = self._terminal
            with suppress(PykvmError, OSError):
                client.open("resize", name=self._state.id, **streams.window()).forget()

    def _exited(self, status: int) -> None:
        """Its end is known, even if somebody still holds its streams open."""
        with suppress(PykvmError, OSError):
            self._states.put(replace(self._state, status="stopped", exit_code=status))
