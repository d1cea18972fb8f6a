"""The AMD lab's command line, its initramfs, and what it needs of the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_lab_cpio import read_archive
from test_lab_modules import module_image

from pykvm.errors import LabError, ToolchainError
from pykvm.lab.amd import AmdBackend, kernel_arguments, qemu_command
from pykvm.lab.backend import Options, Tool
from pykvm.lab.initramfs import build_initramfs, compile_init
from pykvm.lab.kernel import Kernel
from pykvm.lab.store import DamageError, Store
from pykvm.lab.tools import check_tools, find_program, missing_tools, packages_of

if TYPE_CHECKING:
    from collections.abc import Sequence

KERNEL = Kernel("6.1", Path("/k/vmlinuz"), Path("/k/vmlinux"), Path("/k/modules"), "6.1")


def silent(text: str) -> None:
    """A progress that nobody watches."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A cache in which the init is compiled once."""
    return Store(tmp_path_factory.mktemp("cache"))


def value_of(command: Sequence[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_command_line_makes_what_was_asked_for() -> None:
    """CPUs, memory, the unpacked kernel; the host's files can't be written."""
    command = qemu_command(Options(mem_mib=1000, smp=3), KERNEL, Path("/i"), channel=7, console=8)
    assert (value_of(command, "-m"), value_of(command, "-smp")) == ("1000M", "3")
    assert (value_of(command, "-kernel"), value_of(command, "-initrd")) == ("/k/vmlinux", "/i")
    assert value_of(command, "-accel") == "tcg,thread=multi"
    assert [word for word in command if ",fd=" in word] == [
        "socket,id=console,fd=8",
        "socket,id=channel,fd=7",
    ]
    shares = [word for word in command if word.startswith("local,")]
    assert shares == ["local,id=host,path=/,security_model=none,multidevs=remap,readonly=on"]


def test_a_kernel_that_stays_packed_is_booted_packed() -> None:
    """Without an ELF file the bzImage is given to QEMU."""
    packed = Kernel("6.1", Path("/k/vmlinuz"), None, Path("/k/modules"), "6.1")
    assert (
        value_of(qemu_command(Options(512, 1), packed, Path("/i"), channel=7, console=8), "-kernel")
        == "/k/vmlinuz"
    )


def test_a_share_is_writable_and_its_name_can_not_add_options() -> None:
    """QEMU takes a doubled comma for one in the name."""
    options = Options(512, 1, share=Path("/a,readonly=on/b"))
    command = qemu_command(options, KERNEL, Path("/i"), channel=7, console=8)
    assert "local,id=share,path=/a,,readonly=on/b,security_model=none,multidevs=remap" in command


def test_the_kernel_is_quiet_unless_it_is_to_be_seen() -> None:
    """Either way a panic ends the lab at once, which is how it is noticed."""
    quiet, verbose = (kernel_arguments(Options(512, 1, verbose=verbose)).split() for verbose in (False, True))
    assert "quiet" in quiet
    assert "quiet" not in verbose
    assert {"panic=-1", "oops=panic", "console=ttyS0"} <= set(quiet) & set(verbose)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel with two modules that need each other in one direction."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "kvm.ko").write_bytes(module_image(depends="") + b"~")
    (modules / "kvm-amd.ko").write_bytes(module_image(depends="kvm"))
    return Kernel("6.1", tmp_path / "vmlinuz", None, modules, "6.1_1")


def test_the_initramfs_has_the_init_its_modules_and_their_order(
    tmp_path: Path, cache: Store, kernel: Kernel
) -> None:
    """lab.conf names the modules in loading order before the rest; a second one comes from the cache."""
    store = cache
    path = build_initramfs(kernel, ["kvm_amd"], ["name lab"], store=store, room=tmp_path, progress=silent)
    archive = read_archive(path.read_bytes())
    assert set(archive) == {
        "init", "lab.conf", "dev", "dev/console", "modules", "modules/kvm.ko", "modules/kvm_amd.ko"
    }  # fmt: skip
    assert archive["init"][0] & 0o111
    assert archive["init"][3].startswith(b"\x7fELF")
    assert archive["lab.conf"][3] == b"module /modules/kvm.ko\nmodule /modules/kvm_amd.ko\nname lab\n"
    said: list[str] = []
    again = build_initramfs(
        kernel, ["kvm_amd"], ["name lab"], store=store, room=tmp_path, progress=said.append
    )
    other = build_initramfs(kernel, ["kvm_amd"], ["name x"], store=store, room=tmp_path, progress=said.append)
    assert (again, said) == (path, [])
    assert other != path


def test_the_initramfs_of_a_given_kernel_is_not_kept(tmp_path: Path, cache: Store, kernel: Kernel) -> None:
    """Its file could change under the same name: it is made in the room."""
    given = Kernel("6.1", kernel.image, None, kernel.modules, "")
    room = tmp_path / "room"
    room.mkdir()
    path = build_initramfs(given, ["kvm"], [], store=cache, room=room, progress=silent)
    assert path.parent == room


def test_a_kernel_without_what_the_lab_needs_is_told(tmp_path: Path, cache: Store, kernel: Kernel) -> None:
    """The first module that is missing is named, and nothing half-made stays."""
    other = replace(kernel, key="another")
    with pytest.raises(LabError, match="this kernel has no module 9p"):
        build_initramfs(other, ["9p"], [], store=cache, room=tmp_path, progress=silent)
    assert not [entry for entry in cache.entries("initramfs") if isinstance(entry, DamageError)]
    assert not list((cache.root / "initramfs").glob(".new-*"))


def test_a_compiler_that_can_not_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a missing gcc nor its complaint is a traceback; both say what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"no gcc; .* apt-get install gcc libc6-dev"):
        compile_init(Store(tmp_path / "cache"), silent)
    (tmp_path / "gcc").write_text("#!/bin/sh\necho 'ld: cannot find -lc' >&2\nexit 1\n")
    (tmp_path / "gcc").chmod(0o755)
    with pytest.raises(ToolchainError, match=r"cannot find -lc; .* apt-get install gcc libc6-dev"):
        compile_init(Store(tmp_path / "cache"), silent)


def test_what_is_missing_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it in one line, each package once."""
    tools = (
        Tool("no-such-a", "pkg-b pkg-c"),
        Tool("no-such-b", "pkg-a"),
        Tool("no-such-c", "pkg-a"),
        Tool("sh", "dash"),
    )
    assert packages_of(missing_tools(tools)) == ["pkg-a", "pkg-b", "pkg-c"]
    with pytest.raises(
        LabError,
        match=r"no-such-a, no-such-b, no-such-c; install with: .*apt-get install .*pkg-a pkg-b pkg-c$",
    ):
        check_tools("amd", tools)
    check_tools("amd", [Tool("sh", "dash")])


def test_programs_of_the_system_are_found_without_their_directory_on_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user's PATH often lacks /usr/sbin."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_program("sh")
    assert find_program("no-such-program") is None


def test_the_back_end_names_its_packages() -> None:
    """What `pykvm lab setup --print-packages` prints for it."""
    assert packages_of(AmdBackend.tools) == ["gcc", "libc6-dev", "qemu-system-x86", "util-linux"]
