"""Starts the process that owns a machine with containers, unless it runs; reaches it and its agent.

The process leaves the terminal and the session that it was started from, and keeps nothing of them open. What
its machine's kernel prints is below ROOT/machines, NAME.log, until the next machine of that name.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pykvm.containers.calls import AgentClient, AgentGoneError
from pykvm.errors import PykvmError
from pykvm.registry import NotRunningError, Room

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from pykvm.containers.guest_options import GuestOptions
    from pykvm.containers.layer_files import LayerFile
    from pykvm.containers.records import Record

__all__ = ["agent_of", "ensure_machine", "machine_cpus", "reach", "started_of"]

_VSOCK = ".vsock"
_START_S = 180.0
_UNUSED_S = 30.0


def started_of(room: Room, name: str) -> int | None:
    """When the machine of that name was started, in Unix time in ns; None if none runs."""
    for entry in room.entries():
        if entry.name == name:
            return int(entry.about.get("started_unix_ns") or 0) or None
    return None


def machine_cpus(room: Room, name: str) -> int:
    """How many vCPUs a machine has; 1 if it does not say."""
    for entry in room.entries():
        if entry.name == name:
            return int(entry.about.get("vcpus") or 1)
    return 1


def reach(room: Room, name: str) -> socket.socket:
    """A connection to a machine that runs or is being started. Raises NotRunningError."""
    end = time.monotonic() + _START_S
    while True:
        try:
            return room.connect(name)
        except NotRunningError:
            if not room.is_running(name) or time.monotonic() > end:
                raise


def agent_of(room: Room, record: Record) -> AgentClient:
    """A client of the agent of a container's machine. Raises AgentGoneError."""
    from pykvm.containers.dialling import connect_agent  # noqa: PLC0415 - who asks no agent does not pay

    with room.opened() as folder:
        try:
            return connect_agent(f"/proc/self/fd/{folder}/{record.vm}{_VSOCK}", 5.0)
        except AgentGoneError as error:
            raise AgentGoneError(f"container {record.name}: machine {record.vm}: {error}") from None


def ensure_machine(
    room: Room, name: str, options: GuestOptions, root: Path, layers: Sequence[LayerFile]
) -> None:
    """Have a machine of that name, a new one with these layers on its disk from the beginning.

    Raises PykvmError with what it said if it did not start.
    """
    if room.is_running(name):
        return
    from pykvm.lab.store import Store  # noqa: PLC0415 - only who starts one pays
    from pykvm.linux.kit import kit  # noqa: PLC0415 - as above

    parts = kit(Store(), _say)  # here, where somebody sees how far it is
    for runtime in options.runtimes:
        from pykvm.containers.runtime_files import runtime_tree  # noqa: PLC0415 - few want one

        runtime_tree(runtime, parts.store, _say)
    receive, send = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            os.close(receive)
            if os.fork() == 0:
                _own(name, options, root, parts, layers, send)
        finally:
            os._exit(0)
    os.close(send)
    os.wait()
    with os.fdopen(receive, "rb") as said:
        line = said.readline().decode(errors="replace").strip()
    is_anothers = "runs already" in line and room.is_running(name)  # who was faster: it is as good
    if line != "ready" and not is_anothers:
        raise PykvmError(
            f"machine {name} did not start: {line or f'its process ended; {_log(root, name)} says more'}"
        )


def _say(text: str) -> None:
    if sys.stderr:
        print(f"pykvm: {text}", file=sys.stderr, flush=True)  # noqa: T201 - progress for a human


def _log(root: Path, name: str) -> Path:
    return root / "machines" / f"{name}.log"


def _own(
    name: str, options: GuestOptions, root: Path, parts: Any, layers: Sequence[LayerFile], told: int
) -> NoReturn:
    """The process of the machine, from its first step to its last."""
    status = 1
    try:
        _leave(_log(root, name), told)
        _serve(name, options, parts, layers, told, _log(root, name))
        status = 0
    except PykvmError as error:
        _tell(told, " ".join(str(error).split()))
        print(f"pykvm: {error}", file=sys.stderr, flush=True)  # noqa: T201 - to the log
    except BaseException as error:  # noqa: BLE001 - nobody is left above it
        import traceback  # noqa: PLC0415 - as rare as it should be

        _tell(told, f"{type(error).__name__}: {error}; see {_log(root, name)}")
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave(log: Path, keep: int) -> None:
    """A session of its own, no terminal, no file of the caller's."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for at, fd in enumerate((nothing, written, written)):
        os.dup2(fd, at)
    last = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, keep)
    os.closerange(keep + 1, min(last, 65536))
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - descriptors
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _tell(told: int, line: str) -> None:
    try:
        os.write(told, f"{line}\n".encode())
        os.close(told)
    except OSError:
        pass  # who started it has gone; the log has it


def _serve(
    name: str, options: GuestOptions, parts: Any, layers: Sequence[LayerFile], told: int, log: Path
) -> None:
    from pykvm.containers.dialling import connect_agent  # noqa: PLC0415 - the daemon alone pays
    from pykvm.containers.guest import ContainerGuest  # noqa: PLC0415 - as above
    from pykvm.containers.service import Service  # noqa: PLC0415 - as above
    from pykvm.control import Control  # noqa: PLC0415 - as above

    if options.volumes:
        os.umask(0)  # the guest's kernel has masked what its programs make in them
    with Room() as room, room.opened() as folder, room.enter(name) as seat:
        vsock = Path(f"/proc/self/fd/{folder}/{name}{_VSOCK}")
        with ContainerGuest(name, parts, options, vsock, layers) as guest:
            machine, spec = guest.machine, guest.machine.spec
            seat.tell({"image": "containers", "vcpus": spec.vcpus, "memory_bytes": spec.memory_bytes})
            service = Service(
                name,
                seat.started_ns,
                guest.add_layers,
                machine.stop,
                guest.volumes,
                has_disk=bool(options.disk),
                runtimes=options.runtimes,
            )
            machine.name_container = service.name_of
            signal.signal(
                signal.SIGTERM,
                lambda *_: threading.Thread(target=service.shut_down, daemon=True).start(),
            )

            was_told = threading.Event()

            def begin() -> None:
                try:
                    service.begin(lambda: connect_agent(vsock))
                    was_told.set()
                    _tell(told, "ready")
                    if options.for_one:
                        service.end_unless_used(_UNUSED_S)
                except PykvmError:
                    machine.stop()

            with Control(seat, machine, service.answers()):
                threading.Thread(target=begin, name="greeting", daemon=True).start()
                result = guest.run()
                if not was_told.is_set():
                    _tell(told, f"{result}; {log} has its kernel's words")
                print(f"pykvm: {result}", flush=True)  # noqa: T201 - to the log
                service.finish(
                    "" if str(result.reason) == "exit" else f"{result}; its kernel's words are in {log}"
                )
