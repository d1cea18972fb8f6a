"""What images cost: loaded and made into file systems, pushed to and pulled from a registry on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.errors import PykvmError

from .figures import Figure, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["containers", "many_files", "write_archive"]

_FILES = 8000
_FILE_BYTES = 18_750  # on average: 150 MB in all
_LAYERS = 3
_UNIT_TESTS = Path(__file__).parents[1] / "unit"
_START = """
import json, sys, time
from pathlib import Path
from pykvm.containers.archive import load
from pykvm.containers.layer_files import layer_files
from pykvm.containers.names import parse_name
from pykvm.containers.registry import Registry
from pykvm.containers.store import ImageStore
store, what = ImageStore(Path(sys.argv[1])), sys.argv[2]
started = time.perf_counter()
"""
_END = """
told = Path("/proc/self/status").read_text()  # getrusage() would tell the parent's peak, too
peak = int(told.partition("VmHWM:")[2].split()[0]) << 10
print(json.dumps([time.perf_counter() - started, peak]))
"""
_LOAD = f"{_START}layer_files(store, load(store, Path(what))[0].image){_END}"
_PUSH = f"{_START}Registry(store, parse_name(what)).push(store.entries()[0]){_END}"
_PULL = f"{_START}Registry(store, parse_name(what)).pull(){_END}"
_SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from registry_fake import FakeRegistry
with FakeRegistry() as registry:
    print(registry.host, flush=True)
    sys.stdin.read()
"""


def containers(samples: int, progress: Callable[[str], None], *, quick: bool) -> list[Figure]:
    """Seconds and peak memory of a load with its file systems, and the speed of push and pull."""
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as scratch:
        progress("containers: making an image")
        archive = Path(scratch) / "archive.tar"
        size = _make(archive, _FILES // 10 if quick else _FILES)
        loads, pushes, pulls = [], [], []
        for at in range(samples):
            root = Path(scratch) / f"store-{at}"
            progress(f"containers: load {at + 1} of {samples}")
            loads.append(_child(_LOAD, root, archive))
            with _registry() as host:
                progress(f"containers: push and pull {at + 1} of {samples}")
                pushes.append(_child(_PUSH, root, f"{host}/bench:{at}"))
                pulls.append(_child(_PULL, root.with_suffix(".pulled"), f"{host}/bench:{at}"))
    seconds = [one[0] * (10 if quick else 1) for one in loads]
    return [
        measured("image of 150 MB, 8,000 files: load, make erofs", seconds, "s", 3),
        measured("… its peak of memory", [one[1] / 1e6 for one in loads], "MB", 100),
        measured("… pushed over loopback", [size / one[0] / 1e6 for one in pushes], "MB/s", 100, more=True),
        measured("… pulled over loopback", [size / one[0] / 1e6 for one in pulls], "MB/s", 100, more=True),
    ]


def _child(code: str, root: Path, what: object) -> tuple[float, float]:
    """Seconds, without the interpreter's start, and the peak of resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(what)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PykvmError(f"containers: {done.stderr.strip().splitlines()[-1]}")
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


@contextmanager
def _registry() -> Iterator[str]:
    """A registry of the unit tests in a process of its own; its host and port."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(_UNIT_TESTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.communicate("")


def _make(path: Path, files: int) -> int:
    """A docker archive of layers of many files; the bytes of its layers."""
    layers = many_files(files, _LAYERS)
    write_archive(path, layers)
    return sum(map(len, layers))


def many_files(files: int, layers: int) -> list[bytes]:
    """So many files in so many layers, partly words and partly noise, the same ones every time."""
    choose = random.Random(1)  # noqa: S311 - see above
    noise = choose.randbytes(1 << 20)
    words = b"".join(choose.choices([b"kernel ", b"layer\n", b"0x1234 ", b"guest "], k=1 << 18))
    return [_layer(f"usr/share/l{at}", files // layers, choose, (noise, words)) for at in range(layers)]


def write_archive(path: Path, layers: Sequence[bytes]) -> None:
    """A docker archive of these layers."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config: dict[str, Any] = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": diff_ids}}
    names = [f"{at}/layer.tar" for at in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": ["bench:1"], "Layers": names}]
    with tarfile.open(path, "w") as tar:
        for name, layer in zip(names, layers, strict=True):
            _add(tar, name, layer)
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _layer(top: str, files: int, choose: random.Random, data: tuple[bytes, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = ["usr", "usr/share", top, *(f"{top}/d{at}" for at in range(50))]
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for at in range(files):
            size = min(int(choose.expovariate(1 / _FILE_BYTES)), 1 << 19)
            start = choose.randrange(1 << 19)
            _add(tar, f"{folders[3 + at % 50]}/file{at}", data[at % 2][start : start + size])
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
