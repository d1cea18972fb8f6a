"""Images and containers in a Linux guest, by the commands that a user types; one boot for many claims."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.kit import cached_kit

pytestmark = pytest.mark.needs("ring3_syscall", "irqchip", "irqfd", "ioeventfd", "smp")
TIMEOUT_S = 600
VM = ["--vm", "lab", "--vm-disk", "64M"]
LOOP = "echo up; trap 'echo term; exit 3' TERM; while :; do sleep 0.1; done"


class Result(NamedTuple):
    """What a command gave."""

    status: int
    out: str
    err: str
    seconds: float


ESCAPES = """
try() { "$@" >/dev/null 2>&1 && echo "did: $*"; }
try mount -t proc p /mnt; try mount -o remount,rw /proc/sys; try umount /proc/kcore
try sh -c 'echo 1 > /proc/sys/kernel/panic'; try sh -c 'echo c > /proc/sysrq-trigger'
try sh -c 'echo 1 > /sys/fs/cgroup/cgroup.kill'; try mknod /tmp/vda b 254 0 && try cat /tmp/vda
try unshare -m true; chroot /proc/1/root/../.. ls /run | wc -l
try reboot -f; try hostname evil; try insmod /x; try nsenter -t 1 -m -p true; try dmesg; try swapoff -a
test -e /dev/vda && echo "sees vda"; test -s /proc/kcore && echo "reads kcore"
ps | grep -v PID | wc -l; cat /proc/keys /proc/timer_list | wc -c
"""


def run(*words: str) -> list[str]:
    """`run` of a script, the last word; the others are options."""
    return ["run", *VM, "--rm", *words[:-1], "busybox", "sh", "-c", words[-1]]


VOLUMES = "cat /host/from; stat -c %u /host/from; echo made > /host/made; echo x > /ro/no"
SERVER = "while :; do nc -l -p 80 -e sh -c 'read x; echo got $x'; done"
BUILD = """FROM busybox
COPY from /srv/from
WORKDIR /srv
ENV A=it
RUN echo "$A is $(cat from)" | tee made && rm /etc/shadow
"""
FORKS = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done"
SAME = "cat /sys/fs/cgroup/memory.max; grep Seccomp: /proc/self/status; hostname; echo x > /root/f; exit 9"
CHANGES = "echo new > /root/f; rm /etc/shadow; cat /proc/self/cgroup; exit 9"
RIGHTS = "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs t /mnt"
FOLDER = "FOLDER"  # stands for one of the host's
COMMANDS: dict[str, list[str]] = {
    "build": ["@image", "build", "-t", "built", FOLDER],
    "build_again": ["@image", "build", "-t", "built", FOLDER],
    "build_fails": ["@image", "build", "-f", f"{FOLDER}/Failing", FOLDER],
    "build_diff": ["@image", "diff", "busybox", "built"],
    "crun": ["run", *VM, "--runtime", "crun", "--memory", "32m", "--name", "c1", "busybox", "sh", "-c", SAME],
    "crun_diff": ["diff", "c1"],
    "crun_none": ["run", *VM, "--runtime", "crun", "--rm", "busybox", "nonesuch"],
    "crun_loop": ["run", *VM, "--runtime", "crun", "-d", "--name", "c2", "busybox", "sh", "-c", LOOP],
    "crun_exec": ["exec", "c2", "sh", "-c", "cat /proc/self/uid_map; kill -0 1"],
    "crun_stop": ["stop", "c2"],
    "crun_logs": ["logs", "c2"],
    "crun_rm": ["rm", "c1", "c2"],
    "crun_tty": ["run", *VM, "--runtime", "crun", "-t", "busybox", "true"],
    "runc_none": ["run", *VM, "--runtime", "runc", "--rm", "busybox", "true"],
    "hello": ["run", *VM, "--name", "one", "busybox", "echo", "hello"],
    "seven": run("echo e >&2; exit 7"),
    "input": ["run", *VM, "--rm", "-i", "busybox", "tr", "a-z", "A-Z"],
    "none": ["run", *VM, "--rm", "busybox", "nonesuch"],
    "file": ["run", *VM, "--rm", "busybox", "/etc/passwd"],
    "user": run("-u", "nobody", "-w", "/home", "id -u; pwd; grep CapEff /proc/self/status"),
    "read_only": run("--read-only", "--tmpfs", "/w", "echo x > /w/f; echo x > /etc/f"),
    "explain": run("--explain", "--memory", "32m", "true"),
    "memory": ["run", *VM, "--name", "eats", "--memory", "16m", "busybox", "tail", "/dev/zero"],
    "pids": run("--pids-limit", "6", FORKS),
    "bridge": run("--network", "bridge", "ip addr show eth0; ping -c 1 -W 5 10.88.0.1"),
    "disk": run("--device-write-bps", "/dev/vdb:1m", "dd if=/dev/zero of=/f bs=256k count=8 conv=fsync"),
    "volume": run("-v", f"{FOLDER}:/host", "-v", f"{FOLDER}:/ro:ro", VOLUMES),
    "server": ["run", *VM, "-d", "--name", "srv", "-p", "127.0.0.1:0:80", "busybox", "sh", "-c", SERVER],
    "connect": ["@connect", "srv", "question\n"],
    "server_rm": ["rm", "-f", "srv"],
    "web": ["run", *VM, "-d", "--name", "web", "busybox", "sh", "-c", LOOP],
    "ps": ["ps"],
    "exec": ["exec", "web", "sh", "-c", CHANGES],
    "exec_rights": ["exec", "web", "sh", "-c", RIGHTS],
    "escapes": ["exec", "-i", "web", "sh"],
    "diff": ["diff", "web"],
    "which": ["which-layer", "web", "/root/f"],
    "which_below": ["which-layer", "--json", "web", "/etc/passwd"],
    "stack": ["inspect", "--layers", "web"],
    "stack_json": ["inspect", "--layers", "--json", "web"],
    "stats": ["stats", "--json", "web"],
    "top": ["top", "web"],
    "pause": ["pause", "web"],
    "ps_paused": ["ps", "--json"],
    "unpause": ["unpause", "web"],
    "update": ["update", "--memory", "64m", "web"],
    "updated": ["exec", "web", "cat", "/sys/fs/cgroup/memory.max"],
    "commit": ["commit", "-m", "made", "-c", 'CMD ["cat","/root/f"]', "web", "made:1"],
    "made": ["run", *VM, "--rm", "made:1"],
    "stop": ["stop", "web"],
    "logs": ["logs", "web"],
    "diff_after": ["diff", "web"],
    "inspect": ["inspect", "web", "eats"],
    "rm": ["rm", "web", "one", "eats"],
    "gone": ["logs", "web"],
    "doomed": ["run", *VM, "-d", "--name", "doomed", "busybox", "sh", "-c", "echo last words; sleep 1000"],
    "doomed_wait": ["exec", "doomed", "true"],
    "kill": ["@kill", "lab"],
    "ps_killed": ["ps", "-a", "--json"],
    "logs_killed": ["logs", "doomed"],
    "exec_killed": ["exec", "doomed", "true"],
    "rm_killed": ["rm", "doomed"],
    "left": ["ps", "-aq"],
}
TYPED = {"input": "typed\n", "escapes": ESCAPES}


@pytest.fixture(scope="module")
def did(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All commands, in one guest, in order; the guest's process is killed at last."""
    if not cached_kit(Store()):
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    room = tmp_path_factory.mktemp("rt")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(room), "PYKVM_DATA": str(tmp_path_factory.mktemp("data"))}
    folder = tmp_path_factory.mktemp("folder")
    (folder / "from").write_text("the host's\n")
    (folder / "Pykvmfile").write_text(BUILD)
    (folder / "Failing").write_text("FROM busybox\nRUN exit 7\n")
    program = Path(__file__).with_name("container_commands.py")
    try:
        done = subprocess.run(
            [sys.executable, str(program)],
            input=json.dumps(
                [
                    [[word.replace(FOLDER, str(folder)) for word in words], TYPED.get(name, "")]
                    for name, words in COMMANDS.items()
                ]
            ),
            capture_output=True,
            text=True,
            env=env,
            timeout=TIMEOUT_S,
            check=False,
        )
    finally:
        stop = [sys.executable, "-m", "pykvm", "stop", "lab"]  # if all has not gone well
        subprocess.run(stop, env=env, timeout=60, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not list((room / "pykvm").iterdir())
    found = zip(COMMANDS, json.loads(done.stdout), strict=True)
    made = "".join(path.read_text() for path in folder.glob("made"))
    return {name: Result(*one) for name, one in found} | {"folder": Result(0, made, "", 0)}


def test_containers_run_with_clean_streams_and_dockers_statuses(did: dict[str, Result]) -> None:
    """Output, errors, input, exit statuses of the command; 127 and 126 for what can't be run; users."""
    assert did["hello"][:2] == (0, "hello\n")
    assert did["seven"][:3] == (7, "", "e\n")
    assert did["input"][:2] == (0, "TYPED\n")
    assert did["none"].status == 127
    assert did["none"].err == "pykvm: execve nonesuch: no such file or directory (errno 2)\n"
    assert did["file"].status == 126
    assert did["user"].out == "65534\n/home\nCapEff:\t0000000000000000\n"
    assert did["read_only"].status == 1
    assert "Read-only file system" in did["read_only"].err


def test_an_image_is_built_by_commands_in_a_guest(did: dict[str, Result]) -> None:
    """RUN has the layers, directory and variables so far; its changes are kept, and done once; 7 fails."""
    assert did["build"].status == 0, did["build"]
    assert "it is the host's" in did["build"].out
    assert did["build_diff"].out.splitlines() == ["D /etc/shadow", "A /srv", "A /srv/from", "A /srv/made"]
    assert did["build_again"].out.count("Using cache") == 2
    assert did["build_again"].seconds < did["build"].seconds / 2
    assert did["build_fails"].status == 126
    assert (
        "line 2: RUN: the command '/bin/sh -c exit 7' returned a non-zero code: 7" in did["build_fails"].err
    )


def test_each_step_is_told(did: dict[str, Result]) -> None:
    """--explain names the syscalls of namespaces, mounts, cgroup, root, rights and the program itself."""
    steps = did["explain"].err
    assert did["explain"].status == 0, steps
    for call in (
        "clone3",
        "overlay",
        "memory.max",
        "pivot_root",
        "capset",
        "seccomp",
        "execve",
    ):
        assert call in steps, steps
    numbers = [int(line[:4]) for line in steps.splitlines() if line[:4].strip().isdecimal()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 400


def test_a_bridge_joins_containers_and_guest(did: dict[str, Result]) -> None:
    """A card with an address of its own; the guest answers."""
    assert re.search(r"inet 10\.88\.0\.\d+/16", did["bridge"].out), did["bridge"]
    assert did["bridge"].status == 0


def test_folders_ports_and_disks_reach_a_container(did: dict[str, Result]) -> None:
    """A folder of the host is read and written, or only read; a port leads in; a disk is as slow as told."""
    assert did["volume"].out == "the host's\n0\n", did["volume"]
    assert did["folder"].out == "made\n"
    assert did["volume"].err == "sh: can't create /ro/no: Read-only file system\n"
    assert did["connect"].out == "got question\n", did["server"]
    assert did["disk"].status == 0, did["disk"]
    assert did["disk"].seconds > 1.5


def test_limits_hold_and_say_so(did: dict[str, Result]) -> None:
    """Memory: killed with 137 and said so; processes: no more than allowed."""
    assert did["memory"].status == 137
    assert "can't fork" in did["pids"].err
    _, eats = json.loads(did["inspect"].out)
    assert eats["State"]["OOMKilled"] is True
    assert eats["State"]["ExitCode"] == 137


def test_a_second_process_has_the_rights_of_the_first(did: dict[str, Result]) -> None:
    """exec: status, cgroup, capabilities, seccomp; none of a list of ways out leads anywhere."""
    assert did["web"].status == 0
    assert re.fullmatch(r"[0-9a-f]{64}\n", did["web"].out)
    assert (did["exec"].status, did["exec"].out) == (9, "0::/\n")
    assert did["exec_rights"].out == "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"
    assert did["exec_rights"].status != 0
    lines = did["escapes"].out.splitlines()
    assert [line for line in lines if not line.isdecimal()] == []
    assert (lines[0], lines[-1]) == ("0", "0")


def test_another_runtime_takes_the_same_container(did: dict[str, Result]) -> None:
    """crun: limits, filter, output, statuses, changes, exec, stop, rm; what it can't is said in one line."""
    memory, seccomp, hostname = did["crun"].out.splitlines()
    assert (did["crun"].status, memory, seccomp) == (9, "33554432", "Seccomp:\t2")
    assert re.fullmatch("[0-9a-f]{12}", hostname)
    assert did["crun_diff"].out == "C /root\nA /root/f\n"
    assert did["crun_none"].status == 127
    assert "not found" in did["crun_none"].err
    assert did["crun_loop"].status == 0
    assert re.match(r" +0 +[0-9]{6} +65536\n", did["crun_exec"].out)
    assert did["crun_exec"].status == 0
    assert did["crun_stop"].out == "c2\n"
    assert did["crun_logs"].out == "up\nterm\n"
    assert did["crun_rm"].out == "c1\nc2\n"
    assert did["crun_tty"].status == did["runc_none"].status == 125
    assert "without a terminal (-t)" in did["crun_tty"].err
    assert did["runc_none"].err.startswith("pykvm: machine lab was made without runc; ")


def test_what_it_stands_on_is_shown(did: dict[str, Result]) -> None:
    """ps, diff, which-layer, the stack, stats and top."""
    assert re.search(r"web +lab$", did["ps"].out, re.MULTILINE)
    assert did["diff"].out == "C /etc\nD /etc/shadow\nC /root\nA /root/f\n"
    assert did["which"].out.splitlines()[0] == "→ upper         file"
    assert json.loads(did["which_below"].out)["from"].startswith("sha256:")
    (stack,) = json.loads(did["stack_json"].out)
    own = {one["name"] for one in stack["namespaces"] if one["container"] != one["guest"]}
    assert own == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert stack["layers"][1]["guest_device"].startswith("vda")
    assert stack["machine"]["memory_bytes"] == 512 << 20
    assert "guest kernel: Linux 6." in did["stack"].out
    (stats,) = json.loads(did["stats"].out)
    assert stats["memory_bytes"] > 0
    assert stats["pids"] >= 1
    assert "root" in did["top"].out.splitlines()[1]


def test_what_is_done_to_it_is_true_afterwards(did: dict[str, Result]) -> None:
    """pause, unpause, update, commit, stop, logs, rm: states, outputs, and nothing left."""
    states = {one["name"]: one["state"] for one in json.loads(did["ps_paused"].out)}
    assert states == {"web": "paused"}
    assert [did[name].out for name in ("pause", "unpause", "update")] == ["web\n"] * 3
    assert did["updated"].out == f"{64 << 20}\n"
    assert did["commit"].out.startswith("sha256:")
    assert did["made"][:2] == (0, "new\n")
    assert did["stop"].out == "web\n"
    assert did["logs"].out == "up\nterm\n"
    assert did["diff_after"][:3] == did["diff"][:3]
    web, _ = json.loads(did["inspect"].out)
    assert (web["State"]["Status"], web["State"]["ExitCode"]) == ("exited", 3)
    assert did["rm"].out == "web\none\neats\n"
    assert did["gone"][:3] == (1, "", "pykvm: No such container: web\n")


def test_a_killed_machine_takes_its_containers_along_and_nothing_else(did: dict[str, Result]) -> None:
    """kill -9 of the process that owns it: state, log and the other records stay true."""
    (doomed,) = json.loads(did["ps_killed"].out)
    assert (doomed["name"], doomed["state"], doomed["status"]) == ("doomed", "exited", 255)
    assert doomed["error"] == "its machine lab ended before it"
    assert did["logs_killed"].out == "last words\n"
    assert did["exec_killed"].status == 1
    assert did["exec_killed"].err.endswith("is not running\n")
    assert did["rm_killed"].out == "doomed\n"
    assert did["left"].out == ""
