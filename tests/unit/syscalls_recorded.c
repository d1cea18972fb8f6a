/* Makes syscalls of many kinds, for syscalls_recorder.py to record. No C library: nothing happens that is not
 * written here. Builds for x86-64 and for i386. It touches no file but /etc/passwd, /dev/null and /proc, and
 * what it asks of paths that are not there fails. */
#include <asm/prctl.h>
#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/fcntl.h>
#include <linux/futex.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/time.h>

#define SIGCHLD 17
#define TIOCGWINSZ 0x5413
#define FIONBIO 0x5421

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
#ifdef __x86_64__
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
#else
	long pair[2] = { number, f };
	__asm__ volatile("push %%ebp; mov 4(%%eax), %%ebp; mov (%%eax), %%eax; int $0x80; pop %%ebp"
			 : "=a"(result)
			 : "a"(pair), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory");
#endif
	return result;
}

/* the number, then up to six arguments */
#define NTH(n, a, b, c, d, e, f, ...) call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS(...) NTH(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

struct vector { const void *base; unsigned long size; };
struct message {
	const void *name; int name_size; struct vector *vectors; unsigned long vector_count;
	void *control; unsigned long control_size; unsigned int flags;
};
struct action { void *handler; unsigned long flags; void *restorer; unsigned long long mask; };

static char buffer[4096] __attribute__((aligned(4096)));
static const char gone[] = "/nonexistent/file";

static void files(void)
{
	int passwd = SYS(__NR_openat, AT_FDCWD, "/etc/passwd", O_RDONLY | O_CLOEXEC);
	int null = SYS(__NR_open, "/dev/null", O_RDWR | O_APPEND);
	SYS(__NR_open, gone, O_WRONLY | O_CREAT | O_TRUNC, 0640);
	SYS(__NR_read, passwd, buffer, 4);
	SYS(__NR_lseek, passwd, 0, 0);
	SYS(__NR_write, null, "\177ELF\2\1\0\08 \"quoted\"\n\377", 21);
	SYS(__NR_write, null, "a line that is longer than thirty-two bytes", 43);
	struct vector out[] = { { "abc", 3 }, { 0, 0 }, { "defghi", 6 } };
	SYS(__NR_writev, null, out, 3);
	struct vector in[] = { { buffer, 3 }, { buffer + 16, 100 } };
	SYS(__NR_pipe2, buffer, O_NONBLOCK | O_CLOEXEC);
	int *ends = (int *)buffer, from = ends[0], to = ends[1];
	SYS(__NR_write, to, "through a pipe", 14);
	SYS(__NR_readv, from, in, 2);
	SYS(__NR_readv, from, in, 2);
	SYS(__NR_fcntl, from, 1);
	SYS(__NR_fcntl, from, 3);
	SYS(__NR_fcntl, from, 4, O_NONBLOCK);
	SYS(__NR_fcntl, null, 1030, 100);
	SYS(__NR_dup3, null, 50, O_CLOEXEC);
	SYS(__NR_close_range, 60, 70, CLOSE_RANGE_CLOEXEC);
	SYS(__NR_readlink, "/proc/self/fd/50", buffer, 100);
	SYS(__NR_ioctl, null, TIOCGWINSZ, buffer);
	int one = 1;
	SYS(__NR_ioctl, from, FIONBIO, &one);
	SYS(__NR_access, gone, 4);
	SYS(__NR_faccessat2, AT_FDCWD, "/etc/passwd", 4, AT_EACCESS);
	SYS(__NR_mkdir, gone, 0750);
	SYS(__NR_unlinkat, AT_FDCWD, gone, AT_REMOVEDIR);
	SYS(__NR_renameat2, AT_FDCWD, gone, -1, "x", 1);
	SYS(__NR_symlink, "/nonexistent/target", gone);
	SYS(__NR_mknod, gone, 0020644, 0x0105);
	SYS(__NR_chmod, gone, 04755);
	SYS(__NR_fchownat, AT_FDCWD, gone, -1, 5, AT_SYMLINK_NOFOLLOW);
	struct open_how how = { .flags = O_RDONLY | O_CREAT, .mode = 0600, .resolve = RESOLVE_BENEATH };
	SYS(__NR_openat2, -1, "x", &how, sizeof how);
	SYS(__NR_statx, AT_FDCWD, "/dev/null", 0, STATX_TYPE | STATX_MODE, 0);
	SYS(__NR_mount, "none", "/nonexistent", "tmpfs", 6, "size=1m");
	SYS(__NR_umount2, "/nonexistent", 2);
	SYS(__NR_umask, 027);
	SYS(__NR_umask, 022);
	SYS(__NR_memfd_create, "name", MFD_CLOEXEC);
	SYS(__NR_getxattr, gone, "user.name", buffer, 100);
	SYS(__NR_close, passwd);
	SYS(__NR_chdir, 8);
	SYS(__NR_write, null, 8, 5);
	SYS(__NR_chdir, 0);
}

static void memory(void)
{
	long at = SYS(__NR_mprotect, buffer, 4096, PROT_READ | PROT_WRITE);
	SYS(__NR_mprotect, 0x1000, 4096, PROT_READ | PROT_EXEC | 0x80);
	SYS(__NR_madvise, 0x1000, 4096, 4);
	SYS(__NR_munmap, 0x1001, 4096);
	SYS(__NR_mremap, 0x1000, 4096, 8192, MREMAP_MAYMOVE);
	SYS(__NR_msync, buffer, 4096, 4);
	SYS(__NR_mlock2, 0x1000, 4096, 1);
	(void)at;
}

static void signals(void)
{
	struct action action = { (void *)0x401000, 0x14000004, (void *)0x402000, 1 << 4 | 1 << 16 };
	SYS(__NR_rt_sigaction, 10, &action, 0, 8);
	SYS(__NR_rt_sigaction, 10, 0, &action, 8);
	SYS(__NR_rt_sigaction, 9, &action, 0, 8);
	unsigned long long mask = 1 << 1 | 1ULL << 33;
	SYS(__NR_rt_sigprocmask, 0, &mask, 0, 8);
	mask = ~(1ULL << 32);
	SYS(__NR_rt_sigprocmask, 2, &mask, buffer, 8);
	mask = 0;
	SYS(__NR_rt_sigprocmask, 2, &mask, buffer, 8);
	SYS(__NR_kill, 1 << 30, 33);
	SYS(__NR_kill, 1 << 30, 0);
	SYS(__NR_sigaltstack, 0, buffer);
}

static void times(void)
{
	struct { long seconds, part; } time = { 0, 1000 }, times[2] = { { 1, 2 }, { 0, 0x3ffffffe } };
	SYS(__NR_nanosleep, &time, 0);
	SYS(__NR_clock_nanosleep, 1, 1, &time, buffer);
	SYS(__NR_utimensat, AT_FDCWD, gone, times, 0);
	SYS(__NR_clock_gettime, 77, buffer);
	struct { long a, b, c, d; } timer = { 0, 0, 1000, 5 };
	int fd = SYS(__NR_timerfd_create, 1, O_NONBLOCK);
	SYS(__NR_timerfd_settime, fd, 1, &timer, 0);
	SYS(__NR_setitimer, 0, &timer, 0);
	SYS(__NR_alarm, 0);
}

static void processes(void)
{
	unsigned long limits[4] = { 1000, 2048 };
	SYS(__NR_setrlimit, 4, limits);
	SYS(__NR_prlimit64, 0, 99, 0, buffer);
	SYS(__NR_prctl, PR_SET_NAME, "recorded");
	SYS(__NR_prctl, PR_GET_NAME, buffer);
	SYS(__NR_prctl, PR_CAPBSET_READ, CAP_SYS_ADMIN);
	SYS(__NR_prctl, 9999, 1, 2, 3, 4);
	SYS(__NR_getpriority, 0, 0);
	SYS(__NR_setresuid, -1, -1, -1);
	unsigned long cpus[2] = { 5, 0 };
	SYS(__NR_sched_setaffinity, 1 << 30, 8, cpus);
	SYS(__NR_unshare, 0);
	SYS(__NR_setns, -1, CLONE_NEWNET | CLONE_NEWUTS);
	SYS(__NR_personality, 0);
	static const char *argv[] = { "name", "first", "a second one that is longer than 32 bytes", 0 };
	static const char *envp[] = { "A=1", "B=2", 0 };
	SYS(__NR_execve, gone, argv, envp);
	SYS(__NR_wait4, -1, buffer, 1, 0);
	SYS(__NR_futex, buffer, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1);
	SYS(__NR_futex, buffer, FUTEX_WAIT, 1 << 30, 0);
	SYS(__NR_futex, buffer, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME, 1 << 30, 0, 0, -1);
	SYS(999, 1, 2, 3, 4, 5, 6);
}

static void sockets(void)
{
	int pair[2], one = 1, size = 100;
	SYS(__NR_socketpair, 1, 1, 0, pair);
	SYS(__NR_socket, 2, 1 | O_CLOEXEC, 6);
	SYS(__NR_socket, 99, 2, 0);
	SYS(__NR_setsockopt, pair[0], 1, 2, &one, 4);
	SYS(__NR_getsockopt, pair[0], 1, 3, &one, &size);
	struct { unsigned short family; char path[20]; } file = { 1, "/nonexistent/s" };
	SYS(__NR_connect, pair[0], &file, 2 + 15);
	struct { unsigned short family; char path[20]; } name = { 1, "\0name" };
	SYS(__NR_bind, -1, &name, 2 + 5);
	struct sockaddr_in inet = { 2, 0x5000, { 0x0100007f } };
	SYS(__NR_connect, -1, &inet, sizeof inet);
	struct sockaddr_in6 inet6 = { 10, 0x5000, 0, { { { 0xfe, 0x80, [15] = 1 } } }, 0 };
	SYS(__NR_connect, -1, &inet6, sizeof inet6);
	struct { unsigned short family, zero; unsigned int port, cid, rest; } vsock = { 40, 0, 1024, 2, 0 };
	SYS(__NR_connect, -1, &vsock, sizeof vsock);
	struct sockaddr_nl netlink = { 16, 0, 0, 1 };
	SYS(__NR_bind, -1, &netlink, sizeof netlink);
	struct { unsigned long size; int level, type, fd; } control = { 0, 1, 1, 0 };
	control.size = 2 * sizeof(int) + sizeof(long) + 4;
	struct vector out = { "message", 7 }, in = { buffer, 100 };
	struct message sent = { 0, 0, &out, 1, &control, sizeof control, 0 };
	SYS(__NR_sendmsg, pair[0], &sent, 0);
	struct message got = { 0, 0, &in, 1, 0, 0, 0 };
	SYS(__NR_recvmsg, pair[1], &got, 0x40);
	SYS(__NR_sendto, pair[0], "datagram", 8, 0x4000, 0, 0);
	SYS(__NR_recvfrom, pair[1], buffer, 100, 0x40, 0, 0);
	SYS(__NR_shutdown, pair[0], 2);
	struct { int fd; short events, revents; } polled[] = { { pair[1], 1, 0 }, { -1, 1, 0 } };
#ifdef __NR_poll
	SYS(__NR_poll, polled, 2, 0);
	SYS(__NR_poll, polled + 1, 1, 0);
#endif
	int epoll = SYS(__NR_epoll_create1, O_CLOEXEC);
	struct { unsigned int events; unsigned long long data; } __attribute__((packed)) event = { 0x80000005, 0x100000002 };
	SYS(__NR_epoll_ctl, epoll, 1, pair[1], &event);
	SYS(__NR_epoll_wait, epoll, buffer, 4, 0);
	SYS(__NR_eventfd2, 5, 1);
	SYS(__NR_inotify_add_watch, -1, "/etc", 0x80000100);
}

#ifdef __x86_64__
static void own(void)
{
	unsigned long set = 1 << 3;
	struct { long seconds, part; } time = { 0, 5 };
	SYS(__NR_mmap, 0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	SYS(__NR_mmap, 0, 4096, PROT_READ, MAP_PRIVATE, -1, 0x123000);
	SYS(__NR_select, 8, &set, 0, 0, &time);
	SYS(__NR_pread64, -1, buffer, 5, 1L << 40);
	SYS(__NR_fallocate, -1, 3, 0, 4096);
	SYS(__NR_arch_prctl, ARCH_SET_FS, 0x1000);
	SYS(__NR_arch_prctl, ARCH_GET_FS, buffer);
	SYS(__NR_shmget, 0x1234, 4096, 0600);
	SYS(__NR_clone, CLONE_THREAD | SIGCHLD, 0, 0, 0, 0);
}
#else
static void own(void)
{
	struct { long long seconds, part; } time = { 0, 1000 };
	SYS(__NR_mmap2, 0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	SYS(__NR_mmap2, 0, 4096, PROT_READ, MAP_PRIVATE, -1, 3);
	SYS(__NR__llseek, 0, 0, 5, buffer, 7);
	SYS(__NR_pread64, -1, buffer, 5, 3, 1);
	SYS(__NR_fallocate, -1, 3, 0, 1, 4096, 0);
	SYS(__NR_ftruncate64, -1, 5, 1);
	SYS(__NR_clock_nanosleep_time64, 1, 0, &time, 0);
	SYS(__NR_fstatat64, AT_FDCWD, "/dev/null", buffer, 0);
	SYS(__NR_chown, gone, 1, 0xffff);
	SYS(__NR_lchown32, gone, 1, -1);
	SYS(__NR_sigprocmask, 0, 0, buffer);
	SYS(__NR_waitpid, -1, 0, 1);
}
#endif

void _start(void)
{
	files();
	memory();
	signals();
	times();
	processes();
	sockets();
#ifdef __x86_64__
	SYS(__NR_stat, "/dev/null", buffer);
#endif
	own();
	SYS(__NR_exit_group, 3);
}
