"""What the commands of `pykvm container` share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pykvm.containers.calls import AgentClient
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["StepPrinter", "agent", "each", "notice", "seen", "stores", "table"]


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


class StepPrinter:
    """Prints the steps of `--explain` on stderr, numbered as they come; nothing for other events."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One event."""
        if event.get("event") != "step":
            return
        from pykvm.containers.explain import step_line

        self._count += 1
        click.echo(step_line(event, self._count), err=True)


def table(head: list[str], body: list[list[str]]) -> None:
    """Columns as docker sets them: three spaces apart, the last one ragged."""
    widths = [max(len(row[at]) for row in [head, *body]) for at in range(len(head))]
    for row in [head, *body]:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
