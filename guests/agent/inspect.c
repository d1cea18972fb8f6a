/* What a container is and does, in the kernel's own words: the host makes sense of them. */
#include "container.h"

enum { WORDS = 65536 };

static char words[WORDS];
static const char *const counted[] = {"cpu.stat", "cpu.pressure", "memory.current", "memory.peak", "memory.max", "memory.swap.current", "memory.stat",
	"memory.events", "memory.pressure", "pids.current", "pids.max", "pids.events", "pids.peak", "io.stat", "io.pressure", "cgroup.events"};
static const char *const limited[] = {"cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.cpus.effective", "cpuset.mems", "memory.low", "memory.high",
	"memory.swap.max", "io.max", "io.weight", "cgroup.freeze", "cgroup.procs", "cgroup.controllers"};
static const struct { const char *file, *name; } kinds[] = {
	{"mnt", "mnt"}, {"pid", "pid"}, {"net", "net"}, {"ipc", "ipc"}, {"uts", "uts"}, {"user", "user"}, {"cgroup", "cgroup"}, {"time", "time"}};

static void add_file(struct text *to, const char *key, int folder, const char *path)
{
	long size = read_file(folder, path, words, sizeof words);
	if (size < 0)
		return;
	text_format(to, to->bytes[to->used - 1] == '{' ? "%j:" : ",%j:", key);
	text_json(to, words, (size_t)size);
}

static void add_files(struct text *to, int cgroup, int pid, bool limits)
{
	text_add(to, "\"files\":{");
	for (size_t n = 0; n < COUNT(counted); n++)
		add_file(to, counted[n], cgroup, counted[n]);
	for (size_t n = 0; n < COUNT(limited) && limits; n++)
		add_file(to, limited[n], cgroup, limited[n]);
	if (pid)
		add_file(to, "net.dev", AT_FDCWD, PATH("/proc/%d/net/dev", pid));
	text_add(to, "}");
}

static void add_namespaces(struct text *to, const char *key, int pid)
{
	text_format(to, "%j:{", key);
	for (size_t n = 0; n < COUNT(kinds); n++) {
		char link[64];
		long size = SYS(readlink, PATH("/proc/%d/ns/%s", pid, kinds[n].file), link, sizeof link - 1);
		if (size < 0)
			continue;
		link[size] = 0; /* "mnt:[4026531841]" */
		text_format(to, to->bytes[to->used - 1] == '{' ? "%j:%l" : ",%j:%l", kinds[n].name, number_of(link + strlen(kinds[n].file) + 2));
	}
	text_add(to, "}");
}

static int running_pid(const struct container *container)
{
	return container->state == STOPPED ? 0 : container->pid;
}

void ask_stats(struct asker asker, struct container *container)
{
	struct text text = TEXT(answer_bytes);
	text_format(&text, "{\"at_ns\":%l,", (int64_t)now_ns());
	add_files(&text, container->cgroup, running_pid(container), false);
	text_add(&text, "}");
	answer(asker, &text);
}

void ask_top(struct asker asker, struct container *container)
{
	static char pids[65536];
	struct text text = TEXT(answer_bytes);
	long got = read_file(container->cgroup, "cgroup.procs", pids, sizeof pids);
	text_add(&text, "{\"processes\":[");
	for (char *at = pids; got > 0 && *at && text.used < ANSWER_MOST - 4 * WORDS;) {
		int pid = (int)number_of(at);
		if (text.bytes[text.used - 1] != '[')
			text_add(&text, ",");
		text_format(&text, "{\"pid\":%d", pid);
		add_file(&text, "stat", AT_FDCWD, PATH("/proc/%d/stat", pid));
		add_file(&text, "status", AT_FDCWD, PATH("/proc/%d/status", pid));
		add_file(&text, "cmdline", AT_FDCWD, PATH("/proc/%d/cmdline", pid));
		text_add(&text, "}");
		while (*at && *at++ != '\n')
			;
	}
	text_add(&text, "]}");
	answer(asker, &text);
}

static void info_of_guest(struct asker asker)
{
	struct text text = TEXT(answer_bytes);
	int cgroup = (int)SYS(openat, AT_FDCWD, CGROUPS, O_PATH | O_CLOEXEC, 0);
	text_add(&text, "{");
	add_namespaces(&text, "namespaces", 1);
	text_add(&text, ",");
	add_files(&text, cgroup, 1, true);
	add_file(&text, "mounts", AT_FDCWD, "/proc/1/mountinfo");
	add_file(&text, "meminfo", AT_FDCWD, "/proc/meminfo");
	add_file(&text, "uptime", AT_FDCWD, "/proc/uptime");
	add_file(&text, "version", AT_FDCWD, "/proc/version");
	add_file(&text, "cmdline", AT_FDCWD, "/proc/cmdline");
	text_add(&text, "}");
	SYS(close, cgroup);
	answer(asker, &text);
}

static void add_layers(struct text *to, const struct container *container)
{
	text_add(to, ",\"layers\":[");
	for (int n = 0; n < container->layer_count; n++) {
		int layer = container->layers[n];
		text_format(to, n ? ",{\"name\":%j," : "{\"name\":%j,", layer_name(layer));
		text_format(to, "\"path\":%j,\"device\":%j}", layer_path(layer), layer_device(layer));
	}
	text_add(to, "]");
}

void ask_info(struct asker asker, struct container *container)
{
	struct text text = TEXT(answer_bytes);
	if (!container)
		return info_of_guest(asker);
	int pid = running_pid(container);
	text_format(&text, "{\"state\":%j,\"pid\":%d,\"cgroup\":\"/pykvm/%s\",", container_state(container), pid, container->name);
	if (container->state == STOPPED)
		text_format(&text, "\"status\":%d,\"oom_kills\":%d,", container->status, container->oom_kills);
	add_namespaces(&text, "guest", 1);
	if (pid) {
		text_add(&text, ",");
		add_namespaces(&text, "namespaces", pid);
		add_file(&text, "cgroups", AT_FDCWD, PATH("/proc/%d/cgroup", pid));
		add_file(&text, "mounts", AT_FDCWD, PATH("/proc/%d/mountinfo", pid));
		add_file(&text, "process", AT_FDCWD, PATH("/proc/%d/status", pid));
		add_file(&text, "uid_map", AT_FDCWD, PATH("/proc/%d/uid_map", pid));
		add_file(&text, "gid_map", AT_FDCWD, PATH("/proc/%d/gid_map", pid));
	}
	text_add(&text, ",");
	add_files(&text, container->cgroup, pid, true);
	text_format(&text, ",\"rootfs\":%j,\"upper\":%j", container->rootfs, container->upper);
	add_layers(&text, container);
	text_add(&text, "}");
	answer(asker, &text);
}

void ask_list(struct asker asker)
{
	struct text text = TEXT(answer_bytes);
	text_add(&text, "{\"containers\":[");
	for (struct container *one = containers; one < containers + CONTAINERS; one++) {
		if (one->state == UNUSED)
			continue;
		text_format(&text, text.bytes[text.used - 1] == '[' ? "{\"name\":%j" : ",{\"name\":%j", one->name);
		text_format(&text, ",\"state\":%j,\"pid\":%d", container_state(one), running_pid(one));
		if (one->state == STOPPED)
			text_format(&text, ",\"status\":%d", one->status);
		text_add(&text, "}");
	}
	text_add(&text, "]}");
	answer(asker, &text);
}

/* ---- which layer a file comes from ------------------------------------------------------------------------ */

static const char *kind_at(const char *top, const char *path)
{
	struct stat about;
	char value[4] = {0};
	int folder = (int)SYS(openat, AT_FDCWD, top, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	int fd = folder < 0 ? folder : inside(folder, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	const char *kind = "absent";
	if (folder >= 0)
		SYS(close, folder);
	if (fd < 0)
		return kind;
	if (SYS(fstat, fd, &about) >= 0)
		switch (about.st_mode & S_IFMT) {
		case S_IFREG:
			kind = "file";
			break;
		case S_IFLNK:
			kind = "link";
			break;
		case S_IFDIR:
			kind = SYS(getxattr, PATH("/proc/self/fd/%d", fd), "trusted.overlay.opaque", value, sizeof value) > 0 && *value == 'y' ? "opaque" : "directory";
			break;
		default:
			kind = (about.st_mode & S_IFMT) == S_IFCHR && !about.st_rdev ? "whiteout" : "other";
		}
	SYS(close, fd);
	return kind;
}

void ask_which(struct asker asker, struct container *container, const char *path)
{
	struct text text = TEXT(answer_bytes);
	text_format(&text, "{\"upper\":%j,\"layers\":[", container->upper[0] ? kind_at(container->upper, path) : "absent");
	for (int n = 0; n < container->layer_count; n++)
		text_format(&text, n ? ",%j" : "%j", kind_at(layer_path(container->layers[n]), path));
	text_add(&text, "]}");
	answer(asker, &text);
}
