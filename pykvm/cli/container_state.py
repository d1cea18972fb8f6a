"""pykvm container ps, stop, kill, pause, unpause, wait, rm, update."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pykvm.cli import complete
from pykvm.cli.container_parts import agent, each, many, patience, seen, table

if TYPE_CHECKING:
    from pykvm.containers.records import Record

__all__ = [
    "kill_command",
    "pause_command",
    "ps_command",
    "rm_command",
    "stop_command",
    "unpause_command",
    "update_command",
    "wait_command",
]

_STATES = ["created", "running", "paused", "exited"]
_HEAD = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "MACHINE"]


@click.command("ps")
@click.option("-a", "--all", "whole", is_flag=True, help="Those that have ended or not begun, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print only IDs.")
@click.option("-l", "--latest", is_flag=True, help="The newest one, whatever its state.")
@click.option("--no-trunc", is_flag=True, help="Show IDs and commands in full.")
@click.option(
    "--filter",
    "-f",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only those with this name, status, id, label or vm.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def ps_command(
    whole: bool, quiet: bool, latest: bool, no_trunc: bool, filters: tuple[str, ...], as_json: bool
) -> None:
    """List the containers that run.

    STATUS says of one that has ended with which exit status, and whether its machine ended under it or the
    kernel killed it for memory.

    \b
    Examples:
      pykvm container ps -a
      pykvm container ps -aq --filter status=exited | xargs pykvm container rm
    """  # noqa: D301 - click wants the \b itself
    from dataclasses import asdict

    from pykvm.containers.listing import ps_row, state_text

    with seen() as (containers, _):
        found = containers.all()
    tests = [_filter(text) for text in filters]
    whole = whole or latest or any(text.startswith("status=") for text in filters)
    found = [one for one in found if (whole or one.is_live) and all(test(one) for test in tests)]
    found = found[:1] if latest else found
    if as_json:
        click.echo(json.dumps([asdict(one) | {"status_text": state_text(one)} for one in found], indent=2))
    elif quiet:
        for one in found:
            click.echo(one.id if no_trunc else one.short)
    else:
        table(_HEAD, [ps_row(one, whole=no_trunc) for one in found])


def _filter(text: str) -> Any:
    from pykvm.errors import ConfigError

    key, equals, value = text.partition("=")
    tests: dict[str, Any] = {
        "name": lambda one: value in one.name,
        "status": lambda one: one.state == value,
        "id": lambda one: one.id.startswith(value),
        "vm": lambda one: one.vm == value,
        "label": lambda one: (
            value.partition("=")[0] in one.labels
            and ("=" not in value or one.labels[value.partition("=")[0]] == value.partition("=")[2])
        ),
    }
    if not equals or key not in tests:
        raise ConfigError(f"invalid filter '{text}'; there are name=, status=, id=, label= and vm=")
    if key == "status" and value not in _STATES:
        raise ConfigError(f"invalid filter 'status={value}'; there are {', '.join(_STATES)}")
    return tests[key]


@click.command("stop")
@many("running", "paused")
@patience
@click.option(
    "-s",
    "--signal",
    "name",
    default="",
    metavar="SIGNAL",
    shell_complete=complete.signals,
    help="Send this instead of its own.",
)
def stop_command(names: tuple[str, ...], seconds: int, name: str) -> int:
    """Ask containers to end, and kill them if they have not after a while."""
    from pykvm.containers.acting import stop
    from pykvm.containers.running import signal_number

    number = signal_number(name) if name else 0
    with seen() as (containers, room):
        return each(names, lambda text: stop(containers, room, text, seconds, number))


@click.command("kill")
@many("running", "paused")
@click.option(
    "-s",
    "--signal",
    "name",
    default="KILL",
    show_default=True,
    metavar="SIGNAL",
    shell_complete=complete.signals,
    help="Which.",
)
def kill_command(names: tuple[str, ...], name: str) -> int:
    """Send containers a signal."""
    from pykvm.containers.running import signal_number

    number = signal_number(name)

    def kill(text: str) -> None:
        with agent(text) as (_, record, client):
            client.ask("signal", 20, name=record.short, signal=number)

    return each(names, kill)


def _set_state(text: str, op: str, before: str, after: str) -> None:
    from dataclasses import replace

    from pykvm.containers.records import StateError

    def change(record: Record) -> Record:
        return replace(record, state=after) if record.is_live else record

    with agent(text) as (containers, record, client):
        if record.state != before:
            raise StateError(
                f"Container {record.id} is {'already paused' if op == 'pause' else 'not paused'}"
            )
        client.ask(op, 20, name=record.short)
        containers.change(record.id, change)


@click.command("pause")
@many("running")
def pause_command(names: tuple[str, ...]) -> int:
    """Hold all processes of containers where they are."""
    return each(names, lambda text: _set_state(text, "pause", "running", "paused"))


@click.command("unpause")
@many("paused")
def unpause_command(names: tuple[str, ...]) -> int:
    """Let paused containers go on."""
    return each(names, lambda text: _set_state(text, "unpause", "paused", "running"))


@click.command("wait")
@many("running", "paused")
def wait_command(names: tuple[str, ...]) -> int:
    """Wait for containers to end, and print their exit statuses."""
    from pykvm.containers.acting import wait

    with seen() as (containers, room):
        return each(names, lambda text: wait(containers, room, text))


@click.command("rm")
@many()
@click.option("-f", "--force", is_flag=True, help="Kill those that run.")
def rm_command(names: tuple[str, ...], force: bool) -> int:
    """Remove containers with what they printed and changed."""
    from pykvm.containers.acting import remove

    with seen() as (containers, room):
        return each(names, lambda text: remove(containers, room, text, force=force))


@click.command("update")
@many("running", "paused")
@click.option("-m", "--memory", metavar="SIZE", help="At most so much memory.")
@click.option("--memory-swap", metavar="SIZE", help="At most so much memory and swap together.")
@click.option("--cpus", type=float, metavar="N", help="At most the time of so many CPUs.")
@click.option("-c", "--cpu-shares", type=int, metavar="N", help="Weight when CPUs are short.")
@click.option("--cpuset-cpus", default="", metavar="LIST", help="Only on these CPUs.")
@click.option("--pids-limit", type=int, metavar="N", help="At most so many processes and threads.")
def update_command(names: tuple[str, ...], **given: Any) -> int:
    """Change the limits of containers that run.

    \b
    Examples:
      pykvm container update --memory 64m --pids-limit 50 web
      pykvm container update --cpus 0.5 web db
    """  # noqa: D301 - click wants the \b itself
    from dataclasses import replace

    from pykvm.containers.launch import machine_cpus
    from pykvm.containers.run_options import limits_of
    from pykvm.registry import Room

    if not any(given.values()):
        raise click.UsageError("name a limit to change: --memory, --cpus, --pids-limit, …")

    def update(text: str) -> None:
        with agent(text) as (containers, record, client), Room() as room:
            resources = limits_of(given, machine_cpus(room, record.vm)).resources()
            client.ask("update", 20, name=record.short, resources=resources)

            def note(one: Record) -> Record:
                merged = dict(one.resources)
                for key, values in resources.items():
                    merged[key] = {**(merged.get(key) or {}), **values}
                return replace(one, resources=merged)

            containers.change(record.id, note)

    return each(names, update)
