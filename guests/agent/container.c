/* The life of a container: made, started, ended, deleted. */
#include "container.h"

#include <linux/signal.h>

struct container containers[CONTAINERS];
static struct { struct asker asker; struct container *container; struct asker deleting; } waiters[WAITERS];

struct container *container_find(const char *name)
{
	for (struct container *one = containers; one < containers + CONTAINERS; one++)
		if (one->state != UNUSED && same(one->name, name))
			return one;
	return NULL;
}

const char *container_state(const struct container *container)
{
	static const char *const names[] = {"none", "creating", "created", "running", "stopped"};
	return container->state == RUNNING && container->paused ? "paused" : names[container->state];
}

static bool is_name(const char *name)
{
	size_t size = strlen(name);
	if (!size || size > NAME_MOST || *name == '_' || *name == '.' || *name == '-')
		return false;
	for (; *name; name++)
		if (!(*name >= '0' && *name <= '9') && !((*name | 32) >= 'a' && (*name | 32) <= 'z') && *name != '_' && *name != '-' && *name != '.')
			return false;
	return true;
}

/* ---- steps ------------------------------------------------------------------------------------------------ */

static struct asker explained;

static void tell_step(const char *json, size_t size)
{
	send_json(explained.connection, EVENT, explained.id, json, size);
}

static void explain(struct asker asker, const struct json *request)
{
	explained = asker;
	explain_to = tell_step;
	explaining = json_true(json_get(request, "explain"));
}

/* ---- making one ------------------------------------------------------------------------------------------- */

static long read_maps(const struct json *list, struct map *maps, int *count)
{
	*count = 0;
	JSON_EACH(one, list) {
		if (*count == MAPS_MOST)
			return trouble_set(-E2BIG, "mappings", "more than %d", MAPS_MOST);
		maps[(*count)++] = (struct map){(uint32_t)json_number(json_get(one, "containerID"), 0), (uint32_t)json_number(json_get(one, "hostID"), 0),
						(uint32_t)json_number(json_get(one, "size"), 0)};
	}
	return 0;
}

static long read_namespaces(struct container *container, const struct json *config)
{
	static const struct { const char *type; uint64_t flag; } types[] = {
		{"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"network", CLONE_NEWNET}, {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS},
		{"user", CLONE_NEWUSER}, {"cgroup", CLONE_NEWCGROUP}, {"time", CLONE_NEWTIME}};
	container->namespaces = CLONE_NEWNS; /* without it a root of its own cannot be */
	JSON_EACH(one, json_path(config, "linux.namespaces")) {
		const char *type = json_string(json_get(one, "type"), "");
		size_t n = 0;
		while (n < COUNT(types) && !same(types[n].type, type))
			n++;
		if (n == COUNT(types))
			return trouble_set(-EINVAL, "namespaces", "%s", type);
		if (!json_get(one, "path")->type)
			container->namespaces |= types[n].flag;
	}
	if (!(container->namespaces & CLONE_NEWUSER)) {
		container->maps = (struct maps){.uids = 0};
		return 0;
	}
	long failed = read_maps(json_path(config, "linux.uidMappings"), container->maps.uid, &container->maps.uids);
	if (failed >= 0)
		failed = read_maps(json_path(config, "linux.gidMappings"), container->maps.gid, &container->maps.gids);
	if (failed >= 0 && (!container->maps.uids || !container->maps.gids))
		failed = trouble_set(-EINVAL, "mappings", "a user namespace has uidMappings and gidMappings");
	return failed;
}

/* The cgroup that a first process is made in, its namespaces, all but the cgroup namespace, which is rooted where the caller is. */
static long first_process(struct container *container, const struct first_plan *plan, struct asker asker)
{
	const struct json *request = plan->request, *process = json_path(request, "config.process");
	bool is_other = json_get(request, "runtime")->type;
	struct spawn how = {
		.role = FIRST, .container = container, .owner = asker, .flags = is_other ? 0 : container->namespaces & ~(uint64_t)CLONE_NEWCGROUP,
		.cgroup = is_other ? -1 : container->cgroup, .keep = -1, .terminal = json_true(json_get(process, "terminal")),
		.input = json_true(json_get(request, "stdin")), .output = true, .error = true, .explain = explaining,
		.body = is_other ? runtime_body : first_body, .argument = plan, .pidfd = &container->pidfd};
	container->init = spawn(&how);
	if (!container->init)
		return -1;
	container->init->waiting = asker;
	container->pid = container->init->pid;
	if (is_other)
		return 0;
	if (container->maps.uids) {
		long failed = maps_write(container->pid, &container->maps);
		if (failed < 0)
			return failed;
	}
	long failed = container->namespaces & CLONE_NEWNET ? network_attach(&plan->network, container->pid, (int)(container - containers)) : 0;
	return failed < 0 ? failed : process_go(container->init);
}

static long make(struct container *container, const struct json *request, struct asker asker)
{
	static struct first_plan plan;
	const struct json *config = json_get(request, "config");
	long failed = config->type == JSON_OBJECT ? 0 : trouble_set(-EINVAL, "create", "there is no config");
	if (failed >= 0)
		failed = read_namespaces(container, config);
	if (failed >= 0)
		failed = network_read(&plan.network, json_get(request, "network"));
	if (failed < 0)
		return failed;
	if (plan.network.kind == NET_HOST)
		container->namespaces &= ~(uint64_t)CLONE_NEWNET;
	else
		container->namespaces |= CLONE_NEWNET;
	plan.container = container;
	plan.request = request;
	bool is_other = json_get(request, "runtime")->type;
	if (is_other && (failed = runtime_check(request)) < 0)
		return failed;
	failed = cgroup_make(container, is_other ? NULL : json_path(config, "linux.resources")); /* another runtime sets limits itself */
	if (failed >= 0)
		failed = root_make(container, request);
	if (failed >= 0 && is_other)
		failed = runtime_bundle(container, request);
	if (failed >= 0)
		failed = shares_mount(json_get(config, "mounts"));
	if (failed >= 0)
		failed = files_write(container, json_get(request, "files"));
	return failed < 0 ? failed : first_process(container, &plan, asker);
}

void container_forget(struct container *container)
{
	if (container->pidfd >= 0)
		SYS(close, container->pidfd);
	cgroup_remove(container);
	root_remove(container);
	container->state = UNUSED;
}

void container_create(struct asker asker, const struct json *request)
{
	const char *name = json_string(json_get(request, "name"), "");
	struct container *container = containers;
	if (!is_name(name))
		return answer_error(asker, -EINVAL, "create", "a name is letters, digits and _.-, at most %d", NAME_MOST);
	if (container_find(name))
		return answer_error(asker, -EEXIST, "create", "there is a container %s", name);
	while (container < containers + CONTAINERS && container->state != UNUSED)
		container++;
	if (container == containers + CONTAINERS)
		return answer_error(asker, -EAGAIN, "create", "%d containers already", CONTAINERS);
	memset(container, 0, sizeof *container);
	format(container->name, sizeof container->name, "%s", name);
	container->state = CREATING;
	container->pidfd = container->cgroup = container->oom.fd = -1;
	container->owner = asker.connection;
	container->owner_id = asker.id;
	container->asked_ns = request_ns;
	container->remove = json_true(json_get(request, "start"));
	explain(asker, request);
	long failed = make(container, request, asker);
	explaining = false;
	if (failed >= 0)
		return;
	answer_trouble(asker);
	if (container->init) { /* it is waiting, and is told to go away */
		container->init->waiting.connection = NULL;
		container->remove = true;
		SYS(kill, container->pid, SIGKILL);
	} else {
		container_forget(container);
	}
}

void container_start(struct asker asker, struct container *container)
{
	if (container->state != CREATED)
		return answer_error(asker, -EBUSY, "start", "%s is %s", container->name, container_state(container));
	container->init->waiting = asker;
	container->asked_ns = request_ns;
	container->state = CREATING;
	process_go(container->init);
}

/* ---- into one that runs ----------------------------------------------------------------------------------- */

void container_exec(struct asker asker, struct container *container, const struct json *request)
{
	static struct exec_plan plan;
	const struct json *process = json_get(request, "process");
	plan.container = container;
	plan.request = request;
	if (container && container->state != RUNNING)
		return answer_error(asker, -ESRCH, "exec", "%s is %s", container->name, container_state(container));
	if (container && container->paused)
		return answer_error(asker, -EBUSY, "exec", "%s is paused", container->name);
	explain(asker, request);
	struct spawn how = {
		.role = EXECUTED, .container = container, .owner = asker, .cgroup = container ? container->cgroup : -1,
		.keep = container ? container->pidfd : -1, .terminal = json_true(json_get(process, "terminal")), .explain = explaining,
		.input = json_true(json_get(request, "stdin")), .output = true, .error = true, .body = exec_body, .argument = &plan};
	struct process *made = spawn(&how);
	explaining = false;
	if (made)
		made->waiting = asker;
	else
		answer_trouble(asker);
}

/* ---- the end ---------------------------------------------------------------------------------------------- */

static void exit_text(const struct container *container, struct text *text)
{
	text_format(text, "{\"event\":\"exit\",\"status\":%d", container->status);
	if (container->signal)
		text_format(text, ",\"signal\":%d", container->signal);
	text_format(text, ",\"oom_kills\":%d}", container->oom_kills);
}

static void delete_now(struct asker asker, struct container *container)
{
	container_forget(container);
	answer_empty(asker);
}

void container_ended(struct container *container, int wait_status)
{
	char bytes[128];
	struct text text = TEXT(bytes);
	bool was_started = !container->init->failed;
	container->oom_kills = (int)cgroup_oom_kills(container);
	container->signal = wait_status & 0x7f;
	container->status = container->signal ? 128 + container->signal : wait_status >> 8 & 0xff;
	container->init = NULL;
	container->state = STOPPED;
	container->paused = false;
	if (!(container->namespaces & CLONE_NEWPID))
		write_file(container->cgroup, "cgroup.kill", "1"); /* nobody else ends the others */
	exit_text(container, &text);
	if (was_started)
		event((struct asker){container->owner, container->owner_id}, &text);
	for (size_t n = 0; n < WAITERS; n++)
		if (waiters[n].container == container) {
			waiters[n].container = NULL;
			if (waiters[n].deleting.id)
				delete_now(waiters[n].deleting, container);
			else
				answer(waiters[n].asker, &text);
		}
	if (container->remove && !was_started && container->state == STOPPED)
		container_forget(container);
}

static void wait_for(struct container *container, struct asker asker, struct asker deleting)
{
	for (size_t n = 0; n < WAITERS; n++)
		if (!waiters[n].container) {
			waiters[n].asker = asker;
			waiters[n].deleting = deleting;
			waiters[n].container = container;
			return;
		}
	answer_error(asker, -EAGAIN, "wait", "%d wait already", WAITERS);
}

void container_wait(struct asker asker, struct container *container)
{
	char bytes[128];
	struct text text = TEXT(bytes);
	if (container->state != STOPPED)
		return wait_for(container, asker, (struct asker){NULL, 0});
	exit_text(container, &text);
	answer(asker, &text);
}

void container_delete(struct asker asker, struct container *container, bool force)
{
	if (container->state == STOPPED)
		return delete_now(asker, container);
	if (!force && container->state != CREATED)
		return answer_error(asker, -EBUSY, "delete", "%s is %s", container->name, container_state(container));
	wait_for(container, (struct asker){NULL, 0}, asker);
	signal_all(container, SIGKILL);
}

/* The agent's connections end: nobody hears of what they asked for. */
void on_disconnect(struct connection *connection)
{
	for (struct container *one = containers; one < containers + CONTAINERS; one++)
		if (one->owner == connection)
			one->owner = NULL;
	for (struct process *one = processes; one < processes + PROCESSES; one++) {
		if (one->waiting.connection == connection)
			one->waiting.connection = NULL;
		if (!one->used || one->owner.connection != connection)
			continue;
		one->owner.connection = NULL;
		if (one->role == HELPER || (one->role == EXECUTED && !one->container))
			SYS(kill, one->pid, one->role == HELPER ? SIGKILL : SIGHUP);
	}
	dials_forget(connection);
	for (size_t n = 0; n < WAITERS; n++) {
		if (waiters[n].asker.connection == connection)
			waiters[n].asker.connection = NULL;
		if (waiters[n].deleting.connection == connection)
			waiters[n].deleting.connection = NULL;
	}
}

/* ---- signals ---------------------------------------------------------------------------------------------- */

long signal_all(struct container *container, int number)
{
	static char text[65536];
	if (number == SIGKILL) {
		write_file(container->cgroup, "cgroup.kill", "1");
		return SYS(kill, container->pid, SIGKILL);
	}
	long got = read_file(container->cgroup, "cgroup.procs", text, sizeof text);
	for (char *at = text; got > 0 && *at;) {
		int64_t pid = number_of(at);
		if (pid > 1)
			SYS(kill, pid, number);
		while (*at && *at++ != '\n')
			;
	}
	return got < 0 ? got : 0;
}
