"""python -m tests.bench: measure, print a table, write JSON, compare with a baseline."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError
from pykvm.kvm import Kvm

from . import measure
from .figures import Figure, as_json, as_table, read_baseline
from .floor import Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PARTS = ("exits", "lifecycle", "command", "memory", "leaks")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Figures of what pykvm costs, each beside a C floor that does the same and nothing else. "
        "They pass or fail nothing: a busy host moves them. Figures of two KVMs can't be compared.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these: {', '.join(_PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few and short measurements")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures as JSON; - is stdout, without the table"
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="show the change against these figures")
    parser.add_argument("--save-baseline", type=Path, metavar="FILE", help="store the figures for --baseline")
    parser.add_argument(
        "--programs",
        type=Path,
        metavar="DIR",
        help="where the floor and its guest are, or are compiled to and kept",
    )
    found = parser.parse_args(words)
    if unknown := set(found.parts) - set(_PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(_PARTS)}")
    return found


def _measure(parts: Sequence[str], programs: Programs, *, quick: bool) -> list[Figure]:
    progress = _say if sys.stderr.isatty() else _say_nothing
    samples, seconds = (3, 0.03) if quick else (9, 0.2)
    todo: dict[str, Callable[[], list[Figure]]] = {
        "exits": lambda: measure.exits(programs, samples, seconds, progress),
        "lifecycle": lambda: measure.lifecycle(programs, samples, progress),
        "command": lambda: measure.command(samples, progress),
        "memory": measure.memory,
        "leaks": lambda: measure.leaks(100 if quick else 1000, progress),
    }
    return [figure for part in _PARTS if part in parts or not parts for figure in todo[part]()]


def _say(what: str) -> None:
    sys.stderr.write(f"\r\033[K{what}")
    sys.stderr.flush()


def _say_nothing(what: str) -> None:
    pass


def _files(options: argparse.Namespace) -> list[Path]:
    """Where the JSON goes, but for stdout."""
    wanted = [options.save_baseline, options.json and Path(options.json)]
    return [path for path in wanted if path and path != Path("-")]


def main(words: Sequence[str] | None = None) -> int:
    """Measure; 0 if that was possible, whatever came out."""
    options = _arguments(words)
    try:
        baseline = read_baseline(options.baseline) if options.baseline else None
        for path in _files(options):
            path.touch()  # what can't be written is better known before the work
        with Kvm() as kvm:
            title = f"pykvm on {kvm.module()}"
        with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
            programs = Programs(options.programs or Path(scratch))
            figures = _measure(options.parts, programs, quick=options.quick)
    except PykvmError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"bench: {error.filename}: {error.strerror}\n")
        return PykvmError.exit_status
    except KeyboardInterrupt:
        return 130
    finally:
        if sys.stderr.isatty():
            _say("")
    text = as_json(figures, quick=options.quick)
    for path in _files(options):
        path.write_text(text)
    if options.json == "-":
        sys.stdout.write(text)
    else:
        from rich.console import Console

        width = None if sys.stdout.isatty() else 160
        Console(width=width).print(as_table(figures, title, baseline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
