"""The Intel lab's back end: what Bochs is told, its disks, its wires, and why it ended."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_lab_bootdisk import bzimage

from pykvm.errors import ConfigError, LabError
from pykvm.lab import intel
from pykvm.lab.backend import Job, Options
from pykvm.lab.bochs import Disk, Wires, bochs_command, bochs_environment, bochsrc, explain_end
from pykvm.lab.intel import IntelBackend, kernel_arguments
from pykvm.lab.kernel import Kernel
from pykvm.lab.libraries import Libraries
from pykvm.lab.store import Store
from pykvm.lab.tree import Tree
from pykvm.lab.wire import PORT_PREAMBLE, Decoder, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.lab.backend import Running

OPTIONS = Options(mem_mib=1536, smp=1)
SAID = [
    "00000000000i[      ] reading configuration from bochsrc",
    "========================================================================",
    "Bochs is exiting with the following message:",
]
RULER = "========================================================================"

# What stands for Bochs: it tells its directory and its disks, then copies com2 to com1 and to port 0xe9.
FAKE_BOCHS = f"""#!{sys.executable}
import os, re, sys
print("Bochs x86 Emulator 2.7", flush=True)
text = open(sys.argv[sys.argv.index("-f") + 1]).read()
console, channel = re.findall(r"dev=(/dev/fd/\\d+)", text)
disks = re.findall(r"path=(\\S+),", text)
sys.stderr.write(" ".join(disks) + "\\n")
for disk in disks:
    open(disk, "rb").close()
with open(channel, "rb", buffering=0) as port, open(console, "wb", buffering=0) as out:
    data = port.read(64)
    out.write(b"console: " + data)
    os.write(1, b"\\npykvm lab\\n" + data)
"""


def silent(text: str) -> None:
    """A progress that nobody watches."""


def lines_of(text: str) -> dict[str, str]:
    """bochsrc: directive to its parameters."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {directive: parameters for directive, _, parameters in pairs}


def test_the_configuration_is_a_computer_with_these_parts() -> None:
    """Memory, four disks in order, two ports on inherited descriptors, nothing that listens or waits."""
    disks = [Disk("boot.img"), Disk("base.img"), Disk("job.img"), Disk("share.img", writable=True)]
    rc = lines_of(bochsrc(1000, disks, Wires(console=7, channel_in=8)))
    assert rc["memory"] == "guest=1000, host=1000"
    assert rc["ata0-master"] == "type=disk, path=boot.img, mode=volatile"
    assert rc["ata0-slave"] == "type=disk, path=base.img, mode=volatile"
    assert rc["ata1-master"] == "type=disk, path=job.img, mode=volatile"
    assert rc["ata1-slave"] == "type=disk, path=share.img, mode=flat"
    assert rc["com1"] == "enabled=1, mode=file, dev=/dev/fd/7"
    assert rc["com2"] == "enabled=1, mode=term, dev=/dev/fd/8"
    assert rc["display_library"].startswith("sdl2")
    assert rc["clock"].startswith("sync=none")
    assert "reset_on_triple_fault=0" in rc["cpu"]
    assert "socket" not in str(rc)


def test_the_command_finds_its_files_in_the_room(tmp_path: Path) -> None:
    """Short names, so that a long path to the cache is no harm; a lock left behind neither."""
    command = bochs_command(tmp_path, "cpu: count=1\n")
    assert "-unlock" in command
    assert (tmp_path / command[command.index("-f") + 1]).read_text() == "cpu: count=1\n"
    assert (tmp_path / command[command.index("-rc") + 1]).read_text() == "c\n"


def test_no_display_and_no_setting_of_the_user_s_reaches_bochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the environment stays."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("SDL_WHATEVER", "1")
    monkeypatch.setenv("LTDL_LIBRARY_PATH", "/elsewhere")
    monkeypatch.setenv("BXSHARE", "/elsewhere")
    monkeypatch.setenv("LAB_TEST", "kept")
    env = bochs_environment()
    assert env["SDL_VIDEODRIVER"] == "dummy"
    assert env["LAB_TEST"] == "kept"
    assert not {"SDL_WHATEVER", "LTDL_LIBRARY_PATH", "BXSHARE"} & set(env)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["[ACPI  ] ACPI control: soft power off"], "it was powered off"),
        (["[CPU0  ] exception(): 3rd (13) exception with no resolution"], "its CPU met a triple fault"),
        ([">>PANIC<< bochsrc:3: 'cpu' directive malformed"], "bochsrc:3: 'cpu' directive malformed"),
    ],
)
def test_bochs_s_last_words_are_explained(words: list[str], says: str) -> None:
    """The text between its rulers, in words of a person who did not write Bochs."""
    assert says in explain_end([*SAID, *words, RULER])


def test_without_last_words_there_is_no_explanation() -> None:
    """As when it was killed."""
    assert explain_end(SAID[:2]) == ""
    assert explain_end([]) == ""


def test_the_kernel_is_silent_or_tells_everything() -> None:
    """`-v` shows the boot. A panic ends the emulator."""
    assert kernel_arguments(OPTIONS).endswith(" quiet")
    verbose = kernel_arguments(replace(OPTIONS, verbose=True))
    assert verbose.endswith(" loglevel=7")
    assert {"panic=-1", "reboot=t", "console=ttyS0,115200"} <= set(verbose.split())


@pytest.mark.parametrize(
    ("smp", "mem_mib", "says"), [(2, 1536, "one CPU, not 2"), (1, 4096, "at most 3072 MiB")]
)
def test_what_bochs_can_t_be_is_refused(smp: int, mem_mib: int, says: str) -> None:
    """More CPUs, more memory."""
    with pytest.raises(ConfigError, match=says):
        IntelBackend().check(Options(mem_mib=mem_mib, smp=smp))


def test_what_bochs_can_be_is_not() -> None:
    """The defaults, and the most."""
    IntelBackend().check(OPTIONS)
    IntelBackend().check(Options(mem_mib=3072, smp=1))


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IntelBackend:
    """A back end whose Bochs, kernel and base are small."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "bochs").write_text(FAKE_BOCHS)
    (programs / "bochs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    (tmp_path / "initramfs").write_bytes(b"cpio")
    kernel = Kernel("6.1", tmp_path / "vmlinuz", None, tmp_path / "modules", "6.1-1")

    def small_tree(*_: object) -> Tree:
        tree = Tree(Libraries({}, {}))
        tree.add(tmp_path / "vmlinuz")
        return tree

    monkeypatch.setattr(intel, "kernel_for", lambda *_: kernel)
    monkeypatch.setattr(intel, "build_initramfs", lambda *_, **__: tmp_path / "initramfs")
    monkeypatch.setattr(intel, "base_tree", small_tree)
    monkeypatch.setattr(intel, "job_tree", small_tree)
    monkeypatch.setattr(intel, "compile_below", lambda *_: None)
    return IntelBackend(Store(tmp_path / "cache"))


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


def ended(running: Running) -> None:
    running.process.kill()
    running.process.wait()
    for fd in (running.receive, running.send, running.console, running.messages):
        os.close(fd)


@pytest.fixture
def running(backend: IntelBackend, room: Path) -> Iterator[Running]:
    running = backend.start(OPTIONS, Job(("true",)), room, silent)
    yield running
    ended(running)


def read_all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 4096), b""))


def test_the_wires_lead_where_they_should(running: Running) -> None:
    """What goes in arrives at the port, comes out behind the preamble, and the console is apart."""
    os.write(running.send, b"P\0\x02\0hi")
    os.close(running.send)
    frames = list(Decoder(running.preamble).feed(read_all(running.receive)))
    assert [(frame.kind, frame.payload) for frame in frames] == [(Kind.PING, b"hi")]
    assert running.preamble == PORT_PREAMBLE
    assert read_all(running.console) == b"console: P\0\x02\0hi"
    assert read_all(running.messages).decode().splitlines()[-1] == "boot.img base.img job.img"
    assert running.process.wait() == 0
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), running.send)


def test_the_cache_s_images_are_only_linked(running: Running, room: Path) -> None:
    """Bochs's locks and changes are in the room, and the cache may drop its own; the job's image is made."""
    for name, links in (("boot.img", 2), ("base.img", 2), ("job.img", 1)):
        status = (room / name).lstat()
        assert (stat.S_ISREG(status.st_mode), status.st_nlink) == (True, links), name
    assert not list(room.glob("*.d"))


def test_a_second_start_makes_nothing_anew(backend: IntelBackend, tmp_path: Path) -> None:
    """Only the job's disk is made for each run."""
    said: list[str] = []
    backend.prepare(OPTIONS, said.append)
    assert len(said) == 2
    for number in range(2):
        (tmp_path / f"room{number}").mkdir()
        ended(backend.start(OPTIONS, Job(("true",)), tmp_path / f"room{number}", said.append))
    assert len(said) == 2


def test_other_memory_needs_another_boot_disk(backend: IntelBackend) -> None:
    """The initramfs lies at the end of RAM."""
    said: list[str] = []
    backend.prepare(OPTIONS, said.append)
    backend.prepare(replace(OPTIONS, mem_mib=512), said.append)
    assert said.count("making the disk that boots the intel lab") == 2


def test_the_shared_directory_goes_and_comes_back(backend: IntelBackend, room: Path, tmp_path: Path) -> None:
    """On a fourth disk that can be written; what the lab did not change is as it was."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("text")
    options = replace(OPTIONS, share=share)
    running = backend.start(options, Job(("true",)), room, silent)
    assert read_disks(running) == "boot.img base.img job.img share.img"
    ended(running)
    assert (room / "share.img").stat().st_size > 512 << 20
    backend.collect(options, Job(("true",)), room)
    assert [path.name for path in share.iterdir()] == ["file"]
    assert (share / "file").read_text() == "text"


def read_disks(running: Running) -> str:
    os.write(running.send, b"x")
    return read_all(running.messages).decode().splitlines()[-1]


def test_results_that_can_t_be_read_are_kept(backend: IntelBackend, room: Path, tmp_path: Path) -> None:
    """The error names the disk, which is beside the shared directory."""
    share = tmp_path / "share"
    share.mkdir()
    options = replace(OPTIONS, share=share)
    ended(backend.start(options, Job(("true",)), room, silent))
    with (room / "share.img").open("r+b") as file:
        file.truncate(0)
        file.truncate(4 << 20)
    with pytest.raises(
        LabError, match=r"can't be repaired; the disk that the lab left is .*share-share\.img"
    ):
        backend.collect(options, Job(("true",)), room)
    assert (tmp_path / "share-share.img").exists()


def test_nothing_is_collected_when_nothing_was_started(
    backend: IntelBackend, room: Path, tmp_path: Path
) -> None:
    """As when the start failed half-way."""
    backend.collect(replace(OPTIONS, share=tmp_path), Job(("true",)), room)


def test_a_bochs_that_can_t_be_run_leaves_no_descriptor(
    backend: IntelBackend, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipes are closed when the start fails."""

    def fail(*_: object, **__: object) -> None:
        raise LabError("bochs: Permission denied")

    monkeypatch.setattr(intel, "start_emulator", fail)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(LabError, match="bochs: Permission denied"):
        backend.start(OPTIONS, Job(("true",)), room, silent)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_the_packages_are_named() -> None:
    """What a set-up installs, without a network display, a boot loader, or a second emulator."""
    from pykvm.lab.tools import packages_of

    assert packages_of(IntelBackend.tools) == [
        "bochs",
        "bochs-sdl",
        "bochsbios",
        "e2fsprogs",
        "gcc",
        "libc6-dev",
        "seabios",
        "util-linux",
    ]
