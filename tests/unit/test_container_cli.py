"""The command line of containers without a machine: bad input in one line, docker's statuses, completion."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import click
import pytest
from image_parts import docker_archive, layer, tar_of

from pykvm.cli import main
from pykvm.cli.group import group
from pykvm.containers.archive import load
from pykvm.containers.holding import held_by, limit_text
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.records import ContainerStore, Record, new_id
from pykvm.containers.run_options import RunOptions, limits_of
from pykvm.containers.store import ImageStore
from pykvm.containers.users import User

if TYPE_CHECKING:
    from pathlib import Path

RUN = ["run", "busybox", "true"]
FAILED, NO_SUCH, USAGE = 125, 1, 2


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ContainerStore:
    """Containers in each state, and no machine."""
    monkeypatch.setenv("PYKVM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = ContainerStore()
    for name, state in (("web", "exited"), ("wait", "created"), ("held", "paused"), ("up", "running")):
        record = Record(new_id(), name, "base", "sha256:0", [], 1, "lab", ["x"], state=state)
        found.add(
            record, lambda one: oci_config({"Cmd": ["x"]}, RunOptions(), User(0, 0, (), ""), _place(one))
        )
    load(ImageStore(), io.BytesIO(tar_of(docker_archive([layer()], ["base:latest", "base:2", "other:1"]))))
    return found


def _place(record: Record) -> Place:
    return Place(record.id, record.first_id, (6, 1))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run", "--hostname", "a b", "busybox"], FAILED, "invalid hostname format: a b"),
        (["run", "sha256:abcd", "true"], FAILED, "Unable to find image 'sha256:abcd' locally"),
        (["run", "--memory", "5m", "busybox"], FAILED, "Minimum memory limit allowed is 6MB."),
        (["run", "--cpuset", "4", "busybox"], FAILED, "requested 4, available: 0-0"),
        (["run", "--security-opt", "x", "busybox"], FAILED, "Invalid --security-opt: 'x'"),
        (["run", "-v", "/nowhere:/x", "base", "true"], FAILED, "source path does not exist: /nowhere"),
        (["run", "--nope", "busybox"], FAILED, "No such option '--nope'"),
        (["run"], FAILED, "Missing argument 'IMAGE'"),
        (["run", "-it", "busybox"], NO_SUCH, "the input device is not a TTY"),
        (["create", "--name", "web", "base", "x"], NO_SUCH, "The container name 'web' is already in use"),
        (["exec", "web", "true"], NO_SUCH, "is not running"),
        (["exec", "web"], FAILED, "Missing argument"),
        (["start", "nope"], NO_SUCH, "No such container: nope"),
        (["start", "-a", "web", "wait"], NO_SUCH, "cannot start and attach multiple"),
        (["start", "web"], NO_SUCH, "container web: its image base (0) has gone"),
        (["kill", "-s", "WHAT", "web"], NO_SUCH, "invalid signal: WHAT"),
        (["kill", "web"], NO_SUCH, "is not running"),
        (["pause", "web"], NO_SUCH, "is not running"),
        (["update", "web"], USAGE, "name a limit to change"),
        (["rename", "web", "wait"], NO_SUCH, "already in use"),
        (["cp", "/a", "/b"], NO_SUCH, "name a container: CONTAINER:PATH"),
        (["cp", "web:/a", "wait:/b"], NO_SUCH, "copying between containers"),
        (["ps", "--filter", "status=dying"], NO_SUCH, "invalid filter 'status=dying'; there are created"),
        (["logs", "--tail", "x", "web"], USAGE, "--tail x: give a number of lines, or all"),
        (["commit", "web", "BAD"], NO_SUCH, "is no image name"),
        (["nope"], USAGE, "No such command 'nope'"),
    ],
)
def test_bad_input_is_one_line_with_dockers_status(
    words: list[str], status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who, what, where; 125 where a container was to be run, 1 for all else, and nothing is left of it."""
    before = {one.name for one in ContainerStore().all()}
    assert main(["container", *words]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith(("pykvm:", "Error:"))]) == 1
    assert {one.name for one in ContainerStore().all()} == before


def test_containers_whose_machine_is_no_more_have_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """ps says how; those that had not begun have not."""
    assert main(["container", "ps", "-a"]) == 0
    rows = {line.split()[-2]: line for line in capfd.readouterr().out.splitlines()[1:]}
    for name in ("up", "held"):
        assert "Exited (255)" in rows[name]
        assert "ago, machine ended" in rows[name]
    assert "Created" in rows["wait"]


def completed(*words: str) -> list[str]:
    """What the shell offers for the last of the words."""
    from click.shell_completion import ShellComplete

    complete = ShellComplete(group, {}, "pykvm", "_PYKVM_COMPLETE")
    return sorted(one.value for one in complete.get_completions(list(words[:-1]), words[-1]))


def test_shells_complete_names() -> None:
    """Containers in the states that a command takes, images, signals; what is given already is not again."""
    assert completed("container", "start", "w") == ["wait", "web"]
    assert completed("container", "start", "web", "") == ["wait"]
    assert completed("container", "exec", "") == ["up"]
    assert completed("container", "unpause", "") == ["held"]
    assert completed("container", "rm", "") == ["held", "up", "wait", "web"]
    assert completed("container", "cp", "w")[:2] == ["w", "wait:"]
    assert completed("container", "run", "b") == ["base", "base:2"]
    assert completed("image", "rm", "base:") == ["base:2", "base:latest"]
    assert completed("container", "kill", "-s", "US") == ["USR1", "USR2"]
    assert completed("container", "run", "--vm", "") == []


def test_every_command_teaches() -> None:
    """A line for the list of commands, a description, and a line for each option."""
    command = group.get_command(click.Context(group), "container")
    assert isinstance(command, click.Group)
    context = click.Context(command)
    for name in command.list_commands(context):
        one = command.get_command(context, name)
        assert one
        assert one.help
        assert one.get_short_help_str(200).endswith(".") or "…" in one.get_short_help_str(60), name
        assert all(param.help for param in one.params if isinstance(param, click.Option)), name


def test_the_limits_that_held_are_named_with_their_figures() -> None:
    """By the kernel's counters; none of those that were not reached."""
    files = {
        "memory.max": "16777216\n", "memory.events": "low 0\nmax 12\noom 1\noom_kill 2\n",
        "pids.max": "6\n", "pids.events": "max 1\n",
        "cpu.max": "150000 100000\n", "cpu.stat": "nr_throttled 4\nthrottled_usec 1500000\n",
        "io.max": "254:16 rbps=1048576 wbps=max riops=max wiops=7\n",
        "io.pressure": "some avg10=0.0 avg60=0.0 avg300=0.0 total=2000000\nfull avg10=0 total=1\n",
    }  # fmt: skip
    assert held_by(files) == [
        "memory: limit of 16MiB reached, 2 processes killed",
        "pids: limit of 6 reached, 1 fork refused",
        "cpu: limit of 1.5 CPUs reached, throttled 4 times for 1.500 s",
        "io: limit of 1MiB/s reading of 254:16, 7 writes/s of 254:16, waited 2.000 s for disks",
    ]
    assert held_by({**files, "memory.events": "max 1\noom_kill 0\n"})[0] == (
        "memory: limit of 16MiB reached 1 time, nobody killed"
    )
    assert held_by({"memory.max": "max\n", "memory.events": "oom_kill 1\n"}) == [
        "memory: the machine's memory reached, 1 process killed"
    ]
    assert (
        held_by({"memory.max": "max\n", "cpu.max": "max 100000\n", "io.pressure": files["io.pressure"]}) == []
    )
    assert held_by({"pids.events": "a\nmax x\n", "cpu.stat": "", "io.max": "x"}) == []
    assert [limit_text("cpu.max", text) for text in ("max 100000", "100000 100000", "5 0")] == [
        "",
        "1 CPU",
        "5 0",
    ]
    assert limits_of({"pids_limit": 0}, 1).resources() == {"pids": {"limit": -1}}
