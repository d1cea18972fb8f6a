"""Debian's kernels, fetched without installing: apt downloads and verifies, we unpack what a lab can use.

No root is needed and nothing of the host changes. Where apt's own package lists are missing or out of date,
fresh ones are made in a directory of ours. `linux-image-amd64` has everything; the cloud flavour is smaller
and knows neither 9p nor most hardware.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pykvm.errors import LabError
from pykvm.lab.backend import Options, Progress, Tool
from pykvm.lab.deb import deb_members
from pykvm.lab.kernel import Kernel, given_kernel, release_of, unpack
from pykvm.lab.store import DamageError, Entry, Store, need_space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_T = TypeVar("_T")

__all__ = [
    "APT_TOOLS",
    "Apt",
    "AptError",
    "Candidate",
    "by_apt",
    "cached_kernel",
    "cached_program",
    "fetch_kernel",
    "fetch_program",
    "kernel_for",
]

APT_TOOLS = (Tool("apt-get", "apt"), Tool("apt-cache", "apt"), Tool("dpkg-deb", "dpkg"))

_KIND = "kernels"
_PROGRAMS = "programs"
_KEPT = 4  # two flavours, the last version of each
_MEMBER = re.compile(r"\./(?:usr/)?(boot/vmlinuz-.+|boot/config-.+|lib/modules/([^/]+)/(.+))")
_HARDWARE = re.compile(  # that no lab has, and that is most of what the package holds
    r"kernel/(sound|drivers/(gpu|media|infiniband|iio|staging|platform|hwmon|video|mtd|comedi|watchdog|mmc|isdn|"
    r"bluetooth|leds|power|thunderbolt|ssb|bcma|memstick|message|firewire|pcmcia|regulator|mfd|hid|w1|usb|"
    r"net/(wireless|ethernet|usb|phy|can|fddi|arcnet|hamradio|wwan)|(scsi|input|target)/[^/]+))/"
)
_APT_SETTINGS = ("Acquire::Retries=2", "Acquire::http::Timeout=30", "Acquire::https::Timeout=30")
_ROOM_FOR_LISTS = 64 << 20
_OTHER_KERNEL = "Another kernel can be named with --kernel FILE --modules DIR"


class AptError(LabError):
    """apt could not do it, perhaps because its lists are missing or old."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One version of a package, as apt's lists describe it."""

    package: str
    version: str
    digest: str
    download_bytes: int
    installed_bytes: int


def kernel_for(options: Options, flavour: str, store: Store, progress: Progress) -> Kernel:
    """The kernel a lab boots: the one given by option, else the newest in the cache, else Debian's.

    Raises LabError or ConfigError in one line: no apt, no network, no space, damaged and not to be fetched.
    """
    if options.kernel:
        return given_kernel(options.kernel, options.modules)
    if options.modules:
        raise LabError("--modules goes with --kernel")
    if options.update:
        return fetch_kernel(flavour, store, progress)
    try:
        return cached_kernel(flavour, store) or fetch_kernel(flavour, store, progress)
    except DamageError:
        return fetch_kernel(flavour, store, progress)  # which says so and makes it anew


def cached_kernel(flavour: str, store: Store) -> Kernel | None:
    """The newest kernel of a flavour in the cache, if there is one.

    What boots is compared with its checksum. Raises DamageError if that or its manifest differ.
    """
    entries = list(store.entries(_KIND))
    for entry in reversed(entries):
        if isinstance(entry, Entry) and entry.about.get("flavour") == flavour:
            kernel = _kernel(entry)
            entry.check((kernel.elf or kernel.image).name, is_quick=True)
            return kernel
    for damage in entries:
        if isinstance(damage, DamageError):
            raise damage
    return None


def fetch_kernel(flavour: str, store: Store, progress: Progress) -> Kernel:
    """Ask apt for its newest kernel of a flavour, and fetch it unless it is in the cache already."""
    return by_apt(
        lambda apt: _fetch_from(apt, flavour, store, progress),
        "Debian's kernel",
        _OTHER_KERNEL,
        store,
        progress,
    )


def cached_program(package: str, store: Store) -> Path | None:
    """The program of a package that fetch_program() took before, the newest, or None. Raises DamageError."""
    for entry in reversed(list(store.entries(_PROGRAMS))):
        if isinstance(entry, DamageError):
            raise entry
        if entry.about.get("package") == package:
            entry.check(is_quick=True)
            return entry.path / str(entry.about["program"])
    return None


def fetch_program(package: str, member: str, store: Store, progress: Progress) -> Path:
    """The file `member` ("bin/busybox") of Debian's newest `package`, fetched unless the cache has it."""

    def fetch(apt: Apt) -> Path:
        candidate = apt.package(package)
        name = member.rpartition("/")[2]

        def build(where: Path) -> Mapping[str, Any]:
            need_space(store.root, candidate.download_bytes + candidate.installed_bytes)
            progress(f"fetching {package} {candidate.version} ({candidate.download_bytes >> 10} KiB)")
            deb = apt.download(candidate, where, progress)
            _unpack(
                deb, where, lambda found: name if found.lstrip("./") in (member, f"usr/{member}") else None
            )
            deb.unlink()
            if not (where / name).is_file():
                raise LabError(f"the package {package} has no {member}")
            (where / name).chmod(0o755)
            return {
                "package": package,
                "program": name,
                "version": candidate.version,
                "deb_sha256": candidate.digest,
            }

        key = f"{package}_{candidate.version.replace(':', '%3a')}"
        return store.obtain(_PROGRAMS, key, build, progress, keep=_KEPT).path / name

    return by_apt(fetch, f"Debian's {package}", "", store, progress)


def by_apt(fetch: Callable[[Apt], _T], what: str, hint: str, store: Store, progress: Progress) -> _T:
    """What `fetch` gets with the system's package lists or, where they do not do, with fresh ones."""
    missing = [tool.program for tool in APT_TOOLS if not shutil.which(tool.program)]
    if missing:
        raise LabError(f"no {missing[0]} here to fetch {what} with. {hint}".rstrip(" ."))
    with store.room() as room:
        try:
            return fetch(Apt())
        except AptError as error:
            progress(f"{error}; fetching the package lists")
        try:
            return fetch(Apt.with_fresh_lists(room))
        except AptError as error:
            raise LabError(f"{error}; is there a network? {hint}".rstrip()) from error


def _fetch_from(apt: Apt, flavour: str, store: Store, progress: Progress) -> Kernel:
    candidate = apt.candidate(f"linux-image-{flavour}")

    def build(where: Path) -> Mapping[str, Any]:
        need_space(
            store.root, candidate.download_bytes + candidate.installed_bytes * 2 // 3
        )  # most is left out
        progress(f"fetching {candidate.package} {candidate.version} ({candidate.download_bytes >> 20} MiB)")
        deb = apt.download(candidate, where, progress)
        progress(f"unpacking {candidate.package}")
        _unpack(deb, where, _target)
        deb.unlink()
        about = _describe(where)
        return {
            **about,
            "flavour": flavour,
            "package": candidate.package,
            "version": candidate.version,
            "deb_sha256": candidate.digest,
        }

    key = f"{candidate.package.removeprefix('linux-image-')}_{candidate.version.replace(':', '%3a')}"
    entry = store.obtain(_KIND, key, build, progress, keep=_KEPT)
    return _kernel(entry)


def _kernel(entry: Entry) -> Kernel:
    elf = entry.path / "vmlinux" if "vmlinux" in entry.files else None
    release = str(entry.about["release"])
    return Kernel(release, entry.path / "vmlinuz", elf, entry.path / "modules", entry.key)


class Apt:
    """apt-get and apt-cache, with the system's lists or with lists of our own."""

    def __init__(self, *settings: str) -> None:
        self._options = [part for setting in (*_APT_SETTINGS, *settings) for part in ("-o", setting)]

    @classmethod
    def with_fresh_lists(cls, room: Path) -> Apt:
        """Lists fetched now into `room`, from the sources that the system names. Raises LabError."""
        need_space(room, _ROOM_FOR_LISTS)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (room / name).mkdir(parents=True)
        apt = cls(f"Dir::State={room}/state", f"Dir::Cache={room}/cache", "APT::Sandbox::User=root")
        apt._run("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
        return apt

    def candidate(self, meta: str) -> Candidate:
        """The kernel package that the metapackage depends on. Raises AptError if apt knows none."""
        shown = _fields(self._run("apt-cache", "show", "--no-all-versions", meta))
        found = re.search(r"(linux-image-[\w.+~-]+) \(= (\S+)\)", shown.get("Depends", ""))
        if not found:
            raise AptError(f"apt's {meta} depends on no kernel image")
        return self.package(found[1], found[2])

    def package(self, package: str, version: str = "") -> Candidate:
        """A package by name, the newest unless `version` says which. Raises AptError if apt knows none."""
        wanted = f"{package}={version}" if version else package
        real = _fields(self._run("apt-cache", "show", "--no-all-versions", wanted))
        try:
            version = version or real["Version"]
            sizes = int(real["Size"]), int(real["Installed-Size"]) << 10
            return Candidate(package, version, real["SHA256"], *sizes)
        except (KeyError, ValueError) as error:
            raise AptError(f"apt does not know enough about {package}: {error}") from error

    def closure(self, packages: Sequence[str]) -> list[Candidate]:
        """Packages with all they depend on, in the order of installation, as on a system that has none.

        Raises AptError if apt knows one of them not, or can't have them together.
        """
        empty = "Dir::State::status=/dev/null", "APT::Architecture=amd64", "APT::Install-Recommends=0"
        options = [part for one in (*empty, "Debug::NoLocking=1") for part in ("-o", one)]
        done = self._run("apt-get", "-q", "-s", *options, "install", *packages)
        found = re.findall(r"^Inst (\S+) \((\S+) ", done, re.MULTILINE)
        return self._candidates([f"{package}={version}" for package, version in found])

    def _candidates(self, wanted: Sequence[str]) -> list[Candidate]:
        shown = self._run("apt-cache", "show", *wanted) if wanted else ""
        about = {}
        for paragraph in shown.strip().split("\n\n"):
            real = _fields(paragraph)
            about[f"{real.get('Package')}={real.get('Version')}"] = real
        try:
            return [
                Candidate(
                    one.partition("=")[0],
                    about[one]["Version"],
                    about[one]["SHA256"],
                    int(about[one]["Size"]),
                    int(about[one]["Installed-Size"]) << 10,
                )
                for one in wanted
            ]
        except (KeyError, ValueError) as error:
            raise AptError(f"apt does not know enough about {error}") from error

    def download(self, what: Candidate, where: Path, progress: Progress) -> Path:
        """The .deb in `where`, its checksum verified by apt. Raises AptError."""
        return self.download_all([what], where, progress)[0]

    def download_all(self, wanted: Sequence[Candidate], where: Path, progress: Progress) -> list[Path]:
        """The .debs in `where`, an empty directory, in the order of their names. Raises AptError."""
        reader, writer = os.pipe()
        command = self._command("apt-get", "-q", "-o", f"APT::Status-Fd={writer}", "download")
        name = wanted[0].package if len(wanted) == 1 else f"{len(wanted)} packages"
        with os.fdopen(reader) as status:
            try:
                process = subprocess.Popen(
                    [*command, *(f"{one.package}={one.version}" for one in wanted)],
                    cwd=where,
                    env=_plain_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    pass_fds=(writer,),
                )
            finally:
                os.close(writer)
            with process:
                _report_percent(status, name, progress)
                errors = process.stderr.read() if process.stderr else ""
        found = sorted(where.glob("*.deb"))
        if process.returncode or len(found) != len(wanted):
            raise AptError(f"apt could not fetch {name}: {_complaint(errors)}")
        return found

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [program, *self._options, *arguments]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            self._command(program, *arguments),
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AptError(f"{program} {arguments[-1]}: {_complaint(done.stderr)}")
        return done.stdout


def _plain_environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _complaint(errors: str) -> str:
    """Apt's first error, else its first warning that is none of the sandbox's."""
    lines = [line for line in errors.splitlines() if "unsandboxed" not in line]
    worst = [line for line in lines if line.startswith(("E:", "Err:"))] or lines
    return worst[0].removeprefix("E:").strip() if worst else "it does not say why"


def _fields(shown: str) -> dict[str, str]:
    """The first paragraph of a control file; continued lines are left out."""
    paragraph = shown.strip().partition("\n\n")[0]
    pairs = (line.partition(":") for line in paragraph.splitlines() if not line.startswith(" "))
    return {key: value.strip() for key, _, value in pairs}


def _report_percent(status: IO[str], package: str, progress: Progress) -> None:
    """Apt says `dlstatus:NUMBER:PERCENT:TEXT` on its status descriptor."""
    said = 0
    for line in status:
        kind, _, rest = line.partition(":")
        percent = rest.split(":")[1:2]
        if kind == "dlstatus" and percent and percent[0].partition(".")[0].isdigit():
            now = int(float(percent[0]))
            if now >= said + 10:
                said = now
                progress(f"fetching {package}: {now} %")


def _unpack(deb: Path, where: Path, target_of: Callable[[str], str | None]) -> None:
    """Unpack the members for which `target_of` gives a path below `where`. Raises LabError."""
    with deb_members(deb) as archive:
        for member in archive:
            target = target_of(member.name)
            source = archive.extractfile(member) if target and member.isreg() else None
            if target and source:
                path = where / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)


def _target(name: str) -> str | None:
    """Where a member of the package goes in the cache, or None to leave it out."""
    found = _MEMBER.fullmatch(name)
    if not found or ".." in name.split("/"):
        return None
    if found[3]:
        return None if _HARDWARE.match(found[3]) else f"modules/{found[3]}"
    return found[1].removeprefix("boot/").partition("-")[0]


def _describe(where: Path) -> dict[str, str]:
    """Check what was unpacked, put the ELF file of the kernel beside it, and tell its release."""
    try:
        image = (where / "vmlinuz").read_bytes()
    except FileNotFoundError:
        raise LabError("the kernel package has no /boot/vmlinuz; is it signed elsewhere?") from None
    elf = unpack(image)
    if elf:
        (where / "vmlinux").write_bytes(elf)
    if not (where / "modules").is_dir():
        raise LabError("the kernel package has no modules; name another kernel with --kernel and --modules")
    return {"release": release_of(image)}
