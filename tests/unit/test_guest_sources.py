"""The sources of the guests: small enough to read, honest about what they want, in step with pykvm."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pykvm import layout, regs
from pykvm.doctor import PROBES, names_in
from pykvm.result import EndReason
from pykvm.toolchain import MODES

GUESTS = Path(__file__).parents[2] / "guests"
FOLDERS = sorted(path.parent for path in GUESTS.glob("*/guest.toml"))
TINY = [folder for folder in FOLDERS if "disk" not in tomllib.loads((folder / "guest.toml").read_text())]
MOST_LINES = 40

each_guest = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_tiny_guest = pytest.mark.parametrize("folder", TINY, ids=lambda folder: folder.name)


def about(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "guest.toml").read_text())


def code_lines(source: Path) -> int:
    """Lines that hold something else than comment."""
    text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)
    return sum(1 for line in text.splitlines() if line.strip())


def defined(header: str) -> dict[str, int]:
    text = (GUESTS / "lib" / header).read_text()
    found = re.findall(r"^#define (\w+) (0x[0-9a-f]+)\b", text, re.MULTILINE)
    return {name: int(number, 16) for name, number in found}


@each_tiny_guest
def test_a_guest_fits_on_a_page(folder: Path) -> None:
    """Each source of a guest has at most forty lines of code, and begins by saying what it shows."""
    sources = [*folder.glob("*.c"), *folder.glob("*.S")]
    assert sources
    for source in sources:
        assert code_lines(source) <= MOST_LINES, source.name
        assert source.read_text().startswith("/* "), source.name


@each_guest
def test_guest_toml_says_what_it_may(folder: Path) -> None:
    """The keys of guest.toml are those of guests/README.md; modes and needs exist."""
    found = about(folder)
    keys = {"description", "modes", "lib", "sources", "flags", "address", "needs", "machine", "expect"}
    assert set(found) <= keys | {"disk", "disk_addresses", "disk_bytes"}
    assert "\n" not in found["description"]
    assert set(found.get("modes", [])) <= set(MODES)
    assert {name for need in found.get("needs", []) for name in names_in(need)} <= set(PROBES)
    assert set(found["machine"]) <= {"memory", "vcpus", "irqchip", "unclaimed", "board"}


@each_tiny_guest
def test_guest_says_what_a_right_run_is(folder: Path) -> None:
    """In each of its modes a guest says how it ends, what it prints, and which exits it causes."""
    found = about(folder)
    for mode in found.get("modes", ["long64"]):
        expect = found["expect"] | found["expect"].get(mode, {})
        assert {"console", "exits"} <= set(expect)
        assert ("exit_code" in expect) != ("reason" in expect)
        assert expect.get("reason", "exit") in set(EndReason)


def test_readme_names_every_guest() -> None:
    """guests/README.md lists the guests that there are, and no others."""
    named = re.findall(r"`(\d\d_\w+)`", (GUESTS / "README.md").read_text())
    assert sorted(named) == [folder.name for folder in FOLDERS]


def test_selectors_are_those_of_the_machine() -> None:
    """guest.h and pykvm agree on the segment selectors."""
    header = defined("guest.h")
    names = "KERNEL_CODE64 KERNEL_DATA USER_CODE32 USER_DATA USER_CODE64 TSS_SELECTOR KERNEL_CODE32".split()
    assert {name: header[name] for name in names} == {name: getattr(regs, name) for name in names}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("PORT_DEBUG_CONSOLE", layout.DEBUG_CONSOLE),
        ("PORT_EXIT", layout.PLAIN_EXIT),
        ("PORT_DEBUG_EXIT", layout.DEBUG_EXIT),
        ("PORT_PANIC", layout.PANIC),
        ("PORT_COM1", layout.COM1),
    ],
)
def test_ports_are_those_of_the_board(name: str, where: range) -> None:
    """guest.h and pykvm agree on the ports."""
    assert defined("guest.h")[name] == where.start
