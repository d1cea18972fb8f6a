"""pykvm image build: an image from a pykvm-file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.store import ImageStore

__all__ = ["build"]

_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)
_HELP = """Build an image from instructions.

They stand in a file, and are about the files in the directory CONTEXT. No daemon, no root, no network but for
Debian's packages. The instructions are a Dockerfile's:

\b
  FROM scratch | IMAGE | ./directory | ./archive.tar | debian: PACKAGE...
  COPY [--chown=USER:GROUP] [--chmod=MODE] SOURCE... TARGET
  RUN COMMAND (for /bin/sh, or a JSON list)
  ENV, LABEL NAME=VALUE...      WORKDIR, USER      CMD, ENTRYPOINT (words, or a JSON list)

`debian:` takes packages with all they depend on, by apt, without running their scripts. RUN runs in a guest,
without a network. Layers are kept: what has not changed is not done again. The same files give the same
digests.

\b
Example of a Pykvmfile:
  FROM debian: busybox-static
  COPY greet /bin/greet
  CMD ["/bin/busybox", "sh", "/bin/greet"]
"""


@click.command(help=_HELP)
@click.argument("context", type=_DIRECTORY)
@click.option("-t", "--tag", "name", metavar="NAME", help="Name the image so.")
@click.option(
    "-f",
    "--file",
    "path",
    metavar="FILE",
    help="The instructions; - is stdin.  [default: CONTEXT/Pykvmfile, else CONTEXT/Dockerfile]",
)
@click.option("--no-cache", is_flag=True, help="Do everything again.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the image's ID.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built, for machines.")
@click.pass_obj
def build(
    store: Callable[[], ImageStore],
    context: Path,
    name: str | None,
    path: str | None,
    no_cache: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build an image from a file of instructions and a directory."""
    import json

    from pykvm.containers.build import build as build_image
    from pykvm.containers.names import parse_name
    from pykvm.containers.views import short

    def notice(what: str) -> None:
        if not quiet and not as_json:
            click.echo(what)

    tag = parse_name(name).with_tag() if name else None
    text, where = _instructions(context, path)
    built = build_image(store(), context, text, where, tag, use_cache=not no_cache, notice=notice)
    if as_json:
        steps = [{"step": step, "cached": cached} for step, cached in built.steps]
        found = {
            "id": built.image.id,
            "digest": built.image.digest,
            "name": tag and tag.familiar,
            "steps": steps,
        }
        click.echo(json.dumps(found, indent=2))
    elif quiet:
        click.echo(built.image.id)
    else:
        click.echo(f"Successfully built {short(built.image.id)}")
        if tag:
            click.echo(f"Successfully tagged {tag.familiar}")


def _instructions(context: Path, path: str | None) -> tuple[str, str]:
    """The text, and what to call it in errors."""
    import sys

    from pykvm.errors import ConfigError

    if path == "-":
        return sys.stdin.read(), "standard input"
    named = [Path(path)] if path else [context / "Pykvmfile", context / "Dockerfile"]
    found = next((one for one in named if one.is_file()), None)
    if found is None:
        raise ConfigError(
            f"{named[0]}: no such file; it says how the image is built (pykvm image build --help)"
        )
    try:
        return found.read_text(), str(found)
    except UnicodeDecodeError:
        raise ConfigError(f"{found}: is no text in UTF-8") from None
