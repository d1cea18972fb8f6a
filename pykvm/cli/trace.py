"""pykvm trace: a guest's run as a list of everything it asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pykvm.cli.run import MachineCommand, machine_options, print_end, print_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.trace.command import TraceOptions

__all__ = ["command"]


def _words(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--only a,b --only c` is a, b and c."""
    return tuple(word for value in values for word in value.split(",") if word)


def _list(name: str, target: str, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option(name, target, multiple=True, metavar=metavar, callback=_words, help=text)


class _TraceCommand(MachineCommand):
    """With --attach there is no IMAGE, and nothing that describes a machine."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = args[: args.index("--")] if "--" in args else args
        attaches = any(word == "--attach" or word.startswith("--attach=") for word in words)
        image = next(param for param in self.params if param.name == "image")
        image.required = not attaches
        rest = super().parse_args(ctx, args)
        if attaches and not ctx.resilient_parsing:
            self._refuse_what_describes_a_machine(ctx)
        return rest

    def _refuse_what_describes_a_machine(self, ctx: click.Context) -> None:
        for param in self.params:
            given = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
            if given and param.name not in _FOR_ATTACH:
                word = param.opts[-1] if isinstance(param, click.Option) else "IMAGE"
                raise click.UsageError(f"{word} can't be chosen for a machine that runs (--attach)", ctx)


_FOR_ATTACH = {"attach", "only", "without", "ports", "syscalls", "hypercalls", "output", "form", "summary"}
_FOR_ATTACH |= {"containers", "as_json", "quiet", "args"}


@click.command(cls=_TraceCommand)
@machine_options
@click.option("--attach", metavar="NAME", help="Trace the running machine NAME, until it ends or Ctrl-C.")
@_list("--only", "only", "KIND", "Only events of this kind or exit reason: hypercall, syscall, mmio …")
@_list("--not", "without", "KIND", "No events of this kind or exit reason.")
@_list("--port", "ports", "RANGE", "Of the exits only those to these ports or addresses: 0x3f8, 0x3f8-0x3ff.")
@_list("--syscall", "syscalls", "NAME", "Of the syscalls only these.")
@click.option(
    "--pid",
    "processes",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Of the syscalls only those of this process of the guest's.",
)
@_list("--container", "containers", "NAME", "Of the syscalls only those of this container.")
@_list("--hypercall", "hypercalls", "NAME", "Of the hypercalls only these.")
@click.option("-o", "--output", default="", metavar="FILE", help="Write the events to FILE; - is stdout.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["live", "jsonl", "perfetto", "html"]),
    default=None,
    help="Form of the events.  [default: by FILE's end: .jsonl, .pftrace, .html; else live lines]",
)
@click.option("-c", "--summary", is_flag=True, help="Count, share and times of everything, when it is over.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on stdout.")
@click.option(
    "--tap",
    type=click.Choice(["auto", "patch", "breakpoint", "off"]),
    default="auto",
    help="How to see a Linux guest's syscalls: patch its entry, or debug registers.  [default: auto]",
)
@click.option(
    "--host", is_flag=True, help="Show pykvm's own syscalls also in live lines; elsewhere they always are."
)
@click.option("--disasm", "disassemble", is_flag=True, help="Show the instruction that led to each exit.")
@click.option(
    "--step", type=click.IntRange(min=1), default=None, metavar="N", help="Show every Nth instruction, too."
)
@click.option(
    "--drop", "drop_records", is_flag=True, help="Lose and count events rather than slow the guest."
)
@click.option("-q", "--quiet", is_flag=True, help="Do not say at the end how the run ended.")
def command(image: str, quiet: bool, drop_records: bool, attach: str | None, **options: Any) -> int:
    """Run IMAGE and show what it asks for: every exit, hypercall and syscall, in order of time.

    Live lines go to stderr, as those of strace do; what the guest prints goes to stdout. Nothing is lost: a
    guest that is faster than the reader waits for it. Each line names the layer that does the work, and
    how long; "after" is how long the guest ran before.

    With --attach, a Linux guest's syscalls are there too; each names the container that it comes from.

    \b
    Kinds: exit, hypercall, syscall, step, kvm, host, mark; or an exit reason: io, mmio, hlt, debug …
    The exit status is that of `pykvm run`; 125 if the trace could not be written.

    \b
    Examples:
      pykvm trace 01_hello
      pykvm trace -c 02_uart
      pykvm trace 05_hypercall --only hypercall
      pykvm trace -o hello.html 01_hello --disasm
      pykvm trace -o - --format jsonl 01_hello | jq .name
      pykvm trace -c --paravirt ./a.out
      pykvm trace -c --attach NAME
      pykvm trace --attach NAME --container web
    """  # noqa: D301 - click wants the \b itself
    from pykvm.trace.command import TraceOptions, trace_image

    names = set(TraceOptions._fields)
    wanted = TraceOptions(**{name: options.pop(name) for name in names & set(options)})
    wanted = wanted._replace(form=wanted.form or "", step=wanted.step or 0)
    if wanted.as_json and not wanted.summary:
        wanted = wanted._replace(summary=True)
    if attach is not None:
        return _attach(attach, wanted, quiet=quiet)
    result = trace_image(image, {**options, "drop_records": drop_records or None}, wanted)
    print_warnings(result)
    if not quiet:
        print_end(result)
    return result.exit_status


def _attach(name: str, wanted: TraceOptions, *, quiet: bool) -> int:
    """Trace a running machine: 0, or 125 if its process died."""
    from pykvm.errors import PykvmError
    from pykvm.trace.command import trace_running

    result = trace_running(name, wanted)
    if result is None:
        raise PykvmError(f"{name} has died, and the trace ends there")
    if not quiet:
        click.echo(f"pykvm: {name}: {result}; {result.stats.exits} exits were traced", err=True)
    return 0


# `run` calls the number of vCPUs -c; here -c is the summary, as strace has it, and --smp says it in full.
for _option in command.params:
    if _option.name == "vcpus":
        _option.opts = ["--smp"]
