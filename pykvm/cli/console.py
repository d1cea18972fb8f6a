"""pykvm console: a running machine's console, from anywhere."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command()
@click.argument("name")
def command(name: str) -> int:
    """Be the console of the running machine NAME: see what it prints, type what it reads.

    It begins with what was printed last. Ctrl-A X leaves the console, and the machine goes on; several may
    be there at once. With nothing to type (</dev/null) it is a way to watch.

    \b
    Examples:
      pykvm run --detach --name web linux
      pykvm console web
      pykvm console web </dev/null | tee web.log
    """  # noqa: D301 - click wants the \b itself
    from pykvm.registry import Room
    from pykvm.remote_console import attach_console

    with Room() as room:
        has_ended = attach_console(room, name)
    click.echo(f"pykvm: {name} has ended" if has_ended else f"pykvm: left {name}, which goes on", err=True)
    return 0
