"""Bad input on the command line: one line on stderr, a documented status, no traceback, nothing left."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import kvm as kvm_module
from pykvm.cli import COMMANDS, main
from pykvm.errors import KvmError, PykvmError
from pykvm.kvm import Kvm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
PAGE = 4096
HLT = b"\xf4"
FAILED, UNUSABLE, ABSENT, USAGE = 125, 126, 127, 2


class FakeKvm:
    """A /dev/kvm that opens, and has no VM to give: what is wrong before that is seen without any KVM."""

    fd = -1
    run_bytes = 8192

    def close(self) -> None:
        """Nothing is open."""

    def create_vm(self, _: int = 0) -> int:
        raise KvmError(errno.ENOMEM, "KVM_CREATE_VM", "the host has no memory left for another VM")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; the test leaves no fd behind."""
    monkeypatch.setattr("pykvm.machine.Kvm", FakeKvm)
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    yield tmp_path
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.fixture
def says(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process: the one line that it says, with its status checked."""

    def run(status: int, *words: str) -> str:
        assert main(words) == status
        out, err = capfd.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert err.startswith("pykvm: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("pykvm: ").rstrip()

    return run


def elf64(
    segments: list[tuple[int, int, int, int]], data: bytes = HLT * 64, *, entry: int = 0x100000
) -> bytes:
    """An ELF64 executable with program headers (offset, address, bytes in file, bytes in memory)."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    table = b"".join(
        struct.pack("<IIQQQQQQ", 1, 7, offset, at, at, in_file, in_memory, PAGE)
        for offset, at, in_file, in_memory in segments
    )
    return (head + table).ljust(0x1000, b"\0") + data


GOOD = (0x1000, 0x100000, 64, 64)
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "one byte": (b"x", "neither ELF nor multiboot"),
    "noise": (bytes(i * 37 & 0xFF for i in range(70000)), "neither ELF nor multiboot"),
    "text": (b"#!/bin/sh\necho hello\n", "a script"),
    "gzip": (gzip.compress(HLT * 100), "compressed with gzip"),
    "elf header cut": (elf64([GOOD])[:40], ""),
    "elf table cut": (elf64([GOOD])[:100], ""),
    "elf data cut": (elf64([GOOD])[:0x1000], "truncated or damaged"),
    "elf without segments": (elf64([]), ""),
    "elf beyond memory": (elf64([(0x1000, 1 << 40, 64, 64)], entry=1 << 40), ""),
    "elf that wraps": (elf64([(0x1000, (1 << 64) - 32, 64, 64)], entry=(1 << 64) - 32), "wraps around"),
    "elf more in file than in memory": (elf64([(0x1000, 0x100000, 64, 32)]), "damaged"),
    "elf that overlaps itself": (elf64([GOOD, (0x1000, 0x100020, 64, 64)]), "overlap"),
    "elf with a hostile offset": (elf64([((1 << 64) - 8, 0x100000, 64, 64)]), "damaged"),
    "elf with a hostile size": (elf64([(0x1000, 0x100000, 64, 1 << 62)]), ""),
    "elf entered elsewhere": (elf64([GOOD], entry=0x400000), "its entry 0x400000"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused_with_what_is_wrong(here: Path, says: Callable[..., str], name: str) -> None:
    """Truncated, oversized, self-overlapping or hostile: the file's name and the reason, status 126."""
    contents, reason = IMAGES[name]
    (here / "guest.img").write_bytes(contents)
    line = says(UNUSABLE, "run", "guest.img")
    assert line.startswith("guest.img: ")
    assert reason in line


@pytest.mark.parametrize("image", ["nosuch", "./nosuch", "no/such/file", "01_hell", "a\nb", "\udcff"])
def test_an_image_that_is_not_there_is_127(says: Callable[..., str], image: str) -> None:
    """Neither a file nor a guest."""
    assert "no such" in says(ABSENT, "run", image)


@pytest.mark.parametrize("image", ["/dev/null", "/dev/zero", "/proc/self/mem", "."])
def test_what_is_no_file_is_not_read(says: Callable[..., str], image: str) -> None:
    """A device, an endless file, a directory."""
    says(UNUSABLE, "run", image)


def test_a_file_that_may_not_be_read(
    here: Path, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's word, whoever runs the tests."""
    (here / "secret.elf").write_bytes(HLT)
    real = os.open

    def no(path: Any, *rest: Any, **more: Any) -> int:
        if "secret" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *rest, **more)

    def no_path(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(os, "open", no)
    monkeypatch.setattr(Path, "open", no_path)
    monkeypatch.setattr("builtins.open", no)
    assert "ermission denied" in says(UNUSABLE, "run", "secret.elf")


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        ("0", "the least is one page"),
        ("1", "the least is one page"),
        ("4097", "a multiple of the page"),
        ("-64M", "is no size"),
        ("lots", "is no size"),
        ("", "is no size"),
        ("9999T", "give the guest less"),
        (str(HOST_BYTES // PAGE * PAGE + PAGE), "give the guest less"),
        ("9" * 30, "of guest memory"),
    ],
)
def test_memory_that_can_t_be_is_refused(
    here: Path, says: Callable[..., str], memory: str, reason: str
) -> None:
    """Zero, odd, more than the host has, or no number at all."""
    (here / "halt.real16.bin").write_bytes(HLT)
    assert reason in says(FAILED, "run", "--memory", memory, "halt.real16.bin")


def test_an_image_too_big_for_its_memory_is_refused(here: Path, says: Callable[..., str]) -> None:
    """Both sizes are in the line."""
    (here / "big.real16.bin").write_bytes(HLT * 70000)
    says(UNUSABLE, "run", "--memory", "64K", "big.real16.bin")


@pytest.mark.parametrize("mode", ["prot32", "paged32", "long64", "user64"])
def test_a_page_is_too_little_for_a_mode_with_tables(here: Path, says: Callable[..., str], mode: str) -> None:
    """The line says how much it needs and what would do."""
    (here / "halt.bin").write_bytes(HLT)
    says(FAILED, "run", "--memory", "4K", "--mode", mode, "--address", "0", "halt.bin")


@pytest.mark.parametrize("vcpus", ["0", "-1"])
def test_a_machine_has_at_least_one_vcpu(here: Path, says: Callable[..., str], vcpus: str) -> None:
    """None, or less."""
    (here / "halt.real16.bin").write_bytes(HLT)
    assert "at least 1" in says(FAILED, "run", "--smp", vcpus, "halt.real16.bin")


@pytest.mark.parametrize("address", ["-1", "0x10000000000000000", "0xffffffffffffffff", "0x7fffffff"])
def test_an_address_beyond_everything_is_refused(here: Path, says: Callable[..., str], address: str) -> None:
    """Negative, more than 64 bits, at the end of the address space, or beyond memory."""
    (here / "halt.bin").write_bytes(HLT)
    assert main(["run", "--mode", "long64", "--address", address, "halt.bin"]) in (FAILED, UNUSABLE)


def test_a_module_that_is_not_there(says: Callable[..., str]) -> None:
    """Named with the kernel's word."""
    assert "nosuch.mod" in says(UNUSABLE, "run", "--module", "nosuch.mod quiet", "01_hello")


def test_a_host_without_memory_for_a_vm_is_one_line(here: Path, says: Callable[..., str]) -> None:
    """The ioctl, the kernel's word, and what it means."""
    (here / "halt.real16.bin").write_bytes(HLT)
    line = says(FAILED, "run", "halt.real16.bin")
    assert line == "KVM_CREATE_VM: Cannot allocate memory; the host has no memory left for another VM"


# ---- /dev/kvm


def test_no_kvm_at_all(here: Path, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and the ways to get it."""
    monkeypatch.setattr("pykvm.machine.Kvm", partial(Kvm, str(here / "kvm")))
    line = says(FAILED, "run", "01_hello")
    assert "No such file or directory; this host has no KVM" in line
    assert "pykvm lab" in line


def test_a_kvm_that_is_no_kvm(says: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some other device has its name."""
    monkeypatch.setattr("pykvm.machine.Kvm", partial(Kvm, os.devnull))
    assert "this is not KVM's device" in says(FAILED, "run", "01_hello")


def test_a_kvm_that_may_not_be_used(says: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The group to join."""
    real = os.open

    def no(path: Any, *rest: Any, **more: Any) -> int:
        if path == "/dev/kvm":
            raise PermissionError(errno.EACCES, "")
        return real(path, *rest, **more)

    monkeypatch.setattr("pykvm.machine.Kvm", Kvm)
    monkeypatch.setattr(os, "open", no)
    assert "Permission denied; you may not use it: join the group" in says(FAILED, "run", "01_hello")


def test_a_kvm_of_a_foreign_version(says: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one it is, and which one is needed."""
    monkeypatch.setattr("pykvm.machine.Kvm", partial(Kvm, os.devnull))
    monkeypatch.setattr(kvm_module, "call", lambda *_: 13)
    assert "its API version is 13, pykvm needs 12" in says(FAILED, "run", "01_hello")


# ---- usage


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--smp", "two", "x"],
        ["run", "--timeout", "soon", "x"],
        ["run", "--mode", "real17", "x"],
        ["run", "--board", "pdp11", "x"],
        ["run", "--unclaimed", "ignore", "x"],
        ["run", "--address", "here", "x"],
        ["run", "--no-such-option", "x"],
        ["run", "x", "y"],
        ["nosuch"],
        ["--nosuch"],
    ],
)
def test_wrong_usage_is_2_and_shows_the_way(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The error, and where help is; never a traceback."""
    assert main(words) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "--help" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_always_there(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, with status 0."""
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: pykvm")
    assert err == ""


# ---- what happens to a command


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            FAILED,
            "pykvm: standard output: No space left on device\n",
        ),
        (OSError(errno.EIO, "Input/output error", "a.img"), FAILED, "pykvm: a.img: Input/output error\n"),
        (PykvmError("two\nlines"), FAILED, "pykvm: two lines\n"),
    ],
    ids=["ctrl-c", "reader gone", "disk full", "bad disk", "an error of two lines"],
)
def test_whatever_a_command_meets_is_a_status(
    raised: BaseException,
    status: int,
    line: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C at any moment, a reader that has gone, a full disk."""

    def run(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("pykvm.session.run_image", run)
    with open_stdout() as stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main(["run", "01_hello"]) == status
    err = capfd.readouterr().err
    assert err.strip() == line.strip()


def open_stdout() -> Any:
    """A stdout of one's own: after an error main() lets go of it for good."""
    return Path(os.devnull).open("w")


@pytest.mark.parametrize("words", [["guests"], ["--help"], ["completion", "bash"], ["run", "--help"]])
@pytest.mark.parametrize("closed", ["full", "closed", "gone"])
def test_output_that_can_t_be_written_is_no_traceback(words: list[str], closed: str) -> None:
    """stdout on a full disk, closed, or with nobody at the other end; a process of its own, to its end."""
    command = [sys.executable, "-m", "pykvm", *words]
    if closed == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with Path("/dev/full").open("w") as full:
        reader, writer = os.pipe()
        os.close(reader)
        stdout: Any = {"full": full, "closed": None, "gone": writer}[closed]
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
        os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode in {"full": (125,), "closed": (0,), "gone": (141, 1)}[closed]
