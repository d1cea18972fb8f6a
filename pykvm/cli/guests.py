"""pykvm guests: the tiny guests that travel with pykvm."""

from __future__ import annotations

import json

import click

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Everything known about each guest, for machines.")
def command(as_json: bool) -> None:
    """List the tiny guests that travel with pykvm.

    Run one with `pykvm run NAME`; the number may be left out. Its source is in guests/NAME/.
    """
    from pykvm.guests import all_guests

    guests = all_guests()
    if as_json:
        click.echo(json.dumps({name: guest._asdict() for name, guest in guests.items()}, indent=2))
        return
    width = max(map(len, guests))
    for name, guest in guests.items():
        click.echo(f"{name:<{width}}  {guest.description}")
