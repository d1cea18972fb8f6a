"""Which events are wanted: by kind, exit reason, port and name."""

from __future__ import annotations

from typing import Any

import pytest
from trace_parts import event

from pykvm.errors import ConfigError
from pykvm.exits import reason_names
from pykvm.trace.select import Selection, check_words, parse_ports

EXIT = event()
HALT = event(name="HLT", via="HLT", args=())
CALL = event(kind="hypercall", name="time", args=())
SYSCALL = event(kind="syscall", name="openat", via="", layer="guest kernel", args=(), task="init[7:9]")
MMIO = event(name="MMIO", via="MMIO", args=(("way", "read"), ("gpa", 0xD000_0000)))
NOTE = event(kind="note", name="dropped 3 records", via="", args=())
ALL = [EXIT, HALT, CALL, SYSCALL, MMIO, NOTE]


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ({}, ALL),
        ({"only": ["hypercall"]}, [CALL, NOTE]),
        ({"only": ["exit"]}, [EXIT, HALT, MMIO, NOTE]),
        ({"only": ["HLT", "syscall"]}, [HALT, SYSCALL, NOTE]),
        ({"only": ["io"]}, [EXIT, CALL, NOTE]),
        ({"without": ["exit"]}, [CALL, SYSCALL, NOTE]),
        ({"without": ["mmio", "hypercall"]}, [EXIT, HALT, SYSCALL, NOTE]),
        ({"only": ["exit"], "without": ["io"]}, [HALT, MMIO, NOTE]),
        ({"ports": [range(0xE9, 0xEA)]}, [EXIT, NOTE]),
        ({"ports": [range(0xD000_0000, 0xD000_0010)]}, [MMIO, NOTE]),
        ({"ports": [range(0xE9, 0xEA)], "only": ["hlt", "io"]}, [EXIT, HALT, CALL, NOTE]),
        ({"syscalls": ["openat"]}, [SYSCALL, NOTE]),
        ({"syscalls": ["read"]}, [NOTE]),
        ({"processes": [7]}, [SYSCALL, NOTE]),
        ({"processes": [8, 1]}, [NOTE]),
        ({"processes": [7], "syscalls": ["read"]}, [NOTE]),
        ({"processes": [7], "only": ["hlt", "syscall"]}, [HALT, SYSCALL, NOTE]),
        ({"hypercalls": ["time"], "syscalls": ["openat"]}, [CALL, SYSCALL, NOTE]),
    ],
)
def test_selection_keeps_what_was_asked_for(chosen: dict[str, Any], wanted: list[Any]) -> None:
    """And the tracer's own notes, always."""
    assert list(Selection(**chosen).keep(ALL)) == wanted


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ({}, {"syscall", "kvm", "host"}),
        ({"only": ["exit", "kvm"]}, {"kvm"}),
        ({"without": ["host", "kvm"]}, {"syscall"}),
        ({"ports": [range(1)]}, set()),
        ({"ports": [range(1)], "only": ["host", "exit"]}, {"host"}),
        ({"syscalls": ["read"]}, {"syscall"}),
        ({"hypercalls": ["time"]}, set()),
        ({"processes": [1]}, {"syscall"}),
        ({"processes": [1], "without": ["syscall"]}, set()),
    ],
)
def test_a_kind_that_nobody_wants_need_not_be_produced(chosen: dict[str, Any], wanted: set[str]) -> None:
    """And one that an event could pass by is."""
    selection = Selection(**chosen)
    assert {kind for kind in ("syscall", "kvm", "host") if selection.may_want(kind)} == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0x3f8", range(0x3F8, 0x3F9)),
        ("0x3f8-0x3ff", range(0x3F8, 0x400)),
        ("0x3f8+8", range(0x3F8, 0x400)),
        ("233", range(233, 234)),
        ("0xd0000000-0xd000000f", range(0xD000_0000, 0xD000_0010)),
    ],
)
def test_ports_are_written_in_three_ways(text: str, wanted: range) -> None:
    """One, from-to, from+how many."""
    assert parse_ports(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "0x400-0x3f8", "1-2-3", "0x3f8+0", "-5", "0x3f8+", "1+2+3"])
def test_what_is_no_range_is_one_line(text: str) -> None:
    """With an example of what one is."""
    with pytest.raises(ConfigError, match="is no range of ports; give one like"):
        parse_ports(text)


def test_unknown_words_are_refused() -> None:
    """Kinds and exit reasons are known, in either case."""
    check_words(["hypercall", "IO", "mmio", "Hlt"], reason_names())
    with pytest.raises(ConfigError, match="'hypercal' is no kind of event"):
        check_words(["hypercal"], reason_names())
