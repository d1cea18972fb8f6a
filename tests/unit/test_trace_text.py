"""Events as text: what a line says, and the live view's columns."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_parts import Memory, event, events, written

from pykvm.trace.live import LiveSink
from pykvm.trace.text import bytes_text, describe, duration_text, result_text, title, track

CALL = {
    "kind": "hypercall",
    "name": "console_write",
    "args": (("gpa", 0x8000), ("size", 5)),
    "data": b"Hello",
}


@given(st.binary(max_size=40))
def test_bytes_are_a_literal_that_can_be_read_back(data: bytes) -> None:
    """Every byte, in printable characters alone."""
    text = bytes_text(data)
    assert text.isprintable()
    assert ast.literal_eval(f'b"{text}"'.replace("\\e", "\\x1b")) == data or b"\\e" in data


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 µs"),
        (12_345, "12.3 µs"),
        (123_456, "123 µs"),
        (1_234_567, "1.23 ms"),
        (2_000_000_000, "2.00 s"),
        (3600 * 10**9, "3600 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(ns: int | None, text: str) -> None:
    """Whatever their size."""
    assert duration_text(ns) == text


@pytest.mark.parametrize(
    ("result", "text"),
    [(None, "?"), (5, "5"), (-14, "-14 EFAULT"), (-38, "-38 ENOSYS"), (-4096, "-4096"), ("ENOENT", "ENOENT")],
)
def test_errors_have_their_names(result: Any, text: str) -> None:
    """Those of Linux, as the ABI has them."""
    assert result_text(result) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "IO out 0xe9 DebugConsole ← 0x48 'H'"),
        ({"data": b"\n"}, r"IO out 0xe9 DebugConsole ← 0x0a '\n'"),
        ({"data": b"\xff"}, "IO out 0xe9 DebugConsole ← 0xff"),
        (
            {"args": (("way", "in"), ("port", 0x1F7), ("size", 1)), "data": b"\x50"},
            "IO in 0x1f7 nobody → 0x50 'P'",
        ),
        (
            {
                "args": (("way", "out"), ("port", 0x3F8), ("device", "Serial"), ("size", 1), ("count", 99)),
                "data": b"=" * 32,
            },
            f'IO out 0x3f8 Serial 99 times ← "{"=" * 32}"…',
        ),
        (
            {
                "via": "MMIO",
                "args": (("way", "read"), ("gpa", 0xD000_0004), ("device", "C"), ("offset", 4), ("size", 4)),
            },
            "MMIO read 0xd0000004 C+0x4 → 0x00000048",
        ),
        ({"name": "HLT", "via": "HLT", "args": (), "data": b""}, "HLT"),
        ({"name": "X86_RDMSR", "via": "X86_RDMSR", "args": (("msr", 0x10),)}, "X86_RDMSR msr=0x10"),
        ({**CALL, "result": 5}, 'hypercall console_write(gpa=0x8000, size=5) "Hello" = 5'),
        (
            {**CALL, "args": (("gpa", 1), ("size", 99)), "data": b"x" * 32},
            f'hypercall console_write(gpa=0x1, size=99) "{"x" * 32}"… = ?',
        ),
        ({"kind": "mark", "data": b"\x12"}, "mark 0x12"),
        ({"kind": "step", "code": "dec ecx"}, "dec ecx"),
        ({"kind": "note", "name": "the end"}, "the end"),
        (
            {
                "kind": "syscall",
                "name": "read",
                "args": (("fd", "3"), ("buf", '"ab"'), ("n", "2")),
                "data": b"",
                "result": -9,
            },
            'read(3, "ab", 2) = -9 EBADF',
        ),
    ],
)
def test_a_line_says_what_happened(fields: dict[str, Any], text: str) -> None:
    """In the words of strace where there are such."""
    assert describe(event(**fields)) == text


@settings(max_examples=30)
@given(events())
def test_every_event_has_a_text(found: Any) -> None:
    """Whatever a producer has made: describing it never fails."""
    assert isinstance(describe(found), str)
    assert isinstance(title(found), str)
    assert len(track(found)) == 2


def lines(*found: Any, **options: Any) -> list[str]:
    out = Memory(is_terminal=options.pop("is_terminal", False))
    written(LiveSink(out, **options), found)  # type: ignore[arg-type]
    assert out.is_closed
    return out.contents.decode().splitlines()


def test_lines_are_aligned_by_layer() -> None:
    """Each layer, from the program down, begins two columns further right."""
    layers = ("guest user", "guest kernel", "KVM", "pykvm", "host kernel")
    found = lines(*(event(i, layer=layer, name="HLT", via="HLT", args=()) for i, layer in enumerate(layers)))
    assert found[0].split() == ["time", "s", "cpu", "after", "takes", "layer", "event"]
    begins = [line.index("HLT") for line in found[1:]]
    assert [b - begins[0] for b in begins] == [0, 2, 4, 6, 8]


def test_times_count_from_the_guest_s_first_entry() -> None:
    """Not from boot."""
    found = lines(event(5_000_000, guest_ns=1_000_000), event(7_500_000))
    assert [float(line.split()[0]) for line in found[1:]] == [0.001, 0.0035]


def test_the_instruction_stands_behind_the_place() -> None:
    """Where it was asked for."""
    (_, line) = lines(event(code="out dx, al   ; dx=0xe9 al=0x48"))
    assert line.endswith("'H'   _start+0x20   | out dx, al   ; dx=0xe9 al=0x48")


def test_colours_are_for_terminals_only() -> None:
    """And there only around whole parts: without them the text is the same."""
    plain, coloured = lines(event()), lines(event(), is_terminal=True)
    assert not any("\x1b" in line for line in plain)
    assert all("\x1b" in line for line in coloured)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain


def test_lines_beside_the_guest_s_output_begin_on_a_line_of_their_own() -> None:
    """Where both are shown on one terminal."""

    class Console:
        is_at_line_start = False

    console: Any = Console()
    out = Memory(is_terminal=True)
    sink = LiveSink(out, colour=False, console=console)  # type: ignore[arg-type]
    sink.write([event()])
    assert out.contents.startswith(b"\n")
    sink.write([event()])
    assert not out.pieces[1].startswith(b"\n")


def test_a_process_is_named_where_it_is_known() -> None:
    """In front of what it asked for."""
    assert (
        "   busybox: read() = ?"
        in lines(event(kind="syscall", name="read", args=(), data=b"", task="busybox"))[1]
    )


def test_a_guest_s_bytes_can_not_control_the_terminal() -> None:
    """Escapes, carriage returns and the like are shown, not sent."""
    hostile = b"\x1b[2J\r\x07\x9b"
    (_, line) = lines(event(kind="hypercall", name="console_write", data=hostile))
    assert not set(line.encode()) & {0x1B, 0x0D, 0x07, 0x9B - 0x80}
    assert r"\e[2J\r\x07\x9b" in line
