"""Why a lab ended as it did: what is known of it while it runs, and the one line at a bad end."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING

from pykvm.errors import LabError, LabTimeoutError
from pykvm.lab.console import ConsoleLog, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from pykvm.lab.backend import Running
    from pykvm.lab.report import Reporter

__all__ = ["Diagnosis"]

_SHOWN_LINES = 12
_KEPT_BYTES = 16 * 1024
_TELLING = re.compile(r"fatal|error|assert|cannot|could not|failed|panic", re.IGNORECASE)


class Diagnosis:
    """What the session learns of the lab: its console, the emulator's words, how far it came."""

    def __init__(self, lab: str, reporter: Reporter, console_copies: Sequence[BinaryIO]) -> None:
        self._lab = lab
        self._reporter = reporter
        self._messages = bytearray()
        self._late = ""
        self.console = ConsoleLog(console_copies)
        self.booted = False
        """The init has said HELLO."""
        self.stage = ""
        """What the init did last, in its own words."""
        self.answered = False
        """Something came from the lab since its time was over."""

    def hear(self, messages: bytes) -> None:
        """Take what the emulator itself says."""
        self._messages += messages
        del self._messages[:-_KEPT_BYTES]

    def time_is_over(self) -> None:
        """Keep where it is now, and see whether it still answers."""
        self._late = self._where()
        self.answered = False

    def failure(self, words: bytes) -> LabError:
        """The init gave up, and said why."""
        self._show_console()
        return LabError(f"the {self._lab} lab failed: {printable(words)}")

    def damage(self, what: str) -> LabError:
        """The init, or somebody else on the channel, did what no init does."""
        return LabError(f"the channel to the {self._lab} lab is damaged: {what}")

    def death(self, running: Running) -> LabError:
        """The emulator ended before the command did: a panic, a failure of its own, or a riddle."""
        if self.console.panic:
            self._show_console()
            return LabError(
                f"the {self._lab} lab's kernel panicked while {self._where()}: {self.console.panic}"
            )
        reason = self._emulators_reason(running)
        if reason and not self.booted:
            return LabError(f"the {self._lab} lab could not start: {reason}")
        self._show_console()
        reason = reason or self._last_line()
        return LabError(f"the {self._lab} lab ended before the command did: {self._where()}; {reason}")

    def no_boot(self, after_s: float) -> LabTimeoutError:
        """The boot took longer than it may."""
        self._show_console()
        return LabTimeoutError(f"the {self._lab} lab did not boot in {after_s:.0f} s; {self._last_line()}")

    def late(self, after_s: float) -> LabTimeoutError:
        """The time that the user gave is over."""
        where = self._late or self._where()
        if self._late:
            where += (
                "; its kernel still answered" if self.answered else "; its kernel did not answer any more"
            )
        return LabTimeoutError(
            f"the {self._lab} lab was stopped after {after_s:.0f} s: {where}; {self._last_line()}"
        )

    def _where(self) -> str:
        if not self.booted:
            return "its kernel was booting"
        return f"it was {self.stage}" if self.stage else "its init was starting"

    def _last_line(self) -> str:
        line = self.console.last_line
        if self.booted and line.startswith("lab: "):
            return "its kernel said nothing"  # the init's own lines, from before the channel was open
        return f"its console's last line: {line}" if line else "its console said nothing"

    def _show_console(self) -> None:
        lines = self.console.telling_lines(_SHOWN_LINES)
        if lines:
            self._reporter.notice("its console:")
        for line in lines:
            self._reporter.notice(f"| {line}")

    def _emulators_reason(self, running: Running) -> str:
        """What the emulator said or what killed it; empty if it just ended."""
        said = [printable(bytes(line)) for line in self._messages.splitlines() if line.strip()]
        telling = ([line for line in said if _TELLING.search(line)] or said[-1:])[:1]
        if running.explain:
            telling = [running.explain(said)] if running.explain(said) else telling
        try:
            code = running.process.wait(1)  # its streams may have ended a little earlier
        except subprocess.TimeoutExpired:
            code = 0
        if code < 0:
            hint = " (is this machine's memory full?)" if code == -signal.SIGKILL else ""
            telling = [f"the emulator was killed by {signal.Signals(-code).name}{hint}", *telling]
        return "; ".join(telling)
