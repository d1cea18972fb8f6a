"""What containers look like: lines, figures, the stack; their changes as layers, images and tars."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from image_parts import docker_archive, entry, layer, tar_of

from pykvm.containers import listing
from pykvm.containers.archive import load
from pykvm.containers.changes import changes_of
from pykvm.containers.committing import commit
from pykvm.containers.copying import pack, unpack
from pykvm.containers.ended import EndedFiles
from pykvm.containers.explain import step_line, steps_total
from pykvm.containers.layer_files import layer_files
from pykvm.containers.names import parse_name
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.records import Record
from pykvm.containers.run_options import RunOptions
from pykvm.containers.stack import drawn, stack_of, which_layer
from pykvm.containers.store import ImageStore
from pykvm.containers.tree import tree_of
from pykvm.containers.users import User
from pykvm.errors import ConfigError, ImageError

DIR, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
NOW = 1_000_000 * 10**9
RECORD = Record(
    "ab" * 32,
    "web",
    "busybox",
    "sha256:0",
    ["sha256:" + "1" * 64],
    NOW - 7200 * 10**9,
    "lab",
    ["sh", "-c", "sleep 1000000"],
)
BASE = layer(
    entry("etc", kind=DIR, mtime=5),
    entry("etc/a", b"old"),
    entry("etc/gone", b"x"),
    entry("big", b"b" * 3000),
    entry("link", kind=LINK, linkname="big"),
)
UPPER = layer(
    entry("etc", kind=DIR, mtime=9),
    entry("etc/a", b"new"),
    entry("etc/.wh.gone"),
    entry("etc/hosts", b"ours"),
    entry("proc", kind=DIR),
    entry("made", kind=DIR),
    entry("made/file", b"text"),
    entry("made/soft", kind=SYMLINK, linkname="file", mode=0o777),
)


def image_in(root: Path) -> tuple[ImageStore, Any]:
    store = ImageStore(root)
    return store, load(store, io.BytesIO(tar_of(docker_archive([BASE], ["base"]))))[0].image


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
        (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"), (60 * 86400, "2 months"), (730 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_lengths_of_time_are_dockers(seconds: float, text: str) -> None:
    """At each step from one unit to the next."""
    assert listing.duration(seconds) == text


def test_a_line_of_ps_and_inspect_say_what_the_record_says() -> None:
    """States in docker's words; a long command is cut; times in RFC 3339."""
    row = listing.ps_row(RECORD, whole=False, now_ns=NOW)
    assert row == [
        "abababababab",
        "busybox",
        '"sh -c sleep 1000000"'[:19] + '…"',
        "2 hours ago",
        "Created",
        "",
        "web",
        "lab",
    ]
    running = replace(RECORD, state="running", started_ns=NOW - 5 * 10**9, ports=[["1.2.3.4", 80, 8080]])
    assert listing.state_text(running, NOW) == "Up 5 seconds"
    assert listing.state_text(replace(running, state="paused"), NOW) == "Up 5 seconds (Paused)"
    ended = replace(RECORD, state="exited", status=137, finished_ns=NOW - 61 * 10**9, oom_kills=1)
    assert listing.state_text(ended, NOW) == "Exited (137) About a minute ago, out of memory"
    lost = replace(ended, status=255, oom_kills=0, error="its machine lab ended before it")
    assert listing.state_text(lost, NOW) == "Exited (255) About a minute ago, machine ended"
    assert listing.ps_row(running, whole=True, now_ns=NOW)[5] == "1.2.3.4:80->8080/tcp"
    config = oci_config({"Cmd": ["a", "b"]}, RunOptions(), User(0, 0, (), ""), Place(RECORD.id, 0, (6, 1)))
    found = listing.inspect(ended, config)
    assert (found["Path"], found["Args"], found["State"]["OOMKilled"]) == ("a", ["b"], True)
    assert found["State"]["StartedAt"] == "0001-01-01T00:00:00Z"
    assert listing.instant(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    json.dumps(found)


FILES = {
    "cpu.stat": "usage_usec 1500000\nnr_throttled 3\nthrottled_usec 250000\n",
    "memory.current": "20971520\n", "memory.max": "33554432\n",
    "memory.stat": "anon 5\ninactive_file 1048576\n",
    "memory.events": "oom 1\noom_kill 2\n", "pids.current": "4\n", "pids.max": "max\n",
    "io.stat": "254:0 rbytes=4096 wbytes=10 rios=1\n254:16 rbytes=1 wbytes=2\n",
    "net.dev": "Inter-|\n face |\n  lo: 9 0 0 0 0 0 0 0 9 0\neth0: 100 1 0 0 0 0 0 0 200 1\n",
    "cpu.max": "20000 100000\n",
}  # fmt: skip


def test_figures_come_from_the_kernels_own_files() -> None:
    """CPU time against the clock, memory without what can be given back, sums over disks and cards."""
    older = {"at_ns": 0, "files": {"cpu.stat": "usage_usec 1000000\n"}}
    found = listing.stats_of(older, {"at_ns": 10**9, "files": FILES})
    assert (found["cpu_percent"], found["throttled"], found["oom_kills"]) == (50.0, 3, 2)
    assert (found["memory_bytes"], found["memory_limit_bytes"], found["pids_limit"]) == (
        19 << 20,
        32 << 20,
        -1,
    )
    row = listing.stats_row(RECORD, found)
    assert row[2:] == ["50.00%", "19MiB / 32MiB", "59.38%", "100B / 200B", "4.1kB / 12B", "4"]
    assert listing.stats_of(None, {"at_ns": 5, "files": {}})["cpu_percent"] == 0


def test_top_lists_processes() -> None:
    """A name with brackets and spaces; the container's root is root; without arguments it has brackets."""
    stat = "77 (a (b) c) S 1 77 77 34816 0 0 0 0 0 0 150 50 0 0 20 0 1 0 1000 0 0"
    processes = [
        {"pid": 77, "stat": stat, "status": "Name: a\nUid:\t100000\t0\n", "cmdline": "sleep\x0010\0"},
        {"pid": 78, "stat": stat.replace("34816", "0"), "status": "Uid:\t33\n", "cmdline": ""},
        {"pid": 79},
    ]
    first, second = listing.top_rows({"processes": processes}, 30.0, 100_000)
    assert (first[:4], first[5:]) == (["root", "77", "1", "10"], ["pts/0", "00:00:02", "sleep 10"])
    assert (second[0], second[5], second[7]) == ("33", "?", "[a (b) c]")


def test_the_stack_is_drawn_from_process_to_host(tmp_path: Path) -> None:
    """Every layer of it is there, with sizes, inode numbers and limits; one that has ended shows less."""
    store, image = image_in(tmp_path)
    key = layer_files(store, image)[0].key
    record = replace(RECORD, layers=[key], state="running")
    config = oci_config({"Cmd": ["httpd"]}, RunOptions(), User(0, 0, (), ""), Place(record.id, 0, (6, 1)))
    info = {
        "pid": 77, "namespaces": {"mnt": 11, "net": 5}, "guest": {"mnt": 10, "net": 5}, "cgroup": "/pykvm/x",
        "files": FILES, "uid_map": "0 100000 65536\n",
        "mounts": "1 0 0:1 / /a\\040b rw shared:1 - tmpfs t rw\n",
        "process": "Name:\thttpd\nNSpid:\t77\t1\nSeccomp:\t2\nCapEff:\t00000000a80425fb\n",
        "rootfs": "/run/r",
        "upper": "/run/u", "layers": [{"name": key[7:39], "path": "/run/l", "device": "vda1"}],
    }  # fmt: skip
    machine = {"pid": 4, "vcpus": 1, "memory_bytes": 1 << 29, "kernel": "6.1.0-x"}
    stack = stack_of(store, image, record, config, info, machine)
    json.dumps(stack)
    assert stack["mounts"] == [{"target": "/a b", "type": "tmpfs", "source": "t", "options": "rw"}]
    text = drawn(stack)
    for said in (
        "container web: httpd   (pid 77 in the guest, 1 in the container)", "seccomp filter     on", "/run/u",
        "capabilities       14 of 41: CHOWN DAC_OVERRIDE", "no limit of pids",
        "3kB  vda1 → /run/l", "net      5            5", "shared with the guest", "its own",
        "user ids 0 100000 65536", "limit cpu          0.2 CPUs",
        "held by cpu: limit of 0.2 CPUs reached, throttled 3 times for 0.250 s",
        "guest kernel: Linux 6.1.0-x", "machine lab: 1 vCPU, 512 MiB, process 4 of the host", "host: Linux",
    ):  # fmt: skip
        assert said in text, text
    assert "namespaces" not in drawn(
        stack_of(store, image, replace(record, state="exited"), config, None, {})
    )
    other = replace(record, layers=["low", "high"])
    assert which_layer({"upper": "absent", "layers": ["file", "absent"]}, other)[0] == "low"
    assert which_layer({"upper": "absent", "layers": ["file", "whiteout"]}, other)[0] == ""
    assert which_layer({"upper": "file", "layers": ["file", "file"]}, other)[0] == "upper"


def test_changes_are_listed_committed_and_exported(tmp_path: Path) -> None:
    """A, C and D as docker's; what pykvm writes itself is no change; the new image runs what it is told."""
    store, image = image_in(tmp_path)
    changes = changes_of(store, image, io.BytesIO(UPPER), RECORD)
    assert [f"{one.kind} {one.path}" for one in changes] == [
        "C etc", "C etc/a", "D etc/gone", "A made", "A made/file", "A made/soft",
    ]  # fmt: skip
    said = ('CMD ["x","y"]', "ENV A=1", "USER ann", "WORKDIR /w", "LABEL k=v")
    made = commit(
        store, image, RECORD, io.BytesIO(UPPER), parse_name("new:1"), message="m", author="a", changes=said
    )
    assert made.diff_ids[:1] == image.diff_ids
    assert store.find("new:1").descriptor.digest == made.digest
    config = made.settings["config"]
    assert (config["Cmd"], config["User"], config["WorkingDir"], config["Labels"]) == (
        ["x", "y"],
        "ann",
        "/w",
        {"k": "v"},
    )
    assert made.settings["history"][-1]["comment"] == "m"
    tree = tree_of(store, made.layers, with_content=True)
    assert {path for path, _ in tree.walk()} == {
        "big",
        "etc",
        "etc/a",
        "link",
        "made",
        "made/file",
        "made/soft",
    }
    with pytest.raises(ConfigError, match="RUN"):
        commit(store, image, RECORD, io.BytesIO(UPPER), None, changes=("RUN x",))
    target = io.BytesIO()
    EndedFiles(store, image, io.BytesIO(UPPER), RECORD).export(target)
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as tar:
        names = tar.getnames()
        assert sorted(names) == sorted(set(names))
        assert {"big", "etc/a", "link", "made/file"} <= set(names)
        assert "etc/gone" not in names
        found = tar.extractfile("etc/a")
        assert found
        assert found.read() == b"new"


def test_copies_keep_within_their_target(tmp_path: Path) -> None:
    """Folders, files, links of both kinds; renamed, or only what is in them; nothing hostile gets out."""
    source = tmp_path / "src"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"1" * 5000)
    (source / "d" / "l").symlink_to("/etc/passwd")
    (source / "d" / "h").hardlink_to(source / "d" / "f")
    tar = io.BytesIO()
    pack(source, tar, "src")
    for name, options in (("one", {}), ("two", {"rename": "other"}), ("three", {"contents": True})):
        where = tmp_path / name
        where.mkdir()
        tar.seek(0)
        unpack(tar, where, **options)
        top = {"one": where / "src", "two": where / "other", "three": where}[name]
        assert (top / "d" / "f").read_bytes() == b"1" * 5000
        assert (top / "d" / "h").samefile(top / "d" / "f")
        assert (top / "d" / "l").readlink() == Path("/etc/passwd")
    for hostile in (
        layer(entry("b", kind=DIR), entry("b/../../x", b"1")),
        layer(entry("/x", b"1")),
        layer(entry("a", kind=SYMLINK, linkname="/tmp"), entry("a/x", b"1")),  # noqa: S108 - hostile
    ):
        with pytest.raises(ImageError):
            unpack(io.BytesIO(hostile), tmp_path / "one")
        assert not (tmp_path / "x").exists()
    (tmp_path / "one" / "src2").mkdir()
    with pytest.raises(ConfigError, match="cannot overwrite"):
        unpack(io.BytesIO(layer(entry("src2", b"1"))), tmp_path / "one")


def test_a_step_is_one_line_and_its_effect() -> None:
    """The call, its result as strace has it, its time."""
    step = {
        "n": 3,
        "who": "agent",
        "call": "mount",
        "detail": "overlay",
        "ns": 1_482_000,
        "result": 0,
        "effect": "files",
    }
    first, second = step_line(step, 3).splitlines()
    assert first.split() == ["3", "1.482", "ms", "agent", "mount", "overlay", "=", "0"]
    assert second.strip() == "files"
    again = {**step, "at_ns": 10_000_000, "ns": 500_000}
    assert steps_total([{**step, "at_ns": 0}, again]) == "2 steps in 10.5 ms, 2.0 ms of them in these calls"
    assert step_line({**step, "result": -2, "effect": ""}, 1).endswith("= -1 ENOENT")
