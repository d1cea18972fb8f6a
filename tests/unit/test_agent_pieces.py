"""The agent's readers and writers, compiled with sanitizers and run here: requests, archives in and out."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.guests import built_folder

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
AGENT = Path(__file__).parents[2] / "guests" / "agent"
MOST_BYTES = 150_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(min_codepoint=1)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\U0001f600", max_size=3), inner),
    max_leaves=12,
)
FEW = settings(max_examples=12)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pieces as a program; any bad access or undefined operation ends it with a status of its own."""
    out = tmp_path_factory.mktemp("agent") / "pieces"
    sources = [AGENT / name for name in ("base.c", "json.c", "step.c", "tar.c", "untar.c")]
    sources.append(Path(__file__).with_name("agent_harness.c"))
    flags = ["-std=gnu11", "-O0", "-g", "-Wall", "-Wextra", "-Werror", "-DHAVE_LIBC"]
    flags += ["-ffreestanding", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(out)], check=True, timeout=120)
    return out


def run(program: Path, *words: str | Path, data: bytes = b"") -> tuple[int, bytes, str]:
    """Status, output, complaint; no sanitizer has anything to say."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:exitcode=99"}
    done = subprocess.run(
        [program, *words], input=data, env=environment, capture_output=True, check=False, timeout=30
    )
    complaint = done.stderr.decode(errors="replace")
    assert done.returncode in {0, 2}, complaint
    return done.returncode, done.stdout, complaint


def test_the_agent_is_small() -> None:
    """It travels in every initramfs of a guest with containers."""
    agent = built_folder() / "agent"
    if not agent.exists():
        pytest.skip("needs the built guests")
    assert agent.stat().st_size <= MOST_BYTES


@needs_gcc
@FEW
@given(JSON, st.booleans())
def test_json_is_read_as_python_reads_it(program: Path, value: Any, plain: bool) -> None:
    """Whatever is nested in it, with escapes or with UTF-8."""
    status, out, _ = run(program, "json", data=json.dumps(value, ensure_ascii=not plain).encode())
    assert status == 0, out
    assert json.loads(out) == value


@needs_gcc
def test_json_that_is_none_is_refused_with_a_reason(program: Path) -> None:
    """Also where Python's reader is generous."""
    deep = b"[" * 40 + b"]" * 40
    many = b"[" + b"0," * 40_000 + b"0]"
    bad = '|{|[1,]|{"a":1,"a":2}|1.5|01|9223372036854775808|-9223372036854775809|"a|nul|1 2'
    bad += '|"\\u0000"|"\\ud800"|"\\x"'
    for text in (*map(str.encode, bad.split("|")), deep, many, b'"\n"', b'{"a" 1}', b'"\\u12', b"-", b'"\\'):
        status, why, _ = run(program, "json", data=text)
        assert status == 2, text
        assert why, text
    assert run(program, "json", data=b'"\xff\xfe"')[:2] == (0, b'"\xff\xfe"')  # a file's name may be that


def _tree(top: Path) -> None:
    (top / "folder" / "inner").mkdir(parents=True)
    (top / "folder" / "inner" / ("n" * 120)).write_bytes(b"long")
    (top / "file").write_bytes(b"x" * 70_000)
    (top / "file").chmod(0o4755)
    (top / "hard").hardlink_to(top / "file")
    (top / "link").symlink_to("t" * 150)
    os.mkfifo(top / "fifo")
    (top / "empty").touch()


@needs_gcc
def test_an_archive_says_what_the_folder_holds(program: Path, tmp_path: Path) -> None:
    """Long names, links of both kinds, special bits; and it unpacks to the same again."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    _tree(source)
    status, out, complaint = run(program, "tar", source)
    assert status == 0, complaint
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        found = {member.name: member for member in tar}
        linked = [one for one in found.values() if one.islnk()]
        assert len(linked) == 1
        assert {linked[0].name, linked[0].linkname} == {"file", "hard"}
        assert (found["link"].linkname, found["fifo"].isfifo()) == ("t" * 150, True)
        assert found[f"folder/inner/{'n' * 120}"].size == 4
    status, _, complaint = run(program, "untar", target, "/", data=out)
    assert status == 0, complaint
    assert (target / "file").read_bytes() == b"x" * 70_000
    assert (target / "file").stat().st_mode & 0o7777 == 0o4755
    assert (target / "hard").samefile(target / "file")
    assert (target / "link").readlink() == Path("t" * 150)
    assert (target / "folder" / "inner" / ("n" * 120)).read_bytes() == b"long"
    _, again, _ = run(program, "tar", source, "named")
    with tarfile.open(fileobj=io.BytesIO(again)) as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"named"}


def _member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.uid = kind, link, len(data), os.getuid()
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


@needs_gcc
def test_what_an_archive_names_stays_inside(program: Path, tmp_path: Path) -> None:
    """Neither `..`, nor an absolute name, nor a symbolic link of the archive's leads out of the root."""
    root = tmp_path / "root"
    for place in (root / "in", tmp_path / "etc"):
        place.mkdir(parents=True)
    end = bytes(1024)
    for name in ("../x", "a/../../x", "/../x"):
        assert run(program, "untar", root, "/in", data=_member(name) + end)[0] == 2
    outside = _member("s", kind=tarfile.SYMTYPE, link=str(tmp_path)) + _member("s/etc/x", b"1")
    up = _member("u", kind=tarfile.SYMTYPE, link="../../..") + _member("u/etc/y", b"2")
    run(program, "untar", root, "/in", data=outside + up + end)
    hard = _member("h", kind=tarfile.LNKTYPE, link="../../etc/secret")
    assert run(program, "untar", root, "/in", data=hard + end)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etc", "root"]
    assert not list((tmp_path / "etc").iterdir())
    assert run(program, "untar", root, "/in", data=_member("/etc/z", b"3") + end)[0] == 0
    assert (root / "in" / "etc" / "z").read_bytes() == b"3"


@needs_gcc
@FEW
@given(st.data())
def test_a_damaged_archive_is_refused(
    program: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """Any of its bytes may be another, and it may end anywhere."""
    good = _member("a" * 130, b"content") + _member("d", kind=tarfile.DIRTYPE) + bytes(1024)
    broken = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=8)):
        broken[at] = data.draw(st.integers(0, 255))
    target = tmp_path_factory.mktemp("damaged")
    run(program, "untar", target, "/", data=bytes(broken)[: data.draw(st.integers(0, len(good)))])
