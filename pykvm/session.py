"""One run as a command does it: from options and a terminal to a result."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.boot.linux import read_initrds
from pykvm.errors import ConfigError, ImageError
from pykvm.guests import find_named
from pykvm.linux.options import add_devices, by_hypercall, is_linux
from pykvm.machine import Machine
from pykvm.memory import parse_size
from pykvm.output import Stdout
from pykvm.result import EndReason, RunResult
from pykvm.terminal import Terminal
from pykvm.value import as_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.control import Control
    from pykvm.registry import Seat

    Prepare = Callable[[Machine, Stdout, Callable[[], bool]], None]
    _Wanted = tuple[dict[str, Any], Callable[[Machine], object]]

__all__ = ["result_as_json", "run_image"]

_PROGRAM_MEMORY = "256M"  # only what the program touches costs the host anything
_NOT_FOR_PROGRAMS = {
    "mode": "--mode",
    "address": "--address",
    "entry": "--entry",
    "cmdline": "--append",
    "initrds": "--initrd",
    "modules": "--module",
    "read_only": "--read-only",
    "snapshot": "--snapshot",
    "transport": "--transport",
    "boot": "--boot",
    "init": "--init",
    "rng": "--rng",
    "shares": "--share",
    "nets": "--net",
    "vsock": "--vsock",
    "streams": "--stream",
    "balloon": "--balloon",
}

_GRACE_S = 1.0
_MACHINE = (
    "memory",
    "vcpus",
    "board",
    "irqchip",
    "unclaimed",
    "vendor",
    "cpu",
    "trace",
    "drop_records",
    "transport",
)
_LOAD = ("mode", "address", "entry", "cmdline", "read_only", "snapshot", "boot")


def run_image(
    image: str,
    options: Mapping[str, Any],
    *,
    show: bool,
    prepare: Prepare | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> RunResult:
    """Run `image` as `pykvm run` does; `options` are those of the command, None for what was not given.

    With `show`, the guest's output goes to stdout as it comes, and stdin to the guest. `prepare` gets the
    loaded machine, the output, and what says that a reader who takes nothing need not be waited for.
    `on_ready` is called when the machine is about to run and answers to its name.

    With the option `paravirt`, `image` is a program, which gets `args`, `env`, `files` and `trees`.
    """
    wants, load = (_program if options.get("paravirt") else _image)(image, options, show=show)
    watch = _Watch(options.get("timeout"))
    output = Stdout(watch.is_given_up)
    with ExitStack() as stack:
        seat = stack.enter_context(_seat(options["name"])) if options.get("name") else None
        machine = stack.enter_context(Machine(**wants, console=output.write if show else None))
        load(machine)
        if prepare:
            prepare(machine, output, watch.is_given_up)
        watch.start(machine)
        if seat:
            stack.enter_context(_control(seat, machine, image))
        on_ready()
        return _run(machine, watch, show=show)


def _seat(name: str) -> Seat:
    """The name, before anything is started."""
    from pykvm.registry import Room  # noqa: PLC0415 - only who has a name pays

    with Room() as room:
        return room.enter(name)


def _control(seat: Seat, machine: Machine, image: str) -> Control:
    """What answers to the name while the machine runs."""
    from pykvm.control import Control  # noqa: PLC0415 - as above

    spec = machine.spec
    seat.tell({"image": image, "vcpus": spec.vcpus, "memory_bytes": spec.memory_bytes})
    return Control(seat, machine)


def _image(image: str, options: Mapping[str, Any], *, show: bool) -> _Wanted:
    """The machine that a guest's image wants, and how it gets into it."""
    guest = find_named(image)
    given = {name: options[name] for name in _MACHINE if options.get(name) is not None}
    if image == "linux" and not Path(image).exists():
        from pykvm.linux.command import linux_machine  # noqa: PLC0415 - only Linux pays

        return linux_machine(options, given, show=show)
    if options.get("init") is not None:
        raise ConfigError("--init is for `pykvm run linux`; another kernel has its own initial RAM disk")
    wants = {"memory": "64M", "vcpus": 1} | (guest.machine if guest else {}) | given
    modules = [_module(text) for text in options.get("modules") or ()]
    loading: dict[str, Any] = {name: options[name] for name in _LOAD if options.get(name) is not None}
    initrds = [Path(name) for name in options.get("initrds") or ()]
    initrd = read_initrds(initrds, limit_bytes=parse_size(str(wants["memory"])))

    def load(machine: Machine) -> None:
        if guest is None and is_linux(Path(image)):
            add_devices(machine, options)
        elif file := by_hypercall(options):
            loading["disk"] = Path(file)
        machine.load(image, modules=modules, initrd=initrd, **loading)

    return wants, load


def _program(program: str, options: Mapping[str, Any], *, show: bool) -> _Wanted:
    """The same for a static program in the paravirtual kernel, which reads stdin itself."""
    from pykvm.paravirt.files import files_of_options  # noqa: PLC0415 - only programs pay
    from pykvm.paravirt.program import environment_of_options  # noqa: PLC0415 - as above

    for name, word in _NOT_FOR_PROGRAMS.items():
        if options.get(name):
            raise ConfigError(f"{word} is not for programs in the paravirtual kernel")
    given = {name: options[name] for name in _MACHINE if options.get(name) is not None}
    args = options.get("args") or ()
    disk = by_hypercall(options)
    more: dict[str, Any] = {
        "disk": Path(disk) if disk else None,
        "env": environment_of_options(options.get("env") or ()),
        "files": files_of_options(options.get("files") or (), options.get("trees") or ()),
        "stdin": sys.stdin.fileno() if show and sys.stdin else b"",
    }
    return {"memory": _PROGRAM_MEMORY} | given, lambda machine: machine.load_program(program, args, **more)


class _Watch:
    """Whether the run is to end although nobody takes its output: by the user's wish or by the clock."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._deadline = float("inf")
        self._machine: Machine | None = None
        self._is_given_up = False

    def start(self, machine: Machine) -> None:
        """The run begins now."""
        self._machine = machine
        if self.timeout is not None:
            self._deadline = time.monotonic() + self.timeout

    def leave(self, *_: object) -> None:
        """End the run; from any thread, and as a signal's handler."""
        self._is_given_up = True
        if self._machine:
            self._machine.stop(EndReason.INTERRUPTED)

    def is_given_up(self) -> bool:
        """Whether output that nobody takes is to be dropped.

        A run that has ended by itself waits for its reader; one that has reached its limit, a second more.
        """
        late_s = time.monotonic() - self._deadline
        if self._machine and late_s >= 0:
            self._machine.stop(EndReason.TIMEOUT, f"the guest ran for {self.timeout:g} s")
            self._is_given_up |= late_s >= _GRACE_S and self._machine.end is EndReason.TIMEOUT
        return self._is_given_up


def _run(machine: Machine, watch: _Watch, *, show: bool) -> RunResult:
    """Run with signals and terminal in order: SIGINT, SIGTERM and SIGHUP end the run, at any moment."""
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup(1): the terminal may go
        ends.remove(signal.SIGHUP)
    before = {number: signal.signal(number, watch.leave) for number in ends}
    if (terminal := machine.terminal) is not None:
        import shutil  # noqa: PLC0415 - who has no such terminal does not pay

        before[signal.SIGWINCH] = signal.signal(
            signal.SIGWINCH, lambda *_: terminal.resize(*shutil.get_terminal_size())
        )
    try:
        if not show or machine.paravirt:  # a program reads stdin itself, when it wants to
            return machine.run(timeout=watch.timeout)

        def listens() -> bool:
            has_terminal = machine.terminal is not None and machine.terminal.is_open
            return has_terminal or machine.serial.is_listening or machine.input.is_wanted

        with Terminal(
            send=machine.send,
            leave=watch.leave,
            listens=listens,
            ended=machine.end_input,
            has_tty=machine.has_tty,
        ):
            return machine.run(timeout=watch.timeout)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _module(text: str) -> tuple[bytes, str]:
    """The contents and the command line of "FILE[ TEXT]"; as loaders do, the file's name comes first."""
    path = text.split(" ", 1)[0]
    try:
        return Path(path).read_bytes(), text
    except OSError as error:
        raise ImageError(f"module {path}: {error.strerror}") from None


def result_as_json(result: RunResult) -> dict[str, Any]:
    """The result as plain JSON values; the console also as base64, since a guest may print any bytes."""
    import base64  # noqa: PLC0415 - only who wants JSON pays

    found: dict[str, Any] = as_plain(result)
    for name in ("trace", "last_exits"):
        found[name] = [
            as_plain(record) | {"data": record.data.hex(), "text": record.text.decode(errors="replace")}
            for record in getattr(result, name)
        ]
    for cpu in found["cpus"]:
        cpu["code"] = cpu["code"].hex()
    if result.fault:
        found["fault"]["code"] = result.fault.code.hex()
    found["reason"] = str(result.reason)
    found["console"] = result.text
    found["console_base64"] = base64.b64encode(result.console).decode()
    found["exit_status"] = result.exit_status
    return found
