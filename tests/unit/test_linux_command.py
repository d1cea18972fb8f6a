"""`pykvm run linux` and `pykvm kernel` as far as they go without a KVM and without a network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from test_linux import VMLINUX, bzimage

from pykvm import layout
from pykvm.cli import main
from pykvm.errors import ConfigError
from pykvm.lab.kernel import Kernel
from pykvm.lab.store import Store
from pykvm.linux import command
from pykvm.linux.initramfs import Job
from pykvm.linux.kit import Kit
from pykvm.linux.options import by_hypercall, is_linux

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def fake_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A kit with a kernel to unpack, whose other parts are names, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vmlinuz").write_bytes(bzimage(VMLINUX))
    kernel = Kernel("6.1.0-x", tmp_path / "vmlinuz", None, tmp_path / "modules", "6.1.0-x_1")
    kit = Kit(kernel, tmp_path / "busybox", tmp_path / "init", Store())
    monkeypatch.setattr(command, "kit", lambda _store, _progress: kit)
    return kit


class FakeMachine:
    """As much of a machine as its loading needs."""

    def __init__(self) -> None:
        self.virtio = self
        self.consoles: list[dict[str, Any]] = []
        self.loaded: dict[str, Any] = {}

    def add_console(self, **options: Any) -> None:
        self.consoles.append(options)

    def load(self, image: Path, **options: Any) -> None:
        self.loaded = {"image": image, **options}


def test_the_command_line_the_job_and_the_modules(fake_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user said comes last on the kernel's command line; the console's driver is loaded."""
    seen: dict[str, Any] = {}

    def build(_kit: Kit, job: Job, modules: list[str]) -> bytes:
        seen.update(lines=job.lines, modules=modules)
        return b"initrd"

    monkeypatch.setattr(command, "build_initramfs", build)
    options = {"init": "exit 7", "cmdline": "nokaslr"}
    wants, load = command.linux_machine(options, {"vcpus": 2}, show=False)
    machine: Any = FakeMachine()
    load(machine)
    assert wants == {"memory": "256M", "vcpus": 2}
    assert machine.loaded["cmdline"].endswith(" quiet nokaslr")
    assert machine.loaded["image"] == fake_kit.vmlinux
    assert fake_kit.vmlinux.read_bytes().startswith(VMLINUX)
    assert machine.consoles == [{"columns": 0, "rows": 0, "hold": True}]
    assert seen["modules"] == ["virtio_mmio", "virtio_console"]
    assert seen["lines"][0] == f"exit_port {layout.PLAIN_EXIT.start}"
    assert seen["lines"][-3:] == ["tty /dev/hvc0", "plain", "run exit 7"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initrds": ("x",), "init": "y"}, "--initrd is not for `linux`"),
        ({"board": "testdev", "init": "y"}, "--board is not for `linux`"),
        ({}, "say what to run with --init"),
        ({"init": "two\nlines"}, "is one line"),
    ],
)
def test_what_linux_can_t_have_is_refused(options: dict[str, Any], words: str) -> None:
    """One line."""
    with pytest.raises(ConfigError, match=words) as raised:
        command.linux_machine(options, {}, show=False)
    assert "\n" not in str(raised.value)


def test_a_job_fits_what_the_first_process_reads() -> None:
    """64 KiB; modules come before everything else."""
    job = Job()
    job.add("run", "x")
    assert job.entry(["a", "b"]).data.startswith(b"module /modules/a.ko\nmodule /modules/b.ko\nexit_port ")
    job.add("env", "X=" + "x" * 65_536)
    with pytest.raises(ConfigError, match="the most is 64 KiB"):
        job.entry([])


def test_devices_of_guests_that_are_no_linux(tmp_path: Path) -> None:
    """One disk by hypercall, and nothing else."""
    image = tmp_path / "image"
    image.write_bytes(bytes(100))
    assert not is_linux(image)
    assert not is_linux(tmp_path / "none")
    assert by_hypercall({"disks": ["x"]}) == "x"
    assert by_hypercall({}) is None
    for options, words in (
        ({"disks": ["x", "y"]}, "give --disk once"),
        ({"rng": True}, "--rng is for Linux"),
    ):
        with pytest.raises(ConfigError, match=words):
            by_hypercall(options)


def test_the_kernel_command_with_an_empty_cache(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what to do; for machines an empty object; the status tells."""
    assert main(["kernel", "show"]) == 1
    assert "`pykvm kernel fetch` gets one" in capsys.readouterr().err
    assert main(["kernel", "show", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {}
    assert main(["run", "01_hello", "--init", "x"]) == 125
    assert "--init is for `pykvm run linux`" in capsys.readouterr().err
