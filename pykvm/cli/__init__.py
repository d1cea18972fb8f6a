"""The command `pykvm`: one file a command, loaded only when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# name -> one line for the list of commands; the command itself is `command` in pykvm/cli/NAME.py
_COMMANDS = {
    "run": "Run a guest and show what it prints.",
    "guests": "List the tiny guests that travel with pykvm.",
    "doctor": "Say what this machine's KVM can do.",
    "lab": "Run a command in a computer with a full KVM, made in software.",
    "completion": "Print the shell's completion script.",
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are used; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"pykvm.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


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
def _pykvm() -> None:
    """A minimal KVM hypervisor in Python, to see, teach and test virtualization."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Every error of ours is one line on stderr."""
    try:
        outcome = _pykvm.main(arguments, prog_name="pykvm", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PykvmError as error:
        print(f"pykvm: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return outcome if isinstance(outcome, int) else 0
