"""Records syscalls of a real program: each with its numbers, its memory, and the line that strace printed.

Run by hand where strace and gcc are, as `python tests/unit/syscalls_recorder.py`: it builds
syscalls_recorded.c for x86-64 and for i386, runs each twice, once under strace and once under this
module's own ptrace, and writes the calls of which both made the same line to syscalls_golden.json. It
prints the others as a diff.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.trace.syscalls import SyscallText, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SOURCE = Path(__file__).with_name("syscalls_recorded.c")
GOLDEN = Path(__file__).with_name("syscalls_golden.json")
WIDTHS = {"x86-64": "-m64", "i386": "-m32"}

# <linux/ptrace.h>, <linux/personality.h>, <linux/wait.h>
TRACEME, GETREGS, SYSCALL, SETOPTIONS = 0, 12, 24, 0x4200
TRACESYSGOOD, EXITKILL = 1, 0x10_0000
NO_RANDOMIZE = 0x4_0000
WALL = 0x4000_0000
REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
    "ds es fs gs"
).split()
ARGUMENTS = {"x86-64": "rdi rsi rdx r10 r8 r9".split(), "i386": "rbx rcx rdx rsi rdi rbp".split()}


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64, also for a 32-bit program."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


class Memory:
    """The memory of a stopped program, and what was read of it."""

    def __init__(self, pid: int) -> None:
        self.fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        self.seen: dict[str, str] = {}

    def read(self, gva: int, size_bytes: int) -> bytes:
        """The bytes at `gva`; b"" where there are none."""
        try:
            data = os.pread(self.fd, size_bytes, gva)
        except (OSError, OverflowError):
            data = b""
        self.seen[f"{gva:#x}+{size_bytes}"] = data.hex()
        return data

    def take(self) -> dict[str, str]:
        """What was read since the last time: hexadecimal bytes by "address+size"."""
        seen, self.seen = self.seen, {}
        return seen


class Tracee:
    """A program under ptrace that stops at every syscall."""

    def __init__(self, command: Sequence[str]) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.pid = os.fork()
        if self.pid == 0:
            self._become(command)
        os.waitpid(self.pid, WALL)
        self._libc.ptrace(SETOPTIONS, self.pid, None, TRACESYSGOOD | EXITKILL)

    def _become(self, command: Sequence[str]) -> None:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.closerange(3, 1024)
        self._libc.personality(NO_RANDOMIZE)
        self._libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.execve(command[0], list(command), {})  # noqa: S606 - the program is our own

    def stops(self) -> Iterator[Registers]:
        """The registers at each entry to a syscall and each return from it, until the program ends."""
        registers, pending = Registers(), 0
        while True:
            self._libc.ptrace(SYSCALL, self.pid, None, pending)
            _, status = os.waitpid(self.pid, WALL)
            if not os.WIFSTOPPED(status):
                return
            number = os.WSTOPSIG(status)
            pending = 0 if number & ~0x80 == signal.SIGTRAP else number
            if number == signal.SIGTRAP | 0x80:
                self._libc.ptrace(GETREGS, self.pid, None, ctypes.addressof(registers))
                yield registers


def recorded(command: Sequence[str], abi: str) -> Iterator[dict[str, Any]]:
    """Each syscall that `command` makes after its own execve."""
    tracee = Tracee(command)
    memory: Memory | None = None
    call: SyscallText | None = None
    before: dict[str, str] = {}
    for stop, registers in enumerate(tracee.stops()):
        if stop < 2:  # execve itself, in this interpreter's memory
            continue
        memory = memory or Memory(tracee.pid)
        if call is None:
            args = [getattr(registers, name) for name in ARGUMENTS[abi]]
            call = describe(registers.orig_rax, args, read=memory.read, abi=abi)
            before = memory.take()
        else:
            done = call.returned(registers.rax, read=memory.read)
            yield row(done, before, memory.take())
            call = None
    if call is not None:
        yield row(call, before, {})


def row(call: SyscallText, before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    """One syscall as it is kept."""
    return {
        "line": str(call),
        "abi": call.abi,
        "number": call.number,
        "args": [f"{arg:#x}" for arg in call.args],
        "result": call.value,
        "before": before,
        "after": after,
    }


def found(name: str) -> str:
    """Where a program is; the two runs have no environment, so that their stacks are the same."""
    path = shutil.which(name)
    if path is None:
        sys.exit(f"this needs {name}; install it first")
    return path


def shortened(kept: dict[str, Any]) -> dict[str, Any]:
    """The same with less memory: of each read, as few bytes as the line needs to stay the same."""
    for when in ("before", "after"):
        for place, data in kept[when].items():
            whole = bytes.fromhex(data)
            for size_bytes in (0, whole.find(0) + 1, 32, 64, len(whole)):
                kept[when][place] = whole[:size_bytes].hex()
                if line_of(kept) == kept["line"]:
                    break
    return kept


def line_of(kept: dict[str, Any]) -> str:
    """The line for a recorded call, made from its numbers and its memory alone."""

    def read_of(when: str) -> Callable[[int, int], bytes]:
        return lambda gva, size: bytes.fromhex(kept[when].get(f"{gva:#x}+{size}", ""))

    args = [int(arg, 16) for arg in kept["args"]]
    call = describe(kept["number"], args, read=read_of("before"), abi=kept["abi"])
    return str(call if kept["result"] is None else call.returned(kept["result"], read=read_of("after")))


def straced(command: Sequence[str], folder: Path) -> list[str]:
    """strace's own lines, without those of execve and of signals."""
    log = folder / "strace"
    wrapper = [found("setarch"), "-R", found("strace"), "-a", "40", "-o", str(log), *command]
    subprocess.run(wrapper, check=False, stdin=subprocess.DEVNULL, env={})
    lines = log.read_text().splitlines()
    return [line for line in lines[1:] if not line.startswith(("---", "+++", "[", "strace:"))]


def record(abi: str, folder: Path) -> list[dict[str, Any]]:
    """The calls of one width of program of which strace and pykvm made the same line."""
    program = folder / "recorded"
    build = ["gcc", WIDTHS[abi], "-nostdlib", "-static", "-O1", "-fno-stack-protector", "-no-pie", "-fno-pic"]
    subprocess.run([*build, "-idirafter", "/usr/include/x86_64-linux-gnu", SOURCE, "-o", program], check=True)
    theirs = straced([str(program)], folder)
    rows = list(recorded([str(program)], abi))
    same = [shortened(kept) for line, kept in zip(theirs, rows, strict=True) if line == kept["line"]]
    sys.stdout.writelines(
        f"{line}\n"
        for line in unified_diff(theirs, [kept["line"] for kept in rows], "strace", "pykvm", n=0, lineterm="")
    )
    sys.stdout.write(f"{abi}: {len(same)} of {len(rows)} lines are the same\n")
    return same


def main() -> None:
    """Record both widths and write what is the same."""
    rows: list[dict[str, Any]] = []
    for abi in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            rows += record(abi, Path(folder))
    version = subprocess.run(
        ["strace", "--version"], check=True, text=True, capture_output=True
    ).stdout.splitlines()[0]
    text = ",\n".join(json.dumps(kept) for kept in rows)
    GOLDEN.write_text(f'{{"source": {json.dumps(version)}, "calls": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
