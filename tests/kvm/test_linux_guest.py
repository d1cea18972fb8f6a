"""A stock Debian kernel on the board that our ACPI tables describe, with our initramfs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.needs import NOT_HERE
from harness.programs import PACKAGES

from pykvm.boot import codecs
from pykvm.boot.linux import read_header
from pykvm.boot.source import opened
from pykvm.lab.store import Store
from pykvm.linux.command import CMDLINE
from pykvm.linux.initramfs import Job, build_initramfs
from pykvm.linux.kit import Kit, cached_kit
from pykvm.linux.marks import LinuxMark
from pykvm.linux.options import add_devices
from pykvm.machine import Machine

if TYPE_CHECKING:
    from pykvm.result import RunResult

pytestmark = pytest.mark.needs("ring3_syscall", "irqchip", "irqfd", "ioeventfd", "smp")
TIMEOUT_S = 300


@pytest.fixture(scope="session")
def kit() -> Kit:
    """What a Linux guest is made of, from the cache: a lab has no network."""
    found = cached_kit(Store())
    if not found:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    return found


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system in an image."""
    image = tmp_path_factory.mktemp("disk") / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    program = shutil.which("mke2fs") or "/sbin/mke2fs"
    subprocess.run([program, "-q", "-t", "ext4", str(image)], check=True, timeout=60)
    return image


def run(kit: Kit, command: str, **options: object) -> RunResult:
    """A run of the kernel as the ELF file inside its bzImage, a vmlinux."""
    packed = kit.kernel.image.read_bytes()
    with opened(kit.kernel.image) as source:
        header = read_header(source)
    assert header
    at = header.setup_bytes + header.payload_offset
    vmlinux = codecs.unpack(packed[at : at + header.payload_bytes])
    job = Job()
    job.add("run", command)
    heard = bytearray()
    is_asked, is_pressed = threading.Event(), threading.Event()

    def listen(data: bytes) -> None:
        heard.extend(data)
        if b"ready for the button" in heard:
            is_asked.set()
        if b"type 1 code 116" in heard:
            is_pressed.set()

    def press() -> None:
        """Again and again: nobody knows when the guest has opened its input device."""
        is_asked.wait()
        while not is_pressed.wait(0.3):
            machine.press_power_button()

    with Machine(memory="256M", console=listen) as machine:
        modules = [*add_devices(machine, options, job), "button", "evdev"]
        initrd = build_initramfs(kit, job, modules)
        machine.load(vmlinux, initrd=initrd, cmdline=f"{CMDLINE} quiet")
        presser = threading.Thread(target=press)
        presser.start()
        try:
            return machine.run(timeout=TIMEOUT_S)
        finally:
            is_pressed.set()
            is_asked.set()
            presser.join()


def command(kit: Kit, inside: str, *options: str) -> list[str]:
    """`pykvm run linux` with a command that is given as lines."""
    argv = [sys.executable, "-m", "pykvm", "run", "linux", "-q", "--timeout", str(TIMEOUT_S)]
    return [*argv, *options, "--init", _joined(inside)]


_PING = """
ip addr add 10.0.0.1/24 dev eth0
ip link set eth0 up
until ping -c 1 -W 1 10.0.0.2 >/dev/null; do sleep 0.2; done
until echo told | nc 10.0.0.2 99; do sleep 0.2; done
poweroff
sleep 100
"""

_HEAR = """
ip addr add 10.0.0.2/24 dev eth0
ip link set eth0 up
nc -l -p 99
reboot
sleep 100
"""


def test_two_guests_talk_and_end_in_their_own_ways(kit: Kit) -> None:
    """Over a pair of sockets; one switches off by S5 of ACPI, one restarts: different statuses."""
    wires = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guests = []
    for wire, inside in zip(wires, (_PING, _HEAR), strict=True):
        with wire:
            fd = wire.fileno()
            guests.append(
                subprocess.Popen(
                    command(kit, inside, "--net", f"fd={fd}"),
                    pass_fds=[fd],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    said = [guest.communicate(timeout=TIMEOUT_S + 60)[0] for guest in guests]
    assert [guest.returncode for guest in guests] == [120, 111], said
    assert "told" in said[1]


_WRITE = """
echo ready for the button
dd if=/dev/input/event0 bs=24 count=1 of=/tmp/event
hexdump -s 16 -n 8 -e '1/2 "type %d " 1/2 "code %d " 1/4 "value %d"' /tmp/event
echo
mount -t ext4 /dev/vda /mnt
echo kept > /mnt/file
sync
cat /sys/block/vda/serial
dd if=/dev/vda of=/dev/null bs=4k count=300 iflag=direct 2>&1 | head -1
dd if=/dev/hwrng of=/dev/null bs=16 count=4 2>&1 | head -1
echo c > /proc/sysrq-trigger
"""

_READ = """
grep -c ^processor /proc/cpuinfo
uname -r
tty
ls /sys/bus/acpi/devices | grep -c PNP0C0C
mount -t ext4 -o ro /dev/vda /mnt
cat /mnt/file
pwd
cat from_the_host
cp from_the_host from_the_guest
./vsock_client
read word </dev/virtio-ports/wish
echo "$word heard" >/dev/virtio-ports/wish
exit 7
"""


@pytest.fixture(scope="session")
def panicked(kit: Kit, disk: Path) -> RunResult:
    """A run that wrote a file to the disk, and panicked."""
    return run(kit, _joined(_WRITE), disks=[f"{disk},serial=pykvm-1"], rng=True)


def test_a_panic_is_reported_and_requests_cost_no_exit(panicked: RunResult) -> None:
    """300 of them to a disk; and the power button that was pressed meanwhile was heard of."""
    result = panicked
    assert str(result.reason) == "panic", result.text
    assert "Kernel panic" in result.text
    for line in ("type 1 code 116 value 1", "pykvm-1", "300+0 records in", "4+0 records in"):
        assert line in result.text
    assert result.exits.get("MMIO", 0) < 100, result.exits
    assert not result.warnings


@pytest.mark.usefixtures("panicked")
def test_a_command_with_all_that_it_may_have(kit: Kit, disk: Path, tmp_path: Path) -> None:
    """Two CPUs, what was synced to the disk, a folder of the host, a socket, a stream; output and status."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "from_the_host").write_text("shared\n")
    source = Path(__file__).with_name("vsock_client.c")
    flags = "-O1 -static -nostdlib -fno-stack-protector -fno-builtin -fcf-protection=none".split()
    subprocess.run(["gcc", *flags, str(source), "-o", str(share / "vsock_client")], check=True, timeout=120)
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        program, _ = listener.accept()
        with program:
            heard.append(program.recv(100))
            program.sendall(b"from the host\n")

    def wish() -> None:
        """As the guest's first process makes it: a program that comes as soon as the socket is there."""
        with socket.socket(socket.AF_UNIX) as program:
            while program.connect_ex(str(tmp_path / "wish")):
                time.sleep(0.05)
            program.sendall(b"a wish\n")
            heard.append(program.recv(100))

    options = [
        "--smp",
        "2",
        "--stream",
        f"wish={tmp_path}/wish",
        "--disk",
        f"{disk},snapshot",
        "--share",
        str(share),
        "--balloon",
        "16M",
    ]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v_80"))
        listener.listen()
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        threading.Thread(target=wish, daemon=True).start()
        done = subprocess.run(
            command(kit, _READ, *options, "--vsock", f"3:{tmp_path}/v"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S + 60,
        )
    wanted = ["2", kit.kernel.release, "/dev/hvc0", "1", "kept", "/share", "shared", "from the host"]
    assert done.stdout.splitlines() == wanted, done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (7, "")
    assert heard == [b"from the guest", b"a wish heard\n"]
    assert (share / "from_the_guest").read_text() == "shared\n"


@pytest.mark.parametrize(
    ("boot", "said"), [("packed", "0 ffffffff"), ("pvh", "1 ffffffff81000000")], ids=["packed", "pvh"]
)
def test_a_kernel_is_entered_otherwise(kit: Kit, boot: str, said: str) -> None:
    """It unpacks itself and has KASLR, or starts by its PVH entry; a feature taken away is not there."""
    inside = "echo $(grep -cw sse4_2 /proc/cpuinfo) $(grep -w _text /proc/kallsyms)"
    cpu = ["--cpu=-sse4_2"] if boot == "packed" else []
    argv = command(kit, inside, "--boot", boot, *cpu)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(said), done.stdout
    assert ("ffffffff81000000" in done.stdout) == (boot == "pvh"), done.stdout


def test_a_panic_before_the_first_process_is_one(kit: Kit) -> None:
    """Nobody has loaded the driver that tells of it: the kernel restarts, and nobody wanted that."""
    with Machine(memory="256M") as machine:
        machine.panics_before = LinuxMark.KERNEL_READY
        machine.load(kit.vmlinux, cmdline=f"{CMDLINE} quiet")
        result = machine.run(timeout=TIMEOUT_S)
    assert (str(result.reason), result.exit_status) == ("panic", 113), result.text
    assert "Unable to mount root fs" in result.text


_AROUND = """
ip link set lo up && ip link add net0 type dummy && ip addr add 10.9.9.2/24 dev net0 && ip link set net0 up
ip addr add 10.9.9.3/32 dev net0 && ip route add default via 10.9.9.1 || exit 77
echo 0 65534 >/proc/sys/net/ipv4/ping_group_range
echo from the host > "$FOLDER/index.html"
"$PYTHON" -m http.server --directory "$FOLDER" --bind 127.0.0.1 8000 >/dev/null 2>&1 &
server=$!
"$@"
status=$?
kill $server
exit $status
"""

_OUT = """
ping -c 1 -W 5 10.9.9.3 | grep -c "1 packets received"
wget -q -O - http://10.9.9.1:8000/
"""


def test_a_network_for_users(kit: Kit, tmp_path: Path) -> None:
    """By passt, in a network without a way out: an address by DHCP, ping, and HTTP to the host."""
    for program in ("passt", "ip"):
        if not shutil.which(program):
            pytest.skip(f"{NOT_HERE}{program}: Debian's package {PACKAGES[program]}")
    argv = ["unshare", "--net", "sh", "-c", _AROUND, "sh", *command(kit, _OUT, "--net", "user")]
    environment = {**os.environ, "FOLDER": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\nfrom the host\n", "", 0)


def _joined(lines: str) -> str:
    return lines.strip().replace("\n", "; ")
