"""pykvm container start, restart, rename."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pykvm.cli import complete
from pykvm.cli.container_parts import each, many, notice, patience, seen, stores, watch

if TYPE_CHECKING:
    from pykvm.containers.records import ContainerStore

__all__ = ["rename_command", "restart_command", "start_command"]

_any = complete.containers()


@click.command("start")
@many("created", "exited")
@click.option("-a", "--attach", is_flag=True, help="Show what it prints, until its end; its exit status.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our input.")
def start_command(names: tuple[str, ...], attach: bool, interactive: bool) -> int:
    """Start containers that have ended, or that `create` made, with their files as they left them.

    A container has its options, its name and its log again; its process begins anew. What it changed in its
    files has become one more layer below a new, empty one.

    \b
    Examples:
      pykvm container start web            in the background; prints the name
      pykvm container start -ai shell      at this terminal
    """  # noqa: D301 - click wants the \b itself
    if not attach and not interactive:
        return each(names, _start)
    if len(names) > 1:
        notice("pykvm: you cannot start and attach multiple containers at once")
        return 1
    return _attached(names[0], reads=interactive)


def _start(text: str) -> None:
    """One, in the background; one that runs already is fine."""
    from pykvm.containers.records import StateError
    from pykvm.containers.running import restart_container

    with seen() as (containers, room):
        record = containers.find(text)
        if record.state == "paused":
            raise StateError("cannot start a paused container, try unpause instead")
        if record.is_live:
            return
        link = restart_container(room, stores()[0], containers, record, attach=False)
    with link:
        _started(link, containers, record.id)


def _started(link: Any, containers: ContainerStore, container_id: str) -> None:
    from pykvm.containers.records import StateError
    from pykvm.containers.talk import ServicePeer

    for item in ServicePeer(link).items():
        if isinstance(item, dict) and item.get("event") == "started":
            return
        if isinstance(item, dict) and item.get("event") == "failed":
            raise StateError(str(item.get("text")))
    raise StateError(f"the machine of {containers.get(container_id).name} ended before it had started")


def _attached(text: str, *, reads: bool) -> int:
    import os

    from pykvm.containers.records import StateError
    from pykvm.containers.running import restart_container

    with seen() as (containers, room):
        record = containers.find(text)
        if record.is_live:
            raise StateError(f"container {record.name} is {record.state} already; `exec` enters it")
        if reads and record.tty and not os.isatty(0):
            raise StateError("the input device is not a TTY")
        link = restart_container(room, stores()[0], containers, record, attach=True)
    with link:
        return watch(link, record, record.name, attach=True, reads=reads, on_event=lambda _: None)


@click.command("restart")
@many()
@patience
def restart_command(names: tuple[str, ...], seconds: int) -> int:
    """Stop containers, if they run, and start them again."""
    from pykvm.containers.acting import stop

    def restart(text: str) -> None:
        with seen() as (containers, room):
            stop(containers, room, text, seconds)
        _start(text)

    return each(names, restart)


@click.command("rename")
@click.argument("name", metavar="CONTAINER", shell_complete=_any)
@click.argument("new", metavar="NEW_NAME")
def rename_command(name: str, new: str) -> None:
    """Give a container another name; one that runs goes on."""
    with seen() as (containers, _):
        containers.rename(containers.find(name), new)
