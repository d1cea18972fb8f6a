"""pykvm doctor: what this machine's KVM can do."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.doctor import Report

__all__ = ["command"]

_NO_KVM = 1
_PROBE_FAILED = 3


def _complete_probe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG001 - click's
    from click.shell_completion import CompletionItem

    from pykvm.doctor import PROBES

    return [CompletionItem(p.name, help=p.tells) for p in PROBES.values() if p.name.startswith(incomplete)]


@click.command()
@click.argument("probes", nargs=-1, metavar="[PROBE]...", shell_complete=_complete_probe)
@click.option("-a", "--all", "everything", is_flag=True, help="List every capability with its value.")
@click.option("-q", "--quick", is_flag=True, help="Run no probes: only say which KVM this is.")
@click.option("--labs", is_flag=True, help="Ask the KVMs of both labs too, and show all side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--progress", is_flag=True, hidden=True, help="Name the probe at work without a terminal too.")
def command(
    probes: tuple[str, ...], everything: bool, quick: bool, labs: bool, as_json: bool, progress: bool
) -> int:
    """Say what this machine's KVM can do.

    Tells which KVM this is and what it claims (KVM_CHECK_EXTENSION), then tries: each probe boots a tiny
    guest in a process of its own, with a time limit, because some KVMs hang where others answer. Name
    probes to run only those; the names are also what a test may ask for with @pytest.mark.needs.

    \b
    A probe's result is one of:
      works      as the manuals have it        hangs      only a signal ended it
      does not   KVM lacks it                  broken     the probe itself failed: please report it
      differs    there, but otherwise than the manuals have it
      not needed a way round something that is all right here

    \b
    The exit status:
      0  this KVM can be used; and all probes named on the command line work
      1  there is no KVM that can be used: the report says why, and the next step
      3  a probe named on the command line does not work
      125  pykvm failed, or there is no such probe; with --labs, a lab could not be set up or died

    \b
    Examples:
      pykvm doctor
      pykvm doctor ring3_syscall && echo SYSCALL works
      pykvm doctor --json | jq .probes.smp
    """  # noqa: D301 - click wants the \b itself
    from pykvm.doctor import examine

    names = [] if quick else list(probes) or None
    with _progress(always=progress) as started:
        report = examine(names, started=started)
    if labs:
        return _side_by_side(report, names, as_json=as_json)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        from pykvm.doctor.render import print_report

        print_report(report, sys.stdout, everything=everything)
    return _status(report, probes)


def _status(report: Report, named: tuple[str, ...]) -> int:
    if not report.usable:
        return _NO_KVM
    return 0 if all(report.probes[name].works for name in named if name in report.probes) else _PROBE_FAILED


class _progress:  # noqa: N801 - used as a function
    """A line on the terminal's stderr that names the probe at work, and goes away.

    With `always`, stderr leads to a terminal although it is none: that of a lab's host.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._shown = always or sys.stderr.isatty()
        lab = os.environ.get("PYKVM_LAB")
        self._where = f" in the {lab} lab" if lab else ""

    def __enter__(self) -> Callable[[str], None] | None:
        return self._show if self._shown else None

    def _show(self, name: str) -> None:
        sys.stderr.write(f"\r\x1b[Kprobing {name}{self._where} …")
        sys.stderr.flush()

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _side_by_side(report: Report, names: list[str] | None, *, as_json: bool) -> int:
    from pykvm.doctor.labs import ask_labs
    from pykvm.doctor.render import print_side_by_side

    with _progress():  # a lab that was ended leaves its line
        reports, problems = ask_labs(names, progress=sys.stderr.isatty())
    reports = {"here": report, **reports}
    if as_json:
        click.echo(json.dumps({where: found.as_json() for where, found in reports.items()}, indent=2))
    else:
        print_side_by_side(reports, sys.stdout)
    for problem in problems:
        print(f"pykvm: {problem}", file=sys.stderr)
    return problems[0].exit_status if problems else 0
