"""Debian's kernel is fetched, unpacked and cached by programs that stand in for apt and dpkg."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from test_lab_kernel import RELEASE, bzimage, vmlinux
from test_lab_modules import module_image

from pykvm.errors import LabError
from pykvm.lab.backend import Options
from pykvm.lab.packages import cached_kernel, fetch_kernel, kernel_for
from pykvm.lab.store import Store

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = Options(mem_mib=512, smp=1)
APT_CACHE = r"""#!/bin/sh
echo "apt-cache $*" >> "$LAB_TEST/calls"
for word; do case $word in Dir::State=*) fresh=1;; linux-image-*) name=$word;; esac; done
if [ -e "$LAB_TEST/no-lists" ] && [ -z "$fresh" ]; then
    echo "E: No packages found" >&2; exit 100
fi
version=$(cat "$LAB_TEST/version")
case $name in
linux-image-amd64) echo "Package: $name"; echo "Depends: linux-image-$version-amd64 (= $version-1)";;
*) printf 'Package: x\nSHA256: abc\nSize: 1000\nInstalled-Size: 10\nDescription: a\n text\n\nPackage: old\n';;
esac
"""
APT_GET = r"""#!/bin/sh
echo "apt-get $*" >> "$LAB_TEST/calls"
[ ! -e "$LAB_TEST/no-network" ] || {
    echo "W: Download is performed unsandboxed as root" >&2
    echo "E: Failed to fetch http://deb/x  Temporary failure resolving 'deb'" >&2; exit 100; }
case $* in
*download*) cp "$LAB_TEST/package.tar" linux-image_1_amd64.deb;;
esac
"""
DPKG_DEB = '#!/bin/sh\ncat "$2"\n'


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with programs called like Debian's, first on PATH, and the package they fetch."""
    where = tmp_path / "debian"
    where.mkdir()
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (where / name).write_text(text)
        (where / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{where}:/usr/bin:/bin")
    monkeypatch.setenv("LAB_TEST", str(where))
    (where / "version").write_text("6.1")
    write_package(where / "package.tar")
    return where


def write_package(path: Path, **others: bytes) -> None:
    """A kernel package's files, and some that a lab has no use for or must not take."""
    members = {
        "./boot/vmlinuz-6.1.0-test": bzimage(gzip.compress(vmlinux())),
        "./boot/config-6.1.0-test": b"CONFIG_KVM=m\n",
        "./boot/System.map-6.1.0-test": b"x",
        "./lib/modules/6.1.0-test/kernel/arch/x86/kvm/kvm.ko": module_image(depends=""),
        "./lib/modules/6.1.0-test/kernel/drivers/gpu/drm/i915/i915.ko": b"x",
        "./lib/modules/6.1.0-test/kernel/drivers/scsi/sd_mod.ko": b"y",
        "./lib/modules/6.1.0-test/kernel/drivers/scsi/lpfc/lpfc.ko": b"z",
        "./lib/modules/6.1.0-test/modules.builtin": b"kernel/a.ko\n",
        "./lib/modules/../../../../etc/passwd": b"climbs out",
        "./usr/share/doc/linux/copyright": b"x",
        **others,
    }
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def silent(text: str) -> None:
    """A progress that nobody watches."""


def test_a_kernel_is_fetched_once_with_what_a_lab_can_use(tmp_path: Path, debian: Path) -> None:
    """Kernel, its ELF file and modules are kept; hardware that no lab has and what climbs out are not."""
    store = Store(tmp_path / "cache")
    kernel = kernel_for(OPTIONS, "amd64", store, silent)
    assert kernel.release == RELEASE
    assert kernel.elf
    assert kernel.elf.read_bytes() == vmlinux()
    assert unpacked(kernel.modules.parent) == [
        "config",
        "manifest.json",
        "modules/kernel/arch/x86/kvm/kvm.ko",
        "modules/kernel/drivers/scsi/sd_mod.ko",
        "modules/modules.builtin",
        "vmlinux",
        "vmlinuz",
    ]
    (debian / "calls").unlink()
    assert kernel_for(OPTIONS, "amd64", store, silent) == kernel
    assert not (debian / "calls").exists()


def unpacked(where: Path) -> list[str]:
    return sorted(str(path.relative_to(where)) for path in where.rglob("*") if path.is_file())


def test_modules_below_usr_are_found_too(tmp_path: Path, debian: Path) -> None:
    """Newer packages have them in /usr/lib/modules."""
    write_package(debian / "package.tar", **{"./usr/lib/modules/6.1.0-test/kernel/fs/9p/9p.ko": b"9"})
    kernel = fetch_kernel("amd64", Store(tmp_path / "cache"), silent)
    assert (kernel.modules / "kernel/fs/9p/9p.ko").read_bytes() == b"9"


def test_an_update_is_fetched_when_it_is_asked_for(tmp_path: Path, debian: Path) -> None:
    """A newer version does not come by itself, and is what boots after an update."""
    store = Store(tmp_path / "cache")
    old = kernel_for(OPTIONS, "amd64", store, silent)
    (debian / "version").write_text("6.2")
    assert kernel_for(OPTIONS, "amd64", store, silent) == old
    new = kernel_for(Options(mem_mib=512, smp=1, update=True), "amd64", store, silent)
    assert new.key == "6.2-amd64_6.2-1"
    assert cached_kernel("amd64", store) == new


def test_without_lists_fresh_ones_are_made_for_us_alone(tmp_path: Path, debian: Path) -> None:
    """apt-get update runs with directories of ours, which are gone at the end."""
    (debian / "no-lists").touch()
    said: list[str] = []
    store = Store(tmp_path / "cache")
    assert fetch_kernel("amd64", store, said.append).release == RELEASE
    assert any("No packages found; fetching the package lists" in text for text in said)
    updates = [line for line in (debian / "calls").read_text().splitlines() if line.endswith(" update")]
    assert len(updates) == 1
    assert f"Dir::State={store.root}/run/" in updates[0]
    assert list((store.root / "run").iterdir()) == []


def test_without_a_network_the_error_is_apts_own_line(tmp_path: Path, debian: Path) -> None:
    """It says what failed and how to go on without; nothing half-made stays."""
    (debian / "no-network").touch()
    store = Store(tmp_path / "cache")
    with pytest.raises(
        LabError, match=r"Temporary failure resolving 'deb'; is there a network\?.*--kernel"
    ) as caught:
        fetch_kernel("amd64", store, silent)
    assert "unsandboxed" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert unpacked(store.root) == ["lock"]


def test_a_damaged_kernel_is_fetched_again_or_stays_an_error(tmp_path: Path, debian: Path) -> None:
    """With a network it is repaired; without one the next start says the same again."""
    store = Store(tmp_path / "cache")
    kernel = kernel_for(OPTIONS, "amd64", store, silent)
    assert kernel.elf
    kernel.elf.write_bytes(b"damaged")
    (debian / "no-network").touch()
    for _ in range(2):
        said: list[str] = []
        with pytest.raises(LabError, match="network"):
            kernel_for(OPTIONS, "amd64", store, said.append)
        assert "damaged" in said[0]
    (debian / "no-network").unlink()
    kernel_for(OPTIONS, "amd64", store, silent)
    assert kernel.elf.read_bytes() == vmlinux()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no archive", "can't be unpacked"), (b"", "can't be unpacked|no /boot/vmlinuz")],
)
def test_a_package_that_is_none_is_refused(tmp_path: Path, debian: Path, content: bytes, words: str) -> None:
    """Whatever was downloaded, there is one line and no entry."""
    (debian / "package.tar").write_bytes(content)
    store = Store(tmp_path / "cache")
    with pytest.raises(LabError, match=words):
        fetch_kernel("amd64", store, silent)
    assert unpacked(store.root) == ["lock"]


def test_without_apt_another_kernel_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other distributions the error says how."""
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(LabError, match=r"no apt-get here .* --kernel FILE --modules DIR"):
        fetch_kernel("amd64", Store(tmp_path / "cache"), silent)


def test_modules_alone_make_no_kernel(tmp_path: Path) -> None:
    """--modules without --kernel is a mistake that is told."""
    with pytest.raises(LabError, match="--modules goes with --kernel"):
        kernel_for(Options(512, 1, modules=tmp_path), "amd64", Store(tmp_path), silent)
