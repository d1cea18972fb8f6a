"""Boots a lab, runs one command in it, and gives its exit status."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pykvm.errors import ConfigError, LabError
from pykvm.lab import wire
from pykvm.lab.backend import Backend, Job, Options, Running
from pykvm.lab.console import printable
from pykvm.lab.report import Reporter
from pykvm.lab.session import SIGNALS, Limits, Session, StoppedError
from pykvm.lab.signals import caught_signals
from pykvm.lab.store import Store
from pykvm.lab.streams import Streams
from pykvm.lab.terminal import raw_terminal, window_size
from pykvm.lab.tools import check_tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["LABS", "backend_for", "prepare", "run", "shell"]

LABS = {"amd": ("pykvm.lab.amd", "AmdBackend"), "intel": ("pykvm.lab.intel", "IntelBackend")}
_HOST_ONLY = {"XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "WAYLAND_DISPLAY", "DISPLAY", "SSH_AUTH_SOCK"}
_SMALLEST_MIB = 256


def backend_for(cpu: str) -> Backend:
    """The back end that `cpu` names. Raises ConfigError."""
    if cpu not in LABS:
        raise ConfigError(f"there is no lab {cpu!r}; there are {' and '.join(LABS)}")
    module, name = LABS[cpu]
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend


def shell() -> list[str]:
    """The user's shell, or sh."""
    named = os.environ.get("SHELL", "")
    return [named if os.access(named, os.X_OK) else "/bin/sh"]


def prepare(cpus: Sequence[str], *, reporter: Reporter, update: bool = False) -> None:
    """Set labs up, so that the next start is quick; what the host lacks is told before anything is done.

    `update` looks for a newer kernel than the cached one. Raises LabError, ToolchainError.
    """
    chosen = [(backend, _options(backend, update=update)) for backend in map(backend_for, cpus)]
    for backend, settings in chosen:
        check_tools(backend.name, backend.tools)
        backend.check(settings)
    for backend, settings in chosen:
        backend.prepare(settings, reporter.step)
    reporter.clear()


def run(
    argv: Sequence[str],
    *,
    cpu: str = "amd",
    mem_mib: int | None = None,
    smp: int | None = None,
    timeout_s: float | None = None,
    share: Path | str | None = None,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    terminal: bool = False,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    kernel: Path | None = None,
    modules: Path | None = None,
    load: Sequence[str] = (),
    tree: Sequence[Path] = (),
    keep_log: Path | None = None,
    verbose: bool = False,
    quiet: bool = False,
) -> int:
    """Run `argv` in a lab and return its exit status: its own, 127, 126, or 128+n as a shell has it.

    The command gets `cwd` and `env` (default: this process's), the variable PYKVM_LAB with the lab's name,
    and the three descriptors as its standard streams; with `terminal` it gets a terminal of its own, which
    `stdin` and `stdout`, a terminal too, are connected to. `share` is a directory that it can write to, at
    the same path inside. SIGINT and SIGQUIT go to the command; a second SIGINT, SIGTERM, SIGHUP end the lab:
    128+n. `timeout_s` counts from the start of the emulator; the command then gets SIGTERM, and the lab
    `Backend.grace_s` to save its results. `keep_log` gets all that the lab's kernel says on its console.

    Raises LabError if the lab could not be set up or died, LabTimeoutError, ConfigError, ToolchainError.
    """
    reporter = Reporter(sys.stderr, quiet=quiet)
    backend = backend_for(cpu)
    if not argv:
        raise ConfigError("the lab was given no command to run")
    options = _options(
        backend,
        mem_mib=mem_mib,
        smp=smp,
        kernel=kernel,
        modules=modules,
        load=tuple(load),
        share=_shared(share),
        tree=tuple(Path(path).absolute() for path in tree),
        verbose=verbose,
    )
    backend.check(options)
    check_tools(cpu, backend.tools)
    environment = dict(os.environ if env is None else env)
    for name in _HOST_ONLY:
        environment.pop(name, None)
    environment["PYKVM_LAB"] = cpu
    job = Job(tuple(argv), _directory(cwd), environment)
    limits = Limits(backend.boot_limit_s, timeout_s, backend.grace_s)
    streams = Streams(stdin, stdout, stderr, terminal)
    try:
        # what takes long can be interrupted here, as any Python code can
        backend.prepare(options, reporter.step)
        with _standard_streams_open(), Store().room() as room:
            return _run_in(room, backend, options, job, streams, limits, reporter, keep_log)
    except StoppedError as stopped:
        return stopped.exit_status
    finally:
        reporter.clear()


def _run_in(
    room: Path,
    backend: Backend,
    options: Options,
    job: Job,
    streams: Streams,
    limits: Limits,
    reporter: Reporter,
    keep_log: Path | None,
) -> int:
    with ExitStack() as stack:
        copies = _console_copies(stack, keep_log, verbose=options.verbose)
        # from here on a signal is the session's: none may leave the lab half started
        signals = stack.enter_context(caught_signals(SIGNALS))
        running = backend.start(options, job, room, reporter.step)
        stack.callback(backend.collect, options, job, room)
        stack.enter_context(_ended(running))
        if streams.terminal:
            stack.enter_context(raw_terminal(streams.stdin))
            reporter.raw = True
            stack.callback(setattr, reporter, "raw", False)
        session = Session(
            backend.name,
            running,
            list(_frames(job, options, streams)),
            streams,
            limits,
            signals=signals,
            reporter=reporter,
            console_copies=copies,
        )
        ending = session.run()
    if ending.how is wire.How.NOT_STARTED:
        reporter.notice(printable(os.fsencode(ending.text)))
    return ending.exit_status


def _options(backend: Backend, **named: object) -> Options:
    """The options with the back end's defaults. Raises ConfigError for what no lab can be."""
    chosen = {key: value for key, value in named.items() if value is not None}
    chosen = {"mem_mib": backend.default_mem_mib, "smp": backend.default_smp, **chosen}
    options = Options(**chosen)  # type: ignore[arg-type]  # the callers are ours and name them rightly
    if options.mem_mib < _SMALLEST_MIB:
        raise ConfigError(
            f"a lab needs at least {_SMALLEST_MIB} MiB of memory, not {options.mem_mib}; as in 2G"
        )
    if options.smp < 1:
        raise ConfigError(f"a lab needs at least one CPU, not {options.smp}")
    return options


def _directory(cwd: Path | str | None) -> str:
    try:
        return str((Path(cwd) if cwd else Path.cwd()).absolute())
    except FileNotFoundError:
        raise ConfigError("the current directory was removed; change to another") from None


def _shared(share: Path | str | None) -> Path | None:
    if share is None:
        return None
    path = Path(share).resolve()
    if not path.is_dir():
        raise ConfigError(f"--share {share}: no such directory")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"--share {share}: you may not write there")
    if path == Path("/"):
        raise ConfigError("--share /: that would be the whole machine; name a directory for results")
    return path


def _frames(job: Job, options: Options, streams: Streams) -> Iterator[bytes]:
    extra = {}
    if options.share:
        extra[b"share"] = os.fsencode(options.share)
    if streams.terminal:
        rows, columns = window_size(streams.stdout)
        extra[b"tty"] = b"%dx%d" % (rows, columns)
    elif _same_file(streams.stdout, streams.stderr):
        extra[b"merge"] = b"1"
    env = {os.fsencode(name): os.fsencode(value) for name, value in job.env.items()}
    return wire.encode_job(map(os.fsencode, job.argv), env, os.fsencode(job.cwd), extra)


def _same_file(one: int, other: int) -> bool:
    """Whether both go to the same place, so that their order there matters."""
    with contextlib.suppress(OSError):
        return os.path.sameopenfile(one, other)
    return False


def _console_copies(stack: ExitStack, path: Path | None, *, verbose: bool) -> list[BinaryIO]:
    copies: list[BinaryIO] = [sys.stderr.buffer] if verbose and sys.stderr else []
    try:
        return [*copies, stack.enter_context(path.open("wb"))] if path else copies
    except OSError as error:
        raise ConfigError(f"--keep-log {path}: {error.strerror}") from error


@contextmanager
def _ended(running: Running) -> Iterator[Running]:
    """The emulator, gone at the end together with our ends of its streams."""
    try:
        yield running
    finally:
        running.process.kill()
        for fd in {running.receive, running.send, running.console, running.messages}:
            with contextlib.suppress(OSError):
                os.close(fd)
        try:
            running.process.wait(10)
        except subprocess.TimeoutExpired:
            raise LabError(f"the emulator, process {running.process.pid}, can't be ended") from None


@contextmanager
def _standard_streams_open() -> Iterator[None]:
    """Descriptors 0 to 2 are open: one of ours that took the number of a closed one would get its data."""
    opened = []
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        opened.append(fd)
    os.close(fd)
    try:
        yield
    finally:
        for fd in opened:
            os.close(fd)
