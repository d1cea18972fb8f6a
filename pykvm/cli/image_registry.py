"""pykvm image pull and push: images from registries and to them."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.store import ImageStore

__all__ = ["pull", "push"]

_plain = click.option(
    "--plain-http",
    "plain",
    is_flag=True,
    help="Use HTTP without TLS; this machine's own addresses always do.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print only the result, for machines.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Print only the result.")


@click.command()
@click.argument("name")
@click.option(
    "--platform", metavar="OS/ARCH", default="linux/amd64", show_default=True, help="For which machine."
)
@_plain
@_quiet
@_as_json
@click.pass_obj
def pull(
    store: Callable[[], ImageStore], name: str, platform: str, plain: bool, quiet: bool, as_json: bool
) -> None:
    """Fetch an image from a registry.

    NAME is as docker has it: busybox, ghcr.io/me/app:1, localhost:5000/app, or with @ and a digest. What
    `docker login` has stored is used where a registry wants a login. A pull that broke off goes on where it
    was.
    """
    from pykvm.cli.progress import bars
    from pykvm.containers.documents import Platform
    from pykvm.containers.names import parse_name
    from pykvm.containers.registry import Registry

    wanted, machine = parse_name(name).with_tag(), Platform.parse(platform)
    quiet = quiet or as_json
    with bars(quiet=quiet) as progress:
        registry = Registry(store(), wanted, plain=plain, progress=progress, notice=_teller(quiet=quiet))
        with closing(registry):
            image = registry.pull(machine)
    found = {"name": wanted.familiar, "id": image.id, "digest": image.digest}
    click.echo(json.dumps(found) if as_json else wanted.full)


@click.command()
@click.argument("name")
@click.argument("target", required=False)
@_plain
@_quiet
@_as_json
@click.pass_obj
def push(
    store: Callable[[], ImageStore],
    name: str,
    target: str | None,
    plain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send an image to a registry.

    It is the one that NAME says, or that TARGET says. Layers that are there already are not sent again.
    """
    from pykvm.cli.progress import bars
    from pykvm.containers.names import parse_name
    from pykvm.containers.registry import Registry

    opened = store()
    entry = opened.find(name)
    wanted = parse_name(target or name).with_tag()
    quiet = quiet or as_json
    with bars(quiet=quiet) as progress:
        registry = Registry(opened, wanted, plain=plain, progress=progress, notice=_teller(quiet=quiet))
        with closing(registry):
            digest = registry.push(entry)
    if as_json:
        click.echo(json.dumps({"name": wanted.familiar, "digest": digest}))
    elif quiet:
        click.echo(f"{wanted.familiar_repository}@{digest}")


def _teller(*, quiet: bool) -> Callable[[str], None]:
    def tell(what: str) -> None:
        if not quiet:
            click.echo(what)

    return tell
