"""pykvm container exec: one more process in a container."""

from __future__ import annotations

import os
from typing import Any

import click

from pykvm.cli import complete

__all__ = ["exec_command"]


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("name", metavar="CONTAINER", shell_complete=complete.containers("running"))
@click.argument("words", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Give it our input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Let it run by itself.")
@click.option(
    "-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable; without VALUE as it is here."
)
@click.option("-w", "--workdir", default="", metavar="PATH", help="Where the command starts.")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]", help="Who the command runs as.")
@click.option("--explain", is_flag=True, help="Show each step: the syscall, its effect, its time.")
def exec_command(name: str, words: tuple[str, ...], **given: Any) -> int:
    """Run COMMAND in a container that runs, with its namespaces, limits, capabilities and seccomp filter.

    \b
    The exit status is the command's own, or
      125 pykvm failed    126 can't be executed    127 not found    128+n ended by signal n

    \b
    Examples:
      pykvm container exec -it web sh
      pykvm container exec -u nobody web id
      pykvm container exec web cat /sys/fs/cgroup/memory.current
    """  # noqa: D301 - click wants the \b itself
    from pykvm.cli.container_parts import StepPrinter, agent, notice, stores
    from pykvm.containers.calls import AgentError
    from pykvm.containers.entering import entry_request
    from pykvm.containers.keeping import failure_status
    from pykvm.containers.records import StateError
    from pykvm.containers.run_options import parse_env
    from pykvm.containers.talk import AgentPeer, DetachedError, converse

    if given["tty"] and given["interactive"] and not os.isatty(0):
        raise StateError("the input device is not a TTY")
    show_step = StepPrinter()
    env = parse_env(given["env"], os.environ)
    with agent(name) as (containers, record, client):
        if record.state == "paused":
            notice(f"pykvm: Container {record.name} is paused, unpause the container before exec")
            return 1
        request = entry_request(stores()[0], containers, record, words, env, given)
        call = client.open("exec", **request)
        try:
            pid = int(call.answer(60).get("pid") or 0)
        except AgentError as error:
            for item in call.so_far():
                if isinstance(item, dict):
                    show_step(item)
            notice(f"pykvm: {error}")
            return failure_status(error)
        if given["detach"]:
            return 0
        peer = AgentPeer(client, call, {"name": record.short, "pid": pid})
        if not given["interactive"]:
            call.end_input()
        try:
            ending = converse(peer, reads=given["interactive"], is_tty=given["tty"], on_event=show_step)
        except DetachedError:
            return 0
    return int(ending.get("status") or 0)
