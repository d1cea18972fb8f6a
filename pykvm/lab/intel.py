"""The Intel lab: kvm_intel, VMX with EPT, in a Linux guest of Bochs.

Bochs knows neither virtio nor 9p, so files travel on disks: the base, which the cache keeps; what the job
adds; and the shared directory, whose results are read back at the end. The channel's way in is a serial port
that reads from a pipe, its way out the I/O port 0xe9, which Bochs writes to its standard output: a MiB a
second, a hundred times what a serial port can do. Bochs also writes there itself, before the init speaks and
when it dies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import ConfigError, LabError
from pykvm.lab.backend import Job, Options, Progress, Running, Tool
from pykvm.lab.bochs import (
    BOCHS,
    MOST_MIB,
    Disk,
    Wires,
    bochs_command,
    bochs_environment,
    bochsrc,
    explain_end,
)
from pykvm.lab.bootdisk import make_boot_disk
from pykvm.lab.emulator import SETPRIV, start_emulator
from pykvm.lab.ext4 import E2FSPROGS, make_image, read_image
from pykvm.lab.initramfs import build_initramfs
from pykvm.lab.libraries import Libraries
from pykvm.lab.packages import kernel_for
from pykvm.lab.pythons import compile_below, this_python
from pykvm.lab.results import Packed, bring_back, pack
from pykvm.lab.selection import base_tree, job_tree, python_of
from pykvm.lab.store import Store, need_space
from pykvm.lab.wire import PORT_PREAMBLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pykvm.lab.kernel import Kernel
    from pykvm.lab.pythons import Python
    from pykvm.lab.tree import Tree

__all__ = ["IntelBackend", "kernel_arguments"]

_MODULES = ("ata_piix", "sd_mod", "ext4", "overlay", "kvm", "kvm_intel")
_CONFIG = (
    "channel /dev/ttyS1 port:0xe9",
    "root LABEL=pykvm-base ext4 -",
    "root LABEL=pykvm-job ext4 -",
    "share LABEL=pykvm-share ext4 -",
    "name lab-intel",
    "start 60",
)
_BOOT, _BASE, _JOB = (Disk(name) for name in ("boot.img", "base.img", "job.img"))
_SHARE = Disk("share.img", writable=True)
_QUICK = (
    "panic=-1",  # restart at once,
    "reboot=t",  # by a triple fault, which Bochs takes as the end
    "oops=panic",  # a kernel that stumbled is no place to test in
    "mitigations=off",  # Bochs does not speculate
    "nokaslr",
    "tsc=reliable",  # it is the only clock that does not run faster than the CPU
    "noxsaves",  # Bochs tells another size of its area than Linux computes
    "nopku",  # same
    "cpufreq.off=1",
    "cryptomgr.notests",  # 9 s of wall time
    "initcall_blacklist=load_system_certificate_list,cubictcp_register",  # 2 s for what nobody here needs
    "random.trust_cpu=on",
    "audit=0",
)
_FREE_FOR_RESULTS = 512 << 20
_KEPT = 3


class IntelBackend:
    """Bochs with VMX and EPT."""

    name = "intel"
    tools: tuple[Tool, ...] = (*BOCHS, *E2FSPROGS, Tool("gcc", "gcc libc6-dev"), SETPRIV)
    flavour = "cloud-amd64"
    default_mem_mib = 1536
    default_smp = 1
    boot_limit_s = 300.0
    grace_s = 20.0

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store()
        self._packed: dict[Path, Packed] = {}

    def check(self, options: Options) -> None:
        """One CPU, since Debian's Bochs has no more; memory up to 3 GiB."""
        if options.smp != 1:
            raise ConfigError(f"the intel lab has one CPU, not {options.smp}: Bochs is built that way")
        if options.mem_mib > MOST_MIB:
            raise ConfigError(
                f"the intel lab can have at most {MOST_MIB} MiB of memory, not {options.mem_mib}"
            )

    def prepare(self, options: Options, progress: Progress) -> None:
        """Fetch the kernel, compile the init, make the disk it boots from, and the base of this Python."""
        kernel = kernel_for(options, self.flavour, self._store, progress)
        if kernel.key:
            self._boot_disk(kernel, options, Path(), progress)
        self._base(this_python(), progress)

    def start(self, options: Options, job: Job, room: Path, progress: Progress) -> Running:
        """Make the job's disks and start Bochs; what to run goes to the init over the channel."""
        kernel = kernel_for(options, self.flavour, self._store, progress)
        python = python_of(job, progress)
        base, image = self._base(python, progress)
        _link(self._boot_disk(kernel, options, room, progress), room / _BOOT.name)
        _link(image, room / _BASE.name)
        disks = [_BOOT, _BASE, _JOB]
        _make_disk(room / _JOB.name, "pykvm-job", job_tree(job, options, base, progress), python)
        if options.share:
            self._packed[room] = pack(options.share, room / "share")
            make_image(room / _SHARE.name, room / "share", "pykvm-share", free_bytes=_FREE_FOR_RESULTS)
            shutil.rmtree(room / "share")
            disks.append(_SHARE)
        return _start_bochs(options.mem_mib, disks, room)

    def collect(self, options: Options, job: Job, room: Path) -> None:
        """Bring what the lab left on the share's disk to the shared directory."""
        del job
        packed = self._packed.pop(room, None)
        if options.share and packed:
            try:
                read_image(room / _SHARE.name, room / "results")
                bring_back(room / "results", options.share, packed)
            except LabError as error:
                kept = _keep(room / _SHARE.name, options.share)
                raise LabError(f"{error}; the disk that the lab left is {kept}") from error

    def _boot_disk(self, kernel: Kernel, options: Options, room: Path, progress: Progress) -> Path:
        wanted = (*_MODULES, *options.load)
        initramfs = build_initramfs(kernel, wanted, _CONFIG, store=self._store, room=room, progress=progress)
        arguments = kernel_arguments(options)

        def build(where: Path) -> Mapping[str, Any]:
            progress("making the disk that boots the intel lab")
            make_boot_disk(where / _BOOT.name, kernel.image, initramfs, arguments, options.mem_mib)
            return {"kernel": kernel.release, "arguments": arguments}

        if not kernel.key:
            build(room)
            return room / _BOOT.name
        parts = (kernel.key, initramfs.parent.name, arguments, str(options.mem_mib))
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        entry = self._store.obtain("boot", key, build, progress)
        self._store.keep_newest("boot", _KEPT, key)
        return entry.path / _BOOT.name

    def _base(self, python: Python, progress: Progress) -> tuple[Tree, Path]:
        tree = base_tree(Libraries(os.environ), python)

        def build(where: Path) -> Mapping[str, Any]:
            progress(f"copying this machine's Python and programs ({tree.size_bytes >> 20} MiB)")
            _make_disk(where / _BASE.name, "pykvm-base", tree, python)
            return {"python": python.executable, "files": len(tree)}

        entry = self._store.obtain("base", tree.key(), build, progress)
        self._store.keep_newest("base", _KEPT, entry.key)
        return tree, entry.path / _BASE.name


def kernel_arguments(options: Options) -> str:
    """The kernel's command line: silent and quick, or everything on the console."""
    words = ["console=ttyS0,115200", *_QUICK]
    return " ".join([*words, "loglevel=7" if options.verbose else "quiet"])


def _link(image: Path, name: Path) -> None:
    """Give an image of the cache a name in the lab's directory: Bochs puts a lock and changes beside it.

    A hard link, so that the lab has its image even if the cache drops it before Bochs has opened it.
    """
    if image == name:
        return
    try:
        name.hardlink_to(image)
    except OSError:  # not every file system has them
        name.symlink_to(image)


def _make_disk(image: Path, label: str, tree: Tree, python: Python) -> None:
    need_space(image.parent, 2 * tree.size_bytes)
    content = image.with_suffix(".d")
    try:
        content.mkdir()
        tree.copy_to(content)
        compile_below(content, python.executable)
        make_image(image, content, label)
    finally:
        shutil.rmtree(content, ignore_errors=True)


def _keep(image: Path, share: Path) -> str:
    """Where the disk with results that can't be brought back is now; mostly holes, it takes little room."""
    kept = share.with_name(f"{share.name}-{image.name}")
    try:
        return str(shutil.move(image, kept))
    except OSError as error:
        return f"lost too ({error.strerror})"


def _start_bochs(mem_mib: int, disks: list[Disk], room: Path) -> Running:
    with ExitStack() as theirs, ExitStack() as ours:
        console, their_console = _pipe(ours, theirs)
        their_channel, send = os.pipe()
        ours.callback(os.close, send)
        theirs.callback(os.close, their_channel)
        receive, their_output = _pipe(ours, theirs)
        messages, their_messages = _pipe(ours, theirs)
        wires = Wires(console=their_console, channel_in=their_channel)
        process = start_emulator(
            bochs_command(room, bochsrc(mem_mib, disks, wires)),
            output=their_output,
            errors=their_messages,
            pass_fds=(their_console, their_channel),
            cwd=room,
            env=bochs_environment(),
        )
        ours.pop_all()
        return Running(process, receive, send, console, messages, PORT_PREAMBLE, explain_end)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """A pipe from them to us."""
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    return reader, writer
