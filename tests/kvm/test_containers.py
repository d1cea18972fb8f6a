"""Images and containers in a Linux guest, by the commands that a user types; one boot for many claims."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.needs import NOT_HERE

from pykvm.lab.store import Store
from pykvm.linux.kit import cached_kit

sys.path.append(str(Path(__file__).parent))
from container_scenario import BUILD, COMMANDS, FOLDER, PROFILE, TYPED

pytestmark = pytest.mark.needs("ring3_syscall", "irqchip", "irqfd", "ioeventfd", "smp")
TIMEOUT_S = 900


class Result(NamedTuple):
    """What a command gave."""

    status: int
    out: str
    err: str
    seconds: float


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
    (folder / "Endless").write_text("FROM busybox\nRUN echo st''arted; sleep 1000\n")
    (folder / "profile").write_text(PROFILE)
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
    more = {path.name: path.read_text() for path in folder.iterdir() if path.name in {"made", "n"}}
    more["owned"] = str((folder / "owned").stat().st_uid) if (folder / "owned").exists() else ""
    with tarfile.open(folder / "web.tar") as tar:
        more["web.tar"] = "\n".join(tar.getnames())
    return {name: Result(*one) for name, one in found} | {
        f"file {name}": Result(0, text, "", 0) for name, text in more.items()
    }


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
    assert "execve" in did["web"].err  # one in the background, too
    assert len(did["web"].out) == 65


def test_a_bridge_joins_containers_and_guest(did: dict[str, Result]) -> None:
    """A card with an address of its own; the guest answers."""
    assert re.search(r"inet 10\.88\.0\.\d+/16", did["bridge"].out), did["bridge"]
    assert did["bridge"].status == 0


def test_folders_ports_and_disks_reach_a_container(did: dict[str, Result]) -> None:
    """A folder of the host is read and written, or only read; a port leads in; a disk is as slow as told."""
    assert did["volume"].out == "the host's\n0\n", did["volume"]
    assert did["file made"].out == "made\n"
    assert did["file owned"].out == "1000", "owners are the container's, on the host as well"
    assert did["volume"].err == "sh: can't create /ro/no: Read-only file system\n"
    assert did["connect"].out == "got question\n", did["server"]
    assert did["disk"].status == 0, did["disk"]
    assert did["disk"].seconds > 1.5
    assert did["disk_read"].status == 0, did["disk_read"]
    assert did["disk_read"].seconds > 1.5


def test_limits_hold_and_say_so(did: dict[str, Result]) -> None:
    """Memory: killed with 137 and said so; processes: no more than allowed."""
    assert did["memory"].status == 137
    assert "can't fork" in did["pids"].err
    assert did["memory"].err == "pykvm: container eats: memory: limit of 16MiB reached, 1 process killed\n"
    states = [one["State"] for one in json.loads(did["inspect"].out)]
    web, eats, forks, busy, reads = states
    assert (eats["OOMKilled"], eats["ExitCode"], web["HeldBy"]) == (True, 137, [])
    assert eats["HeldBy"] == ["memory: limit of 16MiB reached, 1 process killed"]
    assert re.fullmatch(r"pids: limit of 6 reached, \d+ forks? refused", forks["HeldBy"][0]), forks
    assert re.match(r"cpu: limit of 0.2 CPUs reached, throttled \d+ times for ", busy["HeldBy"][0]), busy
    assert any(line.startswith("io: limit of 1MiB/s reading") for line in reads["HeldBy"]), reads
    figures = dict(line.split() for line in did["cpus"].out.splitlines())
    share = int(figures["usage_usec"]) / (int(figures["nr_periods"]) * 100_000)
    assert 0.1 < share < 0.3, figures
    assert "held by cpu: limit of 0.2 CPUs" in did["stack_ended"].out
    assert did["cpuset"].out == "1\nCpus_allowed_list:\t1\n"
    assert did["no_cpu"].status == 125
    assert did["no_cpu"].err.endswith("CPUs are not available - requested 2, available: 0-1\n")


def test_a_terminal_an_init_and_a_filter_of_ones_own(did: dict[str, Result]) -> None:
    """-it follows the window's size and lets go by keys; --init is process 1; a profile's filter holds."""
    assert did["terminal"].status == 5, did["terminal"]
    assert "24 80" in did["terminal"].out
    assert (did["detach"].status, len(did["detached"].out)) == (0, 13), did["detach"]
    assert did["start_left"].out == "left\n", "it runs already, which is fine"
    assert did["init"].out == "memfd:pykvm-ini\n2\n"
    assert did["seccomp"].err == "mkdir: can't create directory '/made': Operation not permitted\n"
    assert did["seccomp"].out == "Seccomp:\t2\n"


def test_a_container_starts_again_with_its_files(did: dict[str, Result]) -> None:
    """Ended, it starts with what it changed, also what was copied in meanwhile; its image is kept for it."""
    assert (did["again"].status, did["again"].out) == (4, "run\n")
    assert (did["again_start"].status, did["again_start"].out) == (4, "run x\n")
    assert did["file n"].out == "x\nx\n"
    assert (did["again_start_2"].out, did["again_wait"].out) == ("again\n", "4\n")
    assert did["again_logs"].out == "run\nrun x\nrun x x\n"
    assert did["again_diff"].out == "C /etc\nD /etc/shadow\nC /root\nA /root/copied\nA /root/n\n"
    assert re.findall(r"(\d+) /root", did["again_made"].out) == ["6", "11"], did["again_made"]
    assert did["image_used"].status == 1
    assert "(must force) - container" in did["image_used"].err
    assert did["created"][:2] == (0, "bbc\n")
    assert did["start_none"][:3] == (1, "", "pykvm: No such container: nonesuch\n")


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
    assert did["logs"].out == did["followed"].out == "up\nusr1\nterm\n"
    assert (did["kill_usr1"].out, did["followed_usr1"].status) == ("web\n", 0)
    assert (did["waited"].status, did["waited"].out) == (0, "3\n")
    assert {"bin/busybox", "root/f", "proc"} <= set(did["file web.tar"].out.splitlines())
    assert did["diff_after"][:3] == did["diff"][:3]
    web, *_ = json.loads(did["inspect"].out)
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


def test_whoever_is_killed_the_rest_stays_true(did: dict[str, Result]) -> None:
    """The command that watches: its container goes on. A build: its machine ends. The guest: it is said."""
    assert did["viewer_killed"].status == -9
    assert re.search(r"Up .* viewed +lab$", did["ps_viewed"].out, re.MULTILINE)
    assert (did["kill_two"].status, did["kill_two"].out) == (1, "viewed\n")
    assert did["kill_two"].err == "pykvm: No such container: nonesuch\n"
    assert did["killed"].out == "137\n"
    assert (did["build_killed"].status, did["build_killed"].out) == (0, "")
    assert re.search(r"Exited \(137\) .* ago, machine ended", did["panic_ps"].out), did["panic_ps"]
    (dead,) = json.loads(did["panic_inspect"].out)
    assert re.match(r"its machine c-.{12} ended before it: panic: ", dead["State"]["Error"]), dead["State"]
    assert did["alone_again"].out == "dead\n", "a machine of its own is made again"
    assert did["alone_exec"].out == dead["Id"][:12] + "\n"
