"""The console's log finds the reason of an end in what the kernel said; a report says it without noise."""

from __future__ import annotations

import io
import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.lab.console import ConsoleLog
from pykvm.lab.report import Reporter
from pykvm.lab.terminal import EscapeWatch, raw_terminal, window_size

CRASH = b"""\
[    4.1] sysrq: Trigger a crash\r
[    4.2] Kernel panic - not syncing: sysrq triggered crash\r
[    4.2] CPU: 0 PID: 80 Comm: sh Not tainted 6.1.0\r
[    4.2] RAX: ffffffffffffffda RBX: 0000000000000002\r
[    4.2]  dump_stack_lvl+0x44/0x5c\r
"""


def test_a_panic_is_found_in_the_kernels_words() -> None:
    """Also when it arrives in pieces; the registers are left out of what is shown."""
    log = ConsoleLog()
    for at in range(0, len(CRASH), 7):
        log.append(CRASH[at : at + 7])
    assert log.panic == "sysrq triggered crash"
    assert log.telling_lines(3) == [
        "[    4.2] Kernel panic - not syncing: sysrq triggered crash",
        "[    4.2] CPU: 0 PID: 80 Comm: sh Not tainted 6.1.0",
        "[    4.2]  dump_stack_lvl+0x44/0x5c",
    ]


def test_a_quiet_console_has_no_panic_and_a_last_line() -> None:
    """The last line is given without its time stamp and control characters; none is empty."""
    log = ConsoleLog()
    assert (log.panic, log.last_line, log.telling_lines(3)) == (None, "", [])
    log.append(b"[    1.0] first\n[   10.25] \x1b[31mlast\x1b[0m\x07\r\n\r\n")
    assert log.last_line == "last"
    assert log.panic is None


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_any_bytes_are_a_console(pieces: list[bytes]) -> None:
    """A guest may write anything: lines hold what can be printed, and the copy holds everything."""
    copy = io.BytesIO()
    log = ConsoleLog([copy])
    for piece in pieces:
        log.append(piece)
    assert copy.getvalue() == b"".join(pieces)
    assert all(line.isprintable() for line in [*log.lines(50), *log.telling_lines(50), log.panic or ""])


def test_only_the_end_of_a_flood_is_kept() -> None:
    """A console that never stops does not fill the memory."""
    log = ConsoleLog()
    for _ in range(100):
        log.append(b"x" * 65535 + b"\n")
    log.append(b"end\n")
    assert len(log._data) <= 256 * 1024
    assert log.last_line == "end"


def test_without_a_terminal_states_are_silent_and_steps_are_lines() -> None:
    """So a command's standard error stays what it is."""
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.state("booting")
    reporter.clear()
    assert stream.getvalue() == ""
    reporter.step("fetching")
    reporter.notice("done")
    assert stream.getvalue() == "pykvm: lab: fetching\npykvm: lab: done\n"


def test_quiet_keeps_notices_only() -> None:
    """What takes time is not told; what must be known is."""
    stream = io.StringIO()
    reporter = Reporter(stream, quiet=True)
    reporter.step("fetching")
    reporter.notice("panic")
    assert stream.getvalue() == "pykvm: lab: panic\n"


def test_on_a_terminal_a_state_goes_away() -> None:
    """What comes and goes leaves an empty line; a reader that is gone is no reason to fail."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    reporter = Reporter(stream)
    reporter.state("booting")
    reporter.state("booting")
    reporter.notice("hello")
    assert stream.getvalue() == "\r\x1b[Kpykvm: lab: booting\r\x1b[Kpykvm: lab: hello\n"
    stream.close()
    reporter.notice("nobody hears")
    Reporter(None).notice("nobody at all")


def test_the_terminal_is_put_back_whatever_happens() -> None:
    """Raw inside, as it was outside, also after an error."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def fail_while_raw() -> None:
        with raw_terminal(slave):
            assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_while_raw()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_terminal_without_a_size_has_the_usual_one() -> None:
    """24 rows and 80 columns, as for no terminal at all."""
    master, slave = pty.openpty()
    assert window_size(slave) == (24, 80)
    termios.tcsetwinsize(slave, (40, 100))
    assert window_size(slave) == (40, 100)
    os.close(master)
    os.close(slave)
    assert window_size(slave) == (24, 80)


@pytest.mark.parametrize(
    ("typed", "leaves"),
    [
        ([b"\x1d\x1d\x1d"], True),
        ([b"\x1d", b"\x1d", b"\x1d"], True),
        ([b"\x1d\x1dx\x1d"], False),
        ([b"]]]"], False),
    ],
)
def test_only_three_in_a_row_leave(typed: list[bytes], leaves: bool) -> None:
    """However they arrive; anything between them starts anew."""
    watch = EscapeWatch()
    assert [watch.feed(data) for data in typed][-1] is leaves
