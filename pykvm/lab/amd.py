"""The AMD lab: kvm_amd with nested paging, in a Linux guest of QEMU's software CPU.

QEMU's TCG emulates SVM, so the guest's kvm_amd finds what it needs, and neither /dev/kvm nor root is needed
here. The host's files come through 9p, read-only, as QEMU's user may read them. The channel is a
virtio-serial port and the kernel's console the first serial port; both end in sockets that QEMU inherits, so
that no other process can reach them and nothing of them is left when QEMU ends.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.lab.backend import Job, Options, Progress, Running, Tool
from pykvm.lab.emulator import SETPRIV, start_emulator
from pykvm.lab.initramfs import build_initramfs
from pykvm.lab.kernel import unpack
from pykvm.lab.packages import kernel_for
from pykvm.lab.store import Store

if TYPE_CHECKING:
    from pykvm.lab.kernel import Kernel

__all__ = ["AmdBackend", "kernel_arguments", "qemu_command"]

_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "kvm", "kvm_amd")
_USUAL_MIB, _LEAST_MIB = 3072, 512
_CONFIG = (
    # the first virtio device of the bus is virtio0: its first port is this one
    "channel /dev/vport0p1 /dev/vport0p1",
    "root host 9p trans=virtio,version=9p2000.L,cache=loose,msize=512000",
    # no cache but for mmap: what the command writes is there at once for the host
    "share share 9p trans=virtio,version=9p2000.L,cache=mmap,msize=512000",
    "name lab-amd",
)
# Without ERMS, Linux clears and copies eight bytes at a time: QEMU takes as long for every single byte, which
# makes copies three times as slow, and new pages a quarter slower.
_CPU = "max,-erms"
_QUICK = (
    "panic=-1",  # restart at once, which QEMU takes as the end
    "oops=panic",  # a kernel that stumbled is no place to test in
    "mitigations=off",  # a software CPU does not speculate
    "no_timer_check",
    "cryptomgr.notests",
    "random.trust_cpu=on",
    "audit=0",
)


class AmdBackend:
    """QEMU's software CPU with SVM."""

    name = "amd"
    tools = (
        Tool("qemu-system-x86_64", "qemu-system-x86"),
        Tool("gcc", "gcc libc6-dev"),
        SETPRIV,
    )
    flavour = "amd64"
    default_smp = 1  # with two, QEMU 7.2 now and then locks both up in a nested guest
    boot_limit_s = 120.0
    grace_s = 5.0

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store()
        self._prepared: dict[Options, tuple[Kernel, Path]] = {}
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.default_mem_mib = max(min(_USUAL_MIB, (memory >> 20) // 2), _LEAST_MIB)

    def check(self, options: Options) -> None:
        """Everything that `Options` can say is possible here; `tree` is not needed and has no effect."""

    def prepare(self, options: Options, progress: Progress) -> None:
        """Fetch the kernel, compile the init, build the initramfs."""
        kernel = kernel_for(options, self.flavour, self._store, progress)
        if kernel.key:  # what was named by option may change until the start
            self._prepared[options] = kernel, self._initramfs(kernel, options, Path(), progress)

    def start(self, options: Options, job: Job, room: Path, progress: Progress) -> Running:
        """Start QEMU; the job itself goes to the init over the channel."""
        del job
        kernel, initramfs = self._prepared.get(options) or self._given(options, room, progress)
        with ExitStack() as stack:
            channel, their_channel = _pair(stack)
            console, their_console = _pair(stack)
            messages, their_messages = os.pipe()
            stack.callback(os.close, their_messages)
            command = qemu_command(
                options, kernel, initramfs, channel=their_channel.fileno(), console=their_console.fileno()
            )
            try:
                fds = (their_channel.fileno(), their_console.fileno())
                process = start_emulator(command, output=their_messages, pass_fds=fds)
            except BaseException:
                os.close(messages)
                raise
            ours = channel.detach()
            return Running(process, ours, ours, console.detach(), messages)

    def collect(self, options: Options, job: Job, room: Path) -> None:
        """The share is the host's own directory: everything is there already."""

    def _given(self, options: Options, room: Path, progress: Progress) -> tuple[Kernel, Path]:
        kernel = _unpacked(kernel_for(options, self.flavour, self._store, progress), room)
        return kernel, self._initramfs(kernel, options, room, progress)

    def _initramfs(self, kernel: Kernel, options: Options, room: Path, progress: Progress) -> Path:
        wanted = (*_MODULES, *options.load)
        return build_initramfs(kernel, wanted, _CONFIG, store=self._store, room=room, progress=progress)


def _unpacked(kernel: Kernel, room: Path) -> Kernel:
    """The kernel with its ELF file in `room` if it was given packed: it saves half of the boot."""
    elf = None if kernel.elf or kernel.key else unpack(kernel.image.read_bytes())
    if elf is None:
        return kernel
    (room / "vmlinux").write_bytes(elf)
    return replace(kernel, elf=room / "vmlinux")


def qemu_command(
    options: Options, kernel: Kernel, initramfs: Path, *, channel: int, console: int
) -> list[str]:
    """QEMU's command line; `channel` and `console` are descriptors of sockets that it inherits."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", _CPU]
    command += ["-m", f"{options.mem_mib}M", "-smp", str(options.smp)]
    command += ["-kernel", str(kernel.elf or kernel.image), "-initrd", str(initramfs)]
    command += ["-append", kernel_arguments(options)]
    command += ["-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console"]
    command += ["-chardev", f"socket,id=channel,fd={channel}"]
    command += [
        "-device",
        "virtio-serial-pci,addr=2",
        "-device",
        "virtserialport,chardev=channel,name=pykvm.lab",
    ]
    command += _shared(Path("/"), "host", ",readonly=on")
    if options.share:
        command += _shared(options.share, "share", "")
    return command


def kernel_arguments(options: Options) -> str:
    """The kernel's command line: silent and quick, or everything on the console."""
    words = ["console=ttyS0", *_QUICK]
    return " ".join([*words, "loglevel=7" if options.verbose else "quiet"])


def _shared(path: Path, tag: str, more: str) -> list[str]:
    name = str(path).replace(",", ",,")  # QEMU's way to quote a comma
    files = f"local,id={tag},path={name},security_model=none,multidevs=remap{more}"
    return ["-fsdev", files, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A pair of sockets that the stack closes; what is detached before that stays open."""
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    return ours, theirs
