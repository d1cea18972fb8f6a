"""The tables of syscalls are the kernel's, every word in them means something, nothing lies about unused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from pykvm.trace import syscalls
from pykvm.trace.syscalls import (
    events,
    files,
    flags,
    kinds,
    lists,
    messages,
    processes,
    scalars,
    sockets,
    structs,
    times,
    values,
)
from pykvm.trace.syscalls import specials as special_kinds
from pykvm.trace.syscalls.variants import VARIANTS

HEADERS = {"x86-64": "unistd_64.h", "i386": "unistd_32.h"}
PLACES = ("/usr/include/x86_64-linux-gnu/asm", "/usr/include/asm")
# two numbers of x86-64 that came after the header's last one, in a gap below it
IN_THE_GAP = {335: "uretprobe", 336: "uprobe"}
EACH_ABI = pytest.mark.parametrize("abi", kinds.ABIS)
SOURCES = sorted(Path(syscalls.__path__[0]).glob("*.py"))


def header(abi: str) -> dict[int, str]:
    """The numbers and names in the kernel's own header on this machine."""
    paths = [Path(place) / HEADERS[abi] for place in PLACES]
    found = next((path for path in paths if path.exists()), None)
    assert found, f"no {HEADERS[abi]} in {' or '.join(PLACES)}; install linux-libc-dev"
    rows = re.findall(r"^#define __NR_(\w+)\s+(\d+)$", found.read_text(), re.MULTILINE)
    return {int(number): name for name, number in rows}


@EACH_ABI
def test_every_syscall_of_the_kernels_header_is_in_the_table(abi: str) -> None:
    """Number by number the names are the header's; a newer kernel's are named in the failure."""
    known = {number: row.name for number, row in kinds.rows(abi).items()}
    newer = {number: name for number, name in header(abi).items() if number not in known}
    assert not newer, (
        f"this machine's <asm/{HEADERS[abi]}> has {len(newer)} syscalls that pykvm does not know yet: "
        + ", ".join(f"{number} {name}" for number, name in newer.items())
        + "; give each a line in pykvm/trace/syscalls/table.py and its name in table_i386.py"
    )
    assert {number: known[number] for number in header(abi)} == header(abi)


@EACH_ABI
def test_no_syscall_is_made_up(abi: str) -> None:
    """Up to the header's last number the table has what the header has, and no more."""
    last = max(header(abi))
    known = {number: row.name for number, row in kinds.rows(abi).items() if number <= last}
    extra = IN_THE_GAP if abi == "x86-64" else {}
    assert known == header(abi) | extra


@EACH_ABI
def test_syscalls_that_both_abis_got_later_have_one_number(abi: str) -> None:
    """Since 424 a syscall has the same number everywhere, so the newest can't be mistyped in one table."""
    mine = {number: row.name for number, row in kinds.rows(abi).items() if number >= 424}
    assert mine == {number: row.name for number, row in kinds.rows("x86-64").items() if number >= 424}


@EACH_ABI
def test_every_word_of_the_table_is_a_kind(abi: str) -> None:
    """Each line, and each line of its variants, becomes a plan with a printer for every argument."""
    for number, row in kinds.rows(abi).items():
        plan = kinds.plans(abi)[number]
        assert plan is not None
        assert plan.name == row.name
        assert len(plan.before) == len(row.kinds) <= 6
        places = [position for position, _ in plan.before]
        assert len(set(places)) == len(places), f"{row.name} prints an argument twice"
        assert max(places, default=0) < 6


@EACH_ABI
def test_sizes_come_from_arguments_that_are_there(abi: str) -> None:
    """`@m` points at one of six arguments, and a result decides only over what the kernel fills in."""
    for number in kinds.rows(abi):
        plan = kinds.plans(abi)[number]
        assert plan is not None
        for one in (plan, *plan.variants.values()):
            for _, argument in one.after:
                assert argument.size_from is None or -1 <= argument.size_from < 6
    for line in all_lines():
        for word in re.findall(r"\S+@r", line):
            assert re.search(r"[>^]\w+@r", word), f"{word} in {line!r} is read before there is a result"


def all_lines() -> list[str]:
    """Every line that spells arguments."""
    spelled = [" ".join([row.name, *row.kinds]) for abi in kinds.ABIS for row in kinds.rows(abi).values()]
    return spelled + VARIANTS.strip().replace("\n  ", " ").splitlines()


def used_kinds() -> set[str]:
    """Every kind that a table, a variant, a struct or a result names, and each set that the code asks for."""
    words = set(re.findall(r"\w+", " ".join(all_lines())))
    results = [row.result for abi in kinds.ABIS for row in kinds.rows(abi).values()]
    spelled = structs._STRUCTS + " ".join(results)
    words |= set(re.findall(r"[:=](\w+)", spelled))
    for path in SOURCES:  # a name in quotes, if it is not where a printer is entered under it
        words |= set(re.findall(r"""["'](\w+)["'](?!:)""", path.read_text()))
    return words


def test_every_kind_is_used() -> None:
    """There is no set of flags or values, no struct and no printer that nothing refers to."""
    known = {
        *flags.flag_sets(),
        *values.value_sets(),
        *structs.layouts(is_64bit=True),
        *structs.layouts(is_64bit=False),
        *scalars._SCALARS,
        *(kind for table in kinds._SINGLE for kind in table),
        *kinds._SEVERAL,
    }
    assert sorted(known - used_kinds()) == []


def test_no_kind_means_two_things() -> None:
    """A kind is in one table only; one with the name of a struct prints that struct in its own way."""
    singles = (
        special_kinds.SPECIALS,
        sockets.SOCKETS,
        files.FILES,
        processes.PROCESSES,
        times.TIMES,
        events.EVENTS,
        messages.MESSAGES,
        lists.POINTED,
        scalars._SCALARS,
    )
    numbers = (set(flags.flag_sets()), set(values.value_sets()))
    # numbers by name, which a printer of that kind puts into a spelling of its own
    wrapped = {"clone_flags", "ioprio", "keyring", "mapflags", "personality", "syslog_action"}
    count = Counter(kind for table in (*singles, *numbers) for kind in table)
    assert {kind for kind, places in count.items() if places > 1} <= wrapped
    several = (lists.LISTS, events.EVENT_LISTS, files.FILE_LISTS, processes.PROCESS_LISTS)
    assert sum(map(len, (*several, sockets.SOCKET_LISTS, messages.MESSAGE_LISTS))) == len(kinds._SEVERAL)


def test_names_and_numbers_lead_to_each_other() -> None:
    """syscall_name and syscall_number are inverse; what is no syscall has a name that says so."""
    for abi in kinds.ABIS:
        for number, row in kinds.rows(abi).items():
            assert syscalls.syscall_name(number, abi) == row.name
            assert syscalls.syscall_number(row.name, abi) == number
    assert syscalls.syscall_name(999) == "syscall_0x3e7"
    assert syscalls.syscall_name(1 << 63) == "syscall_0x8000000000000000"
    assert syscalls.syscall_number("hypercall") is None
    assert syscalls.syscall_number("stat64") is None
    assert syscalls.syscall_number("stat64", "i386") == 195


def test_an_abi_that_there_is_not_is_an_error() -> None:
    """A wrong ABI is the caller's mistake, not the guest's."""
    with pytest.raises(KeyError):
        syscalls.describe(0, (), read=lambda _gva, _size: b"", abi="arm64")
