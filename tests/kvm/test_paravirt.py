"""Linux programs in the paravirtual kernel: what they do, what they may not, what is told of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.needs import NOT_HERE

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.boot import symbols
from pykvm.errors import ConfigError, GuestAddressError
from pykvm.machine import Machine
from pykvm.paravirt.guest import absent_syscalls, kernel_path
from pykvm.paravirt.syscall_ring import RECORD_BYTES
from pykvm.result import EndReason
from pykvm.trace.clock import TscClock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pykvm.paravirt.syscall_ring import SyscallRecord
    from pykvm.result import ProgramFault, RunResult

pytestmark = pytest.mark.needs(
    "long64_interrupts", "ring3_code", "ring3_exceptions", "ring3_syscall|ring3_syscall_by_pf"
)

HERE = Path(__file__).parent
FLAGS = "-O1 -Wall -Wextra -Werror -Wno-stringop-overflow -mno-red-zone".split()
TIMEOUT_S = 120
PAGE = 4096
MIB = 1 << 20
GETPPID, EXIT_GROUP, WRITE, SOCKET, KILLED = 110, 231, 1, 41, 128
DATA = bytes(i % 251 for i in range(10_000))
FILES: dict[str, bytes | Path | str] = {
    "/data": DATA,
    "/folder/inner.txt": b"inner",
    "/folder/deep/z": b"",
    "/empty": b"",
}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a program as users do: gcc -static; once for the same options."""
    if not shutil.which("gcc"):  # in the Intel lab, which gets only what could not run elsewhere
        pytest.skip(f"{NOT_HERE}gcc: there is none to build the programs with")
    folder = tmp_path_factory.mktemp("programs")
    built: dict[tuple[str, ...], Path] = {}

    def build(*options: str, source: Path = HERE / "paravirt_program.c", name: str = "program") -> Path:
        key = (str(source), *options)
        if key not in built:
            out = folder / f"{name}{len(built)}"
            subprocess.run(["gcc", *FLAGS, *options, source, "-o", out, "-lm"], check=True)
            built[key] = out
        return built[key]

    return build


@pytest.fixture
def program(build: Callable[..., Path]) -> Path:
    """The program of this file, linked with -static."""
    return build("-static", "-no-pie")


class Run:
    """One run of a program, and what is left of it."""

    def __init__(self, program: Path | bytes, *words: object, **options: Any) -> None:
        given = {"env", "files", "stdin", "disk"} & set(options)
        loading = {name: options.pop(name) for name in given}
        timeout = options.pop("timeout", TIMEOUT_S)
        before = options.pop("before", lambda machine: None)
        after = options.pop("after", lambda machine: None)
        with Machine(**{"memory": "64M", **options}) as machine:
            machine.load_program(program, [str(word) for word in words], **loading)
            before(machine)
            self.result: RunResult = machine.run(timeout=timeout)
            after(machine)
            assert machine.paravirt
            self.syscalls: list[SyscallRecord] = list(machine.paravirt.syscalls())
            self.trouble = machine.paravirt.trouble

    @property
    def fault(self) -> ProgramFault:
        """Why it was killed."""
        assert self.result.fault, str(self.result)
        return self.result.fault

    def ok(self) -> None:
        """It said that all is as it should be."""
        self.result.check(reason="exit", console="ok\n", exit_code=0)


# ---- plain life


@pytest.mark.parametrize("code", [0, 3, 255])
def test_hello_and_its_exit_code(program: Path, code: int) -> None:
    """printf() and exit() of glibc work; the run's exit code is the program's."""
    result = Run(program, "hello", "you", code).result
    result.check(reason="exit", exit_code=code, console="hello, you\n")
    assert result.exit_status == code
    assert result.fault is None


def test_exit_code_is_cut_to_a_byte(program: Path) -> None:
    """As on Linux, a program's parent sees eight bits."""
    assert Run(program, "hello", "x", 256 + 7).result.exit_code == 7


def test_position_independent_program(build: Callable[..., Path]) -> None:
    """A static PIE is moved to its place, and says where it was when it fails."""
    moved = build("-static-pie", "-fPIE")
    Run(moved, "hello", "moved").result.check(exit_code=0, console="hello, moved\n")
    fault = Run(moved, "die", "null").fault
    assert fault.where.startswith("do_die+")
    assert fault.regs["rip"] >> 40 == 0x55


def test_program_without_libc(build: Callable[..., Path], tmp_path: Path) -> None:
    """Two system calls in assembler are a program, too."""
    source = tmp_path / "tiny.S"
    source.write_text(
        """
        .globl _start
_start: mov $1, %eax
        mov $1, %edi
        lea text(%rip), %rsi
        mov $6, %edx
        syscall
        mov $60, %eax
        mov $9, %edi
        syscall
text:   .ascii "tiny!\\n"
        .section .note.GNU-stack, "", @progbits
        """
    )
    result = Run(build("-static", "-nostdlib", source=source, name="tiny")).result
    result.check(exit_code=9, console="tiny!\n", exits={"IO": 2})


def test_arguments_and_environment(program: Path) -> None:
    """argv and environ are what was given, in order, also many, long and empty words."""
    words = ["", "a b", "ü", *map(str, range(300)), "x" * 5000]
    env = {"EMPTY": "", "A": "1=2", **{f"V{i}": str(i) for i in range(100)}}
    lines = Run(program, "words", *words, env=env).result.text.split("\n")
    assert lines[: len(words)] == [f"{i}={word}" for i, word in enumerate(words, start=2)]
    assert lines[len(words) : -1] == [f"{name}={value}" for name, value in env.items()]


def test_floating_point_and_thread_local_storage(program: Path) -> None:
    """x87 and SSE arithmetic are right, __thread variables work."""
    assert Run(program, "floats").result.text == "-2.587947578 2763520.0 0.333 42\n"


@pytest.mark.parametrize("what", ["enosys", "registers", "random"])
def test_the_program_is_content(program: Path, what: str) -> None:
    """What the program checks by itself is as it should be; see paravirt_program.c."""
    Run(program, what).ok()


def test_identity(program: Path) -> None:
    """uname, ids, limits, working directory, /proc/self/exe and the like have sensible answers."""
    Run(program, "identity", f"/{program.name}").ok()


def test_time_is_the_host_s(program: Path) -> None:
    """The clocks go on as the host's do, and a sleep is as long as was asked for."""
    before = int(time.time())
    seconds = int(Run(program, "time").result.text)
    assert before <= seconds <= time.time()


# ---- memory


def test_heap_under_load(program: Path) -> None:
    """4,000 malloc(), realloc() and free() of all sizes keep their contents."""
    result = Run(program, "heap", memory="128M").result
    result.check(exit_code=0, console="72779989\n")


def test_memory_calls(program: Path) -> None:
    """mmap, munmap, mprotect, mremap, madvise do what Linux does; freed frames come back as zeros."""
    assert Run(program, "memory", memory="8M").result.text == "\x07ok\n"


def test_more_areas_than_the_kernel_keeps(program: Path) -> None:
    """A full table of areas is ENOMEM to the program, which can go on and give back what it has."""
    Run(program, "areas").ok()


def test_out_of_memory(program: Path) -> None:
    """A program that touches more than there is dies by SIGKILL, as Linux does it, and it is said why."""
    run = Run(program, "exhaust", memory="16M")
    assert run.result.exit_code == KILLED + signal.SIGKILL
    assert "no memory left" in run.fault.cause


def test_memory_above_four_gib(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RAM goes on above the hole, the kernel uses it; here the hole is large and RAM small."""
    monkeypatch.setattr(layout, "HOLE", range(8 * MIB, layout.FOUR_GIB))

    def look(machine: Machine) -> None:
        above = machine.memory.slots[1]
        assert above.gpa == layout.FOUR_GIB
        assert any(machine.memory.read(above.gpa, above.size_bytes))

    Run(program, "heap", memory="128M", after=look).result.check(exit_code=0, console="72779989\n")


# ---- input and output


def test_ten_megabytes(program: Path) -> None:
    """All of a large output comes out, in order, in pieces of any size."""
    got = bytearray()
    result = Run(program, "print", 10 * MIB, 64 * 1024, console=got.extend).result
    line = b"".join(bytes([ord("a") + i // 64 % 26 if i % 64 < 63 else 10]) for i in range(64 * 1024))
    assert len(got) == 10 * MIB
    assert bytes(got) == line * 160
    assert result.console == got


def test_writev(program: Path) -> None:
    """The pieces come one behind the other; a bad one in the middle ends the call with what was written."""
    assert Run(program, "writev").result.text == "one " + "2" * 200_000 + " three\none "


def test_standard_input(program: Path) -> None:
    """Lines come in as they were given, then the end of the file."""
    lines = "".join(f"line {i} {'x' * (i % 150)}\n" for i in range(3000))
    result = Run(program, "echo", stdin=lines.encode()).result
    numbered = "".join(f"{i} {line}\n" for i, line in enumerate(lines.splitlines(), start=1))
    result.check(exit_code=7, console=numbered)


def test_no_standard_input(program: Path) -> None:
    """Who gives no input gives an empty one, not a wait without end."""
    Run(program, "echo").result.check(exit_code=7, console="")


def test_waiting_for_input(program: Path) -> None:
    """poll() and read() wait until something is typed, idle, with the output before it handed on."""
    with Machine() as machine:
        seen = threading.Event()
        machine._console._listener = lambda data: seen.set() if b"? " in data else None
        machine._listens = True
        machine.load_program(program, ["ask"], stdin=None)

        def type_it() -> None:
            assert seen.wait(TIMEOUT_S)
            machine.send(b"answer")
            machine.end_input()

        typist = threading.Thread(target=type_it)
        typist.start()
        result = machine.run(timeout=TIMEOUT_S)
        typist.join()
    result.check(exit_code=0, console="? answer")
    assert result.exits["IO"] < 200


def test_input_that_never_comes(program: Path) -> None:
    """The time limit ends a run that waits for input."""
    start = time.monotonic()
    result = Run(program, "echo", stdin=None, timeout=0.3).result
    assert result.reason is EndReason.TIMEOUT
    assert time.monotonic() - start < TIMEOUT_S / 2


# ---- files


def test_files(program: Path) -> None:
    """open, read, pread, lseek, mmap, dup, stat … of the read-only set, and everything that is refused."""
    Run(program, "files", files=FILES).ok()


def test_a_file_of_the_host(program: Path, tmp_path: Path) -> None:
    """A file of the host comes through whole, byte by byte."""
    content = os.urandom(300_001)
    (tmp_path / "some").write_bytes(content)
    result = Run(program, "cat", "/etc/some", files={"/etc/some": tmp_path / "some"}).result
    assert result.console == content
    assert result.exit_code == 0


def test_the_machine_s_disk(program: Path) -> None:
    """/dev/disk is read in whole sectors, to any address of memory; without a disk it is ENXIO."""
    content = bytes((i * 7 >> 3) & 0xFF for i in range(40 * 512))
    Run(program, "disk", disk=content).ok()
    Run(program, "disk", "none").ok()


@pytest.mark.parametrize(
    ("folder", "names"),
    [("/", {"data", "empty", "folder/", "dev/", "program"}), ("/folder", {"inner.txt", "deep/"})],
)
def test_listing_a_directory(program: Path, folder: str, names: set[str]) -> None:
    """A directory holds the files and directories that are in it, and no others."""
    found = Run(program, "list", folder, files=FILES).result.text.split()
    assert sorted(re.sub(r"\d+$", "", name) for name in found) == sorted(names)


# ---- what a program may not


def test_wild_pointers(program: Path) -> None:
    """No address of the kernel, of nobody, or that can't be gets past a system call: EFAULT."""
    Run(program, "efault", files=FILES).ok()


def test_system_calls_that_are_not_there(program: Path) -> None:
    """ENOSYS to the program, and one mark for each in the run's result."""
    run = Run(program, "enosys", trace=True)
    run.ok()
    marks = [mark.value - lib.PARAVIRT_MARK_ENOSYS for mark in run.result.marks]
    assert SOCKET in marks
    assert {"fork", "socket", "execve"} < {*absent_syscalls(run.result)}
    assert 334 not in marks  # rseq: glibc asks for it at every start
    unknown = {record.number for record in run.syscalls if not record.is_known}
    assert set(marks) == {number for number in unknown if number < 512}
    assert all(record.result == -38 for record in run.syscalls if not record.is_known)


SEGV, ILL, FPE, TRAP, ABRT = signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGABRT


@pytest.mark.parametrize(
    ("how", "number", "cause", "instruction"),
    [
        ("null", SEGV, "wrote to 0x0, where nothing is", "mov "),
        ("text", SEGV, "which it may not", "mov "),
        ("constant", SEGV, "which it may not", "mov "),
        ("data", SEGV, "jumped to", "ret"),
        ("stack-code", SEGV, "jumped to", ""),
        ("kernel", SEGV, "read from 0xffffffff80100000", "mov"),
        ("direct", SEGV, "read from 0xffff800000100000", "mov"),
        ("wild", SEGV, "can't be", "mov"),
        ("ud2", ILL, "does not exist", "ud2"),
        ("divide", FPE, "division by zero", "idiv "),
        ("int3", TRAP, "breakpoint", ""),
        ("hlt", SEGV, "privileged", "hlt"),
        ("port", SEGV, "privileged", "out "),
        ("msr", SEGV, "privileged", "rdmsr"),
        ("cr3", SEGV, "privileged", "mov rax, cr3"),
        ("stack", SEGV, "outgrown", ""),
        ("abort", ABRT, "itself", ""),
        ("raise", signal.SIGUSR1, "itself", ""),
    ],
)
def test_faults_kill_the_program_alone(
    program: Path, how: str, number: signal.Signals, cause: str, instruction: str
) -> None:
    """A fault is reported with cause, address and instruction; the kernel lives on to say 128 + signal."""
    run = Run(program, "die", how)
    run.result.check(reason="exit", exit_code=KILLED + number, console=f"{how}\n")
    assert (run.fault.signal, run.fault.signal_name) == (number, number.name)
    assert cause in run.fault.cause
    assert run.fault.instruction.startswith(instruction)
    assert run.fault.program == str(program)
    if how not in ("data", "stack-code", "stack", "abort", "raise"):
        assert run.fault.where.startswith("do_die+")


def entry() -> int:
    return next(symbol.address for symbol in symbols(kernel_path()) if symbol.name == "syscall_entry")


def test_a_jump_to_the_kernel_s_entry_gives_no_rights(program: Path) -> None:
    """The way that SYSCALL takes on kvm_pvm, taken by a jump: no IOPL from R11, so no port for ring 3."""
    run = Run(program, "die", "entry", entry())
    assert run.fault.signal == SEGV
    assert run.result.console in (b"entry\nflags 0\n", b"entry\n")
    if run.result.console.endswith(b"flags 0\n"):
        assert run.fault.instruction.startswith("out ")


def test_a_jump_there_with_no_way_back(program: Path) -> None:
    """A return address that can't be kills the program, not the kernel: SYSRET would fault in ring 0."""
    run = Run(program, "die", "return", entry())
    assert run.result.exit_code == KILLED + SEGV


# ---- the trace of system calls


@pytest.mark.parametrize("calls", [0, 1000, 10_000])
def test_every_system_call_has_a_record(program: Path, calls: int) -> None:
    """What the program counts comes out, more than the ring holds, in order, the last without an end."""
    run = Run(program, "calls", calls, trace=True)
    assert run.result.exit_code == 5
    assert run.trouble == ""
    assert sum(record.number == GETPPID for record in run.syscalls) == calls
    assert [record.number for record in run.syscalls].count(EXIT_GROUP) == 1
    last = run.syscalls[-1]
    assert (last.number, last.args[0], last.is_done, last.end_ns) == (EXIT_GROUP, 5, False, 0)
    for record, after in pairwise(run.syscalls):
        assert record.start_ns < record.end_ns < after.start_ns
        assert record.cr3 == last.cr3


def test_records_hold_arguments_and_result(program: Path) -> None:
    """Number, arguments, result and place are those of the call; its time encloses its hypercall's."""
    run = Run(program, "hello", trace=True)
    (write,) = [record for record in run.syscalls if record.number == WRITE]
    assert (write.args[0], write.args[2], write.result) == (1, 13, 13)
    assert 0x40_0000 < write.rip < 0x80_0000
    (print_,) = [r for r in run.result.trace if r.call and r.call.number == lib.HC_CONSOLE_WRITE]
    assert write.start_ns < print_.exit_ns < write.end_ns


def test_a_fatal_signal_to_itself_has_a_record(program: Path) -> None:
    """The last record is the tgkill() that never came back."""
    run = Run(program, "die", "abort", trace=True)
    assert (run.syscalls[-1].number, run.syscalls[-1].is_done) == (234, False)


def test_no_records_where_nobody_asked(program: Path) -> None:
    """Without a trace the kernel tells nothing, and no hypercall is about it."""
    run = Run(program, "calls", 100)
    assert run.syscalls == []
    assert run.result.exits["IO"] == 2  # random bytes for malloc(), and the end


def test_a_reader_while_the_guest_runs(program: Path) -> None:
    """Who sets on_drain gets every record himself, in order: full rings as they come, and the rest."""
    raw: list[bytes] = []

    def take(machine: Machine) -> None:
        assert machine.paravirt
        raw.append(machine.paravirt.take_syscalls())

    def read_along(machine: Machine) -> None:
        assert machine.paravirt
        machine.paravirt.on_drain = lambda: take(machine)

    run = Run(program, "calls", 10_000, trace=True, before=read_along, after=take)
    assert run.syscalls == []
    assert [len(piece) // RECORD_BYTES for piece in raw[:2]] == [4096, 4096]
    records = ffi.from_buffer("struct syscall_record[]", b"".join(raw))
    assert sum(record.number == GETPPID for record in records) == 10_000
    assert all(record.start_time < after.start_time for record, after in pairwise(records))


# ---- the machine around it


def test_one_vcpu_on_our_board(program: Path) -> None:
    """What the kernel can't use is refused in one line."""
    for options in ({"vcpus": 2}, {"board": "testdev"}):
        with Machine(**options) as machine, pytest.raises(ConfigError, match="one vCPU"):
            machine.load_program(program)


def test_too_little_memory_is_said_with_the_amount(program: Path) -> None:
    """Program and files that don't fit name what would do; with that much it runs."""
    with Machine(memory="3M") as machine, pytest.raises(ConfigError, match=r"need (\d+) MiB") as caught:
        machine.load_program(program)
    need = re.search(r"need (\d+) MiB", str(caught.value))
    assert need
    Run(program, "hello", memory=f"{need[1]}M").result.check(exit_code=0)


def test_the_kernel_alone_says_how_it_is_started() -> None:
    """Without boot information the kernel does not guess."""
    with Machine() as machine:
        machine.load(kernel_path())
        result = machine.run(timeout=TIMEOUT_S)
    assert result.reason is EndReason.PANIC
    assert "pykvm run --paravirt" in result.text


# ---- the command


def pykvm(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pykvm", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options)


def test_command_runs_a_program_with_its_words(program: Path, tmp_path: Path) -> None:
    """Options before the program are pykvm's, everything behind it the program's own, --help too."""
    done = pykvm("-q", "--env", "A=b", "--paravirt", program, "words", "--help", "-t", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["2=--help", "3=-t", "4=x", "A=b"]


def test_command_brings_files(program: Path, tmp_path: Path) -> None:
    """--file and --files put the host's files where the program finds them."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("from the tree\n")
    (tmp_path / "b").write_text("a file\n")
    options = ["-q", "--files", tmp_path / "tree", "--file", f"{tmp_path / 'b'}:/etc/b"]
    options += ["--paravirt", program, "cat"]
    assert pykvm(*options, "/a").stdout == "from the tree\n"
    assert pykvm(*options, "/etc/b").stdout == "a file\n"


def test_command_gives_stdin_and_status(program: Path) -> None:
    """Piped input reaches the program, and the exit status is its own."""
    done = pykvm("-q", "--paravirt", program, "echo", input="one\ntwo\n")
    assert (done.returncode, done.stdout) == (7, "1 one\n2 two\n")


def test_command_leaves_unread_input_alone(program: Path, tmp_path: Path) -> None:
    """A program that does not read leaves the input to who reads next, as any program does."""
    script = f"{sys.executable} -m pykvm run -q --paravirt {program} hello; cat"
    done = subprocess.run(
        ["sh", "-c", script], input="rest\n", capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.stdout == "hello, world\nrest\n"


def test_command_reports_a_fault_in_lines(program: Path) -> None:
    """One line says who, why and where; registers and the instruction follow; the status is the signal's."""
    done = pykvm("--paravirt", program, "die", "divide")
    assert done.returncode == KILLED + FPE
    assert "killed by SIGFPE: division by zero" in done.stderr
    assert "at do_die+" in done.stderr
    assert "rip=0x4" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_can_be_interrupted_while_the_program_waits(program: Path) -> None:
    """Ctrl-C ends a run whose program waits for input, at once and with status 130."""
    command = [sys.executable, "-m", "pykvm", "run", "--paravirt", str(program), "ask"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout
        assert child.stdout.read(2) == b"? "
        child.send_signal(signal.SIGINT)
        assert child.wait(TIMEOUT_S) == 130


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--paravirt", "--mode", "real16", "PROGRAM"], "--mode is not for programs"),
        (["--paravirt", "/bin/sh"], "dynamically linked"),
        (["--paravirt", "/nowhere"], "no such file"),
        (["--paravirt", "--file", "/nowhere", "PROGRAM"], "no such file"),
        (["--paravirt", "--files", "/nowhere", "PROGRAM"], "no such folder"),
        (["--paravirt", "--env", "NO_SUCH_VARIABLE", "PROGRAM"], "no such variable"),
        (["--paravirt", "-c", "2", "PROGRAM"], "one vCPU"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(program: Path, words: list[str], text: str) -> None:
    """Bad input is one clear line and a status of pykvm's own."""
    done = pykvm(*[program if word == "PROGRAM" else word for word in words])
    assert done.returncode in (125, 126, 127)
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_has_the_fault(program: Path) -> None:
    """--json tells a fault field by field."""
    found = json.loads(pykvm("--json", "--paravirt", program, "die", "null").stdout)
    assert found["exit_status"] == KILLED + SEGV
    assert (found["fault"]["signal_name"], found["fault"]["address"]) == ("SIGSEGV", 0)
    assert bytes.fromhex(found["fault"]["code"])


# ---- the calls that any guest may make


def test_calls_beyond_the_first_five(boot: Any) -> None:
    """A tiny guest reads the console, gets random bytes and rests by hypercall; what is wrong is an error."""
    result = boot.c(
        """
        #include "hypercall.h"
        static char text[64];
        #define AT (unsigned long)text
        #define CHECK(number, is_true) if (!(is_true)) return number
        int main(void)
        {
            CHECK(1, hypercall(HC_CONSOLE_READ, AT, 0) == 0);
            CHECK(2, hypercall(HC_CONSOLE_READ, AT, 3) == 3 && text[0] == 'a' && text[2] == 'c');
            CHECK(3, hypercall(HC_CONSOLE_READ, AT, 64) == 1 && text[0] == 'd');
            CHECK(4, hypercall(HC_CONSOLE_READ, AT, 64) == HC_EAGAIN);
            CHECK(5, hypercall(HC_YIELD, 1000000, HC_YIELD_INPUT) == 0);
            CHECK(6, hypercall(HC_CONSOLE_READ, AT, 0) == HC_EAGAIN);
            CHECK(7, hypercall(HC_YIELD, 0, 2) == HC_EINVAL);
            CHECK(8, hypercall(HC_RANDOM, AT, 64) == 64);
            int sum = 0;
            for (int i = 0; i < 64; i++)
                sum |= text[i];
            CHECK(9, sum);
            CHECK(10, hypercall(HC_RANDOM, ~0ul, 64) == HC_EFAULT);
            CHECK(11, hypercall(HC_RANDOM, AT, ~0ul) == HC_EINVAL);
            CHECK(12, hypercall(HC_CONSOLE_READ, 1ul << 40, 1) == HC_EFAULT);
            CHECK(13, hypercall(HC_TRACE_RING, AT, 64) == HC_ENOSYS);
            CHECK(14, hypercall(HC_FAULT, AT, 64) == HC_ENOSYS);
            return 0;
        }
        """,
        typed=b"abcd",
    )
    result.check(exit_code=0)


def _ring(memory: Any, gpa: int, **fields: int) -> None:
    """A header in guest memory."""
    ring = ffi.new(
        "struct syscall_ring *", {"header_bytes": 64, "record_bytes": 112, "capacity": 4, **fields}
    )
    memory.write(gpa, ffi.buffer(ring))


@pytest.mark.parametrize(
    ("gpa", "size", "fields"),
    [
        (0x30_0000, 64 + 4 * 112 - 1, {}),
        (0x30_0000, 63, {}),
        (0x30_0000, 0, {}),
        (0x30_0000, 1 << 20, {"capacity": 0}),
        (0x30_0000, 1 << 20, {"capacity": 3}),
        (0x30_0000, 1 << 20, {"capacity": 1 << 63}),
        (0x30_0000, 1 << 20, {"record_bytes": 111}),
        (0x30_0000, 1 << 20, {"header_bytes": 0}),
    ],
)
def test_bad_rings_are_refused(program: Path, gpa: int, size: int, fields: Mapping[str, int]) -> None:
    """A ring that is too small, has no sense or lies elsewhere is an error to the guest, and no harm."""
    with Machine(trace=True) as machine:
        machine.load_program(program, ["hello"])
        assert machine.paravirt
        assert machine.vm
        machine.paravirt.start(machine.vm, machine.vcpus[0], TscClock(), traced=True)
        request = ffi.new("struct hypercall *", {"arg": [gpa, size, 0, 0]})
        _ring(machine.memory, gpa, **fields)
        announce = machine.paravirt.calls()[lib.HC_TRACE_RING]
        assert announce(request) == lib.HC_EINVAL
        request.arg[0] = 1 << 62
        with pytest.raises(GuestAddressError):
            announce(request)
