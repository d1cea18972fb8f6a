"""Options of `container run` and an image's settings make the config.json that docker's rules ask for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.containers import run_options as read
from pykvm.containers.busybox import busybox_layer
from pykvm.containers.oci_config import Place, command_of, environment_of, oci_config
from pykvm.containers.run_options import Limits, Publish, RunOptions, Volume
from pykvm.containers.users import User, find_user
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PLACE = Place("0123456789abcdef" * 4, 231_072, (6, 1))
ROOT = User(0, 0, (), "/root")
PASSWD = b"root:x:0:0:r:/root:/bin/sh\nann:x:1000:1000::/home/ann:\nodd:x:no\n7:x:900:901::/seven:\n"
GROUP = b"root:x:0:\nwheel:x:10:ann,bob\naudio:x:29:ann\nann:x:1000:\n"


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given", "words", "found"),
    [
        (["e"], ["c"], None, (), ["e", "c"]),
        (["e"], ["c"], None, ("a", "b"), ["e", "a", "b"]),
        (None, ["c"], None, (), ["c"]),
        (["e"], ["c"], "mine", (), ["mine"]),
        (["e"], ["c"], "mine", ("a",), ["mine", "a"]),
        (["e"], ["c"], "", ("a",), ["a"]),
        (["e"], ["c"], "", (), None),
        (None, None, None, (), None),
        ("no list", ["c"], None, (), ["c"]),
    ],
)
def test_what_runs_is_entry_point_and_command_as_docker_joins_them(
    entrypoint: Any, cmd: Any, given: str | None, words: tuple[str, ...], found: list[str] | None
) -> None:
    """The user's words replace CMD; a new entry point replaces both; nothing at all is an error."""
    settings = {"Entrypoint": entrypoint, "Cmd": cmd}
    options = RunOptions(command=words, entrypoint=given)
    if found is None:
        with pytest.raises(ConfigError, match="no command specified"):
            command_of(settings, options)
    else:
        assert command_of(settings, options) == found


def test_the_environment_is_the_users_over_the_images_over_ours() -> None:
    """PATH and HOME are always there; TERM with a terminal; no variable comes twice."""
    settings = {"Env": ["PATH=/x", "A=1", "B=2", "nothing"]}
    options = RunOptions(env={"B": "3", "C": ""}, tty=True)
    found = environment_of(settings, options, "host", "/home/ann")
    assert found == ["PATH=/x", "HOSTNAME=host", "TERM=xterm", "A=1", "B=3", "C=", "HOME=/home/ann"]
    plain = environment_of({}, RunOptions(env={"HOME": "/h"}), "host", "")
    assert plain[0].startswith("PATH=/usr/local/sbin:")
    assert plain[1:] == ["HOSTNAME=host", "HOME=/h"]


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("ann", User(1000, 1000, (10, 29), "/home/ann")),
        ("1000", User(1000, 1000, (10, 29), "/home/ann")),
        ("ann:wheel", User(1000, 10, (), "/home/ann")),
        ("ann:5", User(1000, 5, (), "/home/ann")),
        ("4321", User(4321, 0, (), "")),
        ("4321:audio", User(4321, 29, (), "")),
        ("7", User(900, 901, (), "/seven")),
        (":wheel", User(0, 10, (), "/root")),
    ],
)
def test_users_are_found_in_the_images_own_files(text: str, user: User) -> None:
    """By name, then by number; groups by /etc/group unless one is named."""
    assert find_user(text, PASSWD, GROUP) == user


def test_users_that_there_are_not_are_an_error() -> None:
    """A name that no line has, a group likewise, a number that is too large; more groups are added."""
    for text, said in (("eve", "unable to find user eve"), ("ann:eve", "unable to find group eve")):
        with pytest.raises(ConfigError, match=said):
            find_user(text, PASSWD, GROUP)
    with pytest.raises(ConfigError, match="must be in range"):
        find_user("4294967295", b"", b"")
    assert find_user("ann", PASSWD, GROUP, ["root", "77"]).groups == (10, 29, 0, 77)


def test_the_configuration_holds_what_was_asked_for() -> None:
    """Namespaces, ids, limits, mounts, capabilities, masks, seccomp; those of another user differ."""
    options = RunOptions(
        tty=True,
        read_only=True,
        tmpfs={"/scratch": "size=1m,exec"},
        limits=Limits(memory=32 << 20, cpus=0.5, pids=8, cpu_shares=512, cpuset_cpus="0"),
        ulimits={"nofile": (64, -1)},
        cap_drop=("ALL",),
        cap_add=("NET_ADMIN",),
        no_new_privileges=True,
    )
    config = oci_config({"Cmd": ["sh"], "WorkingDir": "/w"}, options, ROOT, PLACE)
    process, linux = config["process"], config["linux"]
    assert (process["args"], process["cwd"], process["terminal"]) == (["sh"], "/w", True)
    assert (config["hostname"], config["root"]["readonly"]) == ("0123456789ab", True)
    assert {one["type"] for one in linux["namespaces"]} == {
        *("mount", "pid", "ipc", "uts", "cgroup", "user", "network")
    }
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 231_072, "size": 65_536}]
    assert linux["resources"] == {
        "memory": {"limit": 32 << 20, "swap": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 8},
    }
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": (1 << 64) - 1}]
    caps = process["capabilities"]
    assert caps["bounding"] == caps["effective"] == caps["permitted"] == ["CAP_NET_ADMIN"]
    assert (caps["inheritable"], process["noNewPrivileges"]) == ([], True)
    (scratch,) = [mount for mount in config["mounts"] if mount["destination"] == "/scratch"]
    assert scratch["options"] == ["nosuid", "noexec", "nodev", "size=1m", "exec"]
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    other = RunOptions(seccomp={}, network="host", command=("id",))
    config = oci_config({}, other, User(7, 8, (9,), ""), PLACE)
    caps = config["process"]["capabilities"]
    assert (len(caps["bounding"]), caps["effective"], caps["permitted"]) == (14, [], [])
    assert config["process"]["user"] == {"uid": 7, "gid": 8, "umask": 0o022, "additionalGids": [9]}
    assert "seccomp" not in config["linux"]
    assert {"type": "network"} not in config["linux"]["namespaces"]
    with pytest.raises(ConfigError, match="absolute path"):
        oci_config({"Cmd": ["sh"]}, RunOptions(workdir="here"), ROOT, PLACE)


def test_options_are_read_as_docker_spells_them() -> None:
    """Sizes, rates, variables, mounts, limits, ports."""
    assert [read.parse_bytes(text, "m") for text in ("64m", "1.5g", "7", "2KiB", "3 kb", "-1")] == [
        *(64 << 20, 3 << 29, 7, 2048, 3072, -1)
    ]
    assert read.parse_env(("A=1", "HERE", "NOWHERE", "B="), {"HERE": "x"}) == {"A": "1", "HERE": "x", "B": ""}
    assert read.parse_tmpfs("/run:size=1m") == ("/run", "size=1m")
    assert read.parse_ulimit("nofile=5:9") == ("nofile", (5, 9))
    assert read.parse_ulimit("core=-1") == ("core", (-1, -1))
    assert read.parse_volume("/a:/b:ro") == Volume("/a", "/b", read_only=True)
    assert read.parse_publish("8080:80") == Publish("0.0.0.0", 8080, 80)  # noqa: S104 - it says so
    assert read.parse_publish("127.0.0.1:0:80/tcp") == Publish("127.0.0.1", 0, 80)
    given = {"memory": "32m", "cpus": 0.5, "device_write_bps": ("/dev/vdb:1m",)}
    assert read.limits_of(given, 1).write_bps == (("/dev/vdb", 1 << 20),)
    assert Limits(memory=8 << 20, memory_swap=-1).resources()["memory"] == {"limit": 8 << 20, "swap": -1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"memory": "5m"}, "Minimum memory limit allowed is 6MB"),
        ({"memory": "much"}, "invalid argument 'much'"),
        ({"memory_swap": "64m"}, "always set the Memory limit"),
        ({"memory": "64m", "memory_swap": "32m"}, "larger than memory limit"),
        ({"cpus": 3.0}, "from 0.01 to 2.00, as there are only 2 CPUs"),
        ({"cpus": 0.0}, "Range of CPUs"),
        ({"cpuset_cpus": "0-2"}, "available: 0-1"),
        ({"cpuset_cpus": "all"}, "Invalid value all"),
        ({"cpu_shares": 1}, "not from 2"),
        ({"device_write_bps": ("1m",)}, "DEVICE:RATE"),
    ],
)
def test_limits_that_can_not_hold_are_refused(given: dict[str, Any], said: str) -> None:
    """In docker's words, where it has any."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        read.limits_of(given, 2)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (lambda text: read.parse_env((text,), {}), "=x"),
        (read.parse_tmpfs, "here"),
        (read.parse_tmpfs, "/"),
        (read.parse_tmpfs, "/a/../b"),
        (read.parse_ulimit, "nofile"),
        (read.parse_ulimit, "nofile=9:5"),
        (read.parse_ulimit, "nofile=-1:5"),
        (read.parse_ulimit, "files=1"),
        (read.parse_volume, "name:/b"),
        (read.parse_volume, "/a:b"),
        (read.parse_volume, "/a:/b:rx"),
        (read.parse_publish, "80:80/udp"),
        (read.parse_publish, "a:b"),
        (read.parse_publish, "1:70000"),
    ],
)
def test_options_that_make_no_sense_are_refused(parse: Any, text: str) -> None:
    """In one line, and never by a traceback."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_the_busybox_layer_is_always_the_same(tmp_path: Path) -> None:
    """The same program gives the same bytes; links and users are in it."""
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF")
    layer = busybox_layer(program, ["bin/sh", "bin/ls"])
    assert layer == busybox_layer(program, ["bin/ls", "bin/sh"])
    assert b"nobody:x:65534" in layer
