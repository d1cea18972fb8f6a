/* A container whose first process another runtime makes: crun or runc, given the bundle that the agent has put together.
 *
 *   RUN/c/N       a tmpfs: config.json, r (the root, a union of the layers), what the runtime notes
 *
 * A process of the agent's calls `create` and then `start`, as podman and containerd do. What the runtime leaves, the first
 * process, becomes the agent's child then, so that all the rest is as with the agent's own: signals, limits, exec, the end. */
#include "container.h"

#include <linux/prctl.h>
#include <linux/signal.h>

enum { LOG_MOST = 16384 };

static const char *const calls[] = {"create", "start"};

/* Runs it to its end: its exit status, 128 and more for a signal, or -errno. */
static long call(const char *const arguments[])
{
	static const char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	struct clone_args args = {.exit_signal = SIGCHLD};
	int status = 0;
	long pid = SYS(clone3, &args, sizeof args);
	if (!pid) {
		SYS(prctl, PR_SET_PDEATHSIG, SIGKILL);
		SYS(exit_group, SYS(execve, arguments[0], arguments, environment) ? 127 : 0);
	}
	if (pid > 0)
		SYS(wait4, pid, &status, 0, 0);
	return pid < 0 ? pid : status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

static bool has(const char *text, const char *what)
{
	for (; *text; text++)
		if (starts(text, what))
			return true;
	return false;
}

/* The last thing it has written to its log is why. */
static long complain(const char *program, const char *log)
{
	static char text[LOG_MOST];
	const char *why, *line = text;
	long size = read_file(AT_FDCWD, log, text, sizeof text);
	while (size > 0 && text[size - 1] == '\n')
		text[--size] = 0;
	for (long n = 0; n < size; n++)
		if (text[n] == '\n')
			line = text + n + 1;
	const struct json *said = size > 0 ? json_read((char *)(uintptr_t)line, (size_t)(text + size - line), &why) : NULL;
	const char *what = said ? json_string(json_get(said, "msg"), "it does not say why") : "it does not say why";
	if (has(what, "ermission denied"))
		return trouble_set(-EACCES, "execve", "by %s: %s", program, what);
	if (has(what, "o such file") || has(what, "not found"))
		return trouble_set(-ENOENT, "execve", "by %s: %s", program, what);
	return trouble_set(-EIO, "runtime", "%s: %s", program, what);
}

static long run(const char *program, const char *top, const char *name, const char *which)
{
	char log[96], pid_file[96], root[96];
	const char *arguments[16] = {program, "--root", format(root, sizeof root, "%s/state", top), "--log",
				     format(log, sizeof log, "%s/log", top), "--log-format", "json", which};
	size_t n = 8;
	if (which == calls[0]) {
		arguments[n++] = "--bundle";
		arguments[n++] = top;
		arguments[n++] = "--pid-file";
		arguments[n++] = format(pid_file, sizeof pid_file, "%s/pid", top);
	}
	arguments[n] = name;
	long status = STEP("execve", which == calls[0] ? "the runtime makes the container" : "the runtime lets its program begin",
			   call(arguments), "%s %s %s", program, which, name);
	return status > 0 ? complain(program, log) : status;
}

static long make(const struct container *container, const struct json *runtime)
{
	char top[64], pid[32];
	const char *program = json_string(json_get(runtime, "program"), "");
	format(top, sizeof top, RUN "/c/%d", (int)(container - containers));
	long failed = run(program, top, container->name, calls[0]);
	if (failed < 0)
		return failed;
	if (read_file(AT_FDCWD, PATH("%s/pid", top), pid, sizeof pid) <= 0)
		return trouble_set(-EIO, "runtime", "%s says no pid", program);
	tell_pid((int)number_of(pid));
	tell_begin();
	failed = run(program, top, container->name, calls[1]);
	if (failed < 0)
		SYS(kill, number_of(pid), SIGKILL); /* it waits to begin */
	return failed;
}

void runtime_body(const void *argument)
{
	const struct first_plan *plan = argument;
	if (make(plan->container, json_get(plan->request, "runtime")) < 0)
		give_up();
	SYS(exit_group, 0);
	__builtin_unreachable();
}

long runtime_check(const struct json *request)
{
	const char *program = json_string(json_path(request, "runtime.program"), "");
	if (*program != '/' || SYS(access, program, 1) < 0)
		return trouble_set(-ENOENT, "runtime", "the guest was made without %s", program);
	if (!json_true(json_get(request, "start")) || json_true(json_get(request, "init")) || json_true(json_path(request, "config.process.terminal")))
		return trouble_set(-EINVAL, "runtime", "another runtime knows no create without start, no init and no terminal");
	return 0;
}

long runtime_bundle(const struct container *container, const struct json *request)
{
	const char *config = json_string(json_path(request, "runtime.config"), "");
	char path[96];
	format(path, sizeof path, RUN "/c/%d/config.json", (int)(container - containers));
	long fd = SYS(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return trouble_set(fd, "openat", "%s", path);
	long failed = write_all((int)fd, config, strlen(config));
	SYS(close, fd);
	return failed < 0 ? trouble_set(failed, "write", "%s", path) : 0;
}
