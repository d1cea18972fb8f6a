"""pykvm ps: the machines that have a name and run."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known as JSON.")
def command(quiet: bool, as_json: bool) -> int:
    """List your running machines that have a name (`pykvm run --name NAME`).

    \b
    Examples:
      pykvm ps
      pykvm stop $(pykvm ps -q)
    """  # noqa: D301 - click wants the \b itself
    from pykvm.registry import Room

    with Room() as room:
        entries = room.entries()
    if as_json:
        import json

        print(json.dumps([{"name": entry.name, **entry.about} for entry in entries], indent=2))
        return 0
    if quiet:
        for entry in entries:
            print(entry.name)
        return 0
    from pykvm.registry import as_table

    print(as_table(entries))
    return 0
