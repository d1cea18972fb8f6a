"""pykvm container run, create: a new container from an image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pykvm.cli import complete

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.containers.guest_options import GuestOptions
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.run_options import RunOptions

__all__ = ["create_command", "run_command"]

_MANY: dict[str, Any] = {"multiple": True}


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]},
)
@click.argument("image", shell_complete=complete.images)
@click.argument("words", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Give it our input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Let it run by itself, and print its ID.")
@click.option("--name", default="", metavar="NAME", help="Name it.  [default: a name of our choice]")
@click.option("--rm", "remove", is_flag=True, help="Remove it when it has ended.")
@click.option("-e", "--env", **_MANY, metavar="NAME[=VALUE]", help="A variable; without VALUE as it is here.")
@click.option("-l", "--label", "labels", **_MANY, metavar="NAME[=VALUE]", help="Note this about it.")
@click.option("-w", "--workdir", default="", metavar="PATH", help="Where the command starts.")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]", help="Who the command runs as.")
@click.option("--group-add", **_MANY, metavar="GROUP", help="One more group of the user.")
@click.option("-h", "--hostname", default="", metavar="NAME", help="Its host name.  [default: its short ID]")
@click.option("--entrypoint", metavar="COMMAND", help="Run this instead of the image's entry point.")
@click.option("--read-only", is_flag=True, help="Let nothing be written to its root.")
@click.option("--tmpfs", **_MANY, metavar="PATH[:OPTIONS]", help="Mount an empty tmpfs there.")
@click.option("-m", "--memory", metavar="SIZE", help="At most so much memory: 64m, 1g.")
@click.option("--memory-swap", metavar="SIZE", help="At most so much memory and swap together; -1: any.")
@click.option("--cpus", type=float, metavar="N", help="At most the time of so many CPUs: 0.5.")
@click.option(
    "-c", "--cpu-shares", type=int, metavar="N", help="Weight when CPUs are short.  [default: 1024]"
)
@click.option("--cpuset-cpus", "--cpuset", default="", metavar="LIST", help="Only on these CPUs: 0-1.")
@click.option("--pids-limit", type=int, metavar="N", help="At most so many processes and threads.")
@click.option(
    "--device-write-bps", **_MANY, metavar="DEVICE:RATE", help="At most so many bytes a second to it."
)
@click.option(
    "--device-read-bps", **_MANY, metavar="DEVICE:RATE", help="At most so many bytes a second from it."
)
@click.option("--cap-add", **_MANY, metavar="NAME", help="One more capability, or ALL.")
@click.option("--cap-drop", **_MANY, metavar="NAME", help="One capability less, or ALL.")
@click.option(
    "--security-opt",
    **_MANY,
    metavar="OPTION",
    help="no-new-privileges, seccomp=FILE (docker's format) or seccomp=unconfined.",
)
@click.option("--ulimit", "ulimits", **_MANY, metavar="NAME=SOFT[:HARD]", help="A limit of setrlimit(2).")
@click.option(
    "--network",
    "--net",
    type=click.Choice(["bridge", "none", "host"]),
    help="Its own network without a way out, one with the guest's other containers, or the guest's.  "
    "[default: none; bridge with -p]",
)
@click.option(
    "-v",
    "--volume",
    "volumes",
    **_MANY,
    metavar="DIR:PATH[:ro]",
    help="A folder of this host, in the container at PATH.",
)
@click.option(
    "-p",
    "--publish",
    **_MANY,
    metavar="[ADDRESS:]PORT:PORT",
    help="Lead a TCP port of this host to one of the container's.",
)
@click.option("--init", is_flag=True, help="Run a small process 1 that passes signals on and reaps zombies.")
@click.option("--stop-signal", default="", metavar="SIGNAL", help="What `stop` sends.  [default: SIGTERM]")
@click.option("--shm-size", default="64m", metavar="SIZE", help="Size of /dev/shm.")
@click.option(
    "--vm",
    default="",
    metavar="NAME",
    envvar="PYKVM_VM",
    shell_complete=complete.machines,
    help="Share this machine, made if need be, which stays.  [default: one of its own]",
)
@click.option(
    "--vm-memory", default="512M", show_default=True, metavar="SIZE", help="Memory of a machine that is made."
)
@click.option("--vm-cpus", type=int, default=1, show_default=True, metavar="N", help="Its number of vCPUs.")
@click.option(
    "--vm-disk",
    default="",
    metavar="SIZE",
    help="Its disk for what containers write, /dev/vdb.  [default: they write to memory]",
)
@click.option(
    "--runtime",
    type=click.Choice(["pykvm", "crun", "runc"]),
    default="pykvm",
    help="Who makes it: the guest's agent or, to compare, Debian's crun or runc.  [default: pykvm]",
)
@click.option(
    "--explain", is_flag=True, help="Show each step of its making: the syscall, its effect, its time."
)
def run_command(image: str, words: tuple[str, ...], **given: Any) -> int:
    """Make a container from IMAGE and run COMMAND in it, or what the image says.

    An image that is not here is pulled; busybox is made of Debian's package, without any registry. Without
    --vm the container has a machine of its own, which ends with it.

    \b
    The exit status is the command's own, or
      125 pykvm failed    126 can't be executed    127 not found    128+n ended by signal n

    \b
    Examples:
      pykvm container run --rm -it busybox               a shell, gone when it ends
      pykvm container run -d --name web -p 8080:80 busybox httpd -f
      pykvm container run --memory 16m busybox tail /dev/zero     what a limit does
      pykvm container run --vm lab --explain busybox true         each step, in a machine that stays
      pykvm container run -v "$PWD:/src:ro" -w /src busybox ls -l

    """  # noqa: D301 - click wants the \b itself
    from pykvm.cli.container_parts import StepPrinter, watch
    from pykvm.containers.records import StateError
    from pykvm.containers.running import start_container
    from pykvm.registry import Room

    if given["tty"] and given["interactive"] and not given["detach"] and not os.isatty(0):
        raise StateError("the input device is not a TTY")
    containers, record, guest = _made(image, words, given)
    attach = not given["detach"]
    with Room() as room:
        try:
            link = start_container(room, containers, record, guest, attach=attach, explain=given["explain"])
        except BaseException:
            containers.remove(record)
            raise
    reads = given["interactive"]
    with link:
        return watch(link, record, record.id, attach=attach, reads=reads, on_event=StepPrinter())


def _create(image: str, words: tuple[str, ...], **given: Any) -> None:
    """Make a container from IMAGE, for `start` to begin; print its ID.

    The options are those of `run`.
    """
    _, record, _ = _made(image, words, given)
    click.echo(record.id)


create_command = click.Command(
    "create",
    context_settings=run_command.context_settings,
    params=[one for one in run_command.params if one.name not in {"detach", "explain"}],
    callback=_create,
    help=_create.__doc__,
)


def _made(
    image: str, words: tuple[str, ...], given: Mapping[str, Any]
) -> tuple[ContainerStore, Record, GuestOptions]:
    """A container that has not begun, and the machine that it wants."""
    from pykvm.cli.container_parts import notice, stores
    from pykvm.cli.progress import bars
    from pykvm.containers.guest_options import GuestOptions
    from pykvm.containers.running import Wish, add_container, find_image
    from pykvm.containers.runtimes import OWN_RUNTIME

    options = _options(words, given)
    store, containers = stores()
    with bars() as progress:
        entry = find_image(store, image, notice, progress)
    has_volumes = bool(given["vm"] or given["volumes"])
    others = () if given["runtime"] == OWN_RUNTIME else (given["runtime"],)
    guest = GuestOptions(
        given["vm_memory"], given["vm_cpus"], given["vm_disk"], has_volumes, not given["vm"], others
    )
    wish = Wish(image, given["name"], given["vm"], given["remove"], given["runtime"], guest)
    return containers, add_container(store, containers, wish, options, entry), guest


def _options(words: tuple[str, ...], given: Mapping[str, Any]) -> RunOptions:
    from pykvm.containers import capabilities
    from pykvm.containers import run_options as read

    capabilities.chosen(given["cap_add"], given["cap_drop"])
    no_new, profile = _security(given["security_opt"])
    return read.RunOptions(
        command=words,
        tty=given["tty"],
        interactive=given["interactive"],
        env=read.parse_env(given["env"], os.environ),
        workdir=given["workdir"],
        user=given["user"],
        group_add=given["group_add"],
        hostname=read.parse_hostname(given["hostname"]),
        entrypoint=given["entrypoint"],
        read_only=given["read_only"],
        tmpfs=dict(map(read.parse_tmpfs, given["tmpfs"])),
        limits=read.limits_of(given, _cpus(given)),
        cap_add=given["cap_add"],
        cap_drop=given["cap_drop"],
        no_new_privileges=no_new,
        seccomp=profile,
        ulimits=dict(map(read.parse_ulimit, given["ulimits"])),
        network=given["network"] or ("bridge" if given["publish"] else "none"),
        volumes=tuple(map(read.parse_volume, given["volumes"])),
        publish=tuple(map(read.parse_publish, given["publish"])),
        init=given["init"],
        labels={name: value for name, _, value in (one.partition("=") for one in given["labels"])},
        stop_signal=given["stop_signal"],
        shm_bytes=read.parse_bytes(given["shm_size"], "--shm-size"),
    )


def _cpus(given: Mapping[str, Any]) -> int:
    """How many vCPUs the machine has, or will have."""
    from pykvm.containers.launch import machine_cpus
    from pykvm.registry import Room

    with Room() as room:
        if given["vm"] and room.is_running(given["vm"]):
            return machine_cpus(room, given["vm"])
    return int(given["vm_cpus"])


def _security(texts: tuple[str, ...]) -> tuple[bool, dict[str, Any] | None]:
    """no-new-privileges[:true|:false], seccomp=FILE|unconfined."""
    from pathlib import Path

    from pykvm.containers.seccomp import parse_profile
    from pykvm.errors import ConfigError

    no_new, profile = False, None
    for text in texts:
        name, _, value = text.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges" and value in {"", "true", "false"}:
            no_new = value != "false"
        elif name == "seccomp" and value == "unconfined":
            profile = {}
        elif name == "seccomp" and value:
            try:
                profile = parse_profile(Path(value).read_bytes(), value)
            except OSError as error:
                raise ConfigError(f"opening seccomp profile ({value}) failed: {error.strerror}") from None
        else:
            raise ConfigError(
                f"Invalid --security-opt: {text!r}; there are no-new-privileges and seccomp=FILE|unconfined"
            )
    return no_new, profile
