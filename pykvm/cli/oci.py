"""The command `pykvm-oci`: an OCI runtime, as podman and containerd call one."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.oci.state import States

__all__ = ["command", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. An error of ours is one line on stderr, and in --log."""
    from pykvm.errors import PykvmError
    from pykvm.oci.state import OciError

    log: dict[str, Any] = {}
    try:
        outcome = command.main(arguments, prog_name="pykvm-oci", standalone_mode=False, obj=log)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (PykvmError, OSError) as error:
        _tell(" ".join(str(error).split()), log)
        return error.exit_status if isinstance(error, OciError) else 1
    return outcome if isinstance(outcome, int) else 0


def _tell(what: str, log: dict[str, Any]) -> None:
    print(f"pykvm-oci: {what}", file=sys.stderr)
    if path := log.get("log"):
        now = datetime.now(UTC).isoformat()
        line = (
            json.dumps({"msg": what, "level": "error", "time": now}) if log["log_format"] == "json" else what
        )
        try:
            with Path(path).open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            print(f"pykvm-oci: {path}: {error.strerror}", file=sys.stderr)


def _default_root() -> str:
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{run}/pykvm-oci" if os.geteuid() and run else "/run/pykvm-oci"


def _show_version(ctx: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from pykvm.oci.state import VERSION

        click.echo(f"pykvm-oci version {version('pykvm')}\nspec: {VERSION}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", metavar="DIR", default=_default_root, help="Where containers are known.")
@click.option("--log", type=click.Path(), help="Write errors to this file, too.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("--debug", is_flag=True, hidden=True)
@click.option("--systemd-cgroup", is_flag=True, hidden=True)
@click.option("--rootless", hidden=True)
@click.option("-v", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version)
@click.pass_obj
def command(obj: dict[str, Any], /, root: str, **options: Any) -> None:
    """An OCI runtime that gives each container a machine of its own.

    The commands are those of the OCI runtime specification and of runc, as far as podman and containerd call
    them. The container's process on the host is its machine's.

    \b
    Use it with podman:
      podman --runtime /usr/local/bin/pykvm-oci run --network none busybox uname -r
    Annotations: pykvm.memory (as in 1G) and pykvm.vcpus size the machine.
    """  # noqa: D301 - click wants the \b itself
    from pykvm.oci.state import States

    obj.update(options, states=States(Path(root).absolute()))


def _states(ctx: click.Context) -> States:
    found: States = ctx.obj["states"]
    return found


_bundle = click.option("-b", "--bundle", default=".", metavar="DIR", help="The bundle.  [default: .]")
_pid_file = click.option(
    "--pid-file", type=click.Path(path_type=Path), help="Write the process' number there."
)
_console = click.option(
    "--console-socket", default="", metavar="PATH", help="The Unix socket that takes the terminal."
)
_id = click.argument("container_id", metavar="ID")


@command.command()
@_bundle
@_pid_file
@_console
@click.option("--no-pivot", is_flag=True, hidden=True)
@click.option("--no-new-keyring", is_flag=True, hidden=True)
@click.option("--preserve-fds", type=int, hidden=True)
@_id
@click.pass_context
def create(
    ctx: click.Context,
    /,
    bundle: str,
    pid_file: Path | None,
    console_socket: str,
    container_id: str,
    **_: Any,
) -> None:
    """Make a container, up to its start."""
    from pykvm.oci import commands

    path = Path(bundle)
    commands.create(_states(ctx), container_id, path, console_socket=console_socket, pid_file=pid_file)


@command.command()
@_id
@click.pass_context
def start(ctx: click.Context, container_id: str) -> None:
    """Start the program of a created container."""
    from pykvm.oci import commands

    commands.start(_states(ctx), container_id)


@command.command()
@_id
@click.pass_context
def state(ctx: click.Context, container_id: str) -> None:
    """Print the state of a container as JSON."""
    click.echo(json.dumps(_states(ctx).get(container_id).told(), indent=2))


@command.command("list")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@click.option("-f", "--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_context
def list_(ctx: click.Context, quiet: bool, form: str) -> None:
    """List the containers."""
    found = [one.told() for one in _states(ctx).all()]
    if form == "json":
        click.echo(json.dumps(found))
        return
    if not quiet:
        click.echo(f"{'ID':<24} {'PID':>8}  {'STATUS':<8}  BUNDLE")
    for one in found:
        line = f"{one['id']:<24} {one['pid']:>8}  {one['status']:<8}  {one['bundle']}"
        click.echo(one["id"] if quiet else line)


@command.command()
@click.option("-a", "--all", "all_of_it", is_flag=True, help="All processes of the container.")
@_id
@click.argument("signal", default="TERM")
@click.pass_context
def kill(ctx: click.Context, all_of_it: bool, container_id: str, signal: str) -> None:
    """Send a signal, by default TERM."""
    from pykvm.oci import commands

    number = commands.signal_number(signal)
    commands.kill(_states(ctx), container_id, number, all_of_it=all_of_it)


@command.command()
@click.option("-f", "--force", is_flag=True, help="End it first if it runs.")
@_id
@click.pass_context
def delete(ctx: click.Context, force: bool, container_id: str) -> None:
    """Remove a container that has stopped."""
    from pykvm.oci import commands

    commands.delete(_states(ctx), container_id, force=force)


@command.command()
@_id
@click.pass_context
def pause(ctx: click.Context, container_id: str) -> None:
    """Freeze the processes of a container."""
    from pykvm.oci import commands

    commands.pause(_states(ctx), container_id)


@command.command()
@_id
@click.pass_context
def resume(ctx: click.Context, container_id: str) -> None:
    """Let the processes of a paused container go on."""
    from pykvm.oci import commands

    commands.resume(_states(ctx), container_id)


@command.command()
@click.option(
    "-r",
    "--resources",
    type=click.File("rb"),
    required=True,
    help="The new limits, as OCI's linux.resources; - is stdin.",
)
@_id
@click.pass_context
def update(ctx: click.Context, resources: IO[bytes], container_id: str) -> None:
    """Change the limits of a container."""
    from pykvm.oci import commands
    from pykvm.oci.bundle import resources_of

    commands.update(_states(ctx), container_id, resources_of(resources))


@command.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-p", "--process", type=click.Path(), help="The process, as OCI's config.json has it.")
@click.option("-d", "--detach", is_flag=True, help="Return when it runs.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--cwd", default="", help="Its directory.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="A variable of its environment.")
@click.option("-u", "--user", default="", metavar="UID[:GID]", help="Its user.")
@click.option("--preserve-fds", type=int, hidden=True)
@_pid_file
@_console
@_id
@click.argument("args", nargs=-1)
@click.pass_context
def exec_(
    ctx: click.Context, /, container_id: str, detach: bool, pid_file: Path | None, **options: Any
) -> int:
    """Run another process in a container."""
    from pykvm.oci import commands
    from pykvm.oci.exec_process import wanted_process

    states = _states(ctx)
    process = wanted_process(
        states.get(container_id).bundle,
        options["process"],
        options["args"],
        is_tty=options["tty"],
        cwd=options["cwd"],
        env=options["env"],
        user=options["user"],
    )
    socket = options["console_socket"]
    return commands.execute(
        states, container_id, process, detach=detach, console_socket=socket, pid_file=pid_file
    )


if __name__ == "__main__":
    sys.exit(main())
