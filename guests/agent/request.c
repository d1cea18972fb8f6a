/* Requests: what is asked for, and the one answer to each. */
#include "container.h"

#include <linux/signal.h>

char answer_bytes[ANSWER_MOST];
uint64_t request_ns;
__attribute__((noreturn)) void power_off(void);

void answer(struct asker asker, const struct text *json)
{
	if (json->full)
		return answer_error(asker, -E2BIG, "answer", "it is longer than %d bytes", ANSWER_MOST);
	send_json(asker.connection, ANSWER, asker.id, json->bytes, json->used);
}

void answer_empty(struct asker asker)
{
	send_json(asker.connection, ANSWER, asker.id, "{}", 2);
}

void answer_trouble(struct asker asker)
{
	char bytes[900];
	struct text text = TEXT(bytes);
	text_add(&text, "{\"error\":");
	trouble_json(&text);
	text_add(&text, "}");
	send_json(asker.connection, ANSWER, asker.id, bytes, text.used);
}

void answer_error(struct asker asker, long error, const char *step, const char *form, ...)
{
	char bytes[300];
	struct text text = TEXT(bytes);
	va_list arguments;
	va_start(arguments, form);
	text_list(&text, form, arguments);
	va_end(arguments);
	trouble_clear();
	trouble_set(error, step, "%s", bytes);
	answer_trouble(asker);
}

void event(struct asker asker, const struct text *json)
{
	send_json(asker.connection, EVENT, asker.id, json->bytes, json->used);
}

/* ---- small requests --------------------------------------------------------------------------------------- */

static void done(struct asker asker, long failed)
{
	if (failed < 0)
		answer_trouble(asker);
	else
		answer_empty(asker);
}

static void ask_signal(struct asker asker, struct container *container, const struct json *request)
{
	int number = (int)json_number(json_get(request, "signal"), SIGTERM);
	int pid = (int)json_number(json_get(request, "pid"), container ? container->pid : 0);
	struct process *process = process_find(container, pid);
	if (container && container->state == STOPPED)
		return answer_error(asker, -ESRCH, "signal", "%s has ended", container->name);
	if (container && json_true(json_get(request, "all")))
		return done(asker, signal_all(container, number));
	if (!process)
		return answer_error(asker, -ESRCH, "signal", "no process %d", pid);
	if (container && number == SIGKILL && container->paused)
		cgroup_freeze(container, false);
	long failed = SYS(kill, pid, number);
	done(asker, failed < 0 ? trouble_set(failed, "kill", "%d with %d", pid, number) : 0);
}

static void ask_resize(struct asker asker, const struct container *container, const struct json *request)
{
	int pid = (int)json_number(json_get(request, "pid"), container ? container->pid : 0);
	struct process *process = process_find(container, pid);
	if (!process || !process->has_terminal)
		return answer_error(asker, -ENOTTY, "resize", "process %d has no terminal", pid);
	resize(process, (int)json_number(json_get(request, "rows"), 24), (int)json_number(json_get(request, "columns"), 80));
	answer_empty(asker);
}

static void ask_rescan(struct asker asker)
{
	struct text text = TEXT(answer_bytes);
	text_add(&text, "{\"layers\":[");
	if (layers_scan(&text) < 0)
		return answer_trouble(asker);
	text_add(&text, "]}");
	answer(asker, &text);
}

static void ask_freeze(struct asker asker, struct container *container, bool frozen)
{
	if (container->state != RUNNING || container->paused == frozen)
		return answer_error(asker, -EBUSY, frozen ? "pause" : "unpause", "%s is %s", container->name, container_state(container));
	done(asker, cgroup_freeze(container, frozen));
}

/* ---- which is which --------------------------------------------------------------------------------------- */

static bool of_guest(struct asker asker, const char *operation, const struct json *request)
{
	bool is_named = json_get(request, "name")->type;
	if (same(operation, "create"))
		container_create(asker, request);
	else if (same(operation, "list"))
		ask_list(asker);
	else if (same(operation, "rescan"))
		ask_rescan(asker);
	else if (same(operation, "dial"))
		ask_dial(asker, request);
	else if (same(operation, "exec") && !is_named)
		container_exec(asker, NULL, request);
	else if (same(operation, "signal") && !is_named)
		ask_signal(asker, NULL, request);
	else if (same(operation, "resize") && !is_named)
		ask_resize(asker, NULL, request);
	else if (same(operation, "info") && !is_named)
		ask_info(asker, NULL);
	else if (same(operation, "shutdown")) {
		answer_empty(asker);
		power_off();
	} else
		return false;
	return true;
}

static void of_container(struct asker asker, const char *operation, struct container *container, const struct json *request)
{
	if (same(operation, "start"))
		container_start(asker, container);
	else if (same(operation, "exec"))
		container_exec(asker, container, request);
	else if (same(operation, "signal"))
		ask_signal(asker, container, request);
	else if (same(operation, "resize"))
		ask_resize(asker, container, request);
	else if (same(operation, "wait"))
		container_wait(asker, container);
	else if (same(operation, "pause"))
		ask_freeze(asker, container, true);
	else if (same(operation, "unpause"))
		ask_freeze(asker, container, false);
	else if (same(operation, "update"))
		done(asker, cgroup_apply(container->cgroup, json_get(request, "resources")));
	else if (same(operation, "stats"))
		ask_stats(asker, container);
	else if (same(operation, "top"))
		ask_top(asker, container);
	else if (same(operation, "info"))
		ask_info(asker, container);
	else if (same(operation, "which"))
		ask_which(asker, container, json_string(json_get(request, "path"), ""));
	else if (same(operation, "delete"))
		container_delete(asker, container, json_true(json_get(request, "force")));
	else if (same(operation, "stat"))
		ask_stat(asker, container, request);
	else if (same(operation, "diff") || same(operation, "export") || same(operation, "copy_out") || same(operation, "copy_in"))
		ask_tar(asker, container, request, operation);
	else
		answer_error(asker, -ENOSYS, "request", "%s is not known", operation);
}

static const char *unknown_key(const struct json *request)
{
	static const char *const keys[] = {"op", "name", "config", "layers", "upper", "rootfs", "seccomp", "network", "files", "init", "stdin", "start",
		"explain", "process", "signal", "pid", "all", "rows", "columns", "resources", "path", "follow", "content", "force", "address", "port", "runtime"};
	JSON_EACH(one, request) {
		size_t n = 0;
		while (n < COUNT(keys) && !same(keys[n], one->key))
			n++;
		if (n == COUNT(keys))
			return one->key;
	}
	return NULL;
}

void on_request(struct connection *connection, uint32_t id, char *body, size_t size)
{
	struct asker asker = {connection, id};
	const char *why, *unknown;
	trouble_clear();
	request_ns = now_ns();
	const struct json *request = json_read(body, size, &why);
	if (!request || request->type != JSON_OBJECT)
		return answer_error(asker, -EINVAL, "request", "%s", request ? "no object" : why);
	if ((unknown = unknown_key(request)))
		return answer_error(asker, -EINVAL, "request", "the key %s is not known", unknown);
	if (id_is_used(connection, id))
		return answer_error(asker, -EEXIST, "request", "id %l is in use", (int64_t)id);
	const char *operation = json_string(json_get(request, "op"), ""), *name = json_string(json_get(request, "name"), "");
	if (of_guest(asker, operation, request))
		return;
	struct container *container = container_find(name);
	if (!container)
		return answer_error(asker, -ENOENT, operation, "there is no container %s", name);
	of_container(asker, operation, container, request);
}
