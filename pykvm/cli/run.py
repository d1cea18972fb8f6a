"""pykvm run: one guest, from its image to its exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.result import RunResult

__all__ = ["MachineCommand", "command", "machine_options", "print_end"]

_MODES = ["real16", "prot32", "paged32", "long64", "user64", "reset"]


class _Number(click.ParamType[int]):
    """A number in any of Python's notations: 4096, 0x1000."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value, 0) if isinstance(value, str) else int(value)
        except ValueError:
            self.fail(f"{value!r} is no number; give one like 4096 or 0x1000", param, ctx)


def _complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG001 - click's
    from click.shell_completion import CompletionItem

    from pykvm.errors import ImageNotFoundError
    from pykvm.guests import all_guests

    try:
        names = [n for n in all_guests() if n.startswith(incomplete)]
    except ImageNotFoundError:
        names = []
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


_OPTIONS = [
    click.option(
        "-m",
        "--memory",
        metavar="SIZE",
        help="Guest RAM, as in 64M or 2G.  [default: 64M, or the guest's own; 256M for a program]",
    ),
    click.option(
        "-c",
        "--smp",
        "vcpus",
        type=int,
        metavar="N",
        help="Number of vCPUs.  [default: 1, or the guest's own]",
    ),
    click.option(
        "--mode", type=click.Choice(_MODES), help="CPU mode to start in, where the image does not say."
    ),
    click.option(
        "--address", type=_Number(), help="Where a flat image is loaded (a guest-physical address)."
    ),
    click.option("--entry", type=_Number(), help="Where to start, if not where the image says."),
    click.option(
        "--append",
        "cmdline",
        default="",
        metavar="TEXT",
        help="Command line for Linux or a multiboot kernel.",
    ),
    click.option(
        "--init",
        metavar="COMMAND",
        help="With the image `linux`: run this in the guest's shell, and exit with its status.",
    ),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="FILE[,ro|,snapshot][,serial=TEXT]",
        help="A disk image or block device: for Linux by virtio, where `snapshot` forgets the writes, and "
        "repeated for more; for other guests one FILE, by hypercall (a program reads it at /dev/disk).",
    ),
    click.option(
        "--share",
        "shares",
        multiple=True,
        metavar="DIR[:/PATH][,ro]",
        help="For Linux: a folder of the host; in `linux` the command starts in the first.  [PATH: /share]",
    ),
    click.option(
        "--net",
        "nets",
        multiple=True,
        metavar="user|tap[=NAME]|fd=N|none[,mac=MAC]",
        help="For Linux: a network card. `user`: its connections are the host's, through passt, and "
        "user,tcp=8080:80 leads a port of the host to it; else a tap device, or a socket of datagrams. "
        "Repeat for more.",
    ),
    click.option(
        "--vsock",
        metavar="CID:PATH",
        help="For Linux: sockets between host and guest; port N of the host is the Unix socket PATH_N.",
    ),
    click.option(
        "--stream",
        "streams",
        multiple=True,
        metavar="NAME=PATH",
        help="For Linux: a stream between /dev/virtio-ports/NAME in the guest and the Unix socket PATH; "
        "repeat for more.",
    ),
    click.option(
        "--balloon", metavar="SIZE", help="For Linux: memory that the guest is to give back, as in 64M."
    ),
    click.option(
        "--console",
        type=click.Choice(["virtio", "serial"]),
        help="With the image `linux`: the command's terminal, hvc0 or ttyS0.  [default: virtio]",
    ),
    click.option("--rng", is_flag=True, help="For Linux: a virtio source of entropy."),
    click.option(
        "--initrd",
        "initrds",
        multiple=True,
        metavar="FILE",
        help="Initial RAM disk for Linux; repeat for more.",
    ),
    click.option(
        "--boot",
        type=click.Choice(["elf", "packed", "pvh"]),
        help="How a Linux kernel is entered: unpacked here, unpacking itself (which gives it KASLR), or by "
        "its PVH entry.  [default: elf]",
    ),
    click.option(
        "--module",
        "modules",
        multiple=True,
        metavar="FILE[ TEXT]|NAME",
        help="A module for a multiboot kernel, with its command line; with the image `linux`, a module of "
        "Debian's kernel that is loaded, as in overlay. Repeat for more.",
    ),
    click.option(
        "--board",
        type=click.Choice(["pykvm", "linux", "testdev"]),
        help="Which devices sit where.  [default: linux for a Linux kernel, else pykvm]",
    ),
    click.option(
        "--irqchip/--no-irqchip", default=None, help="PIC, IOAPIC, local APICs and PIT in the kernel."
    ),
    click.option(
        "--cpu-vendor", "vendor", type=click.Choice(["intel", "amd"]), help="Vendor that CPUID names."
    ),
    click.option(
        "--cpu",
        metavar="±NAME[,±NAME]...",
        help="Features of the guest's CPU to add or to take away, as in +pdpe1gb,-avx2; "
        "the names are those of /proc/cpuinfo.",
    ),
    click.option(
        "--unclaimed",
        type=click.Choice(["stop", "float"]),
        help="I/O where no device answers: end the run, or read all ones.  [default: stop]",
    ),
    click.option(
        "--transport",
        type=click.Choice(["out", "mmio", "vmcall", "ring"]),
        help="Offer the guest this way alone for its hypercalls.  [default: all that this KVM has]",
    ),
    click.option("--read-only", is_flag=True, help="Refuse the guest's writes to its disk image."),
    click.option(
        "--snapshot", is_flag=True, help="Take the guest's writes to its disk image, and forget them."
    ),
    click.option(
        "--paravirt",
        is_flag=True,
        help="IMAGE is a static Linux program: run it with its ARGS in pykvm's paravirtual kernel.",
    ),
    click.option(
        "--file",
        "files",
        multiple=True,
        metavar="HOST[:/GUEST]",
        help="A file that the program can read, under the same path or /GUEST; repeat for more.",
    ),
    click.option(
        "--files",
        "trees",
        multiple=True,
        metavar="DIR",
        help="All files in DIR, which is the program's root directory; repeat for more.",
    ),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="A variable of the program's environment, else empty; without VALUE as it is here.",
    ),
    click.option(
        "--name",
        metavar="NAME",
        help="Be known to `pykvm ps`, `console`, `stop` and `trace --attach` by this name.",
    ),
    click.option(
        "-t",
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="End the run after this long.  [default: never]",
    ),
]


_ONLY_FOR_PROGRAMS = {"files": "--file", "trees": "--files", "env": "--env"}


class MachineCommand(click.Command):
    """A command with machine_options(): with --paravirt, the words behind IMAGE are the program's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--paravirt" not in args
        rest = super().parse_args(ctx, args)
        if ctx.params["paravirt"] or ctx.resilient_parsing:
            return rest
        if words := ctx.params["args"]:
            hint = "; --paravirt goes before the program" if "--paravirt" in words else ""
            raise click.UsageError(f"Got unexpected extra argument ({words[0]}){hint}", ctx)
        for name, option in _ONLY_FOR_PROGRAMS.items():
            if ctx.params[name]:
                raise click.UsageError(f"{option} is for programs: use it with --paravirt", ctx)
        return rest


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that describe a machine and its image, for every MachineCommand that runs one."""
    for option in reversed(_OPTIONS):
        function = option(function)
    function = click.argument("args", nargs=-1, type=click.UNPROCESSED)(function)
    return click.argument("image", shell_complete=_complete_image)(function)


@click.command(cls=MachineCommand)
@machine_options
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Run in the background, under a --name; `pykvm console` is its console then.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but what the guest prints.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, the console in it."
)
def command(image: str, quiet: bool, as_json: bool, detach: bool, **options: Any) -> int:
    """Run IMAGE and show what it prints.

    IMAGE is a guest's name (see `pykvm guests`), `linux`, or a file: flat binary, ELF, multiboot kernel,
    Linux kernel, or a raw disk image with a boot sector. Its format is recognised from its bytes. What is
    typed goes to the guest's serial port; Ctrl-A X leaves, and so does Ctrl-C while the guest does not read
    its input.

    `linux` is Debian's cloud kernel, fetched when it is first needed, with a shell.

    With --paravirt, IMAGE is an ordinary Linux program, linked with gcc -static, and ARGS are its
    arguments. It runs in ring 3 on a small kernel, which serves its system calls and asks pykvm by
    hypercall for what needs a host. The exit status is the program's, or 128 and a signal's number.

    \b
    The exit status is the guest's exit code, or the word for how it ended:
      110 halt            114 unclaimed I/O    118 bad request    130 interrupted
      111 reset           115 internal error   119 unknown exit   125 pykvm failed
      112 triple fault    116 entry failure    120 power-off      126 image can't be run
      113 panic           117 out of memory    124 time limit     127 no such image

    \b
    Examples:
      pykvm run 01_hello
      pykvm run --detach --name web linux
      pykvm run linux --smp 2 --init "grep -c ^processor /proc/cpuinfo"
      pykvm run --mode real16 --address 0x7c00 boot.bin
      pykvm run --board testdev kernel.flat --append "arg1 arg2" --timeout 10
      pykvm run --paravirt ./a.out one two
      pykvm run --file data.txt --env LANG=C --paravirt ./a.out -v /data.txt
    """  # noqa: D301 - click wants the \b itself
    from pykvm.session import run_image

    if detach:
        return _detached(image, options, as_json=as_json)
    result = run_image(image, options, show=not as_json)
    if as_json:
        _print_json(result)
    else:
        print_warnings(result)
        if not quiet:
            print_end(result)
    return result.exit_status


def _detached(image: str, options: dict[str, Any], *, as_json: bool) -> int:
    if as_json or not options.get("name"):
        raise click.UsageError("--detach wants a --name, and has no result to print")
    from pykvm.detach import in_background
    from pykvm.session import run_image

    def work(runs: Callable[[], None]) -> int:
        options["detach"] = True
        return run_image(image, options, show=False, on_ready=runs).exit_status

    return in_background(work)


def print_warnings(result: RunResult) -> None:
    """A line for each thing that went wrong beside the run."""
    for warning in result.warnings:
        click.echo(f"pykvm: {warning}", err=True)


def print_end(result: RunResult) -> None:
    """One line of what it cost; at an abnormal end also the report."""
    from pykvm.report import render

    if result.reason.is_abnormal:
        click.echo(f"pykvm: {result}", err=True)
        if report := render(result):
            click.echo(report, err=True)
    if result.fault:
        from pykvm.paravirt.fault import fault_report

        click.echo(f"pykvm: {result.fault}\n{fault_report(result.fault)}", err=True)
    if result.marks:
        from pykvm.paravirt.guest import absent_syscalls

        if names := absent_syscalls(result):
            click.echo(f"pykvm: the paravirtual kernel does not have {', '.join(names)}: ENOSYS", err=True)
    exits = ", ".join(f"{count} {name}" for name, count in result.exits.items()) or "none"
    click.echo(f"pykvm: {_word(result)} after {result.stats.wall_ns / 1e6:.1f} ms; exits: {exits}", err=True)


def _word(result: RunResult) -> str:
    return f"exit code {result.exit_code}" if result.exit_code is not None else str(result.reason)


def _print_json(result: RunResult) -> None:
    import json

    from pykvm.session import result_as_json

    print(json.dumps(result_as_json(result), indent=2))
