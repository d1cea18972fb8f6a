/* The first program of a lab: it loads modules, mounts the host's files, runs one command, reports its end.
 *
 * It is a static program in an initramfs, and stays process 1. Everything it must know about the lab is in
 * /lab.conf; what to run comes over the channel. A step that fails ends the lab with one line that says so:
 * on the channel once that is open, before that on the console. */
#define _GNU_SOURCE
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_MODULES = 128, MAX_ROOTS = 4, DEFAULT_START_SECONDS = 10, HANGUP_SECONDS = 10 };

#define NEW_ROOT "/new"
#define EXT4_LABEL_AT 0x478 /* s_volume_name: 0x78 in the superblock, which is at 1024 */

struct mount_source {
	char *source, *type, *options;
};

static struct {
	char *module[MAX_MODULES], *parameters[MAX_MODULES];
	int modules, roots, start_seconds;
	char *name, *channel_in, *channel_out;
	struct mount_source root[MAX_ROOTS], share;
} conf;

static void say(enum kind kind, const char *format, va_list arguments)
{
	char line[1024];
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	if (length < 0)
		return;
	if ((size_t)length > sizeof line - 2)
		length = sizeof line - 2;
	if (channel_is_open())
		channel_send(kind, 0, line, (size_t)length);
	if (!channel_is_open() || kind == FAIL)
		dprintf(STDERR_FILENO, "lab: %s%s\n", kind == FAIL ? "failed: " : "", line);
}

void stage(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say(STAGE, format, arguments);
	va_end(arguments);
}

_Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

_Noreturn void fail(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	say(FAIL, format, arguments);
	va_end(arguments);
	if (channel_is_open())
		channel_await_hangup(HANGUP_SECONDS);
	power_off();
}

/* ---- the configuration -------------------------------------------------------------------------------- */

static char *read_file(const char *path, size_t *length)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0)
		fail("%s: %s", path, strerror(errno));
	char *data = malloc((size_t)status.st_size + 1);
	ssize_t got = data ? read(fd, data, (size_t)status.st_size) : -1;
	if (got != status.st_size)
		fail("%s: can't be read", path);
	data[got] = 0;
	close(fd);
	*length = (size_t)got;
	return data;
}

/* The next word of a line, "" for "-"; the rest of the line if `all`. */
static char *word(char **line, bool all)
{
	char *start = *line ? *line : "";
	if (all)
		*line = NULL;
	else
		strsep(line, " ");
	return strcmp(start, "-") == 0 ? "" : start;
}

static struct mount_source mount_source(char *line)
{
	struct mount_source found = {.source = word(&line, false), .type = word(&line, false)};
	found.options = word(&line, true);
	return found;
}

static void configure_line(char *line)
{
	char *key = word(&line, false);
	if (strcmp(key, "module") == 0) {
		if (conf.modules == MAX_MODULES)
			fail("/lab.conf: more than %d modules", MAX_MODULES);
		conf.module[conf.modules] = word(&line, false);
		conf.parameters[conf.modules++] = word(&line, true);
	} else if (strcmp(key, "channel") == 0) {
		conf.channel_in = word(&line, false);
		conf.channel_out = word(&line, true);
	} else if (strcmp(key, "root") == 0) {
		if (conf.roots == MAX_ROOTS)
			fail("/lab.conf: more than %d roots", MAX_ROOTS);
		conf.root[conf.roots++] = mount_source(line);
	} else if (strcmp(key, "share") == 0) {
		conf.share = mount_source(line);
	} else if (strcmp(key, "start") == 0) {
		conf.start_seconds = atoi(word(&line, true));
	} else if (strcmp(key, "name") == 0) {
		conf.name = word(&line, true);
	} else if (*key && *key != '#') {
		fail("/lab.conf: unknown directive %s", key);
	}
}

static void configure(void)
{
	size_t length;
	char *text = read_file("/lab.conf", &length);
	conf.start_seconds = DEFAULT_START_SECONDS;
	for (char *line; (line = strsep(&text, "\n"));)
		configure_line(line);
	if (!conf.channel_in || !conf.roots)
		fail("/lab.conf: no channel or no root");
}

/* ---- modules and mounts ------------------------------------------------------------------------------- */

static void load_modules(void)
{
	for (int n = 0; n < conf.modules; n++) {
		size_t length;
		char *image = read_file(conf.module[n], &length);
		stage("loading %s", conf.module[n]);
		if (syscall(SYS_init_module, image, length, conf.parameters[n]) < 0 && errno != EEXIST)
			fail("module %s: %s", conf.module[n], strerror(errno));
		free(image);
		unlink(conf.module[n]); /* the initramfs is memory */
	}
}

static void make_directories(const char *path)
{
	char copy[4096];
	snprintf(copy, sizeof copy, "%s", path);
	for (char *at = copy + 1; (at = strchr(at, '/')); *at++ = '/') {
		*at = 0;
		mkdir(copy, 0755);
	}
	mkdir(copy, 0755);
}

/* Disks are found by the label of their ext4 file system, since Linux numbers them as they appear. */
static bool has_label(const char *disk, const char *label)
{
	char path[300], found[16] = "";
	bool same = false;
	snprintf(path, sizeof path, "/dev/%s", disk);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		same = pread(fd, found, sizeof found, EXT4_LABEL_AT) == sizeof found &&
		       strncmp(found, label, sizeof found) == 0;
		close(fd);
	}
	return same;
}

/* The device that a mount source names; LABEL=… is looked for among the disks. */
static const char *device(const char *source, char *path, size_t size)
{
	static const char prefix[] = "LABEL=";
	if (strncmp(source, prefix, strlen(prefix)) != 0)
		return source;
	DIR *disks = opendir("/sys/block");
	snprintf(path, size, "/dev/%s", source);
	for (struct dirent *disk; disks && (disk = readdir(disks));)
		if (has_label(disk->d_name, source + strlen(prefix)))
			snprintf(path, size, "/dev/%s", disk->d_name);
	if (disks)
		closedir(disks);
	return path;
}

static void attach(struct mount_source what, const char *where, unsigned long flags)
{
	struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
	char path[512];
	make_directories(where);
	stage("mounting %s of type %s on %s", what.source, what.type, where);
	for (int tries = conf.start_seconds * 50;; tries--) {
		if (mount(device(what.source, path, sizeof path), where, what.type, flags, what.options) == 0)
			return;
		/* a disk may still be on its way */
		if ((errno != ENOENT && errno != ENXIO && errno != ENODEV) || tries <= 0)
			fail("mounting %s of type %s on %s: %s", what.source, what.type, where, strerror(errno));
		nanosleep(&pause, NULL);
	}
}

/* A part of the usual tree that a lab can do without if the kernel lacks it. */
static void attach_if_there(const char *type, const char *where, const char *options)
{
	mkdir(where, 0755);
	mount(type, where, type, MS_NOSUID, options);
}

static void move_mount_to_new_root(const char *where)
{
	char to[64];
	snprintf(to, sizeof to, NEW_ROOT "%s", where);
	make_directories(to);
	if (mount(where, to, NULL, MS_MOVE, NULL) < 0)
		fail("moving %s: %s", where, strerror(errno));
}

/* The host's files under a file system in memory become the root. It is moved over the initramfs rather than
 * entered by chroot alone: a process that is chrooted may make no user namespace. */
static void change_root(void)
{
	char layers[MAX_ROOTS * 16] = "", options[sizeof layers + 64];
	size_t length = 0;
	for (int n = conf.roots - 1; n >= 0; n--) { /* the uppermost layer comes first */
		char where[24];
		snprintf(where, sizeof where, "/lower%d", n);
		attach(conf.root[n], where, MS_RDONLY);
		length += (size_t)snprintf(layers + length, sizeof layers - length, "%s%s", length ? ":" : "", where);
	}
	attach((struct mount_source){"memory", "tmpfs", "mode=0755"}, "/memory", 0);
	mkdir("/memory/upper", 0755);
	mkdir("/memory/work", 0755);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=/memory/upper,workdir=/memory/work", layers);
	attach((struct mount_source){"lab", "overlay", options}, NEW_ROOT, 0);
	move_mount_to_new_root("/proc");
	move_mount_to_new_root("/sys");
	move_mount_to_new_root("/dev");
	if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("changing the root: %s", strerror(errno));
}

static void furnish(void)
{
	static const char *const links[][2] = {
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	};
	for (size_t n = 0; n < sizeof links / sizeof *links; n++)
		if (symlink(links[n][0], links[n][1]) < 0 && errno != EEXIST)
			fail("%s: %s", links[n][1], strerror(errno));
	attach((struct mount_source){"devpts", "devpts", "mode=0620,gid=5,ptmxmode=0666"}, "/dev/pts", 0);
	attach_if_there("tmpfs", "/dev/shm", "mode=1777");
	attach_if_there("tmpfs", "/run", "mode=0755");
	attach_if_there("cgroup2", "/sys/fs/cgroup", "");
	attach_if_there("tracefs", "/sys/kernel/tracing", "");
	attach_if_there("debugfs", "/sys/kernel/debug", "");
	chmod("/dev/kvm", 0666);
}

static void start_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		ioctl(fd, SIOCSIFFLAGS, &request);
		close(fd);
	}
}

/* ---- the whole way ------------------------------------------------------------------------------------ */

static void detach_share(const struct job *job)
{
	sync();
	if (job->share && umount2(job->share, MNT_DETACH) < 0)
		fail("unmounting %s: %s", job->share, strerror(errno));
	sync();
}

static void report(const struct ending *end)
{
	uint8_t payload[2 + sizeof end->text] = {(uint8_t)end->how, (uint8_t)end->value};
	size_t length = strnlen(end->text, sizeof end->text);
	memcpy(payload + 2, end->text, length);
	channel_send(EXIT, 0, payload, 2 + length);
}

int main(void)
{
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	int console = open("/dev/console", O_RDWR);
	if (console < 0)
		console = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3 && console >= 0; fd++)
		dup2(console, fd);
	umask(022);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){1024, 512 * 1024});

	configure();
	if (conf.name && sethostname(conf.name, strlen(conf.name)) < 0)
		fail("host name %s: %s", conf.name, strerror(errno));
	load_modules();
	stage("opening %s", conf.channel_in);
	channel_open(conf.channel_in, conf.channel_out, conf.start_seconds);
	change_root();
	furnish();
	start_loopback();

	stage("waiting for its job");
	struct job job = receive_job();
	if (job.share)
		attach(conf.share, job.share, 0);
	stage("running the command");
	struct ending end = run_command(&job);
	stage("saving the results");
	detach_share(&job);
	report(&end);
	channel_await_hangup(HANGUP_SECONDS);
	power_off();
}
