/* Process 1 of a guest that holds containers. It reads what to do at the start from /pykvm.conf, as guests/linux_init does:
 *
 *   module FILE             load it; they come in order
 *   name HOSTNAME
 *   exit_port NUMBER        32 bits written there end the machine's run
 *
 * Then it listens for the host (protocol.h), and for its children's ends. It ends with the machine alone. */
#include "container.h"

#include <linux/mount.h>
#include <linux/reboot.h>
#include <linux/resource.h>
#include <linux/signal.h>
#include <linux/wait.h>

enum { CONF_MOST = 65536, FAILED = 125, NEW_FILES = 16384 };

static struct watch signals;
static int64_t exit_port;

__attribute__((noreturn)) static void halt(uint32_t status)
{
	SYS(sync);
	if (exit_port && SYS(ioperm, exit_port, 4, 1) == 0)
		__asm__ volatile("outl %0, %1" : : "a"(status), "d"((uint16_t)exit_port));
	SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
	SYS(exit_group, status); /* who may not switch off is no process 1 of a guest */
	__builtin_unreachable();
}

__attribute__((noreturn)) static void fail(const char *what, const char *which, long error)
{
	say("%s %s: %s (errno %d)", what, which, error_text(-error), (int)-error);
	halt(FAILED);
}

__attribute__((noreturn)) void power_off(void)
{
	int status;
	write_file(AT_FDCWD, CGROUPS "/pykvm/cgroup.kill", "1");
	SYS(kill, -1, SIGKILL);
	while (SYS(wait4, -1, &status, 0, 0) > 0)
		;
	for (struct container *one = containers; one < containers + CONTAINERS; one++)
		if (one->state != UNUSED)
			root_remove(one);
	halt(0);
}

static void load_module(const char *file)
{
	long fd = SYS(openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC, 0);
	long failed = fd < 0 ? fd : SYS(finit_module, fd, "", 0);
	if (failed < 0 && failed != -EEXIST)
		fail("loading", file, failed);
	SYS(close, fd);
}

static void obey(char *line)
{
	char *rest = line;
	while (*rest && *rest != ' ')
		rest++;
	if (*rest)
		*rest++ = 0;
	if (same(line, "module"))
		load_module(rest);
	else if (same(line, "name"))
		SYS(sethostname, rest, strlen(rest));
	else if (same(line, "exit_port"))
		exit_port = number_of(rest);
	else if (*line)
		fail("/pykvm.conf:", line, -EINVAL);
}

static void configure(void)
{
	static char text[CONF_MOST];
	long got = read_file(AT_FDCWD, "/pykvm.conf", text, sizeof text);
	if (got < 0)
		fail("reading", "/pykvm.conf", got);
	for (char *at = text; *at;) {
		char *line = at;
		while (*at && *at != '\n')
			at++;
		if (*at)
			*at++ = 0;
		obey(line);
	}
}

static void mount_usual(void)
{
	static const char *const usual[][3] = {
		{"devtmpfs", "/dev", ""}, {"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devpts", "/dev/pts", "ptmxmode=666"},
		{"mqueue", "/dev/mqueue", ""}, {"tmpfs", "/dev/shm", ""}, {"tmpfs", "/run", "mode=755"}, {"tmpfs", "/tmp", ""}};
	static const char *const folders[] = {"", "/b", "/c", "/d", "/l", "/s"};
	for (size_t n = 0; n < COUNT(usual); n++) {
		SYS(mkdir, usual[n][1], 0755);
		SYS(mount, usual[n][0], usual[n][1], usual[n][0], MS_NOSUID, usual[n][2]);
	}
	SYS(symlink, "/proc/self/fd", "/dev/fd");
	for (size_t n = 0; n < COUNT(folders); n++)
		SYS(mkdir, PATH(RUN "%s", folders[n]), 0711);
	SYS(chdir, RUN "/l");
}

/* pivot_root refuses to leave the initramfs's own root, so that everything runs on a second mount of it. */
static void leave_first_root(void)
{
	SYS(mkdir, "/root.pykvm", 0755);
	long failed = SYS(mount, "/", "/root.pykvm", "", MS_BIND, "");
	if (failed >= 0)
		failed = SYS(chdir, "/root.pykvm");
	if (failed >= 0)
		failed = SYS(mount, ".", "/", "", MS_MOVE, "");
	if (failed >= 0)
		failed = SYS(chroot, ".");
	if (failed < 0)
		fail("moving", "the root", failed);
	SYS(chdir, "/");
}

static void child_ended(struct watch *watch, uint32_t events)
{
	char bytes[1024];
	(void)events;
	SYS(read, watch->fd, bytes, sizeof bytes);
	reap();
}

static void hear_signals(void)
{
	uint64_t set = 1ull << (SIGCHLD - 1), blocked = set | 1ull << (SIGPIPE - 1);
	SYS(rt_sigprocmask, SIG_SETMASK, &blocked, 0, sizeof blocked);
	long fd = SYS(signalfd4, -1, &set, sizeof set, O_CLOEXEC | O_NONBLOCK);
	loop_add(&signals, (int)fd, EPOLLIN, child_ended);
}

/* Descriptors 0 to 4 stay ours: what a child is given at those places can then always be moved there. */
static void keep_low(void)
{
	int fd = (int)SYS(openat, AT_FDCWD, "/dev/console", O_RDWR, 0);
	if (fd < 0)
		fd = (int)SYS(openat, AT_FDCWD, "/dev/null", O_RDWR, 0);
	for (int n = 0; n <= KEPT_FD; n++)
		if (n != fd)
			SYS(dup3, fd, n, n > 2 ? O_CLOEXEC : 0);
}

__attribute__((noreturn)) static void serve(void)
{
	uint64_t files[2] = {NEW_FILES, NEW_FILES};
	leave_first_root();
	mount_usual();
	keep_low();
	SYS(prlimit64, 0, RLIMIT_NOFILE, files, 0);
	configure();
	loop_open();
	hear_signals();
	if (cgroup_start() < 0)
		fail("cgroups:", trouble.text, -trouble.error);
	long failed = listen_for_host(AGENT_PORT);
	if (failed < 0)
		fail("listening", "on vsock", failed);
	loop_run();
}

__attribute__((used, noreturn)) static void begin(long *stack)
{
	long count = stack[0];
	char **arguments = (char **)(stack + 1), **environment = arguments + count + 1;
	if (count > 1 && same(arguments[0], "pykvm-init"))
		inner_init(arguments, environment);
	serve();
}

__attribute__((naked, used)) void _start(void)
{
	__asm__("mov %rsp, %rdi; and $-16, %rsp; call begin");
}
