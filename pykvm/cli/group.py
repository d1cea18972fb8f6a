"""The click group of all commands, which loads each only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from pykvm.cli import COMMANDS

__all__ = ["ReaderGoneError", "group"]


class ReaderGoneError(Exception):
    """Whoever read our output has gone: BrokenPipeError under a name that click does not take for its own."""


class _Lazy(click.Group):
    """A group whose commands are imported when they are used; listing them imports none."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGoneError from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"pykvm.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, value: object) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"pykvm {version('pykvm')}")
        ctx.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: pykvm run 01_hello    What can this machine do: pykvm doctor",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def group() -> None:
    """A minimal KVM hypervisor in Python, to see, teach and test virtualization."""
