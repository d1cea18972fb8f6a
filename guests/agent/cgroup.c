/* Limits: a cgroup (version 2) for each container, /sys/fs/cgroup/pykvm/NAME. */
#include "container.h"

#include <linux/mount.h>

enum { TRIES = 100 };

long cgroup_start(void)
{
	static const char controllers[] = "+cpu +memory +pids +io +cpuset";
	TRY("mount", "limits", SYS(mount, "cgroup2", CGROUPS, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""), CGROUPS);
	TRY("write", "controllers", write_file(AT_FDCWD, CGROUPS "/cgroup.subtree_control", controllers), CGROUPS "/cgroup.subtree_control");
	TRY("mkdir", "all containers", SYS(mkdir, CGROUPS "/pykvm", 0755), CGROUPS "/pykvm");
	TRY("write", "controllers", write_file(AT_FDCWD, CGROUPS "/pykvm/cgroup.subtree_control", controllers), CGROUPS "/pykvm/cgroup.subtree_control");
	return 0;
}

static long limit(int cgroup, const char *file, const char *effect, const char *value)
{
	return STEP("write", effect, write_file(cgroup, file, value), "%s ← %s", file, value);
}

/* -1 is none. */
static const char *amount(int64_t value)
{
	static char text[24];
	return value < 0 ? "max" : format(text, sizeof text, "%l", value);
}

static long limit_memory(int cgroup, const struct json *memory)
{
	const struct json *most = json_get(memory, "limit"), *swap = json_get(memory, "swap"), *low = json_get(memory, "reservation");
	int64_t bytes = json_number(most, -1), both = json_number(swap, -1);
	long failed = 0;
	if (most->type)
		failed = limit(cgroup, "memory.max", "beyond it the kernel kills", amount(bytes));
	if (failed >= 0 && swap->type) {
		int64_t rest = both < 0 ? -1 : bytes > 0 && both >= bytes ? both - bytes : both;
		failed = limit(cgroup, "memory.swap.max", "memory that may go to disk", amount(rest));
		failed = failed == -ENOENT ? 0 : failed; /* a guest without swap */
	}
	if (failed >= 0 && low->type)
		failed = limit(cgroup, "memory.low", "memory that is taken from others first", amount(json_number(low, 0)));
	return failed;
}

static long limit_cpu(int cgroup, const struct json *cpu)
{
	const struct json *shares = json_get(cpu, "shares"), *quota = json_get(cpu, "quota"), *period = json_get(cpu, "period");
	const char *cpus = json_string(json_get(cpu, "cpus"), NULL), *mems = json_string(json_get(cpu, "mems"), NULL);
	char text[64];
	long failed = 0;
	int64_t part = json_number(shares, 0);
	if (part > 0) { /* 2 … 262144 as 1 … 10000 */
		part = part < 2 ? 2 : part > 262144 ? 262144 : part;
		format(text, sizeof text, "%l", 1 + (part - 2) * 9999 / 262142);
		failed = limit(cgroup, "cpu.weight", "its share when others want the CPU too", text);
	}
	if (failed >= 0 && (quota->type || period->type)) {
		format(text, sizeof text, "%s %l", amount(json_number(quota, -1)), json_number(period, 100000));
		failed = limit(cgroup, "cpu.max", "microseconds of CPU in each period", text);
	}
	if (failed >= 0 && cpus)
		failed = limit(cgroup, "cpuset.cpus", "the CPUs that it may use", cpus);
	if (failed >= 0 && mems)
		failed = limit(cgroup, "cpuset.mems", "the memory nodes that it may use", mems);
	return failed;
}

/* A disk by its number or by its name in the guest. */
static long throttle(int cgroup, const struct json *list, const char *key)
{
	JSON_EACH(one, list) {
		char text[96], number[32];
		const char *device = json_string(json_get(one, "device"), NULL);
		if (device) {
			long got = read_file(AT_FDCWD, PATH("/sys/class/block/%s/dev", device), number, sizeof number);
			if (got <= 0)
				return trouble_set(-ENODEV, "io.max", "there is no disk %s", device);
			number[got - 1] = 0;
		} else {
			format(number, sizeof number, "%l:%l", json_number(json_get(one, "major"), 0), json_number(json_get(one, "minor"), 0));
		}
		format(text, sizeof text, "%s %s=%s", number, key, amount(json_number(json_get(one, "rate"), -1)));
		long failed = limit(cgroup, "io.max", "bytes or requests a second to a disk", text);
		if (failed < 0)
			return failed;
	}
	return 0;
}

static long limit_io(int cgroup, const struct json *io)
{
	static const struct { const char *list, *key; } kinds[] = {
		{"throttleReadBpsDevice", "rbps"}, {"throttleWriteBpsDevice", "wbps"},
		{"throttleReadIOPSDevice", "riops"}, {"throttleWriteIOPSDevice", "wiops"}};
	long failed = 0;
	for (size_t n = 0; n < COUNT(kinds) && failed >= 0; n++)
		failed = throttle(cgroup, json_get(io, kinds[n].list), kinds[n].key);
	const struct json *weight = json_get(io, "weight");
	if (failed >= 0 && weight->type && json_number(weight, 0) > 0)
		failed = limit(cgroup, "io.weight", "its share of disks", amount(json_number(weight, 100)));
	return failed;
}

long cgroup_apply(int cgroup, const struct json *resources)
{
	const struct json *pids = json_path(resources, "pids.limit");
	long failed = limit_memory(cgroup, json_get(resources, "memory"));
	if (failed >= 0)
		failed = limit_cpu(cgroup, json_get(resources, "cpu"));
	if (failed >= 0 && pids->type)
		failed = limit(cgroup, "pids.max", "processes; beyond it fork fails", amount(json_number(pids, -1) > 0 ? json_number(pids, -1) : -1));
	if (failed >= 0)
		failed = limit_io(cgroup, json_get(resources, "blockIO"));
	if (failed >= 0)
		JSON_EACH(one, json_get(resources, "unified")) {
			for (const char *at = one->key; *at; at++)
				if (*at == '/')
					return trouble_set(-EINVAL, "unified", "%s", one->key);
			if ((failed = limit(cgroup, one->key, "as asked for", json_string(one, ""))) < 0)
				break;
		}
	return failed;
}

static void oom_ready(struct watch *watch, uint32_t events)
{
	struct container *container = (struct container *)((char *)watch - offsetof(struct container, oom));
	char bytes[64];
	struct text text = TEXT(bytes);
	int64_t kills = cgroup_oom_kills(container);
	(void)events;
	if (kills <= container->oom_told)
		return;
	container->oom_told = kills;
	text_format(&text, "{\"event\":\"oom\",\"kills\":%l}", kills);
	event((struct asker){container->owner, container->owner_id}, &text);
}

int64_t cgroup_oom_kills(const struct container *container)
{
	char text[512];
	long got = -1;
	if (container->state == STOPPED)
		return container->oom_kills;
	if (container->oom.fd >= 0) /* reading it from its start is also what makes it wait for the next */
		got = SYS(pread64, container->oom.fd, text, sizeof text - 1, 0);
	text[got > 0 ? got : 0] = 0;
	for (char *at = text; *at; at++)
		if ((at == text || at[-1] == '\n') && starts(at, "oom_kill "))
			return number_of(at + 9);
	return 0;
}

long cgroup_make(struct container *container, const struct json *resources)
{
	char path[128];
	format(path, sizeof path, CGROUPS "/pykvm/%s", container->name);
	TRY("mkdir", "a cgroup: what is limited and counted together", SYS(mkdir, path, 0755), "%s", path);
	container->cgroup = (int)TRY("openat", "to write its limits", SYS(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), "%s", path);
	long failed = resources ? cgroup_apply(container->cgroup, resources) : 0;
	if (failed >= 0 && resources)
		failed = devices_allow(container->cgroup, json_get(resources, "devices"));
	if (failed < 0)
		return failed;
	long fd = SYS(openat, container->cgroup, "memory.events", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0)
		loop_add(&container->oom, (int)fd, EPOLLPRI, oom_ready);
	return fd < 0 ? trouble_set(fd, "openat", "memory.events") : cgroup_oom_kills(container);
}

void cgroup_remove(struct container *container)
{
	loop_close(&container->oom);
	if (container->cgroup < 0)
		return;
	write_file(container->cgroup, "cgroup.kill", "1");
	SYS(close, container->cgroup);
	container->cgroup = -1;
	for (int tries = 0; tries < TRIES; tries++) { /* those who were killed may still be on their way out */
		struct { int64_t seconds, ns; } pause = {0, 2000000};
		if (SYS(rmdir, PATH(CGROUPS "/pykvm/%s", container->name)) != -EBUSY)
			return;
		reap();
		SYS(nanosleep, &pause, 0);
	}
}

static int64_t value_of(const char *text, const char *key)
{
	for (const char *at = text; *at; at++)
		if ((at == text || at[-1] == '\n') && starts(at, key) && at[strlen(key)] == ' ')
			return number_of(at + strlen(key) + 1);
	return -1;
}

long cgroup_freeze(struct container *container, bool frozen)
{
	char text[256];
	TRY("write", frozen ? "every process of it stands still" : "they go on", write_file(container->cgroup, "cgroup.freeze", frozen ? "1" : "0"), "cgroup.freeze ← %d", frozen);
	for (int tries = 0; tries < TRIES; tries++) {
		struct { int64_t seconds, ns; } pause = {0, 5000000};
		if (read_file(container->cgroup, "cgroup.events", text, sizeof text) < 0 || value_of(text, "frozen") == frozen) {
			container->paused = frozen;
			return 0;
		}
		SYS(nanosleep, &pause, 0);
	}
	write_file(container->cgroup, "cgroup.freeze", "0");
	return trouble_set(-EAGAIN, "cgroup.freeze", "a process does not stand still");
}
