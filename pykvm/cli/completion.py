"""pykvm completion: the script that lets a shell complete pykvm's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For bash, put this into ~/.bashrc:  eval "$(pykvm completion bash)"
    """
    kind = get_completion_class(shell)
    root = ctx.find_root()
    assert kind is not None  # noqa: S101 - click has all three
    click.echo(kind(root.command, {}, "pykvm", "_PYKVM_COMPLETE").source())
