"""Progress bars for long work, on a terminal only; they are gone when the work is done."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.containers.progress import Progress

__all__ = ["bars"]


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress]:
    """What to call with (what, bytes done, bytes in all); it shows nothing unless stderr is a terminal."""
    from pykvm.containers.progress import silent

    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, total: int) -> None:
            name = what.removeprefix("sha256:")[:12] if what.startswith("sha256:") else what[-24:]
            if what not in tasks:
                tasks[what] = shown.add_task(name, total=total or None)
            shown.update(tasks[what], completed=done)  # type: ignore[arg-type]  # it is what add_task gave

        yield progress
