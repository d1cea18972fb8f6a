"""python -m tests.bench: measure, here or in a lab, print a table, write JSON, compare with a baseline."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import PykvmError
from pykvm.kvm import Kvm

from . import measure, traces
from .calls import calls
from .container_guest import GUEST_PARTS, container_guest
from .containers import containers
from .figures import Figure, as_json, as_table, figures_in, read_baseline
from .floor import Programs
from .labs import KEPT, measure_in
from .linux import LINUX_PARTS, linux

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# what is short comes before what leaves a heap behind
_PARTS = ("exits", "lifecycle", "command", "memory", "calls", "traces", "leaks", "containers")
_NO_KVM = ("containers",)  # what a lab would only make slow
_GUEST = ("guest", *(f"guest-{part}" for part in GUEST_PARTS))  # minutes, too
_LINUX = ("linux", *(f"linux-{part}" for part in LINUX_PARTS))  # minutes; only if they are asked for


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Figures of what pykvm costs, each beside a C floor that does the same and nothing else. "
        "They pass or fail nothing: a busy host moves them. Figures of two KVMs can't be compared.",
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"only these: {', '.join(_PARTS)}; or, beside QEMU: {', '.join(_LINUX)}; or, beside crun "
        f"and runc: {', '.join(_GUEST)}",
    )
    parser.add_argument("--quick", action="store_true", help="few and short measurements")
    parser.add_argument(
        "--lab",
        choices=("amd", "intel"),
        help="measure in this lab; figures of the Intel lab repeat, and are shown beside those in the tree",
    )
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
    parser.add_argument("--progress", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(words)
    there = (*_PARTS, *_LINUX, *_GUEST)
    if unknown := set(found.parts) - {*there}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    return found


def _measure(
    parts: Sequence[str], programs: Programs, progress: Callable[[str], None], *, quick: bool
) -> list[Figure]:
    samples, seconds = (3, 0.03) if quick else (9, 0.2)
    todo: dict[str, Callable[[], list[Figure]]] = {
        "exits": lambda: measure.exits(programs, samples, seconds, progress),
        "calls": lambda: calls(programs, samples, seconds, progress),
        "traces": lambda: traces.events(progress, 100_000 if quick else 1_000_000),
        "lifecycle": lambda: measure.lifecycle(programs, samples, progress),
        "command": lambda: measure.command(samples, progress),
        "memory": measure.memory,
        "leaks": lambda: measure.leaks(100 if quick else 1000, progress),
        "containers": lambda: containers(1 if quick else 3, progress, quick=quick),
    }
    found = []
    for part in _PARTS:
        if part in parts or not parts:
            gc.collect()
            gc.freeze()  # the heap that the parts before have left is no part of what this one costs
            found += todo[part]()
    if only := [part.removeprefix("linux-") for part in parts if part in _LINUX]:
        everything = () if "linux" in only else only
        found += linux(1 if quick else 3, programs.folder, progress, everything)
    if only := [part.removeprefix("guest-") for part in parts if part in _GUEST]:
        everything = () if "guest" in only else only
        found += container_guest(1 if quick else 3, programs.folder, progress, everything)
    return found


def _say(what: str) -> None:
    sys.stderr.write(f"\r\033[K{what}")
    sys.stderr.flush()


def _say_nothing(what: str) -> None:
    pass


def _files(options: argparse.Namespace) -> list[Path]:
    """Where the JSON goes, but for stdout."""
    wanted = [options.save_baseline, options.json and Path(options.json)]
    return [path for path in wanted if path and path != Path("-")]


def _take_in_lab(
    options: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[Figure], str, str]:
    """As _take(); what needs no KVM is measured here, if it is asked for."""
    here = [part for part in options.parts if part in _NO_KVM]
    parts = [part for part in options.parts or _PARTS if part not in _NO_KVM]
    found = dict(measure_in(options.lab, parts, quick=options.quick))
    title = f"pykvm on {found['where']['kvm']} in the {options.lab} lab"
    figures = figures_in(found)
    if not set(parts) <= {*_LINUX, *_GUEST}:  # other promises are meant for CPUs in hardware
        figures = [replace(figure, limit=None) for figure in figures]
    if here:
        with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
            own = _measure(here, Programs(Path(scratch)), progress, quick=options.quick)
        own = [replace(figure, name=f"(not in the lab) {figure.name}") for figure in own]
        figures += own
        found["figures"] = found["figures"] | json.loads(as_json(own, quick=options.quick))["figures"]
    return figures, title, json.dumps(found, indent=2) + "\n"


def _take(options: argparse.Namespace, progress: Callable[[str], None]) -> tuple[list[Figure], str, str]:
    """The figures, taken here or in a lab; a title for them; and as JSON."""
    if options.lab:
        return _take_in_lab(options, progress)
    with Kvm() as kvm:
        title = f"pykvm on {kvm.module()}"
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
        programs = Programs(options.programs or Path(scratch))
        figures = _measure(options.parts, programs, progress, quick=options.quick)
    return figures, title, as_json(figures, quick=options.quick)


def main(words: Sequence[str] | None = None) -> int:
    """Measure; 0 if that was possible, whatever came out."""
    options = _arguments(words)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed command has its bytecode
    shown = options.progress or sys.stderr.isatty()
    before = options.baseline or (None if options.save_baseline else KEPT.get(options.lab))
    try:
        baseline = read_baseline(before) if before else None
        for path in _files(options):
            path.touch()  # what can't be written is better known before the work
        figures, title, text = _take(options, _say if shown else _say_nothing)
    except PykvmError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"bench: {error.filename}: {error.strerror}\n")
        return PykvmError.exit_status
    except KeyboardInterrupt:
        return 130
    finally:
        if shown:
            _say("")
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
