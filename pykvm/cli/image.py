"""pykvm image: container images on this host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pykvm.cli import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.store import ImageStore

__all__ = ["command"]

_FILE = click.Path(path_type=Path)
_HELP = """Load, save, build, pull, push and show container images.

No daemon, no root, no Docker: images are kept below ~/.local/share/pykvm (PYKVM_DATA or --root changes it)
as one OCI image layout, which other tools read as well. Layers are kept once, however many images have them,
and every digest is verified on the way in and out. Names, words and outputs are docker's.

\b
Examples:
  pykvm image build -t tools .        make an image as ./Pykvmfile says
  docker save busybox | pykvm image load
  pykvm image ls --tree               the layers and who shares them
  pykvm image diff tools:1 tools:2    which files differ
  pykvm image push tools localhost:5000/tools
  pykvm image verify                  hold all that is kept against its digests
"""
_as_json = click.option("--json", "as_json", is_flag=True, help="For machines.")
_no_trunc = click.option("--no-trunc", is_flag=True, help="Show IDs and texts in full.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress, print only IDs.")


_ELSEWHERE = {"build": "image_build", "pull": "image_registry", "push": "image_registry"}  # their files


class _Lazy(click.Group):
    """Commands with files of their own are loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            from importlib import import_module

            found: click.Command = getattr(import_module(f"pykvm.cli.{_ELSEWHERE[cmd_name]}"), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Lazy, help=_HELP)
@click.option("--root", type=_FILE, metavar="DIR", help="Keep images there instead.  [default: see above]")
@click.option("--max-size", metavar="SIZE", help="Refuse images that unpack to more.  [default: 8G]")
@click.pass_context
def command(ctx: click.Context, /, root: Path | None, max_size: str | None) -> None:
    """Load, save, build, pull, push and show container images."""

    def store() -> ImageStore:
        from pykvm.containers.limits import Limits
        from pykvm.containers.store import ImageStore

        limits = Limits()
        if max_size:
            from pykvm.memory import parse_size

            limits = Limits(image_bytes=parse_size(max_size))
        return ImageStore(root and root.absolute(), limits, lambda what: click.echo(what, err=True))

    ctx.obj = store


@command.command()
@click.option(
    "-i",
    "--input",
    "source",
    type=_FILE,
    metavar="FILE",
    help="Read this archive or directory.  [default: stdin]",
)
@click.option("-t", "--tag", "name", metavar="NAME", help="Name the image so, whatever the archive says.")
@click.option(
    "--platform",
    metavar="OS/ARCH",
    default="linux/amd64",
    show_default=True,
    help="Which, if there are several.",
)
@_quiet
@_as_json
@click.pass_obj
def load(
    store: Callable[[], ImageStore],
    source: Path | None,
    name: str | None,
    platform: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Load images from an archive.

    It is what `docker save` writes, or an OCI layout, as a tar or a directory; it may be packed with gzip or
    zstd. Layers that are here already are not kept twice.
    """
    import sys

    from pykvm.cli.progress import bars
    from pykvm.containers.archive import load as load_archive
    from pykvm.containers.documents import Platform
    from pykvm.containers.names import parse_name

    if source is None and sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal: name an archive with -i FILE, or pipe one in")
    tag = parse_name(name).with_tag() if name else None
    with bars(quiet=quiet) as progress:
        found = load_archive(store(), source or sys.stdin.buffer, tag, Platform.parse(platform), progress)
    if as_json:
        click.echo(_json([one.as_json() for one in found]))
    for one in [] if as_json else found:
        text = f"Loaded image: {one.name.familiar}" if one.name else f"Loaded image ID: {one.image.id}"
        click.echo(one.image.id if quiet else text)


@command.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images)
@click.option("-o", "--output", "target", type=_FILE, metavar="FILE", help="Write there.  [default: stdout]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["docker", "oci"]),
    default="docker",
    show_default=True,
    help="docker: an OCI layout that docker of any age reads, too.",
)
@click.pass_obj
def save(store: Callable[[], ImageStore], images: tuple[str, ...], target: Path | None, form: str) -> None:
    """Write images into one archive.

    The same images give the same bytes, and each layer is in it once.
    """
    import sys

    from pykvm.cli.progress import bars
    from pykvm.containers.archive import save as save_archive

    if target is None and sys.stdout.isatty():
        raise click.UsageError(
            "an archive is nothing for a terminal: name a file with -o FILE, or use a pipe"
        )
    opened = store()
    entries = [opened.find(image) for image in images]
    with bars() as progress:
        save_archive(opened, entries, target or sys.stdout.buffer, docker=form == "docker", progress=progress)


@command.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--tree", is_flag=True, help="Draw the layers: which stands on which, with sizes and tags.")
@click.option("--digests", is_flag=True, help="Show the manifests' digests, too.")
@_no_trunc
@click.option("-q", "--quiet", is_flag=True, help="Print only IDs.")
@_as_json
@click.pass_obj
def ls(
    store: Callable[[], ImageStore],
    names: tuple[str, ...],
    tree: bool,
    digests: bool,
    no_trunc: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """List images, the newest first.

    NAME takes those of a repository, or of one tag in it: busybox, me/app:1. SIZE is that of all layers,
    shared ones too.
    """
    from pykvm.containers import views

    if tree:
        nodes = views.layer_tree(store(), names)
        lines = views.tree_lines(nodes)
        click.echo(
            _json([node.as_json() for node in nodes]) if as_json else "\n".join(lines),
            nl=as_json or bool(lines),
        )
        return
    found = views.rows(store(), names)
    if as_json:
        click.echo(_json(found))
        return
    if quiet:
        for image_id in dict.fromkeys(row["id"] for row in found):
            click.echo(image_id if no_trunc else views.short(image_id))
        return
    head = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "CREATED", "SIZE"]
    _table(
        head,
        [
            [
                row["repository"],
                row["tag"],
                *([row["digest"]] if digests else []),
                row["id"] if no_trunc else views.short(row["id"]),
                views.age(row["created"]),
                "damaged" if row["damage"] else views.size(row["size_bytes"]),
            ]
            for row in found
        ],
    )


@command.command()
@click.argument("image", shell_complete=complete.images)
@_no_trunc
@_as_json
@click.pass_obj
def history(store: Callable[[], ImageStore], image: str, no_trunc: bool, as_json: bool) -> None:
    """Show the steps that made an image.

    The last one comes first. SIZE is what a step has put into its layer.
    """
    from pykvm.containers import views

    opened = store()
    found = views.history(opened, opened.image(opened.find(image).descriptor))
    if as_json:
        click.echo(_json(found))
        return
    _table(
        ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
        [
            [
                row["id"] if no_trunc or row["id"].startswith("<") else views.short(row["id"]),
                views.age(row["created"]),
                _cut(row["created_by"], 45, no_trunc=no_trunc),
                views.size(row["size_bytes"]),
                _cut(row["comment"], 45, no_trunc=no_trunc),
            ]
            for row in found
        ],
    )


@command.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images)
@click.pass_obj
def inspect(store: Callable[[], ImageStore], images: tuple[str, ...]) -> None:
    """Print all that is known of images.

    As JSON, under docker's keys: configuration, digests, and each layer with its sizes.
    """
    from pykvm.containers import views

    opened = store()
    click.echo(_json([views.inspect(opened, opened.find(image)) for image in images]))


@command.command()
@click.argument("image_a", metavar="A", shell_complete=complete.images)
@click.argument("image_b", metavar="[B]", required=False, shell_complete=complete.images)
@click.option("--layers", is_flag=True, help="Layer by layer; what both share is named once.")
@_as_json
@click.pass_obj
def diff(
    store: Callable[[], ImageStore], image_a: str, image_b: str | None, layers: bool, as_json: bool
) -> None:
    """Show which files differ from A to B.

    A file was A added, C changed, or D deleted. With one image, what each of its layers changes. Times of
    change alone are no difference.
    """
    from pykvm.containers import views
    from pykvm.containers.tree import changes_between, layered_changes
    from pykvm.output import printable

    opened = store()
    old = opened.image(opened.find(image_a).descriptor)
    new = opened.image(opened.find(image_b).descriptor) if image_b else None
    if new and not layers:
        changes = changes_between(opened, old, new)
        if as_json:
            click.echo(_json([change.as_json() for change in changes]))
        for change in [] if as_json else changes:
            click.echo(f"{change.kind} /{printable(change.path)}")
        return
    found = layered_changes(opened, old, new)
    if as_json:
        click.echo(_json([one.as_json() for one in found]))
        return
    for one in found:
        made_by = "in both" if one.side == "=" else _cut(one.created_by, 60, no_trunc=False)
        click.echo(f"{one.side} layer {views.short(one.diff_id)}  {made_by}".rstrip())
        for change in one.changes:
            click.echo(f"    {change.kind} /{printable(change.path)}")


@command.command()
@click.argument("source", shell_complete=complete.images)
@click.argument("target")
@click.pass_obj
def tag(store: Callable[[], ImageStore], source: str, target: str) -> None:
    """Give an image one more name.

    SOURCE is a name or an ID; TARGET, if another image has that name, goes over to this one.
    """
    from pykvm.containers.names import parse_name
    from pykvm.errors import ConfigError

    opened, name = store(), parse_name(target).with_tag()
    if name.digest:
        raise ConfigError(f"{target}: a name to give has no digest; the image has its own")
    with opened.using():
        opened.tag(opened.find(source).descriptor, name)


@command.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete.images)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Take all names of an ID away; and remove what containers that ended need.",
)
@_as_json
@click.pass_obj
def rm(store: Callable[[], ImageStore], images: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove images, or names of them.

    With its last name goes an image, and with it the layers that no other needs. One that can't be removed
    does not keep the others; the exit status is that of the last error.
    """
    from dataclasses import asdict

    from pykvm.containers.removal import Removed, remove
    from pykvm.errors import PykvmError
    from pykvm.output import printable

    opened, every = store(), Removed([], [])
    failed: PykvmError | None = None
    for image in images:
        try:
            removed = remove(opened, image, force=force)
        except PykvmError as error:
            if failed:
                click.echo(f"pykvm: {printable(str(failed))}", err=True)
            failed = error
            continue
        every.untagged += removed.untagged
        every.deleted += removed.deleted
        every.freed_bytes += removed.freed_bytes
        for name in [] if as_json else removed.untagged:
            click.echo(f"Untagged: {name}")
        for digest in [] if as_json else removed.deleted:
            click.echo(f"Deleted: {digest}")
    if as_json:
        click.echo(_json(asdict(every)))
    if failed:
        raise failed


@command.command()
@click.option("--untagged", is_flag=True, help="Remove images without a name first.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go.")
@_as_json
@click.pass_obj
def gc(store: Callable[[], ImageStore], untagged: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what no image needs.

    These are blobs, file systems of layers, and what killed processes left. Images stay, but for those
    without a name if --untagged says so.
    """
    from dataclasses import asdict

    from pykvm.containers import views
    from pykvm.containers.removal import collect_garbage

    removed = collect_garbage(store(), untagged=untagged, dry_run=dry_run)
    if as_json:
        click.echo(_json(asdict(removed)))
        return
    for digest in removed.deleted:
        click.echo(f"Deleted: {digest}")
    click.echo(f"Total reclaimed space: {views.size(removed.freed_bytes)}")


@command.command()
@click.option("--repair", is_flag=True, help="Take out what is damaged, make again what can be made here.")
@_as_json
@click.pass_obj
def verify(store: Callable[[], ImageStore], repair: bool, as_json: bool) -> None:
    """Verify all that is kept of images.

    Each blob, layer and file system is read and held against its digest. What is damaged is told line by
    line, and the exit status is 126. With --repair, load or pull the images that have lost something again:
    only that is fetched.
    """
    from pykvm.cli.progress import bars
    from pykvm.containers import views
    from pykvm.containers.verify import verify as verify_all
    from pykvm.errors import ImageError

    with bars(quiet=as_json) as progress:
        found = verify_all(store(), repair=repair, progress=progress)
    if as_json:
        click.echo(_json(found.as_json()))
    for one in [] if as_json else found.damage:
        click.echo(f"{'Repaired' if one.was_repaired else 'Damaged'}: {one.what}: {one.why}")
    if found.lost:
        step = "load or pull the images again" if repair else "`pykvm image verify --repair` takes it out"
        raise ImageError(f"{len(found.lost)} of the things kept below {store().root} are damaged; {step}")
    if not as_json:
        click.echo(
            f"images: {found.images}, blobs: {found.blobs}, file systems: {found.file_systems}; "
            f"{views.size(found.read_bytes)} read, all as it should be"
        )


def _json(found: Any) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


def _cut(text: str, most: int, *, no_trunc: bool) -> str:
    from pykvm.output import printable

    plain = printable(" ".join(text.split()))
    return plain if no_trunc or len(plain) <= most else plain[: most - 1] + "…"


def _table(head: list[str], body: list[list[str]]) -> None:
    """Columns as docker sets them: three spaces apart, the last one ragged."""
    widths = [max(len(row[at]) for row in [head, *body]) for at in range(len(head))]
    for row in [head, *body]:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
