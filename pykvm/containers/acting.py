"""What is done to containers from outside: stop, wait, remove."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pykvm.containers.calls import AgentError, AgentGoneError
from pykvm.containers.launch import agent_of, started_of
from pykvm.containers.records import NoContainerError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.records import ContainerStore, Record
    from pykvm.registry import Room

__all__ = ["end_test", "remove", "stop", "wait", "wait_until_over"]

_LOOK_S = 0.02
_SWEEP_S = 0.5
_KILLED_S = 30.0


def wait_until_over(
    containers: ContainerStore, room: Room, record: Record, limit_s: float | None = None
) -> Record | None:
    """The record once the container has ended; None if it has not after `limit_s`.

    One that is removed meanwhile has ended; its last known record is given.
    """
    end = None if limit_s is None else time.monotonic() + limit_s
    has_ended = end_test(containers, room, record)
    while not has_ended():
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(_LOOK_S)
    with suppress(NoContainerError):
        return containers.get(record.id)
    return record


def end_test(containers: ContainerStore, room: Room, record: Record) -> Callable[[], bool]:
    """Says whether a container has ended, each time it is called; that its machine has, it finds out."""
    next_sweep = time.monotonic() + _SWEEP_S

    def has_ended() -> bool:
        nonlocal next_sweep
        if time.monotonic() > next_sweep:
            containers.sweep(lambda name: started_of(room, name))
            next_sweep = time.monotonic() + _SWEEP_S
        try:
            return not containers.get(record.id).is_live
        except NoContainerError:
            return True

    return has_ended


def wait(containers: ContainerStore, room: Room, text: str) -> str:
    """Wait for its end; its exit status."""
    record = wait_until_over(containers, room, containers.find(text))
    return str(record.status if record else 0)


def stop(containers: ContainerStore, room: Room, text: str, seconds: int, number: int = 0) -> None:
    """Signal it, and kill it after so many seconds (-1: never). One that has ended is fine."""
    record = containers.find(text)
    if not record.is_live:
        return
    with suppress(AgentGoneError), agent_of(room, record) as client, suppress(AgentError):
        if record.state == "paused":
            client.ask("unpause", 20, name=record.short)
        client.ask("signal", 20, name=record.short, signal=number or record.stop_signal)
        limit = None if seconds < 0 else float(seconds)
        if wait_until_over(containers, room, record, limit):
            return
        client.ask("signal", 20, name=record.short, signal=int(signal.SIGKILL))
    if not wait_until_over(containers, room, record, _KILLED_S):
        raise StateError(f"container {record.name} was killed and has not ended; see `pykvm ps`")


def remove(containers: ContainerStore, room: Room, text: str, *, force: bool) -> None:
    """Take it away with all it left. Raises StateError if it runs and `force` is not given."""
    record = containers.find(text)
    if record.is_live:
        if not force:
            raise StateError(
                f'cannot remove container "{record.name}": container is {record.state}: '
                "stop the container before removing or force remove"
            )
        stop(containers, room, record.id, 0, int(signal.SIGKILL))
    containers.remove(record)
