"""What a shell completes: names of containers in the states that a command takes, of images, of machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

__all__ = ["containers", "containers_or_files", "images", "machines", "signals"]


def containers(*states: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """A function for `shell_complete`: names of containers in these states, or of all."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from pykvm.containers.listing import state_text
        from pykvm.containers.records import ContainerStore

        given = {name for value in ctx.params.values() if isinstance(value, tuple) for name in value}
        return [
            CompletionItem(one.name, help=state_text(one))
            for one in ContainerStore().all()
            if (not states or one.state in states)
            and one.name.startswith(incomplete)
            and one.name not in given
        ]

    return complete


def containers_or_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """For `cp`: CONTAINER: or a file of this host."""
    from click.shell_completion import CompletionItem

    if incomplete.startswith(("/", ".")):
        return [CompletionItem(incomplete, type="file")]
    found = [CompletionItem(f"{one.value}:") for one in containers()(ctx, param, incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def images(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """Names of images; without a tag where it is `latest`, unless one is begun."""
    from click.shell_completion import CompletionItem

    from pykvm.containers.store import ImageStore

    names = [one.name.familiar for one in ImageStore().entries() if one.name]
    plain = names if ":" in incomplete else [name.removesuffix(":latest") for name in names]
    return [CompletionItem(name) for name in plain if name.startswith(incomplete)]


def machines(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """Names of machines that run."""
    from click.shell_completion import CompletionItem

    from pykvm.registry import Room

    with Room() as room:
        return [
            CompletionItem(one.name, help=str(one.about.get("image", "")))
            for one in room.entries()
            if one.name.startswith(incomplete)
        ]


def signals(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """TERM, KILL, …"""
    import signal

    from click.shell_completion import CompletionItem

    names = [one.name.removeprefix("SIG") for one in signal.Signals]
    return [CompletionItem(name) for name in names if name.startswith(incomplete.upper())]
