"""pykvm container: containers in Linux guests."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["command"]

_HELP = """Run containers in Linux guests of pykvm, and look into them.

A container is a process with namespaces, limits and a union file system; here it stands on a guest's kernel,
not on the host's. Names, words, outputs and exit statuses are docker's.

\b
Examples:
  pykvm container run busybox echo hello
  pykvm container run --explain --memory 32m busybox true    each step of its making
  pykvm container run -d --vm lab --name web busybox httpd -f
  pykvm container exec -it web sh
  pykvm container inspect --layers web                       from the process down to the host
"""

# name -> its file
_COMMANDS = {
    **dict.fromkeys("run create".split(), "container_run"),
    **dict.fromkeys("start restart rename".split(), "container_start"),
    "exec": "container_exec",
    **dict.fromkeys("ps stop kill pause unpause wait rm update".split(), "container_state"),
    **dict.fromkeys("logs inspect top stats which-layer".split(), "container_look"),
    **dict.fromkeys("cp diff commit export".split(), "container_files"),
}


_RUNNING = frozenset({"run", "exec"})


class _Lazy(click.Group):
    """Commands are loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        """Docker's statuses: only what runs a program says by 125 to 127 that it could not; all else by 1."""
        from pykvm.errors import PykvmError

        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.invoked_subcommand in _RUNNING:
                setattr(error, "exit_code", 125)  # noqa: B010 - click has it on the class
            raise
        except PykvmError as error:
            if ctx.invoked_subcommand not in _RUNNING:
                error.exit_status = 1
            raise

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        from importlib import import_module

        module = import_module(f"pykvm.cli.{_COMMANDS[cmd_name]}")
        found: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return found


@click.group(cls=_Lazy, help=_HELP)
def command() -> None:
    """Run containers in Linux guests of pykvm, and look into them."""
