"""What the commands of `pykvm container` share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pykvm.cli import complete

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = [
    "StepPrinter",
    "agent",
    "each",
    "many",
    "notice",
    "patience",
    "seen",
    "stores",
    "table",
    "watch",
]


_KILLED = 137
_F = TypeVar("_F", bound="Callable[..., Any]")

patience = click.option(
    "-t",
    "--time",
    "--timeout",
    "seconds",
    type=int,
    default=10,
    show_default=True,
    metavar="N",
    help="Seconds to wait before it is killed.",
)
"""The option of those commands that stop a container."""


def many(*states: str) -> Callable[[_F], _F]:
    """The containers that a command is for; those in these states are completed, all if there are none."""
    known = complete.containers(*states)
    return click.argument("names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=known)


def notice(text: str) -> None:
    """A line for a human, on stderr."""
    click.echo(text, err=True)


def stores() -> tuple[ImageStore, ContainerStore]:
    """The images and the containers of this user."""
    from pykvm.containers.records import ContainerStore
    from pykvm.containers.store import ImageStore

    return ImageStore(notice=notice), ContainerStore()


@contextmanager
def seen() -> Iterator[tuple[ContainerStore, Any]]:
    """The containers as they truly are, and the directory of machines."""
    from pykvm.containers.launch import started_of
    from pykvm.containers.records import ContainerStore
    from pykvm.registry import Room

    containers = ContainerStore()
    with Room() as room:
        containers.sweep(lambda name: started_of(room, name))
        yield containers, room


@contextmanager
def agent(text: str) -> Iterator[tuple[ContainerStore, Record, AgentClient]]:
    """A running container and the agent of its machine. Raises StateError if it does not run."""
    from pykvm.containers.launch import agent_of
    from pykvm.containers.records import StateError

    with seen() as (containers, room):
        record = containers.find(text)
        if not record.is_live:
            raise StateError(f"container {record.id} is not running")
        with agent_of(room, record) as client:
            yield containers, record, client


def each(names: tuple[str, ...], do: Callable[[str], str | None]) -> int:
    """Do it with every one, and print its name or what `do` says; 1 if one could not be done."""
    from pykvm.errors import PykvmError

    status = 0
    for name in names:
        try:
            click.echo(do(name) or name)
        except PykvmError as error:
            click.echo(f"pykvm: {error}", err=True)
            status = 1
        except TimeoutError:
            click.echo(f"pykvm: {name}: the agent in its machine does not answer", err=True)
            status = 1
    return status


def watch(
    link: Any,
    record: Record,
    said: str,
    *,
    attach: bool,
    reads: bool,
    on_event: Callable[[Mapping[str, Any]], None],
) -> int:
    """Wait for a container's start, and say so, or if attached for its end; the exit status."""
    from pykvm.containers.talk import DetachedError, ServicePeer, converse

    peer = ServicePeer(link)
    if attach:
        try:
            ending = converse(peer, reads=reads, is_tty=record.tty, on_event=on_event)
        except DetachedError:
            return 0
        if ending.get("event") == "failed":
            return _failed(ending)
        status = int(ending.get("status") or 0)
        if text := ending.get("text") or (status == _KILLED and "; ".join(ending.get("held") or ())):
            notice(f"pykvm: container {record.name}: {text}")
        return status
    for item in peer.items():
        if isinstance(item, dict) and item.get("event") == "failed":
            return _failed(item)
        if isinstance(item, dict) and item.get("event") == "started":
            click.echo(said)
            return 0
        on_event(item if isinstance(item, dict) else {})
    notice("pykvm: the machine ended before the container had started")
    return 125


def _failed(said: Mapping[str, Any]) -> int:
    notice(f"pykvm: {said.get('text')}")
    return int(said.get("status") or 125)


class StepPrinter:
    """Prints the steps of `--explain` on stderr, numbered as they come, and at the last what all took."""

    def __init__(self) -> None:
        self._steps: list[Mapping[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event; those that are no steps pass."""
        if event.get("event") != "step":
            return
        from pykvm.containers.explain import step_line, steps_total

        self._steps.append(event)
        call, *effect = step_line(event, len(self._steps)).split("\n")
        click.echo(call, err=True)
        for line in effect:
            click.echo(click.style(line, dim=True), err=True)  # click leaves it plain where no terminal is
        if event.get("call") == "execve":
            click.echo(steps_total(self._steps), err=True)


def table(head: list[str], body: list[list[str]]) -> None:
    """Columns as docker sets them: three spaces apart, the last one ragged."""
    widths = [max(len(row[at]) for row in [head, *body]) for at in range(len(head))]
    for row in [head, *body]:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
