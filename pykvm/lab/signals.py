"""Signals as bytes in a pipe, so that one poll waits for them and everything else."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["caught_signals"]


@contextmanager
def caught_signals(numbers: Sequence[int]) -> Iterator[int]:
    """A descriptor that gives one byte, its number, for each of these signals while the block runs.

    Only the main thread may catch signals; elsewhere the descriptor stays silent. A signal that is ignored
    (nohup) stays so.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    if threading.current_thread() is not threading.main_thread():
        try:
            yield reader
        finally:
            os.close(reader)
            os.close(writer)
        return
    former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    former = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, _leave_to_the_pipe)
        yield reader
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        os.close(reader)
        os.close(writer)


def _leave_to_the_pipe(number: int, frame: object) -> None:
    """Python writes the number to the wake-up descriptor; nothing else is to be done."""
