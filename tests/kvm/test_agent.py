"""Containers in a Linux guest, by the agent: what they are, what holds them, what they cannot reach.

All in one guest: one that a container could harm would fail the tests that follow.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.needs import NOT_HERE

from pykvm.containers.calls import AgentClient, Data
from pykvm.containers.run_options import Limits
from pykvm.containers.runtimes import RUNTIMES
from pykvm.lab.store import Store
from pykvm.linux.kit import Kit, cached_kit
from pykvm.trace.select import Selection

sys.path.append(str(Path(__file__).parent))
from agent_guest import KINDS, AgentError, Ended, Guest, follow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.trace.event import TraceEvent

pytestmark = pytest.mark.needs("ring3_syscall", "irqchip", "irqfd", "ioeventfd")
NAMESPACES = ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"]
KILL, TERM = 9, 15
MIB = 1 << 20
WAIT_S = 240.0  # a slow host that does other things, too


@pytest.fixture(scope="module")
def kit() -> Kit:
    """What a Linux guest is made of, from the cache: a lab has no network."""
    found = cached_kit(Store())
    if not found:
        pytest.skip(f"{NOT_HERE}linux_guest: the cache has no kernel; `pykvm kernel fetch` gets it")
    return found


@pytest.fixture(scope="module")
def guest(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest, with an ext4 disk for upper layers."""
    folder = tmp_path_factory.mktemp("agent")
    with (folder / "disk").open("wb") as file:
        file.truncate(16 << 20)
    program = shutil.which("mke2fs") or "/sbin/mke2fs"
    subprocess.run([program, "-q", "-t", "ext4", str(folder / "disk")], check=True, timeout=60)
    with Guest(kit, folder, folder / "disk") as one:
        yield one
    assert one.result, "the guest did not end"
    assert str(one.result.reason) == "exit", one.result.text
    assert one.result.exit_code == 0
    assert "Kernel panic" not in one.console.decode(errors="replace")


@pytest.fixture(autouse=True)
def watchdog(guest: Guest) -> Iterator[None]:
    """Whoever waits for what never comes hears that the connection has ended."""
    timer = threading.Timer(WAIT_S, guest.hang_up)
    timer.start()
    yield
    timer.cancel()


def bridge(number: int) -> dict[str, Any]:
    """A network of its own with this address."""
    address = f"10.88.0.{number}/16"
    return {"network": {"mode": "bridge", "bridge": "pykvm0", "address": address, "gateway": "10.88.0.1"}}


def end(guest: Guest, name: str, call: Any, *, is_tty: bool = False) -> Ended:
    """Kill a container, see its end, and delete it."""
    guest.client.ask("signal", WAIT_S, name=name, signal=KILL)
    found = follow(call, is_tty=is_tty)
    guest.client.ask("delete", WAIT_S, name=name)
    return found


def failure(guest: Guest, command: str | list[str], **words: Any) -> AgentError:
    """Why a container does not start; nothing of it is left."""
    with pytest.raises(AgentError) as caught:
        guest.run(command, **words)
    assert not guest.client.ask("list")["containers"]
    return caught.value


# ---- what a container is


def test_layers_are_one_root(guest: Guest) -> None:
    """The topmost wins, a whiteout hides, and each layer says what it has."""
    name, call = guest.open("cat /etc/image; ls /etc/shadow; echo mine > /etc/image; sleep 100")
    while b"shadow" not in next(item.data for item in call if isinstance(item, Data) and item.stream == 2):
        pass
    kinds = {
        path: guest.client.ask("which", name=name, path=path) for path in ("/etc/shadow", "/bin/sh", "/home")
    }
    assert kinds["/etc/shadow"] == {"upper": "absent", "layers": ["file", "whiteout"]}
    assert kinds["/bin/sh"] == {"upper": "absent", "layers": ["link", "absent"]}
    assert kinds["/home"]["layers"] == ["directory", "directory"]
    assert guest.exec(name, "cat /etc/image").out == b"mine\n"
    assert guest.run("cat /etc/image").out == b"of the image\n", "it is the other's own"
    about = guest.client.ask("info", name=name)
    assert [one["name"] for one in about["layers"]] == guest.names
    assert about["cgroups"] == f"0::/pykvm/{name}\n"
    end(guest, name, call)


def test_the_kernel_reads_every_file_of_a_layer(guest: Guest) -> None:
    """Sizes around each edge, holes, a large directory, links, pipes, devices, owners: as in the tar."""
    told = guest.run("cd /kinds; find . -type f -exec sha256sum {} +; stat -c '%n %f %u %g' . link pipe null")
    lines = told.out.decode().splitlines()
    found = {name.removeprefix("./"): digest for digest, name in (one.split("  ", 1) for one in lines[:-4])}
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in KINDS.items()}
    assert lines[-4:] == [". 43e9 7 8", "link a1ff 0 0", "pipe 1190 0 0", "null 21b6 0 0"]


def test_every_namespace_is_its_own(guest: Guest) -> None:
    """All eight, with a root that is nobody outside and a layer whose owners are mapped with it."""
    wish = guest.wish("touch /new; id -u; stat -c %u /bin/busybox; sleep 100", is_mapped=True)
    wish["config"]["linux"]["namespaces"].append({"type": "time"})
    call = guest.client.open("create", **wish)
    call.answer(WAIT_S)
    name = wish["name"]
    about = guest.client.ask("info", name=name)
    for kind in NAMESPACES:
        assert about["namespaces"][kind] != about["guest"][kind], kind
    assert about["uid_map"].split() == ["0", "100000", "65536"]
    assert "Uid:\t100000\t" in about["process"]
    heard = b""
    while heard.count(b"\n") < 2:
        heard += next(item.data for item in call if isinstance(item, Data) and item.stream == 1)
    assert heard == b"0\n0\n"
    with tarfile.open(fileobj=io.BytesIO(guest.tar("diff", name=name))) as tar:
        assert {one.name: one.uid for one in tar}["new"] == 0, "ids are the container's own"
    end(guest, name, call)


def test_explain_tells_each_step(guest: Guest) -> None:
    """With its call, what it did, when, and how long it took; the program's execve is the last."""
    done = guest.run("exit 4", is_mapped=True, network="bridge", more={"explain": True, **bridge(9)})
    steps = [one for one in done.events if one["event"] == "step"]
    assert done.status == 4
    calls = [one["call"] for one in steps]
    for call in ("clone3", "mount", "write", "pivot_root", "capset", "seccomp", "rtnetlink", "unshare"):
        assert call in calls, calls
    assert calls[-1] == "execve"
    made = next(one for one in steps if one["call"] == "clone3" and "CLONE_NEWPID" in one["detail"])
    for flag in ("NEWUSER", "NEWNS", "NEWNET", "NEWIPC", "NEWUTS", "INTO_CGROUP"):
        assert f"CLONE_{flag}" in made["detail"]
    assert all(one["ns"] >= 0 and one["effect"] and one["at_ns"] for one in steps)
    assert {one["who"] for one in steps} == {"agent", "container"}


def test_a_start_takes_few_system_calls(guest: Guest) -> None:
    """At most 400 from the request to the program, with those of the container's deletion."""
    events = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
    begin = "mount -t tracefs t /sys/kernel/tracing; "
    begin += f"echo hist:keys=common_pid.execname,common_pid > {events}/trigger"
    guest.run("true")  # what is made once for all containers is there
    assert guest.exec(None, begin).status == 0
    guest.run("true")
    found = guest.exec(None, f"cat {events}/hist; umount /sys/kernel/tracing").text
    counts = re.findall(r"common_pid: init .*hitcount: *([0-9]+)", found)
    assert len(counts) == 3, found  # the agent, the container's process, and the one that reads this
    assert 100 < sum(map(int, counts)) <= 400, found


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_another_runtime_makes_the_first_process(guest: Guest, runtime: str) -> None:
    """Its streams, status, namespaces and end are the agent's to tell, and nothing is left of it."""
    if runtime not in guest.runtimes:
        pytest.skip(
            f"{NOT_HERE}{runtime}: the cache has none; `pykvm container run --runtime {runtime}` gets it"
        )
    one = guest.wish("cat; echo err >&2; exit 7", is_mapped=True, more={"stdin": True})
    call = guest.begin(guest.by(runtime, one))
    call.send(b"typed\n")
    call.end_input()
    ended = follow(call)
    assert (ended.status, ended.out, ended.err) == (7, b"typed\n", b"err\n")
    other = guest.wish(["/bin/sleep", "1000"])
    call = guest.begin(guest.by(runtime, other))
    told = guest.client.ask("info", 60, name=other["name"])
    assert told["state"] == "running"
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert told["namespaces"][kind] != told["guest"][kind], kind
    guest.client.ask("signal", 60, name=other["name"], signal=9)
    assert follow(call).status == 137
    for wish in (one, other):
        guest.client.ask("delete", 60, name=wish["name"])
    none = guest.wish(["/nonesuch"])
    with pytest.raises(AgentError, match="nonesuch") as failed:
        guest.begin(guest.by(runtime, none))
    assert (failed.value.step, failed.value.errno) == ("execve", 2)
    there = guest.exec(None, "ls /sys/fs/cgroup/pykvm; ps -o args; mount").text
    for wish in (one, other, none):
        assert wish["name"] not in there.split()
    assert "sleep 1000" not in there


# ---- streams


def test_bytes_pass_unchanged(guest: Guest) -> None:
    """In and out, more than any buffer holds, without a terminal; errors apart; the exit status."""
    data = bytes(range(256)) * 1500
    wish = guest.wish("cat; echo end >&2; exit 3", more={"stdin": True})
    call = guest.client.open("create", **wish)
    call.answer(WAIT_S)

    def type_all() -> None:
        call.send(data)
        call.end_input()

    typist = threading.Thread(target=type_all)
    typist.start()
    done = follow(call)
    typist.join()
    assert done.out == data
    assert (done.err, done.status) == (b"end\n", 3)
    guest.client.ask("delete", name=wish["name"])


def test_a_terminal_is_one(guest: Guest) -> None:
    """Its size follows, and a key ends its program."""
    wish = guest.wish("tty; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done", tty=True)
    wish["config"]["process"]["consoleSize"] = {"height": 20, "width": 70}
    call = guest.client.open("create", **wish)
    call.answer(WAIT_S)
    heard = b""
    for item in call:
        if isinstance(item, Data):
            was_ready, heard = b"ready" in heard, heard + item.data
            if b"ready" in heard and not was_ready:
                guest.client.ask("resize", name=wish["name"], rows=33, columns=111)
            if b"33 111" in heard:
                break
    assert b"/dev/pts/0" in heard
    shell = guest.exec(
        wish["name"], "stty size; tty", process={"terminal": True, "consoleSize": {"height": 5, "width": 9}}
    )
    assert shell.out == b"5 9\r\n/dev/pts/1\r\n"
    assert end(guest, wish["name"], call, is_tty=True).status == 128 + KILL
    call = guest.client.open(
        "create", **(wish := guest.wish(["sleep", "100"], tty=True, more={"init": True}))
    )
    call.answer(WAIT_S)
    time.sleep(0.3)
    call.send(b"\x03")
    assert follow(call, is_tty=True).status == 130
    guest.client.ask("delete", name=wish["name"])


def test_who_is_not_read_waits_alone(guest: Guest) -> None:
    """A container whose output nobody takes stands still; the agent and others go on."""
    name, call = guest.open("yes")
    other = guest.run("echo here")
    assert (other.out, other.status) == (b"here\n", 0)
    call.refuse(1)
    guest.client.ask("wait", WAIT_S, name=name)
    assert guest.client.ask("list")["containers"][0]["status"] in {1, 128 + 13}
    guest.client.ask("delete", name=name)


# ---- the life of one


def test_a_start_that_fails_leaves_nothing(guest: Guest) -> None:
    """And says at which step and why."""
    assert (failure(guest, ["/nope"]).step, failure(guest, ["nope"]).errno) == ("execve", 2)
    assert failure(guest, ["/etc/passwd"]).errno == 13
    assert failure(guest, ["/bin/not_a_program"]).errno == 8
    assert "no disk has a partition" in str(failure(guest, "true", more={"layers": ["nowhere"]}))
    mount = {"destination": "/x", "type": "nope", "source": "x"}
    assert failure(guest, "true", mounts=[mount]).step == "mount"
    assert failure(guest, "true", workdir="/nowhere").step == "chdir"
    assert failure(guest, "true", cap_add=(), more={"seccomp": "00"}).step == "seccomp"
    left = guest.exec(None, "ls /run/pykvm/c /sys/fs/cgroup/pykvm | grep c; grep -c overlay /proc/mounts")
    assert b"\n0\n" in b"\n" + left.out or left.out.endswith(b"0\n"), left.text


def test_created_started_waited_for(guest: Guest) -> None:
    """As the OCI runtime's words have it; a process 1 that ignores TERM is killed all the same."""
    wish = guest.wish("echo run; exec sleep 100")
    wish["start"] = False
    name = wish["name"]
    call = guest.client.open("create", **wish)
    assert call.answer(WAIT_S)["cgroup"] == f"/pykvm/{name}"
    assert [one["state"] for one in guest.client.ask("list")["containers"]] == ["created"]
    guest.client.ask("start", WAIT_S, name=name)
    with pytest.raises(AgentError, match="running"):
        guest.client.ask("delete", name=name)
    with pytest.raises(AgentError, match="there is a container"):
        guest.client.ask("create", **wish)
    guest.client.ask("signal", name=name, signal=TERM)
    guest.client.ask("pause", name=name)
    assert guest.client.ask("info", name=name)["files"]["cgroup.events"].split()[3] == "1"
    with pytest.raises(AgentError, match="paused"):
        guest.exec(name, "true")
    guest.client.ask("unpause", name=name)
    waiting = guest.client.open("wait", name=name)
    done = end(guest, name, call)
    assert (done.out, done.status, done.exit["signal"]) == (b"run\n", 128 + KILL, KILL)
    assert waiting.answer(WAIT_S)["status"] == 128 + KILL


def test_an_init_forwards_and_reaps(guest: Guest) -> None:
    """With it TERM ends a container, and orphans leave no zombies."""
    script = "(sleep 0.1 & exit); sleep 0.4; cat /proc/[0-9]*/status | grep -c 'State:.Z'; exec sleep 100"
    name, call = guest.open(script, more={"init": True})
    assert next(item.data for item in call if isinstance(item, Data)) == b"0\n"
    harm = guest.exec(name, "chmod 0 /proc/1/exe; echo x > /proc/1/exe; ls -l /proc/1/exe")
    assert "memfd" in harm.text, "it is a copy of its own"
    assert guest.run("echo unharmed", more={"init": True}).out == b"unharmed\n"
    guest.client.ask("signal", name=name, signal=TERM)
    assert follow(call).status == 128 + TERM
    guest.client.ask("delete", name=name)


def test_a_broken_connection_harms_nobody(guest: Guest) -> None:
    """Its containers go on and can be asked for by another; a frame that is none ends only its sender."""
    with AgentClient(guest.connect()) as other:
        wish = guest.wish("sleep 0.5; yes | head -c 3000000; exit 6")
        other.open("create", **wish).answer(WAIT_S)
    with guest.connect() as link:
        link.settimeout(WAIT_S)
        assert link.recv(4096)
        link.sendall(b"\xff" * 64)
        assert not link.recv(4096)
    with guest.connect() as link:
        link.sendall(b"\x10\0\0\0R\0\0\0\1\0\0\0")  # and not a byte more
        assert guest.client.ask("wait", WAIT_S, name=wish["name"])["status"] == 6
    guest.client.ask("delete", name=wish["name"])
    for words in ({"op": "nothing"}, {"op": "list", "what": 1}, {"op": "start", "name": "../x"}):
        with pytest.raises(AgentError):
            guest.client.ask(**words)


def test_exec_has_all_that_the_container_has(guest: Guest) -> None:
    """Namespaces, cgroup, capabilities, filter, ids, environment, directory; and nothing of the agent's."""
    name, call = guest.open("sleep 100", is_mapped=True, uid=1000)
    wish = guest.wish(
        ["/bin/sh", "-c", "id -u; pwd; cat /proc/self/status /proc/self/cgroup; ls /proc/self/fd; ps"],
        uid=1000,
    )
    process = wish["config"]["process"] | {"cwd": "/etc", "noNewPrivileges": True}
    text = guest.exec(name, "", process=process, seccomp=wish["seccomp"]).text
    assert text.startswith("1000\n/etc\n")
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "Uid:\t1000\t1000", "0::/\n"):
        assert line in text, text
    assert "\n0\n1\n2\n3\n" in text, "the 3 is ls's own"
    assert "\n4\n" not in text
    assert "1 1000     sleep 100" in text
    namespaces = guest.client.ask("info", name=name)["namespaces"]
    links = guest.exec(name, "ls -l /proc/self/ns").text
    assert all(f"[{namespaces[kind]}]" in links for kind in NAMESPACES), links
    with pytest.raises(AgentError, match="no such file"):
        guest.exec(name, ["nope"])
    end(guest, name, call)


def test_ten_containers_side_by_side(guest: Guest) -> None:
    """Each with its own processes, name, and address; they reach each other by the bridge, the host them."""
    made = []
    for n in range(10):
        command = "hostname; hostname | nc -l -p 80; sleep 100"
        made.append(guest.open(command, hostname=f"host{n}", network="bridge", more=bridge(20 + n)))
    names = [name for name, _ in made]
    assert len({guest.client.ask("info", name=name)["namespaces"]["net"] for name in names}) == 10
    assert "1 packets received" in guest.exec(names[3], "ping -c 1 -W 5 10.88.0.27").text
    heard = b""
    while not heard:  # until its nc listens
        dialled = guest.client.open("dial", address="10.88.0.21", port=80)
        with suppress(AgentError):
            dialled.answer(WAIT_S)
            heard = next(item.data for item in dialled if isinstance(item, Data))
    assert heard == b"host1\n"
    with pytest.raises(AgentError, match="connect"):
        guest.client.ask("dial", WAIT_S, address="10.88.0.1", port=81)
    for n, (name, call) in enumerate(made):
        assert end(guest, name, call).out == b"host%d\n" % n


# ---- limits


def test_memory_has_a_limit(guest: Guest) -> None:
    """Beyond it the kernel kills: 137, and the event says that it was for memory."""
    done = guest.run("tail /dev/zero", limits=Limits(memory=16 * MIB, memory_swap=16 * MIB))
    assert (done.status, done.exit["oom_kills"]) == (128 + KILL, 1)
    assert {"event": "oom", "kills": 1} in done.events
    done = guest.run(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=40", limits=Limits(memory=16 * MIB, memory_swap=16 * MIB)
    )
    assert done.status == 128 + KILL, "files in memory count too"


def test_processes_have_a_limit(guest: Guest) -> None:
    """A fork bomb stays in its container."""
    name, call = guest.open("bomb() { bomb | bomb & }; bomb; sleep 100", limits=Limits(pids=12))
    time.sleep(0.5)
    files = guest.client.ask("stats", WAIT_S, name=name)["files"]
    assert int(files["pids.current"]) <= 12
    assert guest.run("echo fine").out == b"fine\n"
    assert int(guest.client.ask("stats", WAIT_S, name=name)["files"]["pids.events"].split()[1]) > 0
    guest.client.ask("signal", name=name, signal=KILL, all=True)
    assert follow(call).status == 128 + KILL
    guest.client.ask("delete", name=name)


def test_cpu_time_has_a_limit(guest: Guest) -> None:
    """A fifth of a CPU, until it is given more."""
    name, call = guest.open("while :; do :; done", limits=Limits(cpus=0.2))
    before = guest.client.ask("stats", name=name)
    time.sleep(2)
    after = guest.client.ask("stats", name=name)
    used = [int(one["files"]["cpu.stat"].split()[1]) * 1000 for one in (before, after)]
    share = (used[1] - used[0]) / (after["at_ns"] - before["at_ns"])
    assert 0.1 < share < 0.32, share
    assert int(after["files"]["cpu.stat"].split("nr_throttled ")[1].split()[0]) > 3
    guest.client.ask("update", name=name, resources={"cpu": {"quota": -1}, "pids": {"limit": 7}})
    files = guest.client.ask("info", name=name)["files"]
    assert (files["cpu.max"], files["pids.max"]) == ("max 100000\n", "7\n")
    end(guest, name, call)


def test_a_disk_has_a_limit(guest: Guest) -> None:
    """Writes to an upper layer on a disk at 1 MiB a second; what was written stays for the next container."""
    upper = {"upper": {"type": "ext4", "device": "vdb", "dir": "one"}}
    wish = guest.wish("dd if=/dev/zero of=/big bs=64k count=32 oflag=direct 2>&1", more=upper)
    rate = {"device": "vdb", "rate": MIB}
    wish["config"]["linux"]["resources"]["blockIO"] = {"throttleWriteBpsDevice": [rate]}
    begin = time.monotonic()
    call = guest.client.open("create", **wish)
    call.answer(WAIT_S)
    assert follow(call).status == 0
    assert time.monotonic() - begin > 1.5
    guest.client.ask("delete", name=wish["name"])
    assert guest.run("wc -c < /big", more=upper).out.split() == [b"2097152"]


def test_files_have_a_limit(guest: Guest) -> None:
    """A full upper layer is an error of the container's program, and of nobody else."""
    done = guest.run(
        "dd if=/dev/zero of=/x bs=1M count=9", more={"upper": {"type": "tmpfs", "size": 4 * MIB}}
    )
    assert done.status == 1
    assert "No space left on device" in done.text


# ---- what it cannot do

ESCAPES = {
    "mount -t tmpfs x /mnt": "ermission denied",
    "mount -t proc x /mnt": "ermission denied",
    "umount /proc/kcore": "not permitted",
    "mount -o remount,rw /proc/sys": "ermission denied",
    "echo 1 > /proc/sys/kernel/sysrq": "Read-only",
    "echo b > /proc/sysrq-trigger": "Read-only",
    "echo x > /sys/kernel/profiling": "Read-only",
    "echo 1 > /sys/fs/cgroup/pids.max": "Read-only",
    "mkdir /sys/fs/cgroup/mine": "Read-only",
    "mknod /tmp/vda b 254 0 && dd if=/tmp/vda count=1": "not permitted",
    "mknod /tmp/mem c 1 1 && dd if=/tmp/mem count=1": "not permitted",
    "mknod /tmp/kmsg c 1 11 && echo x > /tmp/kmsg": "not permitted",
    "cat /proc/kcore | wc -c": "0\n",
    "cat /proc/timer_list /proc/keys | wc -c": "0\n",
    "ls /sys/firmware | wc -l": "0\n",
    "ls -a /../../run /..": "!pykvm",
    "mkdir /c && mkdir /c/d && chroot /c /bin/true; ls -d /run/pykvm": "No such file",
    "cat /proc/[0-9]*/comm | grep -cv -e sh -e cat -e grep": "0\n",
    "kill -9 -1; echo alive": "alive\n",
    "hostname other": "not permitted",
    "reboot -f": "not permitted",
    "insmod /bin/sh": "not permitted",
    "swapon /etc/passwd": "not permitted",
    "date -s 2000-01-01": "not permitted",
    "ip link add x type dummy": "not permitted",
    "nsenter -t 1 -m -- true": "not permitted",
    "unshare -m true": "not permitted",
    "renice -n -5 1": "ermission denied",
    "chroot . true; dmesg": "not permitted",
    "cat /proc/1/environ | tr '\\0' '\\n' | grep -c pykvm.conf": "0\n",
    "ls -l /proc/self/fd | wc -l": "5\n",
    "readlink /proc/1/exe": "/bin/busybox\n",
}


def test_the_ways_out_are_closed(guest: Guest) -> None:
    """Each is tried by root in a container with docker's usual rights; with a user namespace as well."""
    script = "".join(f"echo '--- {n}'; ( {command} ) 2>&1; " for n, command in enumerate(ESCAPES))
    for is_mapped in (False, True):
        done = guest.run(script, is_mapped=is_mapped)
        parts = [part.split("\n", 1)[1] for part in done.text.split("--- ")[1:]]
        assert len(parts) == len(ESCAPES), done.text
        for part, (command, wanted) in zip(parts, ESCAPES.items(), strict=True):
            if wanted.startswith("!"):
                assert wanted[1:] not in part, command
            else:
                assert wanted in part, f"{command}: {part}"
    assert guest.exec(None, "hostname").out == b"guest\n"


def test_even_with_every_right_it_is_alone(guest: Guest) -> None:
    """All capabilities and no filter: still no device, no other process, none of the agent's files."""
    wish = guest.wish(
        "mount -t tmpfs t /mnt && echo mounted; mknod /tmp/v b 254 0; dd if=/tmp/v count=1; "
        "mknod /tmp/m c 1 1; dd if=/tmp/m count=1; ls -d /run/pykvm /pykvm.conf; hostname mine; kill -9 -1",
        cap_add=("ALL",),
        seccomp={},
    )
    call = guest.client.open("create", **wish)
    call.answer(WAIT_S)
    text = follow(call).text
    guest.client.ask("delete", name=wish["name"])
    assert "mounted" in text
    assert text.count("Operation not permitted") == 2, text
    assert text.count("No such file") == 2, text
    assert guest.exec(None, "hostname; grep -c mine /proc/mounts").out.startswith(b"guest\n")


def test_what_a_container_leaves_is_gone(guest: Guest) -> None:
    """After all that: one process of the guest, no mount, no cgroup, no veth, no descriptor too many."""
    command = "ps | grep -cv '\\[' ; ls /sys/fs/cgroup/pykvm | grep -c '^c[0-9]'; ls /sys/class/net; "
    command += "ls /run/pykvm/c | wc -l; ls /proc/1/fd | wc -l; cat /proc/1/status | grep Threads"
    found = guest.exec(None, command).text.split()
    assert found[1] == "0"
    assert "0" in found
    assert not [word for word in found if word.startswith("veth")]


# ---- files


def test_folders_of_the_host(guest: Guest) -> None:
    """Written and read both ways; a read-only one is."""
    (guest.share / "sub").mkdir()
    (guest.share / "sub" / "f").write_text("host")
    (guest.share / "up").symlink_to("/etc")
    mounts = [
        {"destination": "/data", "type": "virtiofs", "source": "host/sub", "options": ["rw"]},
        {"destination": "/deep/ro", "type": "virtiofs", "source": "host/sub", "options": ["ro"]},
        {"destination": "/one", "type": "virtiofs", "source": "host/sub/f", "options": []},
    ]
    done = guest.run("cat /data/f /one; echo back > /data/g; touch /deep/ro/x", mounts=mounts)
    assert (done.out, (guest.share / "sub" / "g").read_text()) == (b"hosthost", "back\n")
    assert b"Read-only" in done.err
    escape = {"destination": "/x", "type": "virtiofs", "source": "host/up", "options": []}
    with pytest.raises(AgentError, match="no such file"):
        guest.run("ls /x", mounts=[escape])
    files = [{"path": "/etc/hosts", "text": "10.0.0.1 here\n", "mode": 0o644}]
    done = guest.run(
        "cat /etc/hosts; touch /x; touch /mnt/x && echo yes",
        read_only=True,
        tmpfs={"/mnt": ""},
        more={"files": files},
    )
    assert done.out == b"10.0.0.1 here\nyes\n"
    assert b"Read-only" in done.err


def test_archives_of_a_container(guest: Guest) -> None:
    """The diff as OCI has it, all of the root, and files in and out, through links that lead nowhere else."""
    script = "rm /etc/passwd; rm -r /home; mkdir /home; touch /home/y; echo new > /etc/new; ln -s /etc /l; "
    script += "ln -s /../../.. /up; mkdir /attr; ln /etc/new /etc/hard; echo ready; sleep 100"
    name, call = guest.open(script, is_mapped=True)
    next(iter(call))
    with tarfile.open(fileobj=io.BytesIO(guest.tar("diff", name=name))) as tar:
        members = {one.name: one for one in tar}
    assert {"etc/.wh.passwd", "home/.wh..wh..opq", "home/y", "etc/new", "l"} <= set(members)
    assert sum(members[one].islnk() for one in ("etc/new", "etc/hard")) == 1
    with tarfile.open(fileobj=io.BytesIO(guest.tar("diff", name=name, content=False))) as tar:
        assert [one.size for one in tar if one.name in {"etc/new", "etc/hard"}] == [0, 0]
    with tarfile.open(fileobj=io.BytesIO(guest.tar("export", name=name))) as tar:
        names = set(tar.getnames())
    assert {"bin/busybox", "etc/new", "proc"} <= names
    assert not {"etc/passwd", "proc/1"} & names
    with tarfile.open(fileobj=io.BytesIO(guest.tar("copy_out", name=name, path="/l/new"))) as tar:
        assert tar.getnames() == ["new"]
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        for path in ("d/one", "up/through"):
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.uid = 3, 0o4755, 5
            tar.addfile(info, io.BytesIO(b"abc"))
    sent = guest.client.open("copy_in", name=name, path="/")
    sent.answer(WAIT_S)
    sent.send(inner.getvalue())
    sent.end_input()
    assert next(iter(sent)) == {"event": "end"}
    shown = guest.exec(name, "stat -c '%u %a' /d/one; cat /through")
    assert shown.out == b"5 4755\nabc"
    assert guest.client.ask("stat", name=name, path="/l")["target"] == "/etc"
    assert guest.client.ask("stat", name=name, path="/l/new", follow=True)["size"] == 4
    with pytest.raises(AgentError, match="no such file"):
        guest.client.ask("stat", name=name, path="/up/run/pykvm")
    end(guest, name, call)


def test_a_tap_names_the_container_of_every_call(guest: Guest) -> None:
    """Two at once with many short processes; one more process in the first; one made by hand; the guest.

    Who calls is known by its cgroup and its PID namespace: page tables are used again by other containers.
    """
    events: list[TraceEvent] = []
    names = {"tap-a": "first", "tap-b": "second"}
    guest.machine.name_container = lambda group: names.get(group, group)
    loop = "read go; for n in 1 2; do (cd /is/{0}) 2>/dev/null; done; read end"
    calls = {
        name: guest.open(loop.format(name), name=name, more={"stdin": True})[1] for name in ("tap-a", "tap-b")
    }
    tracer = guest.machine.attach(events.append, Selection(only=["syscall"]))
    try:
        for call in calls.values():
            call.send(b"go\n")
        guest.exec("tap-a", "cd /is/entered")
        guest.exec(None, "cd /is/guest; unshare -u -p -f sh -c 'cd /is/hand'")
        for call in calls.values():
            call.send(b"end\n")
            assert follow(call).status == 0
    finally:
        guest.machine.detach(tracer)
        guest.machine.name_container = str
    for name in calls:
        guest.client.ask("delete", WAIT_S, name=name)
    seen = [(dict(event.args)["arg0"], event.container) for event in events if event.name == "chdir"]
    ours = Counter(one for one in seen if str(one[0]).startswith('"/is/'))
    hand = next(container for path, container in ours if path == '"/is/hand"')
    assert ours == {
        ('"/is/tap-a"', "first"): 2,
        ('"/is/tap-b"', "second"): 2,
        ('"/is/entered"', "first"): 1,
        ('"/is/guest"', ""): 1,
        ('"/is/hand"', hand): 1,
    }
    assert re.search(r"pid:\[\d{10}\]$", hand), (
        "in no cgroup of its own: by its host name and its PID namespace"
    )
    assert {event.container for event in events} == {"first", "second", hand, ""}
    processes = {event.task for event in events if event.container == "second"}
    assert len(processes) >= 3, "its shell and each of its short processes"
