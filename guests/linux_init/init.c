/* Process 1 of `pykvm run linux`: it mounts what a program expects, loads modules, mounts shares, runs one
 * command, and ends the run with its exit status. What to do stands in /pykvm.conf, a word and its rest a line:
 *
 *   module FILE             load it; they come in order
 *   mount TYPE SOURCE DIR rw|ro [OPTIONS]
 *   name HOSTNAME    window ROWS COLUMNS    dir DIRECTORY    env NAME=VALUE
 *   exit_port NUMBER        32 bits written there end the run with that status
 *   tty NAME                the command's terminal, by default /dev/console
 *   plain                   that terminal neither echoes nor makes \r\n of \n
 *   start COMMAND           by /bin/sh -c, before the command; they come in order
 *   run COMMAND             by /bin/sh -c; without it a shell
 *
 * It writes how far it is to port 0x80: its modules are loaded, the terminal is ready, the command has ended.
 * A step that fails ends the run with status 125 and one line on the console. */
#include "sys.h"

enum { POST_PORT = 0x80, KERNEL_READY = 0xc4, TERMINAL_READY = 0xc5, COMMAND_ENDED = 0xc6 }; /* boot marks */
enum { CONF_MAX = 65536, ENV_MAX = 64, FAILED = 125, NOT_FOUND = 127, TRIES = 500 };

static char text[CONF_MAX + 1];
static char *environment[ENV_MAX + 1] = {"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TERM=linux"};
static int environment_used = 3;
static struct { const char *run, *dir, *tty; long exit_port, rows, columns, plain; } conf = {.dir = "/", .tty = "/dev/console"};

static size_t length_of(const char *string)
{
	size_t length = 0;
	while (string[length])
		length++;
	return length;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void say(const char *part)
{
	call3(SYS_write, 2, PTR(part), (long)length_of(part));
}

static char *decimal(long value)
{
	static char digits[24];
	char *at = digits + sizeof digits - 1;
	do
		*--at = (char)('0' + value % 10);
	while (value /= 10);
	return at;
}

static void mark(uint8_t value)
{
	if (call3(SYS_ioperm, POST_PORT, 1, 1) == 0) {
		__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"((uint16_t)POST_PORT));
		call3(SYS_ioperm, POST_PORT, 1, 0);
	}
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static void unmount_all(void)
{
	static char mounts[CONF_MAX];
	static char *where[256];
	long fd = call3(SYS_open, PTR("/proc/mounts"), O_RDONLY, 0), got = 0, size = 0;
	int count = 0;
	while (fd >= 0 && size < (long)sizeof mounts - 1 &&
	       (got = call3(SYS_read, fd, PTR(mounts + size), (long)sizeof mounts - 1 - size)) > 0)
		size += got;
	call3(SYS_chdir, PTR("/"), 0, 0);
	for (char *at = mounts; *at && count < 256;) { /* "source directory type …" */
		while (*at && *at != ' ')
			at++;
		where[count] = *at ? ++at : at;
		while (*at && *at != ' ')
			at++;
		if (*at)
			*at++ = 0;
		while (*at && *at++ != '\n')
			;
		count++;
	}
	while (count--)
		if (call3(SYS_umount2, PTR(where[count]), 0, 0) < 0)
			call3(SYS_umount2, PTR(where[count]), MNT_DETACH, 0); /* somebody still uses it */
}

__attribute__((noreturn)) static void end(long status)
{
	call3(SYS_sync, 0, 0, 0);
	unmount_all();
	call3(SYS_sync, 0, 0, 0);
	if (conf.exit_port && call3(SYS_ioperm, conf.exit_port, 4, 1) == 0)
		__asm__ volatile("outl %0, %1" : : "a"((uint32_t)status), "d"((uint16_t)conf.exit_port));
	for (;;)
		call5(SYS_reboot, REBOOT_MAGIC, REBOOT_MAGIC2, REBOOT_POWER_OFF, 0, 0);
}

__attribute__((noreturn)) static void fail(const char *what, const char *which, long error)
{
	say("linux_init: ");
	say(what);
	say(" ");
	say(which);
	say(": error ");
	say(decimal(-error));
	say("\n");
	end(FAILED);
}

/* ---- the configuration ------------------------------------------------------------------------------------ */

/* The next word of a line, which is cut off it. */
static char *word(char **line)
{
	char *start = *line;
	while (**line && **line != ' ')
		++*line;
	if (**line)
		*(*line)++ = 0;
	return start;
}

static long number(char **line)
{
	long value = 0;
	for (char *at = word(line); *at >= '0' && *at <= '9'; at++)
		value = value * 10 + (*at - '0');
	return value;
}

static void load_module(const char *file)
{
	long fd = call3(SYS_open, PTR(file), O_RDONLY | O_CLOEXEC, 0);
	long failed = fd < 0 ? fd : call3(SYS_finit_module, fd, PTR(""), 0);
	if (failed < 0 && failed != -EEXIST)
		fail("loading", file, failed);
	call3(SYS_close, fd, 0, 0);
}

static void make_directories(char *path)
{
	for (char *at = path + 1; *at; at++)
		if (*at == '/') {
			*at = 0;
			call3(SYS_mkdir, PTR(path), 0755, 0);
			*at = '/';
		}
	call3(SYS_mkdir, PTR(path), 0755, 0);
}

/* A device may still be on its way while its driver starts. */
static void attach(char *line)
{
	struct timespec pause = {0, 10000000};
	char *type = word(&line), *source = word(&line), *where = word(&line);
	long flags = same(word(&line), "ro") ? MS_RDONLY : 0, failed = 0;
	make_directories(where);
	for (int tries = 0; tries < TRIES; tries++) {
		failed = call5(SYS_mount, PTR(source), PTR(where), PTR(type), flags, PTR(line));
		if (failed != -ENOENT && failed != -ENXIO && failed != -ENODEV && failed != -EINVAL)
			break;
		call3(SYS_nanosleep, PTR(&pause), 0, 0);
	}
	if (failed < 0)
		fail("mounting", where, failed);
}

static void set_variable(char *pair)
{
	if (environment_used < ENV_MAX)
		environment[environment_used++] = pair;
}

/* Run a line of the shell's, and wait for it. */
static void first(const char *line)
{
	const char *command[] = {"/bin/sh", "-c", line, 0};
	int status = 0;
	long child = call3(SYS_fork, 0, 0, 0);
	if (child == 0) {
		call3(SYS_execve, PTR("/bin/sh"), PTR(command), PTR(environment));
		call3(SYS_exit, NOT_FOUND, 0, 0);
	}
	if (child < 0 || call5(SYS_wait4, child, PTR(&status), 0, 0, 0) < 0 || status)
		fail("starting", line, child < 0 ? child : -(long)(status & 0x7f ? status & 0x7f : status >> 8 & 0xff));
}

/* The loopback interface, which everybody expects to be up. */
static void raise_loopback(void)
{
	struct ifreq request = {"lo", IFF_UP | IFF_RUNNING, {0}};
	long fd = call3(SYS_socket, AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		return;
	call3(SYS_ioctl, fd, SIOCSIFFLAGS, PTR(&request));
	call3(SYS_close, fd, 0, 0);
}

static void obey(char *line)
{
	char *key = word(&line);
	if (same(key, "module"))
		load_module(line);
	else if (same(key, "mount"))
		attach(line);
	else if (same(key, "name"))
		call3(SYS_sethostname, PTR(line), (long)length_of(line), 0);
	else if (same(key, "exit_port"))
		conf.exit_port = number(&line);
	else if (same(key, "env"))
		set_variable(line);
	else if (same(key, "dir"))
		conf.dir = line;
	else if (same(key, "tty"))
		conf.tty = line;
	else if (same(key, "plain"))
		conf.plain = 1;
	else if (same(key, "start"))
		first(line);
	else if (same(key, "run"))
		conf.run = line;
	else if (same(key, "window"))
		conf.rows = number(&line), conf.columns = number(&line);
	else if (*key)
		fail("/pykvm.conf:", key, -EINVAL);
}

static void configure(void)
{
	long fd = call3(SYS_open, PTR("/pykvm.conf"), O_RDONLY | O_CLOEXEC, 0), size = 0, got;
	if (fd < 0)
		fail("opening", "/pykvm.conf", fd);
	while (size < CONF_MAX && (got = call3(SYS_read, fd, PTR(text + size), CONF_MAX - size)) > 0)
		size += got;
	call3(SYS_close, fd, 0, 0);
	for (char *at = text; *at;) {
		char *line = at;
		while (*at && *at != '\n')
			at++;
		if (*at)
			*at++ = 0;
		obey(line);
	}
}

/* ---- the command ------------------------------------------------------------------------------------------ */

static void take_terminal(void)
{
	struct winsize size = {(uint16_t)conf.rows, (uint16_t)conf.columns, 0, 0};
	struct termios mode;
	long fd;
	call3(SYS_setsid, 0, 0, 0);
	fd = call3(SYS_open, PTR(conf.tty), O_RDWR, 0);
	if (fd < 0)
		return; /* the console it has will do */
	for (int to = 0; to < 3; to++)
		call3(SYS_dup2, fd, to, 0);
	if (fd > 2)
		call3(SYS_close, fd, 0, 0);
	call3(SYS_ioctl, 0, TIOCSCTTY, 0);
	if (conf.plain && call3(SYS_ioctl, 0, TCGETS, PTR(&mode)) == 0) {
		mode.output &= ~OPOST;
		mode.local &= ~ECHO;
		call3(SYS_ioctl, 0, TCSETS, PTR(&mode));
	}
	if (size.rows && size.columns)
		call3(SYS_ioctl, 0, TIOCSWINSZ, PTR(&size));
	mark(TERMINAL_READY); /* whoever types may begin */
}

__attribute__((noreturn)) static void run(void)
{
	const char *shell[] = {"/bin/sh", 0}, *command[] = {"/bin/sh", "-c", conf.run, 0};
	long failed;
	take_terminal();
	failed = call3(SYS_chdir, PTR(conf.dir), 0, 0);
	if (failed < 0)
		fail("entering", conf.dir, failed);
	failed = call3(SYS_execve, PTR("/bin/sh"), PTR(conf.run ? command : shell), PTR(environment));
	say("linux_init: /bin/sh: error ");
	say(decimal(-failed));
	say("\n");
	call3(SYS_exit, NOT_FOUND, 0, 0);
	for (;;)
		;
}

static volatile int wanted; /* the signal by which poweroff, halt and reboot ask process 1 */

static void on_signal(int number)
{
	wanted = number;
}

__attribute__((naked)) static void restore(void)
{
	__asm__("mov %0, %%eax; syscall" : : "i"(SYS_rt_sigreturn));
}

static void hear_signals(void)
{
	struct sigaction action = {on_signal, SA_RESTORER, restore, 0};
	for (int number = SIGUSR1; number <= SIGTERM; number++)
		if (number == SIGUSR1 || number == SIGUSR2 || number == SIGTERM)
			call5(SYS_rt_sigaction, number, PTR(&action), 0, sizeof action.mask, 0);
}

__attribute__((noreturn)) static void leave(uint32_t how)
{
	call3(SYS_sync, 0, 0, 0);
	unmount_all();
	for (;;)
		call5(SYS_reboot, REBOOT_MAGIC, REBOOT_MAGIC2, how, 0, 0);
}

/* As process 1 it also buries those whose parents have gone. */
static long wait_for(long child)
{
	int status = 0;
	long found;
	do {
		found = call5(SYS_wait4, -1, PTR(&status), 0, 0, 0);
		if (wanted)
			leave(wanted == SIGTERM ? REBOOT_RESTART : REBOOT_POWER_OFF);
	} while (found != child && (found > 0 || found == -EINTR));
	return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

static void mount_usual(void)
{
	static const char *const usual[][2] = {
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	};
	for (size_t n = 0; n < sizeof usual / sizeof *usual; n++) {
		call3(SYS_mkdir, PTR(usual[n][1]), 0755, 0);
		call5(SYS_mount, PTR(usual[n][0]), PTR(usual[n][1]), PTR(usual[n][0]), MS_NOSUID, 0);
	}
	call3(SYS_symlink, PTR("/proc/self/fd"), PTR("/dev/fd"), 0);
	call3(SYS_symlink, PTR("fd/0"), PTR("/dev/stdin"), 0);
	call3(SYS_symlink, PTR("fd/1"), PTR("/dev/stdout"), 0);
	call3(SYS_symlink, PTR("fd/2"), PTR("/dev/stderr"), 0);
}

__attribute__((used, noreturn)) static void start(void)
{
	long child, status;
	mount_usual();
	raise_loopback();
	configure();
	mark(KERNEL_READY);
	hear_signals();
	child = call3(SYS_fork, 0, 0, 0);
	if (child == 0)
		run();
	if (child < 0)
		fail("starting", "/bin/sh", child);
	status = wait_for(child);
	mark(COMMAND_ENDED);
	end(status);
}

__attribute__((naked, used)) void _start(void)
{
	__asm__("and $-16, %rsp; call start");
}
