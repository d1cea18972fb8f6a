"""Syscalls are put into words as strace does it, and nothing that a program does can break that."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from struct import pack

import pytest

from pykvm.errors import GuestAddressError
from pykvm.trace.syscalls import describe, result_text, syscall_number
from pykvm.trace.syscalls.errnos import error_text
from pykvm.trace.syscalls.strings import quote

PAGE = 4096
AT_FDCWD = -100
MINUS_ONE = (1 << 64) - 1


@dataclass
class Memory:
    """A program's memory, page by page, as page tables give it: what is not there is not given."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    reads: int = 0
    at: int = 0x1000

    def put(self, data: bytes, at: int | None = None) -> int:
        """Put `data` somewhere, and behind it room to the end of the page; its address."""
        where = self.at if at is None else at
        for i, byte in enumerate(data):
            page = self.pages.setdefault((where + i) // PAGE, bytearray(PAGE))
            page[(where + i) % PAGE] = byte
        if at is None:
            self.at += -(-max(len(data), 1) // PAGE) * PAGE
        return where

    def read(self, gva: int, size_bytes: int) -> bytes:
        """The bytes there, up to the first page that is missing."""
        self.reads += 1
        found = bytearray()
        while len(found) < size_bytes:
            at = gva + len(found)
            page = self.pages.get(at // PAGE)
            if page is None:
                break
            found += page[at % PAGE : at % PAGE + size_bytes - len(found)]
        return bytes(found)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def entry(memory: Memory, name: str, *args: int, abi: str = "x86-64", string_bytes: int = 32) -> str:
    number = syscall_number(name, abi)
    assert number is not None
    return str(describe(number, args, read=memory.read, abi=abi, string_bytes=string_bytes))


def whole(memory: Memory, name: str, *args: int, result: int, abi: str = "x86-64") -> str:
    """The line after the call, without strace's column."""
    number = syscall_number(name, abi)
    assert number is not None
    text = describe(number, args, read=memory.read, abi=abi).returned(result, read=memory.read)
    return f"{text.call} = {text.result}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", '"plain"'),
        (b"", '""'),
        (b'say "hi"\\', '"say \\"hi\\"\\\\"'),
        (b"\t\n\v\f\r", '"\\t\\n\\v\\f\\r"'),
        (b"\x7fELF\2\1\1", '"\\177ELF\\2\\1\\1"'),
        (b"\0a\x001\x008\x00", '"\\0a\\0001\\08\\0"'),
        ("é".encode(), '"\\303\\251"'),
    ],
)
def test_bytes_are_quoted_as_in_c(data: bytes, text: str) -> None:
    """An octal escape is as short as it may be: three digits only where an octal digit follows."""
    assert quote(data) == text


def test_a_call_is_a_name_and_arguments_by_name(memory: Memory) -> None:
    """Descriptors, paths, flags: each argument in its own spelling."""
    path = memory.put(b"/etc/passwd\0")
    assert entry(memory, "openat", AT_FDCWD, path, 0o2000000) == (
        'openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC)'
    )
    assert entry(memory, "close", 3) == "close(3)"
    assert entry(memory, "getpid") == "getpid()"


def test_the_mode_of_open_is_there_where_it_counts(memory: Memory) -> None:
    """A file is made with O_CREAT and with O_TMPFILE, and with nothing else."""
    path = memory.put(b"f\0")
    assert entry(memory, "open", path, 0o101, 0o644) == 'open("f", O_WRONLY|O_CREAT, 0644)'
    assert entry(memory, "open", path, 0o20200002, 0o600) == 'open("f", O_RDWR|O_TMPFILE, 0600)'
    assert entry(memory, "open", path, 0o200000, 0o600) == 'open("f", O_RDONLY|O_DIRECTORY)'


def test_strings_end_after_32_bytes_and_paths_do_not(memory: Memory) -> None:
    """A buffer of 33 bytes has its end left out, one of 32 has not; a path is printed whole."""
    at = memory.put(b"x" * 100 + b"\0")
    assert entry(memory, "write", 1, at, 32) == f'write(1, "{"x" * 32}", 32)'
    assert entry(memory, "write", 1, at, 33) == f'write(1, "{"x" * 32}"..., 33)'
    assert entry(memory, "memfd_create", at, 0) == f'memfd_create("{"x" * 32}"..., 0)'
    assert entry(memory, "memfd_create", at + 68, 0) == f'memfd_create("{"x" * 32}", 0)'
    assert entry(memory, "unlink", at) == f'unlink("{"x" * 100}")'
    assert entry(memory, "write", 1, at, 100, string_bytes=5) == 'write(1, "xxxxx"..., 100)'


def test_a_string_may_end_where_memory_ends(memory: Memory) -> None:
    """Only the bytes of a string must be there; without its NUL it is an address."""
    end = 0x5000
    memory.put(b"/bin/sh\0", end - 8)
    memory.put(b"/usr", end + PAGE - 4)
    assert entry(memory, "chdir", end - 8) == 'chdir("/bin/sh")'
    assert entry(memory, "chdir", end + PAGE - 4) == f"chdir({end + PAGE - 4:#x})"


def test_a_string_goes_on_over_pages(memory: Memory) -> None:
    """A path across the end of a page is one path, and one of 4096 bytes without a NUL is cut off."""
    memory.put(b"/a/long/path\0", 3 * PAGE - 5)
    assert entry(memory, "chdir", 3 * PAGE - 5) == 'chdir("/a/long/path")'
    endless = memory.put(b"y" * 3 * PAGE, 8 * PAGE)
    assert entry(memory, "chdir", endless) == f'chdir("{"y" * 4095}"...)'


@pytest.mark.parametrize("name", ["chdir", "uname", "pipe", "times", "sysinfo"])
def test_a_pointer_to_nowhere_is_an_address(memory: Memory, name: str) -> None:
    """What can't be read is printed as the number that it is, before and after."""
    wild = 0xDEAD_BEEF_0000
    assert entry(memory, name, wild) == f"{name}({wild:#x})"
    assert whole(memory, name, wild, result=0) == f"{name}({wild:#x}) = 0"
    assert entry(memory, name, 0) == f"{name}(NULL)"


def test_a_reader_that_raises_is_a_pointer_to_nowhere() -> None:
    """GuestAddressError from the memory's door ends nothing."""

    def read(gva: int, size_bytes: int) -> bytes:
        raise GuestAddressError(f"{gva:#x}+{size_bytes}")

    assert str(describe(59, (0x10, 0x20, 0x30), read=read)) == "execve(0x10, 0x20, 0x30)"


def test_what_the_kernel_fills_in_is_an_address_until_it_has(memory: Memory) -> None:
    """read's buffer is an address when the call is made, and text of the result's length after it."""
    at = memory.put(b"hello, world")
    call = describe(0, (3, at, 4096), read=memory.read)
    assert str(call) == f"read(3, {at:#x}, 4096)"
    assert call.returned(5, read=memory.read).arguments == ("3", '"hello"', "4096")
    assert call.returned(0, read=memory.read).arguments == ("3", '""', "4096")
    failed = call.returned(-errno.EIO, read=memory.read)
    assert failed.arguments == call.arguments
    assert failed.error == "EIO"


def test_the_line_is_straces(memory: Memory) -> None:
    """Results stand in a column of their own, behind longer calls after one space."""
    call = describe(3, (3,), read=memory.read)
    assert str(call) == "close(3)"
    assert str(call.returned(0, read=memory.read)) == "close(3)                                = 0"
    long = describe(9, (0, 8192, 3, 34, -1, 0), read=memory.read)
    assert str(long.returned(0x7F00_0000_0000, read=memory.read)) == (
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000"
    )


def test_the_numbers_stay_beside_the_words(memory: Memory) -> None:
    """Who wants to count or to filter finds number, arguments, value and error as they are."""
    call = describe(257, (AT_FDCWD, 0, 0), read=memory.read)
    assert (call.name, call.number, call.value, call.error) == ("openat", 257, None, "")
    assert call.args == (AT_FDCWD % (1 << 64), 0, 0, 0, 0, 0)
    done = call.returned((1 << 64) - errno.EFAULT, read=memory.read)
    assert (done.value, done.error) == (-errno.EFAULT, "EFAULT")


def test_a_call_that_never_returns_says_so(memory: Memory) -> None:
    """exit_group has its result before it has one."""
    assert str(describe(231, (7,), read=memory.read)) == "exit_group(7)                           = ?"


@pytest.mark.parametrize(
    ("name", "result", "text"),
    [
        ("read", 5, "5"),
        ("lseek", 1 << 40, "1099511627776"),
        ("open", -errno.ENOENT, "-1 ENOENT (No such file or directory)"),
        ("open", (1 << 64) - errno.EACCES, "-1 EACCES (Permission denied)"),
        ("mmap", 0x7FFF_F7FC_0000, "0x7ffff7fc0000"),
        ("mmap", -errno.ENOMEM, "-1 ENOMEM (Cannot allocate memory)"),
        ("brk", 0x5555_5555_9000, "0x555555559000"),
        ("umask", 0o22, "022"),
        ("umask", 0, "000"),
        ("poll", 0, "0 (Timeout)"),
        ("personality", 0x4_0000, "0x40000 (PER_LINUX|ADDR_NO_RANDOMIZE)"),
        ("adjtimex", 5, "5 (TIME_ERROR)"),
        ("sched_getscheduler", 0, "0 (SCHED_OTHER)"),
        ("ioprio_get", 0x4004, "16388 (IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 4))"),
        ("wait4", -512, "? ERESTARTSYS (To be restarted if SA_RESTART is set)"),
        ("nanosleep", -516, "? ERESTART_RESTARTBLOCK (Interrupted by signal)"),
        ("read", -4000, "-1 (errno 4000)"),
        ("read", -4095, "-1 (errno 4095)"),
        ("read", -4096, "-4096"),
        ("getpriority", -1, "-1 EPERM (Operation not permitted)"),
    ],
)
def test_results(name: str, result: int, text: str) -> None:
    """A number, an address, an error by name: as the syscall's result is meant."""
    number = syscall_number(name)
    assert number is not None
    assert result_text(number, result) == text


def test_results_of_32_bit_programs_have_32_bits() -> None:
    """An address above 2 GiB is no error and no 64-bit number; EAX holds errors as well."""
    assert result_text(192, 0xF7FF_4000, abi="i386") == "0xf7ff4000"
    assert result_text(5, 0xFFFF_FFFE, abi="i386") == "-1 ENOENT (No such file or directory)"


def test_errors_have_the_kernels_names() -> None:
    """The library's aliases EWOULDBLOCK, EDEADLOCK and ENOTSUP never hide the kernel's name."""
    for number in errno.errorcode:
        text = error_text(number)
        assert text.startswith("-1 E")
        assert text.endswith(f"({os.strerror(number)})")
        name = text.split()[1]
        assert getattr(errno, name) == number
        assert name not in {"EWOULDBLOCK", "EDEADLOCK", "ENOTSUP"}


@pytest.mark.parametrize("number", [400, 548, 1 << 30 | 1, (1 << 64) - 1, -1])
def test_an_unknown_number_is_shown_with_all_it_had(memory: Memory, number: int) -> None:
    """A number that is no syscall, x32's among them, is printed with six arguments and can return."""
    call = describe(number, (0xA, 0, 2, 3, 4, MINUS_ONE), read=memory.read)
    assert call.name == f"syscall_{number:#x}"
    assert call.arguments == ("0xa", "0", "0x2", "0x3", "0x4", "0xffffffffffffffff")
    assert call.returned(-errno.ENOSYS, read=memory.read).result == "-1 ENOSYS (Function not implemented)"


def test_too_few_arguments_are_zeros_and_too_many_are_left_out(memory: Memory) -> None:
    """Whoever knows only some registers still gets a line."""
    assert str(describe(3, (), read=memory.read)) == "close(0)"
    assert str(describe(3, range(10), read=memory.read)) == "close(0)"


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("lseek", (3, -1, 1), "lseek(3, -1, SEEK_CUR)"),
        ("lseek", (3, 0, 77), "lseek(3, 0, 0x4d /* SEEK_??? */)"),
        ("kill", (-5, 9), "kill(-5, SIGKILL)"),
        ("kill", (1, 32), "kill(1, SIGRTMIN)"),
        ("kill", (1, 33), "kill(1, SIGRT_1)"),
        ("kill", (1, 0), "kill(1, 0)"),
        ("kill", (1, 70), "kill(1, 70)"),
        ("mmap", (0, 0, 0, 0, 0, 0), "mmap(NULL, 0, PROT_NONE, MAP_FILE, 0, 0)"),
        ("mprotect", (0x1000, 1, 0x81), "mprotect(0x1000, 1, PROT_READ|0x80)"),
        ("mprotect", (0x1000, 1, 0x80), "mprotect(0x1000, 1, 0x80 /* PROT_??? */)"),
        ("access", (0, 4), "access(NULL, R_OK)"),
        ("access", (0, 0), "access(NULL, F_OK)"),
        ("chown", (0, -1, 5), "chown(NULL, -1, 5)"),
        ("mknod", (0, 0o20644, 0x105), "mknod(NULL, S_IFCHR|0644, makedev(0x1, 0x5))"),
        ("mknod", (0, 0o10644, 0x105), "mknod(NULL, S_IFIFO|0644)"),
        ("mknod", (0, 0o644, 0), "mknod(NULL, 0644)"),
        ("chmod", (0, 0o4755), "chmod(NULL, 04755)"),
        ("umask", (0,), "umask(000)"),
        ("socket", (2, 0o2000001, 6), "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP)"),
        ("socket", (16, 3, 0), "socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)"),
        ("socket", (17, 3, 0x0300), "socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL))"),
        ("socket", (1, 2, 5), "socket(AF_UNIX, SOCK_DGRAM, 5)"),
        ("fcntl", (0, 1), "fcntl(0, F_GETFD)"),
        ("fcntl", (0, 4, 0o4000), "fcntl(0, F_SETFL, O_RDONLY|O_NONBLOCK)"),
        ("fcntl", (0, 1234, 5), "fcntl(0, 0x4d2 /* F_??? */, 0x5)"),
        ("ioctl", (0, 0x540E, 0), "ioctl(0, TIOCSCTTY, 0)"),
        ("ioctl", (0, 0xAE80, 0), "ioctl(0, KVM_RUN, 0)"),
        ("ioctl", (0, 0x4010AE67, 0x10), "ioctl(0, _IOC(_IOC_WRITE, 0xae, 0x67, 0x10), 0x10)"),
        ("ioctl", (0, 0x7801, 0x10), "ioctl(0, _IOC(_IOC_NONE, 0x78, 0x1, 0), 0x10)"),
        ("futex", (0x10, 129, 1, 7, 7, 7), "futex(0x10, FUTEX_WAKE_PRIVATE, 1)"),
        (
            "futex",
            (0x10, 0x189, 1, 0, 7, -1),
            "futex(0x10, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 1, NULL, FUTEX_BITSET_MATCH_ANY)",
        ),
        ("futex", (0x10, 99, 1, 2, 0x20, 5), "futex(0x10, 0x63 /* FUTEX_??? */, 1, 0x2, 0x20, 0x5)"),
        ("prctl", (23, 21, 1, 2, 3), "prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN)"),
        ("prctl", (9999, 1, 2, 3, 4), "prctl(0x270f /* PR_??? */, 0x1, 0x2, 0x3, 0x4)"),
        ("mremap", (0x1000, 1, 2, 1, 0x9000), "mremap(0x1000, 1, 2, MREMAP_MAYMOVE)"),
        (
            "mremap",
            (0x1000, 1, 2, 3, 0x9000),
            "mremap(0x1000, 1, 2, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000)",
        ),
        (
            "clone",
            (0x200011, 0, 0, 0x70, 0x80),
            "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x70)",
        ),
        ("shmget", (0, 4096, 0o1600), "shmget(IPC_PRIVATE, 4096, IPC_CREAT|0600)"),
        ("personality", (-1,), "personality(0xffffffff)"),
        ("clock_gettime", (1, 0), "clock_gettime(CLOCK_MONOTONIC, NULL)"),
        ("clock_gettime", (~7 << 3 | 6, 0), "clock_gettime(MAKE_THREAD_CPUCLOCK(7, CPUCLOCK_SCHED), NULL)"),
        ("clock_gettime", (~5 << 3 | 3, 0), "clock_gettime(FD_TO_CLOCKID(5), NULL)"),
        (
            "ioprio_set",
            (1, 0, 0x4004),
            "ioprio_set(IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 4))",
        ),
        ("syslog", (10, 0, 0), "syslog(10 /* SYSLOG_ACTION_SIZE_BUFFER */)"),
        ("mount", (0, 0, 0, 0x1021, 0), "mount(NULL, NULL, NULL, MS_RDONLY|MS_REMOUNT|MS_BIND, NULL)"),
        ("poll", (0, 0, -1), "poll(NULL, 0, -1)"),
    ],
)
def test_numbers_by_name(memory: Memory, name: str, args: tuple[int, ...], text: str) -> None:
    """Each kind of number has its own spelling, and what has no name stays a number."""
    assert entry(memory, name, *args) == text


def test_structs_of_the_program(memory: Memory) -> None:
    """What the program passes is read when the call is made."""
    time = memory.put(pack("<qQ", 1, 500))
    assert entry(memory, "nanosleep", time, 0) == "nanosleep({tv_sec=1, tv_nsec=500}, NULL)"
    limit = memory.put(pack("<QQ", 8 << 20, MINUS_ONE))
    assert entry(memory, "setrlimit", 3, limit) == (
        "setrlimit(RLIMIT_STACK, {rlim_cur=8192*1024, rlim_max=RLIM64_INFINITY})"
    )
    action = memory.put(pack("<QQQQ", 0x401000, 0x1400_0004, 0x402000, 1 << 4 | 1 << 16))
    assert entry(memory, "rt_sigaction", 10, action, 0, 8) == (
        "rt_sigaction(SIGUSR1, {sa_handler=0x401000, sa_mask=[TRAP CHLD], "
        "sa_flags=SA_RESTORER|SA_RESTART|SA_SIGINFO, sa_restorer=0x402000}, NULL, 8)"
    )
    mask = memory.put(pack("<Q", MINUS_ONE ^ 1 << 8))
    assert entry(memory, "rt_sigprocmask", 0, mask, 0, 8) == "rt_sigprocmask(SIG_BLOCK, ~[KILL], NULL, 8)"
    assert entry(memory, "rt_sigprocmask", 0, mask, 0, 4) == f"rt_sigprocmask(SIG_BLOCK, {mask:#x}, NULL, 4)"


def test_structs_of_the_kernel(memory: Memory) -> None:
    """What the kernel fills in is read when the call has succeeded."""
    name = memory.put(
        b"".join(word.ljust(65, b"\0") for word in (b"Linux", b"guest", b"6.1", b"#1", b"x86_64", b""))
    )
    assert whole(memory, "uname", name, result=0) == 'uname({sysname="Linux", nodename="guest", ...}) = 0'
    pair = memory.put(pack("<ii", 3, 4))
    assert whole(memory, "pipe", pair, result=0) == "pipe([3, 4]) = 0"
    stat = memory.put(pack("<QQQIIIIQQ", 1, 2, 1, 0o100644, 0, 0, 0, 0, 1234).ljust(144, b"\0"))
    assert (
        whole(memory, "fstat", 3, stat, result=0) == "fstat(3, {st_mode=S_IFREG|0644, st_size=1234, ...}) = 0"
    )
    device = memory.put(pack("<QQQIIIIQQ", 1, 2, 1, 0o20620, 0, 0, 0, 0x8801, 0).ljust(144, b"\0"))
    assert whole(memory, "fstat", 0, device, result=0) == (
        "fstat(0, {st_mode=S_IFCHR|0620, st_rdev=makedev(0x88, 0x1), ...}) = 0"
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0x0300, "WIFEXITED(s) && WEXITSTATUS(s) == 3"),
        (0x0009, "WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL"),
        (0x008B, "WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)"),
        (0x137F, "WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP"),
        (0xFFFF, "WIFCONTINUED(s)"),
    ],
)
def test_how_a_child_ended(memory: Memory, status: int, text: str) -> None:
    """A wait status is taken to pieces as <sys/wait.h> does it."""
    at = memory.put(pack("<I", status))
    assert whole(memory, "wait4", -1, at, 0, 0, result=7) == f"wait4(-1, [{{{text}}}], 0, NULL) = 7"


def test_the_time_that_is_left_is_there_after_a_signal(memory: Memory) -> None:
    """nanosleep fills its second argument in only when it was interrupted."""
    time, left = memory.put(pack("<qQ", 5, 0)), memory.put(pack("<qQ", 3, 7))
    slept = "nanosleep({tv_sec=5, tv_nsec=0}, "
    assert whole(memory, "nanosleep", time, left, result=0) == f"{slept}{left:#x}) = 0"
    assert whole(memory, "nanosleep", time, left, result=-errno.EINTR).startswith(
        f"{slept}{{tv_sec=3, tv_nsec=7}})"
    )
    assert whole(memory, "nanosleep", time, left, result=-errno.EINVAL).startswith(f"{slept}{left:#x})")


def test_vectors_of_buffers(memory: Memory) -> None:
    """writev has data in all buffers; readv in as many bytes as it returned, first buffer first."""
    data = memory.put(b"hello, world")
    vector = memory.put(pack("<QQQQ", data, 5, data + 7, 5))
    assert entry(memory, "writev", 1, vector, 2) == (
        'writev(1, [{iov_base="hello", iov_len=5}, {iov_base="world", iov_len=5}], 2)'
    )
    assert whole(memory, "readv", 0, vector, 2, result=7) == (
        'readv(0, [{iov_base="hello", iov_len=5}, {iov_base="wo", iov_len=5}], 2) = 7'
    )
    assert entry(memory, "readv", 0, vector, 2) == (
        f"readv(0, [{{iov_base={data:#x}, iov_len=5}}, {{iov_base={data + 7:#x}, iov_len=5}}], 2)"
    )
    assert entry(memory, "writev", 1, vector, 0) == "writev(1, [], 0)"


def test_a_list_ends_where_memory_ends(memory: Memory) -> None:
    """An array that runs into nowhere says where; one that starts there is an address."""
    last = memory.put(pack("<QQ", 0, 0), 0x9000 - 16)
    assert entry(memory, "writev", 1, last, 3) == (
        "writev(1, [{iov_base=NULL, iov_len=0}, ... /* 0x9000 */], 3)"
    )
    assert entry(memory, "writev", 1, 0x9000, 3) == "writev(1, 0x9000, 3)"


def test_addresses_of_sockets(memory: Memory) -> None:
    """Every family that programs use has its own spelling; a short or foreign address is bytes."""

    def connect(data: bytes) -> str:
        at = memory.put(data)
        return entry(memory, "connect", 3, at, len(data))[len("connect(3, {sa_family=") :]

    assert connect(pack("<H", 1) + b"/run/s\0") == 'AF_UNIX, sun_path="/run/s"}, 9)'
    assert connect(pack("<H", 1) + b"\0abstract") == 'AF_UNIX, sun_path=@"abstract"}, 11)'
    assert connect(pack("<H", 1)) == "AF_UNIX}, 2)"
    assert connect(pack("<H2s4s8x", 2, b"\0P", bytes((127, 0, 0, 1)))) == (
        'AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16)'
    )
    assert connect(pack("<H2s4x", 10, b"\0P") + bytes(15) + b"\1" + bytes(4)) == (
        'AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::1", &sin6_addr), '
        "sin6_scope_id=0}, 28)"
    )
    assert connect(pack("<HHII", 16, 0, 7, 1)) == "AF_NETLINK, nl_pid=7, nl_groups=0x000001}, 12)"
    assert connect(pack("<HHIIB3x", 40, 0, 1024, 2, 0)) == (
        "AF_VSOCK, svm_cid=VMADDR_CID_HOST, svm_port=0x400, svm_flags=0}, 16)"
    )
    assert connect(pack("<HH", 2, 0)) == 'AF_INET, sa_data="\\0\\0"}, 4)'
    assert connect(pack("<H2s", 99, b"ab")) == '0x63 /* AF_??? */, sa_data="ab"}, 4)'


def test_lengths_that_the_kernel_changes(memory: Memory) -> None:
    """The room for an address and its size stand in one pair of brackets."""
    at, size = memory.put(pack("<HHII", 16, 0, 7, 0)), memory.put(pack("<I", 100))
    call = describe(51, (3, at, size), read=memory.read)
    assert str(call) == f"getsockname(3, {at:#x}, [100])"
    memory.put(pack("<I", 12), size)
    assert call.returned(0, read=memory.read).call == (
        "getsockname(3, {sa_family=AF_NETLINK, nl_pid=7, nl_groups=00000000}, [100 => 12])"
    )


def test_messages_with_control_data(memory: Memory) -> None:
    """sendmsg shows its vector, and the descriptors that it passes on."""
    data = memory.put(b"abc")
    vector = memory.put(pack("<QQ", data, 3))
    control = memory.put(pack("<QIIi4x", 20, 1, 1, 5))
    header = memory.put(pack("<QI4xQQQQI4x", 0, 0, vector, 1, control, 24, 0))
    assert entry(memory, "sendmsg", 3, header, 0) == (
        'sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="abc", iov_len=3}], msg_iovlen=1, '
        "msg_control=[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[5]}], "
        "msg_controllen=24, msg_flags=0}, 0)"
    )


def test_control_data_ends_with_a_length_that_can_not_be(memory: Memory) -> None:
    """A control message shorter than its own head ends the list, and so does the end of the room."""
    control = memory.put(pack("<QIIi4xQII", 20, 1, 1, 5, 8, 1, 1))
    for size, text in (
        (40, "[{cmsg_len=20, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[5]}]"),
        (15, "[]"),
    ):
        header = memory.put(pack("<QI4xQQQQI4x", 0, 0, 0, 0, control, size, 0))
        assert entry(memory, "sendmsg", 3, header, 0) == (
            "sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=NULL, msg_iovlen=0, "
            f"msg_control={text}, msg_controllen={size}, msg_flags=0}}, 0)"
        )


def test_a_set_of_most_signals_is_what_is_not_in_it(memory: Memory) -> None:
    """Up to 41 signals are listed; of more, the others."""
    for bits, most in ((41, False), (42, True), (64, True)):
        mask = memory.put(pack("<Q", (1 << bits) - 1))
        assert ("~[" in entry(memory, "rt_sigprocmask", 0, mask, 0, 8)) == most


def test_what_poll_and_select_found_stands_behind_the_result(memory: Memory) -> None:
    """The program's question is in the arguments, the kernel's answer behind the number."""
    polled = memory.put(pack("<ihHihHihH", 0, 1, 0, -1, 1, 0, 5, 4, 4))
    assert whole(memory, "poll", polled, 3, 0, result=1) == (
        "poll([{fd=0, events=POLLIN}, {fd=-1}, {fd=5, events=POLLOUT}], 3, 0) = 1 ([{fd=5, revents=POLLOUT}])"
    )
    wanted, time = memory.put(pack("<Q", 0b11000).ljust(128, b"\0")), memory.put(pack("<qq", 0, 5))
    call = describe(23, (5, wanted, 0, 0, time), read=memory.read)
    assert str(call) == "select(5, [3 4], NULL, NULL, {tv_sec=0, tv_usec=5})"
    memory.put(pack("<Q", 0b01000), wanted)
    assert call.returned(1, read=memory.read).result == "1 (in [3], left {tv_sec=0, tv_usec=5})"
    assert call.returned(0, read=memory.read).result == "0 (Timeout)"


def test_arguments_and_environment_of_a_program(memory: Memory) -> None:
    """argv is printed, of the environment its size."""
    words = [memory.put(word + b"\0") for word in (b"/bin/ls", b"-l")]
    argv, envp = memory.put(pack("<3Q", *words, 0)), memory.put(pack("<4Q", 1, 2, 3, 0))
    assert entry(memory, "execve", words[0], argv, envp) == (
        f'execve("/bin/ls", ["/bin/ls", "-l"], {envp:#x} /* 3 vars */)'
    )
    endless = memory.put(pack("<512Q", *[words[1]] * 512), 0x100000)
    assert entry(memory, "execve", words[0], endless, 0).endswith('"-l", ...], NULL)')


def test_entries_of_a_directory_are_counted(memory: Memory) -> None:
    """getdents64 says how many names it gave, and an entry of length 0 does not stop the count for ever."""
    entries = b"".join(pack("<QQHB5s", i, i, 24, 4, b"name\0") for i in range(3))
    at = memory.put(entries)
    assert (
        whole(memory, "getdents64", 3, at, 32768, result=72)
        == f"getdents64(3, {at:#x} /* 3 entries */, 32768) = 72"
    )
    nothing = memory.put(bytes(100))
    assert whole(memory, "getdents64", 3, nothing, 100, result=72).startswith(
        f"getdents64(3, {nothing:#x} /* 0 entries */"
    )


def test_32_bit_programs_have_structs_of_their_own(memory: Memory) -> None:
    """Words of 4 bytes, 64-bit numbers in two words, the offset of mmap2 in pages."""
    time = memory.put(pack("<iI", 1, 500))
    assert entry(memory, "nanosleep", time, 0, abi="i386") == "nanosleep({tv_sec=1, tv_nsec=500}, NULL)"
    time64 = memory.put(pack("<qQ", 1 << 33, 500))
    assert entry(memory, "clock_settime64", 0, time64, abi="i386") == (
        "clock_settime64(CLOCK_REALTIME, {tv_sec=8589934592, tv_nsec=500})"
    )
    data = memory.put(b"hi")
    vector = memory.put(pack("<II", data, 2))
    assert entry(memory, "writev", 1, vector, 1, abi="i386") == 'writev(1, [{iov_base="hi", iov_len=2}], 1)'
    assert entry(memory, "mmap2", 0, 4096, 1, 2, 3, 1, abi="i386") == (
        "mmap2(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0x1000)"
    )
    assert entry(memory, "ftruncate64", 3, 5, 1, abi="i386") == "ftruncate64(3, 4294967301)"
    assert entry(memory, "setuid", 0xFFFF, abi="i386") == "setuid(-1)"
    assert entry(memory, "_llseek", 3, 0, 5, 0x10, 0, abi="i386") == "_llseek(3, 5, 0x10, SEEK_SET)"
    words = memory.put(pack("<3I", 2, 1, 0))
    assert entry(memory, "socketcall", 1, words, abi="i386") == "socketcall(SYS_SOCKET, [0x2, 0x1, 0])"


def test_a_common_call_reads_memory_once(memory: Memory) -> None:
    """A path or a buffer costs one walk of the page tables, a call without pointers none."""
    path = memory.put(b"/etc/passwd\0")
    for name, args, reads in (
        ("openat", (AT_FDCWD, path, 0), 1),
        ("write", (1, path, 64), 1),
        ("close", (1,), 0),
    ):
        memory.reads = 0
        entry(memory, name, *args)
        assert memory.reads == reads
    memory.reads = 0
    describe(0, (3, path, 64), read=memory.read).returned(11, read=memory.read)
    assert memory.reads == 1
