"""pykvm compare: the same work as a process and as a container, on the host and in guests."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["command"]


def _complete_workload(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG001 - click's
    from click.shell_completion import CompletionItem

    from pykvm.compare.workloads import WORKLOADS

    return [CompletionItem(w.name, help=w.about) for w in WORKLOADS.values() if w.name.startswith(incomplete)]


@click.command()
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...", shell_complete=_complete_workload)
@click.option("-w", "--way", "ways", multiple=True, metavar="NAME", help="Only in this way; repeat for more.")
@click.option(
    "-n",
    "--operations",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Count this many.  [default: by workload]",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Time every run so often; the shortest counts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write a page with charts, too; it needs no network.",
)
def command(
    workloads: tuple[str, ...],
    ways: tuple[str, ...],
    operations: int | None,
    repeat: int,
    as_json: bool,
    page: str | None,
) -> int:
    """Do the same work in several ways, and say what each costs.

    One program, which makes system calls, runs as a process of the host, as a container on the host, in a
    fully virtualized guest whose kernel drives the devices of a PC, in a paravirtualized guest whose kernel
    makes hypercalls, as a process of a Linux guest, and as a container in a Linux guest (`pykvm kernel fetch`
    gets its kernel). For each: which kernel answers, what the program sees of its system, system calls of the
    guest, hypercalls, VM exits by reason, system calls that the host sees, memory, and the time.

    \b
    Workloads (all, unless named):
      getpid    the shortest call there is     blocks    read a disk
      files     look up a name                 time      ask what time it is
      print     write lines                    compute   ask nobody for anything
    \b
    Ways: host, host-container, emulated, paravirt, linux, linux-container

    Every figure is from the runs of this comparison. VM exits are the returns of KVM_RUN; KVM's own count
    has those too that never left the kernel. The host's system calls are counted with ptrace, in a run by
    itself.

    \b
    The exit status:
      0  everything was measured, or its reason stands in its place
      1  one of the ways could not run here at all
      125  pykvm failed, or two ways did not come to the same

    \b
    Examples:
      pykvm compare print
      pykvm compare blocks -w host -w paravirt -n 1000
      pykvm compare getpid files -w host-container -w linux-container
      pykvm compare --html compare.html
      pykvm compare print --json | jq .workloads.print.paravirt.exits
    """  # noqa: D301 - click wants the \b itself
    import json

    from pykvm.compare import Plan, compare, ways_named, workloads_named
    from pykvm.compare.page import check_page, write_page

    plan = Plan(operations, repeat)
    chosen, works = ways_named(ways), workloads_named(workloads)
    if page:
        check_page(page)
    with _progress() as progress:
        found = compare(chosen, works, plan, progress=progress)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        from pykvm.compare.table import print_table

        print_table(found, sys.stdout)
    if page:
        write_page(page, found)
    return 1 if found.absent_ways else 0


@contextmanager
def _progress() -> Iterator[Callable[[str, str], object]]:
    """A line on the terminal's stderr that says what is going on, and goes away."""
    is_shown = sys.stderr.isatty()

    def show(workload: str, way: str) -> None:
        if is_shown:
            sys.stderr.write(f"\r\x1b[K{workload}: {way} …")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
