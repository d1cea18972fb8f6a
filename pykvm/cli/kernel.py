"""pykvm kernel: the Linux kernel that `pykvm run linux` boots."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["command"]


@click.group()
def command() -> None:
    """The Linux kernel that `pykvm run linux` boots: Debian's, fetched and installed nowhere.

    \b
    Examples:
      pykvm kernel fetch
      pykvm kernel show --json
    """  # noqa: D301 - click wants the \b itself


@command.command()
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it works.")
def fetch(quiet: bool) -> None:
    """Fetch Debian's newest cloud kernel, and busybox for its initramfs, unless the cache has them.

    apt downloads and verifies them; no root is needed. They are kept in ~/.cache/pykvm/lab, or below
    XDG_CACHE_HOME.
    """
    from pykvm.lab.store import Store
    from pykvm.linux.kit import fetch_kit

    found = fetch_kit(Store(), lambda text: None if quiet else click.echo(f"pykvm: {text}", err=True))
    click.echo(found.kernel.image)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def show(as_json: bool) -> int:
    """Say what the cache has; exit status 1 if a part is missing."""
    import json

    from pykvm.lab.store import Store
    from pykvm.linux.kit import cached_kit

    found = cached_kit(Store())
    about: dict[str, Any] = {}
    if found:
        about = {
            "release": found.kernel.release,
            "image": str(found.kernel.image),
            "modules": str(found.kernel.modules),
            "busybox": str(found.busybox),
        }
    if as_json:
        click.echo(json.dumps(about, indent=2))
    elif not found:
        click.echo("pykvm: there is no kernel in the cache; `pykvm kernel fetch` gets one", err=True)
    for name, value in about.items() if not as_json else ():
        click.echo(f"{name:<8} {value}")
    return 0 if found else 1
