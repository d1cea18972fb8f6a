"""The command `pykvm`: one file a command, loaded only when it is asked for."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main", "program"]

# name -> one line for the list of commands; the command itself is `command` in pykvm/cli/NAME.py
COMMANDS = {
    "run": "Run a guest and show what it prints.",
    "trace": "Run a guest and show what it asks for, layer by layer.",
    "compare": "Do the same work with no guest, an emulated PC and hypercalls; say what each costs.",
    "ps": "List the running machines that have a name.",
    "console": "Be the console of a running machine.",
    "stop": "End running machines by name.",
    "guests": "List the tiny guests that travel with pykvm.",
    "kernel": "Fetch the Linux kernel that `pykvm run linux` boots.",
    "doctor": "Say what this machine's KVM can do.",
    "container": "Run containers in Linux guests, and show every layer of them.",
    "image": "Load, save, build, pull, push and show container images.",
    "lab": "Run a command in a computer with a full KVM, made in software.",
    "completion": "Print the shell's completion script.",
}

# Objects made before the garbage collector looks at the young ones. Python's 700 has it look some 60 times
# while a command's modules are imported, none of which is garbage: a tenth of the whole command's time.
_GC_YOUNG = 50_000


def program() -> int:
    """What the command `pykvm` is: main() in a process that ends with it."""
    status = main()
    gc.freeze()  # all goes with the process: to look for garbage first is a tenth of a short run's time
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Every error of ours is one line on stderr."""
    gc.set_threshold(_GC_YOUNG)
    try:
        status = _run(arguments)
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:  # also while what the command needs is imported
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nobody is left to tell
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return _failed(f"{error.filename or 'standard output'}: {error.strerror or error}", 125)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    import click

    from pykvm.cli.group import ReaderGoneError, group
    from pykvm.errors import PykvmError

    try:
        outcome = group.main(arguments, prog_name="pykvm", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ReaderGoneError:
        raise BrokenPipeError from None
    except PykvmError as error:
        return _failed(str(error), error.exit_status)
    return outcome if isinstance(outcome, int) else 0


def _failed(what: str, status: int) -> int:
    """One line on stderr, if it can be written; the status."""
    with suppress(OSError):
        if sys.stderr:
            from pykvm.output import printable

            print(f"pykvm: {printable(' '.join(what.splitlines()))}", file=sys.stderr, flush=True)
    return status


def _drop_output() -> None:
    """Let go of what stdout still holds, or Python tries once more to write it when it ends."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - pathlib is not loaded
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
