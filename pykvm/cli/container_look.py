"""pykvm container logs, inspect, top, stats, which-layer."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pykvm.cli import complete
from pykvm.cli.container_parts import agent, seen, stores, table

if TYPE_CHECKING:
    from pykvm.containers.logs import LogEntry
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.registry import Room

__all__ = ["inspect_command", "logs_command", "stats_command", "top_command", "which_layer_command"]

_STATS = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]
_BETWEEN_S = 1.0
_any, _live = complete.containers(), complete.containers("running", "paused")


@click.command("logs")
@click.argument("name", metavar="CONTAINER", shell_complete=_any)
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.  [default: all]")
@click.option("-t", "--timestamps", is_flag=True, help="With the time before each line.")
def logs_command(name: str, follow: bool, tail: str, timestamps: bool) -> None:
    """Print what a container printed: to stdout and stderr as it did, in all its runs.

    \b
    Examples:
      pykvm container logs -f web              and go on until it ends
      pykvm container logs -t --tail 20 web    the last lines, with times
    """  # noqa: D301 - click wants the \b itself
    from pykvm.containers import logs
    from pykvm.containers.acting import end_test

    if tail != "all" and not tail.isdecimal():
        raise click.UsageError(f"--tail {tail}: give a number of lines, or all")
    with seen() as (containers, room):
        record = containers.find(name)
        path = containers.folder(record) / "log"
        last = 0
        if tail != "all":
            kept = logs.last_lines(logs.read_log(path), int(tail))
            last = kept[-1].time_ns if kept else time.time_ns()
            _print(kept, timestamps=timestamps)
            if not follow:
                return
        if follow:
            has_ended = end_test(containers, room, record)
            newer = logs.follow(path, has_ended, time.sleep)
            _print((one for one in newer if one.time_ns > last), timestamps=timestamps)
        else:
            _print(logs.read_log(path), timestamps=timestamps)


def _print(entries: Any, *, timestamps: bool) -> None:
    from pykvm.containers.listing import instant

    begins = {1: True, 2: True}
    for entry in entries:
        out = (sys.stderr if entry.stream == 2 else sys.stdout).buffer
        data = entry.data
        if timestamps:
            data = _stamped(entry, f"{instant(entry.time_ns)} ".encode(), begins)
        out.write(data)
        out.flush()


def _stamped(entry: LogEntry, stamp: bytes, begins: dict[int, bool]) -> bytes:
    parts = entry.data.split(b"\n")
    found = []
    for at, part in enumerate(parts):
        is_last = at == len(parts) - 1
        if (part or not is_last) and (at or begins[entry.stream]):
            found.append(stamp)
        found.append(part if is_last else part + b"\n")
    begins[entry.stream] = not parts[-1]
    return b"".join(found)


@click.command("inspect")
@click.argument(
    "names", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete.containers()
)
@click.option("--layers", is_flag=True, help="Draw what it stands on, from its process down to the host.")
@click.option("--json", "as_json", is_flag=True, help="With --layers: for machines.")
def inspect_command(names: tuple[str, ...], layers: bool, as_json: bool) -> None:
    """Print all that is known of containers, as JSON; or with --layers what they stand on.

    State.HeldBy says which limits held one that has ended, with the kernel's figures.

    \b
    Examples:
      pykvm container inspect --layers web         process, overlay, namespaces, cgroup, kernel, machine, host
      pykvm container inspect --layers --json web | jq '.[].namespaces'
    """  # noqa: D301 - click wants the \b itself
    from pykvm.containers.listing import inspect
    from pykvm.containers.stack import drawn

    with seen() as (containers, room):
        found = [containers.find(name) for name in names]
        if not layers:
            click.echo(json.dumps([inspect(one, containers.config(one)) for one in found], indent=2))
            return
        stacks = [_stack(containers, room, one) for one in found]
    click.echo(json.dumps(stacks, indent=2) if as_json else "\n\n".join(map(drawn, stacks)))


def _stack(containers: ContainerStore, room: Room, record: Record) -> dict[str, Any]:
    from pykvm.containers.launch import agent_of
    from pykvm.containers.stack import stack_of

    store = stores()[0]
    image = store.image(store.find(record.image_id).descriptor)
    about: dict[str, Any] = next((dict(one.about) for one in room.entries() if one.name == record.vm), {})
    info = None
    if record.is_live:
        with agent_of(room, record) as client:
            info = client.ask("info", 20, name=record.short)
            about["kernel"] = client.hello.get("kernel")
    return stack_of(store, image, record, containers.config(record), info, about)


@click.command("which-layer")
@click.argument("name", metavar="CONTAINER", shell_complete=_live)
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def which_layer_command(name: str, path: str, as_json: bool) -> int:
    """Say which layer of a running container the file at PATH comes from, and what each layer says of it.

    The layers are listed from the top. `upper` is what the container itself has written, `earlier runs` what
    it had written before it was started again; the others are its image's, by their digests. A whiteout hides
    what is below it; an opaque directory what is in those below.

    \b
    Examples:
      pykvm container which-layer web /etc/passwd
      pykvm container which-layer --json web /bin/sh
    """  # noqa: D301 - click wants the \b itself
    import os.path

    from pykvm.containers.stack import which_layer
    from pykvm.containers.views import short

    plain = os.path.normpath(f"/{path}").replace("//", "/")
    with agent(name) as (_, record, client):
        found, said = which_layer(client.ask("which", 20, name=record.short, path=plain), record)
    if as_json:
        layers = [{"layer": one, "kind": kind} for one, kind in said]
        click.echo(json.dumps({"path": plain, "from": found or None, "layers": layers}, indent=2))
        return 0 if found else 1
    for one, kind in said:
        mark = "→" if one == found else " "
        click.echo(f"{mark} {one if one == 'upper' else short(one):<12}  {kind}")
    if not found:
        click.echo(f"pykvm: {plain}: there is no such file in the container", err=True)
    return 0 if found else 1


@click.command("top")
@click.argument("name", metavar="CONTAINER", shell_complete=_live)
def top_command(name: str) -> None:
    """List the processes of a container; ids are the guest's."""
    from pykvm.containers.listing import top_rows

    with agent(name) as (_, record, client):
        found = client.ask("top", 20, name=record.short)
        uptime = str(client.ask("info", 20).get("uptime") or "0").split()[0]
    table(
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
        top_rows(found, float(uptime), record.first_id),
    )


@click.command("stats")
@click.argument(
    "names", metavar="[CONTAINER]...", nargs=-1, shell_complete=complete.containers("running", "paused")
)
@click.option("--no-stream", is_flag=True, help="Once, and not again and again.")
@click.option("--json", "as_json", is_flag=True, help="For machines; once.")
def stats_command(names: tuple[str, ...], no_stream: bool, as_json: bool) -> None:
    """Show what containers use of CPU, memory, disk and network; all that run by default."""
    older: dict[str, Any] = {}
    while True:
        rows, older = _measure(names, older)
        if as_json or no_stream:
            time.sleep(_BETWEEN_S)
            rows, older = _measure(names, older)
        if as_json:
            click.echo(
                json.dumps([dict(found) | {"id": one.id, "name": one.name} for one, found in rows], indent=2)
            )
            return
        from pykvm.containers.listing import stats_row

        if not no_stream and sys.stdout.isatty():
            click.clear()
        table(_STATS, [stats_row(one, found) for one, found in rows])
        if no_stream:
            return
        time.sleep(_BETWEEN_S)


def _measure(
    names: tuple[str, ...], older: dict[str, Any]
) -> tuple[list[tuple[Record, Any]], dict[str, Any]]:
    from pykvm.containers.launch import agent_of
    from pykvm.containers.listing import stats_of

    rows, newer = [], {}
    with seen() as (containers, room):
        found = [containers.find(name) for name in names] or [one for one in containers.all() if one.is_live]
        for record in found:
            if not record.is_live:
                continue
            with agent_of(room, record) as client:
                now = client.ask("stats", 20, name=record.short)
            newer[record.id] = now
            rows.append((record, stats_of(older.get(record.id), now)))
    return rows, newer
