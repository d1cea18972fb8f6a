"""What a user types in the tests of containers, in order; `@` are the steps of container_commands."""

from __future__ import annotations

import json

__all__ = ["BUILD", "COMMANDS", "FOLDER", "PROFILE", "TYPED"]

VM = ["--vm", "lab", "--vm-disk", "64M", "--vm-cpus", "2"]
LOOP = "echo up; trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; while :; do sleep 0.1; done"
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


def named(name: str, *words: str) -> list[str]:
    """The same, of a container that stays."""
    return ["run", *VM, "--name", name, *words[:-1], "busybox", "sh", "-c", words[-1]]


VOLUMES = "cat /host/from; stat -c %u /host/from; echo made > /host/made; "
VOLUMES += "touch /host/owned; chown 1000:1000 /host/owned; echo x > /ro/no"
SERVER = "while :; do nc -l -p 80 -e sh -c 'read x; echo got $x'; done"
BUILD = """FROM busybox
COPY from /srv/from
WORKDIR /srv
ENV A=it
RUN echo "$A is $(cat from)" | tee made && rm /etc/shadow
"""
FORKS = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done"
BUSY = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; cat /sys/fs/cgroup/cpu.stat"
READ = "dd if=/dev/zero of=/f bs=256k count=8 conv=fsync; dd if=/f of=/dev/null bs=64k iflag=direct"
AGAIN = "echo run $(cat /root/n); echo x >> /root/n; rm -f /etc/shadow; exit 4"
UNTIL = "until stty size | grep '40 1''11'; do sleep 0.1; done\n"
TERMINAL = [["# ", "stty size\n"], ["24 80", [40, 111]], ["# ", UNTIL], ["40 111", "exit 5\n"]]
DETACH = [["# ", "\x10\x11"]]
LIMITED = "mkdir /made; grep Seccomp: /proc/self/status"
PROFILE = """{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
  [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"""
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
    "pids": named("forks", "--pids-limit", "6", FORKS),
    "bridge": run("--network", "bridge", "ip addr show eth0; ping -c 1 -W 5 10.88.0.1"),
    "disk": run("--device-write-bps", "/dev/vdb:1m", "dd if=/dev/zero of=/f bs=256k count=8 conv=fsync"),
    "volume": run("-v", f"{FOLDER}:/host", "-v", f"{FOLDER}:/ro:ro", VOLUMES),
    "disk_read": named("reads", "--device-read-bps", "/dev/vdb:1m", READ),
    "cpus": named("busy", "--cpus", "0.2", BUSY),
    "cpuset": run("--cpuset", "1", "nproc; grep Cpus_allowed_list /proc/self/status"),
    "no_cpu": run("--cpuset", "2", "true"),
    "seccomp": run("--security-opt", f"seccomp={FOLDER}/profile", LIMITED),
    "init": run("--init", "cat /proc/1/comm; echo $$"),
    "terminal": ["@terminal", json.dumps(TERMINAL), "run", *VM, "--rm", "-it", "busybox", "sh"],
    "detach": ["@terminal", json.dumps(DETACH), "run", *VM, "-it", "--name", "left", "busybox", "sh"],
    "detached": ["ps", "-q", "--filter", "name=left"],
    "start_left": ["start", "left"],
    "rm_left": ["rm", "-f", "left"],
    "again": ["run", *VM, "--name", "again", "busybox", "sh", "-c", AGAIN],
    "again_start": ["start", "-a", "again"],
    "again_out": ["cp", "again:/root/n", f"{FOLDER}/n"],
    "again_in": ["cp", f"{FOLDER}/from", "again:/root/copied"],
    "again_start_2": ["start", "again"],
    "again_wait": ["wait", "again"],
    "again_logs": ["logs", "again"],
    "again_diff": ["diff", "again"],
    "again_rename": ["rename", "again", "other"],
    "again_commit": ["commit", "-c", 'CMD ["wc","-c","/root/n","/root/copied"]', "other", "other:1"],
    "again_made": ["run", *VM, "--rm", "other:1"],
    "image_used": ["@image", "rm", "busybox"],
    "create": ["create", *VM, "-i", "--name", "made", "busybox", "tr", "a", "b"],
    "created": ["start", "-ai", "made"],
    "start_none": ["start", "nonesuch"],
    "server": ["run", *VM, "-d", "--name", "srv", "-p", "127.0.0.1:0:80", "busybox", "sh", "-c", SERVER],
    "connect": ["@connect", "srv", "question\n"],
    "server_rm": ["rm", "-f", "srv"],
    "web": ["run", *VM, "-d", "--explain", "--name", "web", "busybox", "sh", "-c", LOOP],
    "wait": ["@begin", "wait", "wait", "web"],
    "follow": ["@begin", "follow", "logs", "-f", "web"],
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
    "kill_usr1": ["kill", "-s", "USR1", "web"],
    "followed_usr1": ["@heard", "follow", "usr1"],
    "stop": ["stop", "web"],
    "waited": ["@join", "wait"],
    "followed": ["@join", "follow"],
    "logs": ["logs", "web"],
    "diff_after": ["diff", "web"],
    "export": ["export", "-o", f"{FOLDER}/web.tar", "web"],
    "inspect": ["inspect", "web", "eats", "forks", "busy", "reads"],
    "stack_ended": ["inspect", "--layers", "busy"],
    "rm": ["rm", "web", "one", "eats"],
    "gone": ["logs", "web"],
    "doomed": ["run", *VM, "-d", "--name", "doomed", "busybox", "sh", "-c", "echo last words; sleep 1000"],
    "doomed_wait": ["exec", "doomed", "true"],
    "viewed": ["@begin", "view", "run", *VM, "--name", "viewed", "busybox", "sh", "-c", LOOP],
    "viewed_up": ["@heard", "view", "up"],
    "viewer_killed": ["@join", "view", "9"],
    "ps_viewed": ["ps", "--filter", "name=viewed"],
    "kill_two": ["kill", "viewed", "nonesuch"],
    "killed": ["wait", "viewed"],
    "rm_more": ["rm", "-f", "viewed", "other", "made", "forks", "busy", "reads"],
    "build_killed": ["@killed_build", FOLDER],
    "panic_run": ["run", "-d", "--name", "dead", "busybox", "sleep", "1000"],
    "panic": ["@panic", "dead"],
    "panic_ps": ["ps", "-a", "--filter", "name=dead"],
    "panic_inspect": ["inspect", "dead"],
    "alone_again": ["start", "dead"],
    "alone_exec": ["exec", "dead", "hostname"],
    "panic_rm": ["rm", "-f", "dead"],
    "kill": ["@kill", "lab"],
    "ps_killed": ["ps", "-a", "--json"],
    "logs_killed": ["logs", "doomed"],
    "exec_killed": ["exec", "doomed", "true"],
    "rm_killed": ["rm", "doomed"],
    "left": ["ps", "-aq"],
}
TYPED = {"input": "typed\n", "escapes": ESCAPES, "created": "abc\n"}
