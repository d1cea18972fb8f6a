"""`pykvm compare` without a KVM: what is made of counts and times, and how it is shown."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.cli import main
from pykvm.compare import (
    COUNTS,
    WORKLOADS,
    Absent,
    Cell,
    Column,
    Comparison,
    Count,
    Done,
    Job,
    Look,
    Place,
    Plan,
    all_ways,
    compare,
    ways_named,
    workloads_named,
)
from pykvm.compare.figures import number
from pykvm.compare.model import NO_GUEST
from pykvm.compare.page import check_page, html_of, write_page
from pykvm.compare.ptrace import NotCountedError, count_syscalls
from pykvm.compare.table import print_table
from pykvm.compare.workloads import LOOK
from pykvm.errors import ConfigError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLACE = b"Linux\n6.1-test\nbox\n00000007\npid:[4026532321]\n43 5 1 1 0 34 0\n"
EVIL = "<script>alert('&')</script>"


def cell(way: str = "a", **more: object) -> Cell:
    """An invented cell: 10 operations of 128 exits each and 7 for start and end."""
    count = Count({"IO": 1286, "HLT": 1}, {"IO": 6, "HLT": 1})
    values = {"workload": "print", "way": way, "operations": 10, "us_per_operation": 12.5, "start_ms": 3.25}
    return Cell(**{**dict.fromkeys(COUNTS, count), **values, **more})  # type: ignore[arg-type]


def comparison(*cells: Cell) -> Comparison:
    names = dict.fromkeys(one.way for one in cells)
    columns = tuple(Column(name, f"way {name}", f"about {name} {EVIL}") for name in names)
    return Comparison("kvm_test", "6.1-test", columns, cells)


class FakeWay:
    """A way that takes `each_ns` for an operation, and is asked what it was asked for."""

    order = 0
    marks_work = False

    def __init__(
        self, name: str, *, each_ns: int = 1000, output: bytes = b"", lacks: str = "", boot_ns: int = 0
    ) -> None:
        self.column = Column(name, name.upper(), "")
        self.each_ns, self.output, self.why, self.boot_ns = each_ns, output, lacks, boot_ns
        self.cannot: Mapping[str, str] = {}
        self.is_closed = False
        self.runs: list[tuple[int, Look]] = []

    def close(self) -> None:
        self.is_closed = True

    def lacks(self) -> str:
        return self.why

    def run(self, job: Job, look: Look) -> Done:
        assert job.disk.stat().st_size == 2048 * 512
        if job.workload == LOOK:
            return Done(PLACE, 1, machine_bytes=1 << 20 if self.boot_ns else None)
        self.runs.append((job.operations, look))
        exits = {"IO": 2 * job.operations + 5} if look is Look.EXITS else {"IO": 9**9}
        calls = {"write": job.operations} if look is Look.CALLS else {}
        wall_ns = 5_000_000 + self.each_ns * job.operations
        if not self.boot_ns:
            return Done(self.output, wall_ns, calls, calls, exits, exits)
        boot_ns = self.boot_ns * (len(self.runs) + 1)  # never the same twice
        return Done(self.output, boot_ns + wall_ns, calls, calls, exits, exits, work_ns=wall_ns)

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        raise NotCountedError("this host forbids it")


def test_a_count_is_split_into_operations_and_the_rest() -> None:
    """What a run of none makes too is not the operations'; names come most first."""
    count = Count({"KVM_RUN": 30, "brk": 2, "write": 12}, {"KVM_RUN": 10, "brk": 2, "mmap": 1})
    assert count.total == 44
    assert list(count.extra.items()) == [("KVM_RUN", 20), ("write", 12), ("mmap", -1)]
    assert count.extra_total == sum(count.extra.values()) == 31


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (128, "128"), (12807.0, "12,807"), (1.666, "1.67"), (0.0314, "0.0314")]
)
def test_numbers(value: float, text: str) -> None:
    """Whole numbers are whole, others have three digits that mean something."""
    assert number(value) == text


def test_json_says_absent_and_null_and_never_a_number_instead() -> None:
    """A count that could not be taken has its reason, one that can't be is null; the rest adds up."""
    one = cell(host_syscalls=Absent("ptrace: forbidden"), hypercalls=NO_GUEST)
    found = json.loads(json.dumps(comparison(one).as_json()))
    data = found["workloads"]["print"]["a"]
    assert data["host_syscalls"] == {"absent": "ptrace: forbidden"}
    assert data["hypercalls"] is None
    assert data["exits"] == {
        "total": 1287,
        "by_name": {"IO": 1286, "HLT": 1},
        "at_none": {"IO": 6, "HLT": 1},
        "per_operation": 128,
    }
    assert (data["us_per_operation"], data["start_ms"]) == (12.5, 3.25)
    assert [way["name"] for way in found["ways"]] == ["a"]


def test_table_shows_every_figure_and_every_reason() -> None:
    """One table a workload with the ways side by side; what was not measured says why."""
    file = io.StringIO()
    print_table(comparison(cell("a"), cell("b", exits=Absent("no KVM"), host_syscalls=NO_GUEST)), file)
    text = file.getvalue()
    assert "print: 10 times one line of 64 bytes" in text
    assert re.search(r"VM exits to pykvm\W+1,287\W+\(1\)", text)
    assert "(1) not measured here: no KVM\n" in text
    assert re.search(r"host system calls\W+1,287\W+- ", text)
    assert "IO 128" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def test_page_needs_nothing_and_believes_nothing() -> None:
    """The page links to nothing, shows every figure as text, and what is named like markup stays text."""
    one = cell(exits=Count({EVIL: 1280}, {}), us_per_operation=Absent(EVIL))
    text = html_of(comparison(one, cell("b")))
    page = Page(text)
    assert page.links == []
    assert "url(" not in text
    assert page.tags["script"] == 1
    assert page.tags["svg"] == 3
    assert page.tags["rect"] == 5, "a bar for each figure, none for what is absent"
    assert EVIL in page.text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert json.loads(data[1])["kvm"] == "kvm_test"


def test_page_of_nothing_measured() -> None:
    """Where no way could run, the page says so and has no bar."""
    page = Page(html_of(comparison(Cell.absent("print", "a", 10, "no KVM: there is no /dev/kvm"))))
    assert page.tags["rect"] == 0
    assert page.text.count("not measured here: no KVM") > 3


def test_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full leaves the old page; where no file can be is known before anything runs."""
    target, found = tmp_path / "p.html", comparison(cell())
    target.write_text("old")

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:10].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ConfigError, match=r"p.html: can't write the page: No space"):
            write_page(str(target), found)
    assert target.read_text() == "old"
    check_page(str(target))
    write_page(str(target), found)
    assert target.read_text() == html_of(found)
    assert list(tmp_path.iterdir()) == [target]
    for bad in (tmp_path, tmp_path / "no" / "p", target / "p"):
        with pytest.raises(ConfigError, match="name another file"):
            check_page(str(bad))


def test_measuring(tmp_path: Path) -> None:
    """Each look is a run by itself; operations are added until they take long; the rest is divided."""
    way, told = FakeWay("a", each_ns=100_000), []
    found = compare([way], [WORKLOADS["print"]], Plan(repeat=2), progress=lambda *words: told.append(words))
    one = found.cell("print", "a")
    assert told == [("look", "A"), ("print", "A")]
    assert way.is_closed
    assert found.places["a"] == Place("Linux 6.1-test", "box", 7, 4026532321, 5 * 4096, NO_GUEST)
    assert one.exits == Count({"IO": 205}, {"IO": 5})
    assert one.guest_syscalls == Count({"write": 100}, {"write": 0})
    assert (one.us_per_operation, one.start_ms, one.timed_operations) == (100, 5, 1000)
    assert one.host_syscalls == Absent("this host forbids it")
    timed = Counter(operations for operations, look in way.runs if look is Look.TIME)
    assert timed == {0: 2, 100: 2, 1000: 2}
    boots = FakeWay("b", each_ns=100_000, boot_ns=10**9)
    one = compare([boots], [WORKLOADS["print"]], Plan(repeat=2)).cell("print", "b")
    assert (one.us_per_operation, one.start_ms, one.alone_ms) == (100, 6005, 5)


def test_operations_that_take_no_time_have_no_time() -> None:
    """Nothing is divided that is not more than the noise."""
    found = compare([FakeWay("a", each_ns=0)], [WORKLOADS["time"]], Plan(repeat=1))
    assert isinstance(found.cell("time", "a").us_per_operation, Absent)


def test_a_way_that_can_t_run_is_a_column_of_reasons() -> None:
    """The others are measured all the same; so are its other workloads, where it can't do but one."""
    ways = [FakeWay("a"), FakeWay("b", lacks="no KVM"), FakeWay("c")]
    ways[2].cannot = {"print": "no paper"}
    found = compare(ways, [WORKLOADS["print"]], Plan(10, repeat=1))
    assert found.cell("print", "c") == Cell.absent("print", "c", 10, "no paper")
    assert found.places["b"] == Place.absent("no KVM")
    assert found.cell("print", "b") == Cell.absent("print", "b", 10, "no KVM")
    assert not ways[1].runs
    assert found.absent_ways == ("b",)
    assert isinstance(found.cell("print", "a").us_per_operation, float)


def test_work_that_came_to_something_else_is_an_error() -> None:
    """Two ways that print different things did not do the same work: no figures of that."""
    ways = [FakeWay("a", output=b"1"), FakeWay("b", output=b"2")]
    with pytest.raises(PykvmError, match="print: a and b did not print the same"):
        compare(ways, [WORKLOADS["print"]], Plan(10, repeat=1))


def test_names() -> None:
    """The files in pykvm/compare/ways are the columns, in order; unknown names are one clear line."""
    ways = ["host", "host-container", "emulated", "paravirt", "linux", "linux-container"]
    assert list(all_ways()) == ways
    assert [way.column.name for way in ways_named(("paravirt", "host"))] == ["host", "paravirt"]
    assert [work.name for work in workloads_named(("time", "print", "time"))] == ["time", "print"]
    with pytest.raises(ConfigError, match="no way 'xen'; there are host"):
        ways_named(("xen",))
    with pytest.raises(ConfigError, match="no workload 'nap'; there are getpid"):
        workloads_named(("nap",))


CALLS = {"print": ["write"], "blocks": ["read"], "time": ["clock_gettime"], "getpid": ["getpid"]}
CALLS["files"] = ["open", "fstat", "close"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_host_process_asks_once_for_each_operation(workload: str, tmp_path: Path) -> None:
    """Counted from outside by ptrace: one call an operation, none for calculating; and it prints its work."""
    way, disk = all_ways()["host"], tmp_path / "disk"
    disk.write_bytes(bytes(range(256)) * 2 * 40)
    jobs = [Job(workload, n, disk) for n in (0, 30)]
    none, all_ = (count_syscalls(argv)[0] for argv in way.counted(jobs))
    calls = CALLS.get(workload, [])
    assert all_ - none == Counter(dict.fromkeys(calls, 30))
    output = way.run(jobs[1], Look.TIME).output
    if workload == "print":
        assert output.count(b"\n") == 30
        assert len(output) == 30 * 64


def test_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`pykvm compare` gives the same figures as JSON and as a page; bad words are one line and a status."""
    page = tmp_path / "page.html"
    words = ["compare", "print", "-w", "host", "-n", "3", "--repeat", "1"]
    assert main([*words, "--json", "--html", str(page)]) == 0
    printed = capfd.readouterr()
    found = json.loads(printed.out)["workloads"]["print"]["host"]
    assert found["host_syscalls"]["by_name"] == {"write": 3, "exit": 1}
    assert found["exits"] is found["hypercalls"] is None
    assert found["us_per_operation"] > 0
    assert not printed.err
    assert Page(page.read_text()).tags["svg"] == 3
    for bad in (["nap"], ["-w", "xen"], ["--html", "/proc/no/page.html"]):
        assert main(["compare", *bad]) == 125
        assert capfd.readouterr().err.count("\n") == 1


TREE = """
import os, threading
from pykvm.compare.ptrace import mark_begin, mark_end
def ask(): os.getppid()
for _ in range(2):
    os.getppid()
    mark_begin()
    os.getppid(); os.system("true"); thread = threading.Thread(target=ask); thread.start(); thread.join()
    mark_end()
"""


def test_counting_follows_threads_and_children_between_marks() -> None:
    """A window holds what all of them did in it, and nothing from outside it."""
    windows = count_syscalls([sys.executable, "-c", TREE], marked=True)
    assert [window["getppid"] for window in windows] == [windows[0]["getppid"]] * 2
    assert windows[0]["getppid"] >= 2
    assert all(window["execve"] == 1 for window in windows)


def children() -> str:
    """The processes that this thread has started and not taken the end of."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_counting_ends(tmp_path: Path) -> None:
    """A process that fails says why, one that never ends is stopped; neither leaves a process behind."""
    before = children()
    for code, reason, limit_s in (
        ("raise SystemExit('it broke')", "it broke", 30),
        ("import os, time; os.fork(); time.sleep(60)", "longer than 0.5 s", 0.5),
        ("import os; os.kill(os.getpid(), 9)", "status 137", 30),
    ):
        with pytest.raises(NotCountedError, match=reason):
            count_syscalls([sys.executable, "-S", "-c", code], timeout_s=limit_s)
    with pytest.raises(NotCountedError, match="No such file"):
        count_syscalls([str(tmp_path / "nowhere")])
    assert children() == before
