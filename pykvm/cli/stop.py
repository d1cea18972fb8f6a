"""pykvm stop: end machines by name."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to wait for each to be gone.",
)
def command(names: tuple[str, ...], timeout: float) -> int:
    """End running machines by name, as Ctrl-C does where they run, and wait until they are gone.

    \b
    The exit status is 125 if one of them did not run or did not end in time; the others are ended anyhow.
    """  # noqa: D301 - click wants the \b itself
    from pykvm.errors import PykvmError
    from pykvm.registry import Room, stop

    status = 0
    with Room() as room:
        for name in names:
            try:
                stop(room, name, timeout_s=timeout)
            except PykvmError as error:
                click.echo(f"pykvm: {error}", err=True)
                status = error.exit_status
    return status
