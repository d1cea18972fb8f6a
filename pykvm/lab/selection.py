"""Which of this machine's files a lab without a shared file system gets: the base, and what the job adds.

The base is the same for every job: a small userland, and the Python that runs pykvm or the command. The job
adds its command, files that the command line names, pykvm, and the project that the current directory belongs
to. What nothing here finds is named with `--tree`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError
from pykvm.lab.pythons import ENVIRONMENT_MARK, add_python, ask_python, is_python, this_python
from pykvm.lab.tree import Tree, TreeTooLargeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pykvm.lab.backend import Job, Options, Progress
    from pykvm.lab.libraries import Libraries
    from pykvm.lab.pythons import Python

__all__ = ["base_tree", "job_tree", "project_of", "python_of"]

_PROGRAMS = """
    [ awk base32 base64 basename bash cat chgrp chmod chown chrt cksum clear cmp comm cp cut date dd df
    diff dir dirname dmesg du echo egrep env expand expr factor false fgrep file find findmnt flock fmt
    fold free getconf getopt grep groups gunzip gzip head hexdump hostname iconv id ionice ip join kill
    ldd less ln locale logger ls lsblk lscpu lsmod make md5sum mkdir mkfifo mknod mktemp modinfo more
    mount mountpoint mv nice nl nohup nproc nsenter numfmt od paste patch perl pgrep pidof pkill printenv
    printf prlimit ps pwd readelf readlink realpath renice reset rev rm rmdir sed seq setpriv setsid sh
    sha1sum sha256sum sha512sum shuf sleep sort split ss stat stdbuf strace stty sum sync sysctl tac tail
    tar taskset tee test time timeout top touch tput tr true truncate tsort tty ulimit umount uname
    unexpand uniq unlink unshare uptime users vi vmstat watch wc which who whoami xargs xxd xz yes zcat
    zstd
""".split()
_LIBRARIES = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2")
"""What glibc opens by name at run time."""
_FILES = """
    /etc/alternatives /etc/group /etc/host.conf /etc/hosts /etc/inputrc /etc/ld.so.cache /etc/ld.so.conf
    /etc/ld.so.conf.d /etc/localtime /etc/nsswitch.conf /etc/os-release /etc/passwd /etc/protocols
    /etc/services /etc/shells /etc/terminfo /etc/timezone /lib/terminfo /usr/lib/locale/C.utf8
""".split()
_DIRECTORIES = """
    /bin /etc /home /lib /lib64 /mnt /opt /root /sbin /srv /tmp /usr/local/bin /usr/share /var/log /var/tmp
""".split()

_NOT_OF_A_PROJECT = {".git", ".hg", ".mypy_cache", ".nox", ".ruff_cache", ".svn", ".tox", "node_modules"}
_PROJECT_MARKS = (".git", ".hg", "pyproject.toml", "setup.py")
_PROJECT_LIMIT_BYTES = 1 << 30
_MOST_INTERPRETERS = 4
_PACKAGE = Path(__file__).resolve().parent.parent
_SYSTEM = "/usr/sbin:/sbin:/usr/bin:/bin"


def base_tree(libraries: Libraries, python: Python) -> Tree:
    """What every job of that Python gets. It depends on nothing else but this machine."""
    tree = Tree(libraries)
    for directory in _DIRECTORIES:
        tree.add(directory)
    for path in _FILES:
        tree.add_tree(path)
    for name in _PROGRAMS:
        program = shutil.which(name) or shutil.which(name, path=_SYSTEM)
        if program:
            tree.add(program)
    for library in filter(None, map(libraries.find, _LIBRARIES)):
        tree.add(library)
    for one in sorted({this_python(), python}):
        add_python(tree, one)
    tree.add_libraries()
    return tree


def job_tree(job: Job, options: Options, base: Tree, progress: Progress) -> Tree:
    """What this job gets over the base. Raises ConfigError for what `--tree` names and is not there.

    Raises TreeTooLargeError if that is too much. A project that is too much is left out, as `progress` says.
    """
    tree = Tree(base.libraries, below=base)
    without = {options.share} if options.share else set()
    for place in filter(None, (job.env.get("HOME"), job.env.get("TMPDIR"), job.cwd)):
        tree.add(place)
    for path in options.tree:
        if not path.exists():
            raise ConfigError(f"--tree {path}: there is no such file or directory")
        tree.add_tree(path, not_in=without)
    top = project_of(Path(job.cwd))
    if top != Path("/"):
        _add_some(tree, top, progress, without | _environments_in(top))
    for code in (_PACKAGE, *_python_path(job)):
        _add_some(tree, code, progress, without)
    for word in job.argv:
        _add_word(tree, word, job)
    _add_command(tree, job)
    tree.add_libraries()
    if tree.unread:
        progress(
            f"what you may not read does not go to the lab: {len(tree.unread)} files, as {tree.unread[0]}"
        )
    return tree


def project_of(directory: Path) -> Path:
    """The nearest directory upwards that looks like the top of a project; `directory` itself if none does."""
    for place in (directory, *directory.parents):
        if any((place / mark).exists() for mark in _PROJECT_MARKS):
            return place
    return directory


def python_of(job: Job, progress: Progress) -> Python:
    """The Python that the command runs in; if it is no Python program, the one that runs pykvm."""
    for program in _chain(job):
        if is_python(program) and program != Path(sys.executable):
            found = ask_python(program, job.env)
            if found:
                return found
            progress(f"{program} does not tell where its modules are; name them with --tree")
            break
    return this_python()


def _environments_in(top: Path) -> set[Path]:
    """Virtual environments at the top of a project: the one in use goes with its Python, the others not."""
    try:
        return {entry for entry in top.iterdir() if (entry / ENVIRONMENT_MARK).is_file()}
    except OSError:
        return set()


def _python_path(job: Job) -> list[Path]:
    return [Path(job.cwd, entry) for entry in job.env.get("PYTHONPATH", "").split(":") if entry]


def _add_some(tree: Tree, top: Path, progress: Progress, not_in: Collection[Path]) -> None:
    """Take a directory unless it is too much."""
    try:
        tree.add_tree(top, _NOT_OF_A_PROJECT, not_in=not_in, limit_bytes=_PROJECT_LIMIT_BYTES)
    except TreeTooLargeError:
        progress(f"{top} is too large to take along; name what the command needs of it with --tree")


def _add_word(tree: Tree, word: str, job: Job) -> None:
    """A word of the command line that is the name of a file, also after the `=` of an option."""
    for name in {word, word.partition("=")[2]}:
        path = f"{job.cwd}/{name}" if not name.startswith("/") else name
        if os.path.isfile(path):  # noqa: PTH113 - takes any text, as this may be
            tree.add(path)


def _chain(job: Job) -> Iterator[Path]:
    """The command's program, and if that is a script its interpreter, and so on."""
    found = _look_up(job.argv[0], job)
    for _ in range(_MOST_INTERPRETERS):
        if found is None:
            return
        yield found
        words = _shebang(found)
        if words and Path(words[0]).name == "env":
            yield Path(words[0])
            words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        found = _look_up(words[0], job) if words else None


def _add_command(tree: Tree, job: Job) -> None:
    for program in _chain(job):
        tree.add(program)
        if is_python(program) and _shebang(program):
            # a script that looks for a Python, as version managers have it, would find nothing in the lab
            real = ask_python(program, job.env)
            if real:
                tree.add_link(program, real.executable)
                return


def _look_up(name: str, job: Job) -> Path | None:
    """The program as execvp in the lab finds it: in PATH, or below the job's directory."""
    if "/" in name:
        path = Path(job.cwd, name)
        return path if path.exists() else None
    found = shutil.which(name, path=job.env.get("PATH", os.defpath))
    return Path(job.cwd, found) if found else None


def _shebang(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            line = file.readline(512)
    except OSError:
        return []
    return os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
