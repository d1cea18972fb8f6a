"""pykvm container cp, diff, commit, export."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pykvm.cli import complete
from pykvm.cli.container_parts import seen, stores

if TYPE_CHECKING:
    from pykvm.containers.calls import AgentClient
    from pykvm.containers.documents import Image
    from pykvm.containers.ended import EndedFiles
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

    def ended(self) -> EndedFiles:
        """Its files, where it does not run."""
        from pykvm.containers.ended import EndedFiles

        return EndedFiles(self.store, self.image, self.upper(), self.record)

    def upper(self, *, content: bool = True) -> IO[bytes]:
        from pykvm.containers.changes import upper_of

        return self._stack.enter_context(upper_of(self.containers, self.record, self.client, content=content))


@click.command("diff")
@click.argument("name", metavar="CONTAINER", shell_complete=complete.containers())
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
@click.argument("name", metavar="CONTAINER", shell_complete=complete.containers())
@click.argument("target", metavar="[REPOSITORY[:TAG]]", required=False, shell_complete=complete.images)
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
    """Make an image of a container's files as they are now, running or not; print its ID.

    \b
    Examples:
      pykvm container commit web site:2
      pykvm container commit -c 'CMD ["httpd","-f"]' -m "with httpd" web site
    """  # noqa: D301 - click wants the \b itself
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
@click.argument("name", metavar="CONTAINER", shell_complete=complete.containers())
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
    from pykvm.containers.transfers import save_tar

    if target is None and sys.stdout.isatty():
        raise click.UsageError("a tar is nothing for a terminal: name a file with -o FILE, or use a pipe")
    with ExitStack() as stack:
        opened = _Opened(stack, name)
        file = stack.enter_context(target.open("wb")) if target else sys.stdout.buffer
        if opened.client:
            save_tar(opened.client, file, "export", name=opened.record.short)
        else:
            opened.ended().export(file)


@click.command("cp")
@click.argument("source", metavar="SOURCE", shell_complete=complete.containers_or_files)
@click.argument("target", metavar="TARGET", shell_complete=complete.containers_or_files)
@click.option("-L", "--follow-link", is_flag=True, help="Copy what a link SOURCE leads to.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of what was done.")
def cp_command(source: str, target: str, follow_link: bool, quiet: bool) -> None:
    """Copy files: CONTAINER:PATH to a PATH here, or a PATH here to CONTAINER:PATH. - is a tar.

    A folder comes with all that is in it; PATH/. is what is in the folder without itself. The container need
    not run.

    \b
    Examples:
      pykvm container cp web:/var/log ./log
      pykvm container cp site/. web:/www
      pykvm container cp web:/etc - | tar t
    """  # noqa: D301 - click wants the \b itself
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
    from pykvm.containers.transfers import save_tar
    from pykvm.errors import ConfigError

    with opened.containers.scratch() as tar:
        if opened.client:
            save_tar(opened.client, tar, "copy_out", name=opened.record.short, path=path, follow=follow)
        else:
            opened.ended().copy_out(path, tar, follow=follow)
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
    from pykvm.containers.copying import folder_in, pack, put, target_in
    from pykvm.errors import ConfigError

    client, name = opened.client, opened.record.short
    ended = None if client else opened.ended()

    def about(there: str) -> bool | None:
        return ended.is_folder(there) if ended else folder_in(client, name, there)

    def place(tar: IO[bytes], folder: str) -> None:
        if ended:
            ended.copy_in(opened.containers, tar, folder)
        elif client:
            put(client, tar, name=name, path=folder)

    if source == "-":
        if not about(path):
            raise ConfigError(f"destination directory must exist: {path}")
        place(sys.stdin.buffer, path)
        return
    here = Path(source)
    if not here.exists() and not here.is_symlink():
        raise ConfigError(f"{source}: no such file or directory")
    contents = source.endswith("/.")
    folder, last = target_in(about, path, here.resolve().name, is_folder=here.is_dir())
    with opened.containers.scratch() as tar:
        pack(here, tar, last, contents=contents and folder == path)
        tar.seek(0)
        place(tar, folder)
