"""pykvm lab: a computer with a full KVM, made in software."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.lab.report import Reporter

__all__ = ["command"]

_CPUS = ["amd", "intel"]
_COMMAND = "pykvm.lab.command"
_WAYS_OUT = "exit, or Ctrl-] three times"
_FILE = click.Path(path_type=Path)

_HELP = """Run COMMAND in a computer with a full KVM, made in software; without COMMAND, a shell.

The AMD lab has kvm_amd in QEMU's software CPU, the Intel lab kvm_intel in Bochs. Neither needs root or this
machine's /dev/kvm. Inside, COMMAND is root on a copy of this machine's files, in this directory and with this
environment; what it writes is gone with the lab, except below --share. Debian's kernel is fetched when it is
first needed, and installed nowhere.

Ctrl-C interrupts COMMAND; a second Ctrl-C stops the lab. In the lab's shell, Ctrl-] typed three times stops
the lab.

\b
The exit status is COMMAND's own, or
  127 not found              128+n killed by signal n     125 the lab failed or its kernel died
  126 not executable         130 stopped by Ctrl-C        124 time limit

\b
Examples:
  pykvm lab
  pykvm lab -- grep -cw svm /proc/cpuinfo
  pykvm lab --cpu intel -- pykvm doctor
  pykvm lab --timeout 600 --share out -- pytest --junitxml=out/lab.xml
"""


class _Lab(click.Group):
    """What stands after `--` runs in the lab; before it stand options, or setup, status, clean."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return ["[OPTIONS]", "[-- COMMAND [ARG]...]", "|", "setup", "|", "status", "|", "clean"]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            raise click.UsageError(
                f"No such command {args[0]!r}. What is to run in the lab stands after --: "
                f"pykvm lab -- {shlex.join(args)}",
                ctx,
            )
        return super().resolve_command(ctx, args)


def _kernel_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--modules", type=_FILE, metavar="DIR", help="Its modules.  [default: /lib/modules/VERSION]"
        ),
        click.option(
            "--kernel",
            type=_FILE,
            metavar="FILE",
            help="Boot this kernel, a bzImage or vmlinux, instead of Debian's.",
        ),
    ):
        function = option(function)
    return function


@click.group(cls=_Lab, invoke_without_command=True, no_args_is_help=False, help=_HELP)
@click.option(
    "--cpu", type=click.Choice(_CPUS), default="amd", show_default=True, help="SVM in QEMU, or VMX in Bochs."
)
@click.option(
    "-m",
    "--mem",
    "--memory",
    metavar="SIZE",
    help="RAM, as in 2G.  [default: 3G (amd; at most half of what is here), 1536M (intel)]",
)
@click.option(
    "-c",
    "--smp",
    type=int,
    metavar="N",
    help="Number of CPUs; QEMU with several may lock up while they run guests.  [default: 1]",
)
@click.option(
    "-t",
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop the command and the lab after this long.  [default: never]",
)
@click.option(
    "--share",
    type=_FILE,
    metavar="DIR",
    help="The one directory whose changes stay; the same path inside.",
)
@click.option(
    "--tty/--no-tty",
    "terminal",
    default=None,
    help="Give COMMAND a terminal.  [default: only without COMMAND]",
)
@click.option("--load", multiple=True, metavar="NAME", help="Load this kernel module too; repeat for more.")
@click.option(
    "--tree",
    multiple=True,
    type=_FILE,
    metavar="PATH",
    help="Take this along where the host's files are not shared (intel); repeat for more.",
)
@_kernel_options
@click.option(
    "--keep-log", type=_FILE, metavar="FILE", help="Write all that the lab's kernel prints to FILE."
)
@click.option("-v", "--verbose", is_flag=True, help="Show the lab's kernel booting, on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what takes time.")
@click.pass_context
def command(
    ctx: click.Context, /, cpu: str, mem: str | None, terminal: bool | None, **options: Any
) -> int | None:
    """Run COMMAND in a computer with a full KVM, made in software; without COMMAND, a shell."""
    argv = ctx.meta.get(_COMMAND)
    if ctx.invoked_subcommand:
        if argv is not None:
            raise click.UsageError(f"{ctx.invoked_subcommand} takes no command after --", ctx)
        return None
    from pykvm.lab.launch import run, shell

    with_terminal = _both_terminals() and not argv if terminal is None else terminal
    if with_terminal and not _both_terminals():
        raise click.UsageError("--tty: standard input and output are not a terminal", ctx)
    mem_mib = _mebibytes(mem) if mem else None
    if with_terminal and not argv and not options["quiet"]:
        _reporter(quiet=False).notice(
            f"a shell in the {cpu} lab; what it changes is gone at its end: {_WAYS_OUT}"
        )
    return run(argv or shell(), cpu=cpu, mem_mib=mem_mib, terminal=with_terminal, **options)


def _mebibytes(size: str) -> int:
    from pykvm.memory import parse_size

    return parse_size(size) >> 20


def _both_terminals() -> bool:
    import os

    return os.isatty(0) and os.isatty(1)


_which = click.option(
    "--cpu", type=click.Choice([*_CPUS, "all"]), help="Which lab.  [default: that before setup, else amd]"
)


def _chosen(ctx: click.Context, cpu: str | None) -> list[str]:
    named = cpu or (ctx.parent.params.get("cpu") if ctx.parent else None) or "amd"
    return _CPUS if named == "all" else [str(named)]


@command.command()
@_which
@click.option("--update", is_flag=True, help="Look for a newer kernel than the one that is here.")
@click.option(
    "--print-packages", is_flag=True, help="Only print the Debian packages the lab needs of the host."
)
@click.option("--missing", is_flag=True, help="With --print-packages: only those that are not here.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what takes time.")
@click.pass_context
def setup(
    ctx: click.Context, /, cpu: str | None, update: bool, print_packages: bool, missing: bool, quiet: bool
) -> None:
    """Fetch and build what a lab needs, so that its next start is quick.

    A lab does this by itself when it starts; this is for doing it ahead of time.
    """
    cpus = _chosen(ctx, cpu)
    if print_packages:
        from pykvm.lab.status import needed_packages

        click.echo(" ".join(needed_packages(cpus, missing_only=missing)))
        return
    from pykvm.lab.launch import prepare

    prepare(cpus, reporter=_reporter(quiet=quiet), update=update)


def _reporter(*, quiet: bool) -> Reporter:
    import sys

    from pykvm.lab.report import Reporter

    return Reporter(sys.stderr, quiet=quiet)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def status(as_json: bool) -> None:
    """Show what of the labs is here: programs, kernels, sizes; check the cache for damage."""
    from pykvm.lab.status import status as lab_status

    found = lab_status()
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
        return
    for name, lab in found["labs"].items():
        click.echo(_lab_line(name, lab))
    click.echo(f"cache    {found['cache']}: {_mib(found['size_bytes'])}; {found['running']} running")
    for entry in found["entries"]:
        about = entry["about"]
        text = about.get("release") or about.get("kernel") or ""
        click.echo(f"  {entry['kind']:<10} {_mib(entry['size_bytes']):>10}  {entry['key']}  {text}".rstrip())
        if entry["damage"]:
            click.echo(f"    damaged: {entry['damage']}")


def _lab_line(name: str, lab: dict[str, Any]) -> str:
    if lab["programs_missing"]:
        missing = ", ".join(lab["programs_missing"])
        return f"{name:<8} needs {missing}: apt-get install {' '.join(lab['packages_missing'])}"
    kernel = lab["kernel"]
    if kernel is None:
        return f"{name:<8} not set up; its first start fetches a kernel (pykvm lab setup --cpu {name})"
    return f"{name:<8} ready: kernel {kernel['release']} ({kernel['version']})"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"


@command.command()
def clean() -> None:
    """Remove what was fetched and built for the labs; labs that run now go on."""
    from pykvm.lab.store import Store

    store = Store()
    click.echo(f"{_mib(store.remove())} removed from {store.root}")
