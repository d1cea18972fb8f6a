"""Debian's crun and runc: what they are given, what they can't have, how they come into a guest."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.containers import runtime_files
from pykvm.containers.oci_config import Place, oci_config
from pykvm.containers.run_options import Publish, RunOptions, Volume
from pykvm.containers.runtime_files import cached_runtime, runtime_members, runtime_tree
from pykvm.containers.runtimes import RUNTIMES, bundle_config, check_runtime
from pykvm.containers.users import User
from pykvm.errors import ConfigError, LabError
from pykvm.lab.packages import Candidate
from pykvm.lab.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.lab.packages import Apt


def test_a_bundle_is_the_containers_own_configuration() -> None:
    """All but the cgroup, the root's path, the version and the files to mount is as for the agent."""
    config = oci_config({}, RunOptions(command=("sh",)), User(0, 0, (), ""), Place("id", 100_000, (6, 1)))
    found = json.loads(bundle_config(config, "c0", ["/etc/hosts", "/etc/hostname"]))
    assert found["linux"].pop("cgroupsPath") == "/pykvm/c0"
    assert found.pop("root") == {"path": "r", "readonly": False}
    added = found["mounts"][len(config["mounts"]) :]
    assert [(one["source"], one["destination"]) for one in added] == [
        ("f0", "/etc/hosts"),
        ("f1", "/etc/hostname"),
    ]
    del found["mounts"][len(config["mounts"]) :]
    for same in ("process", "hostname", "mounts", "linux"):
        assert found[same] == json.loads(json.dumps(config[same])), same


def test_what_another_runtime_can_not_have_is_said_in_one_line() -> None:
    """Each such option is named; without one all is well, and the agent's own runtime takes them all."""
    volumes = (Volume("/a", "/b", read_only=False),)
    for options, what in (
        (RunOptions(tty=True), "a terminal (-t)"),
        (RunOptions(init=True), "--init"),
        (RunOptions(volumes=volumes), "volumes (-v)"),
        (RunOptions(network="bridge", publish=(Publish("127.0.0.1", 0, 80),)), "--network bridge and -p"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_runtime("crun", options)
        assert what in str(caught.value)
        assert caught.value.exit_status == ConfigError.exit_status
        check_runtime("pykvm", options)
    check_runtime("runc", RunOptions(network="host"))


class _FakeApt:
    """Two packages, one of which has a library that the program needs, behind a symbolic link."""

    def closure(self, names: Sequence[str]) -> list[Candidate]:
        return [Candidate(name, "1:2", "", 1, 1) for name in ("libfake", *names)]

    def download_all(self, wanted: Sequence[Candidate], where: Path, _progress: object) -> list[Path]:
        program = Path("/bin/sh").resolve().read_bytes()
        member = f"./{RUNTIMES['crun']}"
        here = "./lib/x86_64-linux-gnu/"
        contents: list[dict[str, bytes | str]] = [
            {f"{here}libc.so.6": "libc-1.so", f"{here}libc-1.so": b"library", f"{here}unwanted.so": b""},
            {member: program, f"{here}ld-linux-x86-64.so.2": b"loader", "./usr/share/doc/x": b""},
        ]
        for one, files in zip(wanted, contents, strict=True):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as tar:
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    if isinstance(data, str):
                        info.type, info.linkname = tarfile.SYMTYPE, data
                        tar.addfile(info)
                    else:
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            (where / f"{one.package}.deb").write_bytes(out.getvalue())
        return [where / f"{one.package}.deb" for one in wanted]


def test_a_program_comes_with_its_libraries_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are followed, the loader lies where programs look for it; the second time the cache has it."""
    asked = []

    def by_apt(fetch: Callable[[Apt], Path], *rest: object) -> Path:
        asked.append(rest)
        return fetch(_FakeApt())  # type: ignore[arg-type]  # as far as it is needed

    real = subprocess.Popen

    def unpack(argv: Sequence[str], **words: object) -> object:
        return real(["cat", argv[-1]], **words)  # type: ignore[call-overload]  # the fake's .deb is a tar

    monkeypatch.setattr(runtime_files, "by_apt", by_apt)
    monkeypatch.setattr(subprocess, "Popen", unpack)
    store = Store(tmp_path)
    tree = runtime_tree("crun", store, lambda _: None)
    library = "usr/lib/x86_64-linux-gnu/libc.so.6"
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert found == {RUNTIMES["crun"], library, "lib64/ld-linux-x86-64.so.2", "manifest.json"}
    assert (tree / library).read_bytes() == b"library"
    assert runtime_tree("crun", store, lambda _: None) == tree == cached_runtime("crun", store)
    assert len(asked) == 1
    names = [one.path for one in runtime_members([tree, tree])]
    assert sorted(names) == sorted({*names})
    assert "manifest.json" not in names
    assert {library, "usr", "usr/lib", "lib64"} <= set(names)
    (tree / library).write_bytes(b"damaged")
    assert cached_runtime("crun", store) is None


def test_without_packages_the_next_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what is missing, and what to do."""

    def by_apt(*_: object) -> Path:
        raise LabError("apt could not fetch runc: no network; is there a network?")

    monkeypatch.setattr(runtime_files, "by_apt", by_apt)
    with pytest.raises(LabError) as caught:
        runtime_tree("runc", Store(tmp_path), lambda _: None)
    assert str(caught.value).startswith("--runtime runc: apt could not fetch runc")
    assert "leave --runtime away" in str(caught.value)
    assert "\n" not in str(caught.value)
