/* The two ways into a container: as its first process, and into one that runs. */
#include "container.h"

#include <linux/memfd.h>
#include <linux/mount.h>
#include <linux/prctl.h>

enum { KEYCTL_JOIN_SESSION_KEYRING = 1, PROGRAM_MOST = 1 << 20 };

int own_program = -1;

static long sysctls(const struct json *list)
{
	JSON_EACH(one, list) {
		char path[256];
		format(path, sizeof path, "/proc/sys/%s", one->key);
		for (char *at = path + 10; *at; at++)
			*at = *at == '.' ? '/' : *at;
		TRY("write", "a setting of its namespaces", write_file(AT_FDCWD, path, json_string(one, "")), "%s ← %s", one->key, json_string(one, ""));
	}
	return 0;
}

static long names(const struct container *container, const struct json *config)
{
	const char *name = json_string(json_get(config, "hostname"), NULL), *domain = json_string(json_get(config, "domainname"), NULL);
	if (!(container->namespaces & CLONE_NEWUTS))
		return 0;
	if (name)
		TRY("sethostname", "its name", SYS(sethostname, name, strlen(name)), "%s", name);
	if (domain)
		TRY("setdomainname", "its domain", SYS(setdomainname, domain, strlen(domain)), "%s", domain);
	return 0;
}

/* Namespaces of others that config.json names by a path. */
static long join(const struct json *config)
{
	JSON_EACH(one, json_path(config, "linux.namespaces")) {
		const char *path = json_string(json_get(one, "path"), NULL);
		if (!path)
			continue;
		int fd = (int)TRY("openat", "a namespace that exists", SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0), "%s", path);
		TRY("setns", "joined", SYS(setns, fd, 0), "%s", path);
		SYS(close, fd);
	}
	return 0;
}

static long become_root(const struct container *container)
{
	if (!container->maps.uids)
		return 0;
	TRY("setresgid", "root of its user namespace", SYS(setresgid, 0, 0, 0), "0");
	TRY("setresuid", "root of its user namespace", SYS(setresuid, 0, 0, 0), "0");
	SYS(prctl, PR_SET_DUMPABLE, 1); /* its own /proc/self belongs to it again */
	return 0;
}

/* A copy of our program for this container alone: by /proc/1/exe its root could change the mode of the agent's own file. */
static int own_copy(void)
{
	int from = (int)SYS(openat, AT_FDCWD, "/proc/self/exe", O_RDONLY | O_CLOEXEC, 0);
	int copy = from < 0 ? from : (int)SYS(memfd_create, "pykvm-init", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	long done = copy < 0 ? copy : 1;
	while (done > 0)
		done = SYS(sendfile, copy, from, 0, PROGRAM_MOST);
	if (done >= 0)
		done = SYS(fcntl, copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	SYS(close, from);
	return done < 0 ? (int)done : copy;
}

static long first(const struct first_plan *plan)
{
	const struct container *container = plan->container;
	const struct json *config = json_get(plan->request, "config"), *process = json_get(config, "process");
	long failed = 0;
	char go;
	if (json_true(json_get(plan->request, "init")) && (own_program = own_copy()) < 0)
		return trouble_set(own_program, "memfd_create", "our own first process");
	if (SYS(read, STATUS_FD, &go, 1) != 1)
		SYS(exit_group, 127);
	SYS(setsid);
	failed = rights_early(process);
	if (failed >= 0)
		failed = join(config);
	if (failed >= 0)
		failed = become_root(container);
	if (failed >= 0 && container->namespaces & CLONE_NEWCGROUP)
		failed = STEP("unshare", "its own cgroup looks like the topmost one", SYS(unshare, CLONE_NEWCGROUP), "CLONE_NEWCGROUP");
	if (failed >= 0)
		failed = names(container, config);
	if (failed >= 0 && container->namespaces & CLONE_NEWNET)
		failed = network_inside(&plan->network);
	if (failed >= 0)
		failed = mounts_make(container, config, json_true(json_get(process, "terminal")));
	if (failed >= 0)
		failed = mounts_files(container, json_get(plan->request, "files"));
	if (failed >= 0)
		failed = sysctls(json_path(config, "linux.sysctl"));
	if (failed >= 0)
		failed = mounts_mask(config);
	if (failed >= 0)
		failed = root_enter();
	if (failed >= 0 && json_true(json_path(config, "root.readonly")))
		failed = STEP("mount", "nothing of it can be written", SYS(mount, "", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY, ""), "remount / read-only");
	if (failed < 0)
		return failed;
	SYS(keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0); /* the agent's keys are not its own */
	if (!json_true(json_get(plan->request, "start"))) {
		if ((failed = program_look(process)) < 0)
			return failed;
		tell_ready();
	}
	return rights_late(process, json_string(json_get(plan->request, "seccomp"), ""));
}

void first_body(const void *argument)
{
	const struct first_plan *plan = argument;
	if (first(plan) < 0)
		give_up();
	run_program(json_path(plan->request, "config.process"), json_true(json_get(plan->request, "init")));
}

/* ---- into one that runs ----------------------------------------------------------------------------------- */

static long enter(const struct container *container)
{
	TRY("setns", "all namespaces of the container at once", SYS(setns, KEPT_FD, container->namespaces), "the container's process %d", container->pid);
	if (container->namespaces & CLONE_NEWPID) { /* which only children are in */
		struct clone_args args = {.flags = CLONE_PARENT};
		long pid = TRY("clone3", "a process in its process namespace, the agent's child", SYS(clone3, &args, sizeof args), "CLONE_PARENT");
		if (pid) {
			tell_pid((int)pid);
			SYS(exit_group, 0);
		}
	}
	SYS(close, KEPT_FD);
	return 0;
}

void exec_body(const void *argument)
{
	const struct exec_plan *plan = argument;
	const struct json *process = json_get(plan->request, "process");
	long failed = rights_early(process);
	if (failed >= 0 && plan->container)
		failed = enter(plan->container);
	SYS(setsid);
	if (failed >= 0 && json_true(json_get(process, "terminal"))) {
		const char *path = plan->container ? "/dev/pts/ptmx" : "/dev/ptmx";
		failed = terminal_take((int)SYS(openat, AT_FDCWD, path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC, 0), json_get(process, "consoleSize"));
	}
	if (failed >= 0 && plan->container) {
		SYS(keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
		failed = rights_late(process, json_string(json_get(plan->request, "seccomp"), ""));
	} else if (failed >= 0) {
		failed = STEP("chdir", "where it begins", SYS(chdir, json_string(json_get(process, "cwd"), "/")), "%s", json_string(json_get(process, "cwd"), "/"));
	}
	if (failed < 0)
		give_up();
	run_program(process, false);
}
