"""pykvm container cp, diff, commit, export."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pykvm.cli.container_parts import seen, stores

if TYPE_CHECKING:
    from pykvm.containers.calls import AgentClient
    from pykvm.containers.documents import Image
    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["commit_command", "cp_command", "diff_command", "export_command"]


class _Opened:
    """A container with its image, and its agent while it runs."""

    def __init__(self, stack: ExitStack, text: str) -> None:
        from pykvm.containers.launch import agent_of

        self.containers: ContainerStore
        self.containers, room = stack.enter_context(seen())
        self.record: Record = self.containers.find(text)
        self.store: ImageStore = stores()[0]
        self.client: AgentClient | None = None
        if self.record.is_live:
            self.client = stack.enter_context(agent_of(room, self.record))
        self._stack = stack

    @property
    def image(self) -> Image:
        return self.store.image(self.store.find(self.record.image_id).descriptor)

    def upper(self, *, content: bool = True) -> IO[bytes]:
        from pykvm.containers.changes import upper_of

        return self._stack.enter_context(upper_of(self.containers, self.record, self.client, content=content))


@click.command("diff")
@click.argument("name", metavar="CONTAINER")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def diff_command(name: str, as_json: bool) -> None:
    """Show what a container changed in its files: A added, C changed, D deleted."""
    from pykvm.containers.changes import changes_of

    with ExitStack() as stack:
        opened = _Opened(stack, name)
        changes = changes_of(opened.store, opened.image, opened.upper(content=False), opened.record)
    if as_json:
        click.echo(json.dumps([change.as_json() for change in changes], indent=2))
        return
    for change in changes:
        click.echo(f"{change.kind} /{change.path}")


@click.command("commit")
@click.argument("name", metavar="CONTAINER")
@click.argument("target", metavar="[REPOSITORY[:TAG]]", required=False)
@click.option("-a", "--author", default="", metavar="TEXT", help="Who made it.")
@click.option("-m", "--message", default="", metavar="TEXT", help="A remark, for `image history`.")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="CMD, ENTRYPOINT, ENV, LABEL, USER or WORKDIR.",
)
@click.option(
    "-p", "--pause/--no-pause", default=True, help="Hold the container meanwhile.  [default: pause]"
)
def commit_command(name: str, target: str | None, changes: tuple[str, ...], **given: Any) -> None:
    """Make an image of a container's files as they are now, running or not; print its ID."""
    from pykvm.containers.committing import commit
    from pykvm.containers.names import parse_name

    wanted = parse_name(target).with_tag() if target else None
    with ExitStack() as stack:
        opened = _Opened(stack, name)
        record, client = opened.record, opened.client
        if client and given["pause"] and record.state == "running":
            client.ask("pause", 20, name=record.short)
            stack.callback(client.ask, "unpause", 20, name=record.short)
        image = commit(
            opened.store,
            opened.image,
            record,
            opened.upper(),
            wanted,
            author=given["author"],
            message=given["message"],
            changes=changes,
        )
    click.echo(image.id)


@click.command("export")
@click.argument("name", metavar="CONTAINER")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write there.  [default: stdout]",
)
def export_command(name: str, target: Path | None) -> None:
    """Write all files of a container as one tar, without what is mounted in it."""
    from pykvm.containers.changes import export_ended
    from pykvm.containers.service import save_tar

    if target is None and sys.stdout.isatty():
        raise click.UsageError("a tar is nothing for a terminal: name a file with -o FILE, or use a pipe")
    with ExitStack() as stack:
        opened = _Opened(stack, name)
        file = stack.enter_context(target.open("wb")) if target else sys.stdout.buffer
        if opened.client:
            save_tar(opened.client, file, "export", name=opened.record.short)
        else:
            export_ended(opened.store, opened.image, opened.upper(), opened.record, file)


@click.command("cp")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("-L", "--follow-link", is_flag=True, help="Copy what a link SOURCE leads to.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of what was done.")
def cp_command(source: str, target: str, follow_link: bool, quiet: bool) -> None:
    """Copy files: CONTAINER:PATH to a PATH here, or a PATH here to CONTAINER:PATH. - is a tar.

    A folder comes with all that is in it; PATH/. is what is in the folder without itself.
    """
    from pykvm.errors import ConfigError

    here, there = _split(source), _split(target)
    if bool(here[0]) == bool(there[0]):
        raise ConfigError(
            "copying between containers is not supported" if here[0] else "name a container: CONTAINER:PATH"
        )
    with ExitStack() as stack:
        opened = _Opened(stack, here[0] or there[0])
        if here[0]:
            _out(opened, here[1], target, follow=follow_link)
        else:
            _in(opened, source, there[1])
    if not quiet and "-" not in (source, target):
        click.echo(f"Successfully copied {source} to {target}", err=True)


def _split(text: str) -> tuple[str, str]:
    """The container and the path in it; no container for a path here."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or text == "-":
        return "", text
    return name, path if path.startswith("/") else f"/{path}"


def _out(opened: _Opened, path: str, target: str, *, follow: bool) -> None:
    from pykvm.containers.copying import unpack
    from pykvm.containers.records import StateError
    from pykvm.containers.service import save_tar
    from pykvm.errors import ConfigError

    if opened.client is None:
        raise StateError(
            f"container {opened.record.name} has ended; `pykvm container export` gives its files"
        )
    with opened.containers.scratch() as tar:
        save_tar(opened.client, tar, "copy_out", name=opened.record.short, path=path, follow=follow)
        tar.seek(0)
        if target == "-":
            while piece := tar.read(1 << 18):
                sys.stdout.buffer.write(piece)
            return
        where = Path(target)
        if where.is_dir():
            unpack(tar, where, contents=path.endswith("/."))
        elif where.parent.is_dir() and not target.endswith("/"):
            unpack(tar, where.parent, rename=where.name)
        else:
            raise ConfigError(f"{target}: no such directory")


def _in(opened: _Opened, source: str, path: str) -> None:
    from pykvm.containers.copying import pack, put, target_in
    from pykvm.containers.records import StateError
    from pykvm.errors import ConfigError

    client, name = opened.client, opened.record.short
    if client is None:
        raise StateError(f"container {opened.record.id} is not running")
    if source == "-":
        put(client, sys.stdin.buffer, name=name, path=path)
        return
    here = Path(source)
    if not here.exists() and not here.is_symlink():
        raise ConfigError(f"{source}: no such file or directory")
    contents = source.endswith("/.")
    folder, last = target_in(client, name, path, here.resolve().name, is_folder=here.is_dir())
    with opened.containers.scratch() as tar:
        pack(here, tar, last, contents=contents and folder == path)
        tar.seek(0)
        put(client, tar, name=name, path=folder)
