"""What each command of `pykvm-oci` does."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.calls import AgentError, AgentGoneError
from pykvm.containers.dialling import connect_agent
from pykvm.errors import PykvmError
from pykvm.oci.places import make_places
from pykvm.oci.process import Told, leave_behind, take_terminal, write_pid
from pykvm.oci.state import AGENT, OciError, State, States
from pykvm.oci.streams import Streams, open_console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pykvm.containers.calls import AgentClient

__all__ = ["create", "delete", "execute", "kill", "pause", "resume", "signal_number", "start", "update"]

_ANSWER_S = 30.0
_REACH_S = 10.0
_END_S = 20.0


def create(
    states: States, container_id: str, bundle: Path, *, console_socket: str = "", pid_file: Path | None = None
) -> None:
    """Make a container in a machine of its own, up to the point where its program could start."""
    from pykvm.lab.store import Store  # noqa: PLC0415 - only who boots a machine pays
    from pykvm.linux.kit import kit  # noqa: PLC0415 - as above
    from pykvm.oci.bundle import read_bundle  # noqa: PLC0415 - as above
    from pykvm.oci.machine import Wanted, hold_container  # noqa: PLC0415 - as above

    found = read_bundle(bundle.absolute())
    if found.has_terminal and not console_socket:
        raise OciError(
            f"{bundle}: process.terminal is true; say with --console-socket who takes the terminal"
        )
    if console_socket and not found.has_terminal:
        raise OciError(f"{bundle}: --console-socket is for a process with a terminal")
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    state = State(
        container_id, str(found.path), created=now, annotations=found.annotations, hooks=found.hooks
    )
    folder = states.add(state)
    if found.is_read_only:  # for the machine, too
        make_places(found.root, found.places)
    try:
        wanted = Wanted(found, kit(Store(), lambda _: None), console_socket, pid_file)
        leave_behind(lambda told: hold_container(states, state, wanted, told), folder / "machine.log")
        for stage in ("prestart", "createRuntime"):
            _hooks(states.get(container_id), stage)
    except BaseException:
        with suppress(PykvmError):
            _end_machine(states.get(container_id))
        states.remove(container_id)
        raise


def start(states: States, container_id: str) -> None:
    """Start the program of a created container."""
    state = states.get(container_id)
    if state.status != "created":
        raise OciError(f"container {container_id} is {state.status}: only a created one can be started")
    with _agent(states, state) as client:
        states.put(replace(state, status="running"))  # before: its end may come at once
        try:
            _ask(client, "start", name=container_id)
        except OciError:
            states.put(state)
            raise
    with suppress(OciError):
        _hooks(state, "poststart")


def kill(states: States, container_id: str, number: int, *, all_of_it: bool = False) -> None:
    """Send a signal to the container's first process, or to all."""
    state = states.get(container_id)
    if state.status not in ("created", "running", "paused"):
        raise OciError(f"container {container_id} is {state.status}: nobody is there to take a signal")
    with _agent(states, state) as client:
        _ask(client, "signal", name=container_id, signal=number, **({"all": True} if all_of_it else {}))


def delete(states: States, container_id: str, *, force: bool = False) -> None:
    """Remove a stopped container; with `force` any, and it is no error if there is none."""
    try:
        state = states.get(container_id)
    except OciError:
        if not force:
            raise
        states.remove(container_id)
        return
    if state.status != "stopped" and not force:
        raise OciError(
            f"container {container_id} is {state.status}: stop it first, or delete it with --force"
        )
    _end_machine(state)
    states.remove(container_id)
    with suppress(OciError):
        _hooks(replace(state, status="stopped"), "poststop")


def update(states: States, container_id: str, resources: Mapping[str, Any]) -> None:
    """Change its limits to those that `resources`, OCI's linux.resources, names."""
    state = states.get(container_id)
    if state.status not in ("created", "running", "paused"):
        raise OciError(f"container {container_id} is {state.status}: it has no limits any more")
    with _agent(states, state) as client:
        _ask(client, "update", name=container_id, resources=dict(resources))


def pause(states: States, container_id: str) -> None:
    """Freeze all its processes."""
    _freeze(states, container_id, "pause", "running", "paused")


def resume(states: States, container_id: str) -> None:
    """Let them go on."""
    _freeze(states, container_id, "unpause", "paused", "running")


def _freeze(states: States, container_id: str, op: str, before: str, after: str) -> None:
    state = states.get(container_id)
    if state.status != before:
        raise OciError(f"container {container_id} is {state.status} and not {before}")
    with _agent(states, state) as client:
        _ask(client, op, name=container_id)
    states.put(replace(state, status=after))


def execute(
    states: States,
    container_id: str,
    process: Mapping[str, Any],
    *,
    detach: bool = False,
    console_socket: str = "",
    pid_file: Path | None = None,
) -> int:
    """Run another process in a container: its status, or 0 as soon as it runs with `detach`."""
    state = states.get(container_id)
    if state.status not in ("created", "running"):
        raise OciError(f"container {container_id} is {state.status}: nothing can be run in it")
    wants_tty = bool(process.get("terminal"))
    if detach and wants_tty and not console_socket:
        raise OciError("a detached process with a terminal needs --console-socket")
    words: dict[str, Any] = {"name": container_id, "process": dict(process), "stdin": not wants_tty}
    config = json.loads((Path(state.bundle) / "config.json").read_bytes())
    if profile := (config.get("linux") or {}).get("seccomp"):
        from pykvm.oci.bundle import hex_filter  # noqa: PLC0415 - only a filter costs its table

        words["seccomp"] = hex_filter(profile)

    def work(told: Told) -> int:
        with _agent(states, state) as client:
            return _carry(client, words, told, console_socket, pid_file, is_tty=wants_tty)

    if detach:
        leave_behind(work, states.folder(container_id) / "machine.log")
        return 0
    return work(Told(-1))


def _carry(
    client: AgentClient,
    words: Mapping[str, Any],
    told: Told,
    console_socket: str,
    pid_file: Path | None,
    *,
    is_tty: bool,
) -> int:
    """Be the process' streams until its end: its status."""
    call = client.open("exec", **words)
    try:
        answer = call.answer(_ANSWER_S)
    except (PykvmError, TimeoutError) as error:
        raise _NotRunError(_said(error), _status(error)) from None
    fd = open_console(console_socket) if console_socket else -1
    fds = (fd, fd, fd) if fd >= 0 else (0, 1, 2)
    streams = Streams(call, fds, is_tty=is_tty)

    def resized() -> None:
        with suppress(PykvmError, OSError):
            pid = answer.get("pid")
            client.open("resize", name=words["name"], pid=pid, **streams.window()).forget()

    if fd >= 0:
        signal.signal(signal.SIGWINCH, lambda *_: resized())
        take_terminal(fd)
    write_pid(pid_file)
    told.ready()
    with _raw_terminal(is_tty and fd < 0, resized):
        streams.begin()
        return streams.follow()


@contextmanager
def _raw_terminal(wanted: bool, resized: Any) -> Iterator[None]:
    """The user's own terminal, if the process has one, raw for as long as it runs."""
    if not wanted or not os.isatty(0):
        yield
        return
    import termios  # noqa: PLC0415 - only a terminal pays
    import tty  # noqa: PLC0415 - as above

    before = termios.tcgetattr(0)
    handler = signal.signal(signal.SIGWINCH, lambda *_: resized())
    tty.setraw(0)
    resized()
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)


def signal_number(word: str) -> int:
    """The number that KILL, SIGKILL or 9 means. Raises OciError."""
    if word.isdecimal() and 0 < int(word) < signal.NSIG:
        return int(word)
    name = word.upper() if word.upper().startswith("SIG") else f"SIG{word.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise OciError(f"{word!r} is no signal; give a name such as TERM, or a number") from None


@contextmanager
def _agent(states: States, state: State) -> Iterator[AgentClient]:
    try:
        client = connect_agent(states.folder(state.id) / AGENT, _REACH_S)
    except AgentGoneError as error:
        raise OciError(f"container {state.id}: {error}") from None
    with client:
        yield client


def _ask(client: AgentClient, op: str, **words: Any) -> dict[str, Any]:
    try:
        return client.ask(op, _ANSWER_S, **words)
    except (PykvmError, TimeoutError) as error:
        raise _said(error) from None


class _NotRunError(OciError):
    """A program that could not be started: 127 if there is none, 126 if it can't be run."""

    def __init__(self, error: OciError, status: int) -> None:
        super().__init__(str(error))
        self.exit_status = status


def _status(error: Exception) -> int:
    if not isinstance(error, AgentError) or error.step not in {"execve", "chdir"}:
        return 1
    return 127 if error.errno in {errno.ENOENT, errno.ENOTDIR} else 126


def _said(error: Exception) -> OciError:
    return OciError(str(error) or "the agent in the machine does not answer")


def _end_machine(state: State) -> None:
    """End the machine's process: by its agent's help, or without."""
    if not state.is_alive:
        return
    if state.status != "stopped" or not _is_gone(state, _END_S):
        state.send_signal(signal.SIGKILL)
        _is_gone(state, _END_S)


def _is_gone(state: State, limit_s: float) -> bool:
    """Whether the process has ended, after a while at the most."""
    try:
        fd = os.pidfd_open(state.pid)
    except OSError:
        return True
    try:
        end = time.monotonic() + limit_s
        while state.is_alive and time.monotonic() < end:
            select.select([fd], [], [], 0.1)
        return not state.is_alive
    finally:
        os.close(fd)


def _hooks(state: State, stage: str) -> None:
    """Run the bundle's hooks of one stage, which belong to the host. Raises OciError for one that fails."""
    import subprocess  # noqa: PLC0415 - most bundles have no hooks

    told = json.dumps(state.told()).encode()
    for hook in state.hooks.get(stage, ()):
        path = str(hook.get("path", ""))
        args: Sequence[str] = [str(arg) for arg in hook.get("args") or [path]]
        env = dict(str(pair).split("=", 1) for pair in hook.get("env") or [] if "=" in str(pair))
        try:
            done = subprocess.run(
                args,
                executable=path,
                env=env,
                input=told,
                timeout=hook.get("timeout"),
                stdout=sys.stderr,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OciError(f"hook {stage}: {path}: {error}") from None
        if done.returncode:
            raise OciError(f"hook {stage}: {path}: ended with status {done.returncode}")
