"""`pykvm-oci`: bundles, what is kept of containers, what callers are told. The lab has its machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.cli.oci import main
from pykvm.oci import commands
from pykvm.oci.bundle import read_bundle
from pykvm.oci.exec_process import wanted_process
from pykvm.oci.places import make_places
from pykvm.oci.process import Told, leave_behind
from pykvm.oci.state import OciError, State, States, begin_of

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle's directory with a root."""
    path = tmp_path / "bundle"
    (path / "rootfs").mkdir(parents=True)
    return path


def write(bundle: Path, **more: Any) -> Path:
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
    }
    (bundle / "config.json").write_text(json.dumps({**config, **more}))
    return bundle


def test_folders_of_the_host_are_shares(bundle: Path) -> None:
    """The root, and each folder that a mount names, once for each kind of access; a file by its folder."""
    data = bundle.parent / "data"
    data.mkdir()
    (data / "hosts").write_text("")
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": str(data), "options": ["rbind", "ro"]},
        {"destination": "/etc/hosts", "source": str(data / "hosts"), "options": ["bind", "ro"]},
        {"destination": "/out", "type": "bind", "source": "rootfs/../../data", "options": ["bind"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700", "tmpcopyup"]},
    ]
    found = read_bundle(write(bundle, mounts=mounts))
    assert [share[1:] for share in found.shares] == [
        ((bundle / "rootfs"), False),
        (data, True),
        (data, False),
    ]
    told = found.create["config"]["mounts"]
    assert [(one.get("type"), one["source"]) for one in told] == [
        ("proc", "proc"),
        ("virtiofs", "share1"),
        ("virtiofs", "share1/hosts"),
        ("virtiofs", "share2"),
        ("tmpfs", "tmpfs"),
    ]
    assert told[-1]["options"] == ["mode=700"]
    assert found.places == [
        ("/proc", False),
        ("/data", False),
        ("/etc/hosts", True),
        ("/out", False),
        ("/run", False),
    ]
    assert found.create["rootfs"] == found.shares[0].tag


def test_what_means_the_host_alone_is_not_passed_on(bundle: Path) -> None:
    """Namespaces of the host by path, its cgroups; the profile goes as a filter."""
    linux = {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}],
        "cgroupsPath": "/a/b",
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]},
        "resources": {"memory": {"limit": 512 * MIB}},
    }
    found = read_bundle(write(bundle, linux=linux))
    told = found.create["config"]["linux"]
    assert told["namespaces"] == [{"type": "pid"}, {"type": "network"}]
    assert set(told) == {"namespaces", "resources"}
    assert len(bytes.fromhex(found.create["seccomp"])) % 8 == 0
    assert found.create["network"] == {"mode": "none"}
    assert found.memory_bytes == 768 * MIB


@pytest.mark.parametrize(
    ("annotations", "resources", "size"),
    [
        ({}, {}, (512 * MIB, 1)),
        ({}, {"memory": {"limit": -1}}, (512 * MIB, 1)),
        ({}, {"memory": {"limit": 64 * MIB}}, (512 * MIB, 1)),
        ({"pykvm.memory": "1G", "pykvm.vcpus": "2"}, {"memory": {"limit": 64 * MIB}}, (1024 * MIB, 2)),
    ],
)
def test_the_machine_is_as_large_as_asked_for(
    bundle: Path, annotations: dict[str, str], resources: dict[str, Any], size: tuple[int, int]
) -> None:
    """By annotation, else what the container may have and the kernel's own part."""
    found = read_bundle(write(bundle, annotations=annotations, linux={"resources": resources}))
    assert (found.memory_bytes, found.vcpus) == size


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"ociVersion": "2.0"}, "ociVersion"),
        ({"process": {"args": []}}, "process.args"),
        ({"process": []}, "process: an object"),
        ({"root": {"path": "nowhere"}}, "is no directory"),
        ({"root": {}}, "root.path"),
        ({"mounts": [{"destination": "data"}]}, "absolute destination"),
        ({"mounts": [{"destination": "/d", "source": "/nowhere/at/all"}]}, "does not exist"),
        ({"mounts": [{"destination": "/d", "type": "nfs", "source": "x"}]}, "'nfs' is unknown"),
        ({"annotations": {"pykvm.vcpus": "many"}}, "pykvm.vcpus"),
    ],
)
def test_a_bundle_that_is_wrong_gets_one_line(bundle: Path, more: dict[str, Any], what: str) -> None:
    """With the file and the key."""
    with pytest.raises(OciError, match=what) as error:
        read_bundle(write(bundle, **more))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, '"x"'])
def test_a_damaged_bundle_gets_one_line(bundle: Path, text: str) -> None:
    """Nothing but an object is a configuration."""
    (bundle / "config.json").write_text(text)
    with pytest.raises(OciError, match=r"config\.json"):
        read_bundle(bundle)


# ---- what is kept


def _here(status: str = "running") -> State:
    return State("one", "/b", status, os.getpid(), begin_of(os.getpid()))


def test_places_of_mounts_are_made_in_the_root_and_nowhere_else(tmp_path: Path) -> None:
    """Directories and files that are missing; through no link and no .., and what is there stays."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hosts").write_text("kept")
    (tmp_path / "out").mkdir()
    (root / "link").symlink_to(tmp_path / "out")
    (root / "file").symlink_to(tmp_path / "made")
    wanted = [("/run/a/b", False), ("/etc/hosts", True), ("/etc/new/name", True), ("/link/x", False)]
    wanted += [("/link", False), ("/file", True), ("/etc/../../out/y", False), ("/etc/hosts/z", False)]
    make_places(root, wanted)
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == {"etc", "etc/hosts", "etc/new", "etc/new/name", "file", "link", "run", "run/a", "run/a/b"}
    assert (root / "etc" / "hosts").read_text() == "kept"
    assert (root / "etc" / "new" / "name").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.rglob("*") if root not in [path, *path.parents]) == ["out"]


def test_limits_that_are_none_get_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there, or is no object."""
    for text, what in ((None, "No such file"), ("[]", "is no object"), ("{", "is no JSON")):
        if text is not None:
            (tmp_path / "limits").write_text(text)
        assert main(["--root", str(tmp_path / "s"), "update", "-r", str(tmp_path / "limits"), "x"]) != 0
        assert what in capsys.readouterr().err


def test_a_state_is_as_true_as_its_process(tmp_path: Path) -> None:
    """A container whose process has gone has stopped, also if another has its number now."""
    states = States(tmp_path / "root")
    states.add(_here())
    assert states.get("one").told() | {} == {
        "ociVersion": "1.0.2",
        "id": "one",
        "status": "running",
        "pid": os.getpid(),
        "bundle": "/b",
    }
    states.put(replace(_here(), started="1"))
    assert (states.get("one").status, states.get("one").told()["pid"]) == ("stopped", 0)
    with pytest.raises(OciError, match="exists already"):
        states.add(_here())
    assert [one.id for one in states.all()] == ["one"]
    states.remove("one")
    with pytest.raises(OciError, match="does not exist"):
        states.get("one")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a b"])
def test_an_id_is_no_path(tmp_path: Path, name: str) -> None:
    """And leads nowhere."""
    with pytest.raises(OciError, match="no container ID"):
        States(tmp_path).folder(name)


def test_what_was_left_behind_ends_with_its_own_status(tmp_path: Path) -> None:
    """As its caller's reaper sees it; the command has ended well before."""

    def work(told: Told) -> int:
        told.ready()
        return 7

    pid = leave_behind(work, tmp_path / "log")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_what_could_not_begin_says_why(tmp_path: Path) -> None:
    """One line for the caller; the log has the rest."""

    def work(_: Told) -> int:
        raise RuntimeError("no\nluck")

    with pytest.raises(OciError, match=r"RuntimeError: no luck; see .*log"):
        leave_behind(work, tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


# ---- commands


@pytest.mark.parametrize(("word", "number"), [("KILL", 9), ("SIGTERM", 15), ("term", 15), ("10", 10)])
def test_signals_have_names(word: str, number: int) -> None:
    """With or without SIG, or numbers."""
    assert commands.signal_number(word) == number


@pytest.mark.parametrize("word", ["", "0", "99", "SIG", "BYE"])
def test_what_is_no_signal_is_refused(word: str) -> None:
    """In one line."""
    with pytest.raises(OciError, match="no signal"):
        commands.signal_number(word)


@pytest.mark.parametrize(
    ("do", "what"),
    [
        (lambda s: commands.start(s, "one"), "is stopped"),
        (lambda s: commands.kill(s, "one", signal.SIGTERM), "is stopped"),
        (lambda s: commands.pause(s, "one"), "is stopped"),
        (lambda s: commands.execute(s, "one", {"args": ["x"]}), "is stopped"),
        (lambda s: commands.start(s, "two"), "does not exist"),
        (lambda s: commands.delete(s, "two"), "does not exist"),
    ],
)
def test_a_stopped_container_takes_no_orders(tmp_path: Path, do: Any, what: str) -> None:
    """Each says what it is."""
    states = States(tmp_path)
    states.add(replace(_here(), started="1"))
    with pytest.raises(OciError, match=what):
        do(states)


def test_delete_removes_what_has_stopped(tmp_path: Path) -> None:
    """One that runs only by force, whose process it ends; what is not there is no error then."""
    states = States(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        states.add(replace(_here("stopped"), pid=process.pid, started=begin_of(process.pid)))
        states.put(replace(states.get("one"), status="running"))
        with pytest.raises(OciError, match="is running"):
            commands.delete(states, "one")
        commands.delete(states, "one", force=True)
        assert process.wait() == -signal.SIGKILL
    assert list(states.all()) == []
    commands.delete(states, "one", force=True)


def test_hooks_are_told_the_state(tmp_path: Path) -> None:
    """On stdin; one that fails is an error."""
    states, seen = States(tmp_path / "root"), tmp_path / "seen"
    script = f"cat >{seen}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    states.add(replace(_here("stopped"), started="1", hooks={"poststop": [hook]}))
    commands.delete(states, "one")
    assert json.loads(seen.read_text())["status"] == "stopped"
    with pytest.raises(OciError, match="status 3"):
        commands._hooks(replace(_here(), hooks={"x": [{**hook, "args": ["sh", "-c", "exit 3"]}]}), "x")


def test_an_exec_is_the_bundles_process_with_other_words(bundle: Path) -> None:
    """Or what a file says."""
    write(bundle, process={"args": ["sh"], "cwd": "/", "env": ["A=1"], "noNewPrivileges": True})
    plain = {"is_tty": False, "cwd": "/srv", "env": ["B=2"], "user": "5:6"}
    found = wanted_process(str(bundle), None, ["id"], **plain)  # type: ignore[arg-type]
    assert found == {
        "args": ["id"],
        "cwd": "/srv",
        "env": ["A=1", "B=2"],
        "noNewPrivileges": True,
        "terminal": False,
        "user": {"uid": 5, "gid": 6},
    }
    file = bundle / "process.json"
    file.write_text(json.dumps({"args": ["id"]}))
    assert wanted_process(str(bundle), str(file), [], **plain) == {"args": ["id"]}  # type: ignore[arg-type]
    with pytest.raises(OciError, match="nothing to run"):
        wanted_process(str(bundle), None, [], **plain)  # type: ignore[arg-type]
    with pytest.raises(OciError, match="--user root"):
        wanted_process(str(bundle), None, ["id"], **{**plain, "user": "root"})  # type: ignore[arg-type]


def test_errors_stand_in_the_log_that_the_caller_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON where it wants that; and on stderr."""
    log = tmp_path / "log"
    words = ["--root", str(tmp_path / "root"), "--log", str(log), "--log-format", "json"]
    assert main([*words, "state", "nobody"]) == 1
    assert json.loads(log.read_text())["msg"] == "container nobody does not exist"
    assert capsys.readouterr().err == "pykvm-oci: container nobody does not exist\n"


def test_a_bundle_is_looked_at_before_anything_is_made(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left of a container that could not be made; a terminal needs somebody who takes it."""
    root = tmp_path / "root"
    assert main(["--root", str(root), "create", "--bundle", str(bundle), "one"]) == 1
    write(bundle, process={"args": ["sh"], "terminal": True})
    assert main(["--root", str(root), "create", "--bundle", str(bundle), "one"]) == 1
    assert "--console-socket" in capsys.readouterr().err
    assert not root.exists()
    assert main(["--root", str(root), "list"]) == 0
    assert main(["--version"]) == 0
    assert "spec: 1.0.2" in capsys.readouterr().out
