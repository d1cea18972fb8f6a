/* What a container's process may do: limits, ids, capabilities, system calls. Then its program. */
#include "container.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/signal.h>
#include <linux/wait.h>
#include <linux/limits.h>

enum { GROUPS_MOST = 256, ARGUMENTS = 4096, FILTERS = 4096, LAST = CAP_LAST_CAP, MAY_EXECUTE = 1 };

/* ---- limits ----------------------------------------------------------------------------------------------- */

static const char *const limits[] = {"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS",
	"RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE",
	"RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME"};

long rights_early(const struct json *process)
{
	const struct json *score = json_get(process, "oomScoreAdj");
	char text[24];
	JSON_EACH(one, json_get(process, "rlimits")) {
		const char *type = json_string(json_get(one, "type"), "");
		int64_t both[2] = {json_number(json_get(one, "soft"), -1), json_number(json_get(one, "hard"), -1)};
		size_t n = 0;
		while (n < COUNT(limits) && !same(limits[n], type))
			n++;
		if (n == COUNT(limits))
			return trouble_set(-EINVAL, "prlimit64", "%s", type);
		TRY("prlimit64", "a limit of the process", SYS(prlimit64, 0, n, both, 0), "%s soft %l hard %l", type, both[0], both[1]);
	}
	if (score->type)
		TRY("write", "who is killed first when memory is short", write_file(AT_FDCWD, "/proc/self/oom_score_adj", format(text, sizeof text, "%l", json_number(score, 0))),
		    "/proc/self/oom_score_adj ← %s", text);
	return 0;
}

/* ---- capabilities ----------------------------------------------------------------------------------------- */

static const char *const capabilities[] = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
	"SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
	"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"};

static long bits_of(const struct json *list, uint64_t *bits)
{
	*bits = 0;
	JSON_EACH(one, list) {
		const char *name = json_string(one, "");
		size_t n = 0;
		name += starts(name, "CAP_") ? 4 : 0;
		while (n < COUNT(capabilities) && !same(capabilities[n], name))
			n++;
		if (n == COUNT(capabilities))
			return trouble_set(-EINVAL, "capset", "CAP_%s is not known", name);
		*bits |= 1ull << n;
	}
	return 0;
}

struct sets { uint64_t bounding, effective, permitted, inheritable, ambient; };

static long sets_of(const struct json *process, struct sets *sets)
{
	const struct json *all = json_get(process, "capabilities");
	long failed = bits_of(json_get(all, "bounding"), &sets->bounding);
	if (failed >= 0)
		failed = bits_of(json_get(all, "effective"), &sets->effective);
	if (failed >= 0)
		failed = bits_of(json_get(all, "permitted"), &sets->permitted);
	if (failed >= 0)
		failed = bits_of(json_get(all, "inheritable"), &sets->inheritable);
	return failed < 0 ? failed : bits_of(json_get(all, "ambient"), &sets->ambient);
}

static long drop_bounding(uint64_t kept)
{
	int dropped = 0;
	uint64_t start = step_start();
	for (int n = 0; n <= LAST; n++)
		if (!(kept >> n & 1)) {
			long failed = SYS(prctl, PR_CAPBSET_DROP, n);
			if (failed < 0 && failed != -EINVAL) /* EINVAL: a kernel that has fewer */
				return step_done(start, "prctl", "capabilities that nobody in it gets back", failed, "PR_CAPBSET_DROP CAP_%s", capabilities[n]);
			dropped++;
		}
	return step_done(start, "prctl", "capabilities that nobody in it can ever have", 0, "PR_CAPBSET_DROP of %d", dropped);
}

static long set_capabilities(const struct sets *sets)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	for (int n = 0; n < 2; n++)
		data[n] = (struct __user_cap_data_struct){(uint32_t)(sets->effective >> 32 * n), (uint32_t)(sets->permitted >> 32 * n),
							  (uint32_t)(sets->inheritable >> 32 * n)};
	char held[512] = "none";
	struct text names = {held, 0, sizeof held, false};
	for (size_t n = 0; n < COUNT(capabilities); n++)
		if (sets->effective >> n & 1)
			text_format(&names, names.used ? " %s" : "%s", capabilities[n]);
	TRY("capset", "what it may do now", SYS(capset, &head, data), "%s", held);
	for (int n = 0; n <= LAST; n++)
		if (sets->ambient >> n & 1)
			TRY("prctl", "a capability that programs keep", SYS(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, n, 0, 0), "PR_CAP_AMBIENT_RAISE CAP_%s", capabilities[n]);
	return 0;
}

/* ---- ids, system calls ------------------------------------------------------------------------------------ */

static long set_ids(const struct json *user)
{
	int64_t uid = json_number(json_get(user, "uid"), 0), gid = json_number(json_get(user, "gid"), 0);
	uint32_t groups[GROUPS_MOST];
	size_t count = 0;
	JSON_EACH(one, json_get(user, "additionalGids"))
		if (count < GROUPS_MOST)
			groups[count++] = (uint32_t)json_number(one, 0);
	TRY("setgroups", "no groups of the agent's", SYS(setgroups, count, groups), "%d groups", (int)count);
	TRY("setresgid", "its group", SYS(setresgid, gid, gid, gid), "%l", gid);
	SYS(prctl, PR_SET_KEEPCAPS, 1);
	TRY("setresuid", "its user", SYS(setresuid, uid, uid, uid), "%l", uid);
	return 0;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

static long set_seccomp(const char *hex)
{
	static struct sock_filter filters[FILTERS];
	size_t size = strlen(hex) / 2;
	if (!size)
		return 0;
	if (size % sizeof *filters || size > sizeof filters || strlen(hex) % 2)
		return trouble_set(-EINVAL, "seccomp", "%d bytes are no filter", (int)size);
	for (size_t n = 0; n < size; n++) {
		int high = digit(hex[2 * n]), low = digit(hex[2 * n + 1]);
		if (high < 0 || low < 0)
			return trouble_set(-EINVAL, "seccomp", "no hexadecimal digits");
		((uint8_t *)filters)[n] = (uint8_t)(high << 4 | low);
	}
	struct sock_fprog program = {(uint16_t)(size / sizeof *filters), filters};
	return STEP("seccomp", "a filter that every system call passes from now on", SYS(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "%d instructions", (int)program.len);
}

/* Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before that is gone. */
long rights_late(const struct json *process, const char *seccomp)
{
	bool is_sealed = json_true(json_get(process, "noNewPrivileges"));
	const char *cwd = json_string(json_get(process, "cwd"), "/");
	struct sets sets;
	long failed = sets_of(process, &sets);
	if (failed >= 0)
		failed = drop_bounding(sets.bounding);
	if (failed >= 0 && !is_sealed)
		failed = set_seccomp(seccomp);
	if (failed >= 0)
		failed = set_ids(json_get(process, "user"));
	if (failed >= 0)
		failed = set_capabilities(&sets);
	if (failed < 0)
		return failed;
	SYS(umask, json_number(json_path(process, "user.umask"), 022));
	TRY("chdir", "where it begins", SYS(chdir, cwd), "%s", cwd);
	if (is_sealed)
		TRY("prctl", "no program of it gains rights by its file", SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	return is_sealed ? set_seccomp(seccomp) : 0;
}

/* ---- the program ------------------------------------------------------------------------------------------ */

static char **list_of(const struct json *list, const char **to)
{
	size_t count = 0;
	JSON_EACH(one, list)
		if (count < ARGUMENTS - 1)
			to[count++] = json_string(one, "");
	to[count] = NULL;
	return (char **)(uintptr_t)to;
}

static long becomes(const char *path, char **arguments, char **environment)
{
	return SYS(execve, path, arguments, environment);
}

static long is_there(const char *path, char **arguments __attribute__((unused)), char **environment __attribute__((unused)))
{
	return SYS(faccessat, AT_FDCWD, path, MAY_EXECUTE);
}

/* As execvp: of all places the first that works, and the error that says most. */
static long at_each_place(long (*attempt)(const char *, char **, char **), char **arguments, char **environment)
{
	const char *places = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	long failed = -ENOENT, got;
	for (const char *at = arguments[0]; *at; at++)
		if (*at == '/')
			return attempt(arguments[0], arguments, environment);
	for (char **one = environment; *one; one++)
		if (starts(*one, "PATH="))
			places = *one + 5;
	while (*places && *arguments[0]) {
		char path[PATH_MOST];
		struct text text = TEXT(path);
		while (*places && *places != ':')
			text_bytes(&text, places++, 1);
		places += *places == ':';
		text_format(&text, "/%s", arguments[0]);
		got = attempt(path, arguments, environment);
		if (got != -ENOENT && got != -ENOTDIR)
			failed = got;
		if (got != -ENOENT && got != -ENOTDIR && got != -EACCES)
			return got;
	}
	return failed;
}

long program_look(const struct json *process)
{
	static const char *arguments[ARGUMENTS], *environment[ARGUMENTS];
	char **list = list_of(json_get(process, "args"), arguments), **variables = list_of(json_get(process, "env"), environment);
	const char *name = list[0] ? list[0] : "";
	bool is_relative = false;
	for (const char *at = name; *at; at++)
		is_relative |= *at == '/' && name[0] != '/';
	long failed = is_relative ? 0 : at_each_place(is_there, list[0] ? list : (char *[]){"", NULL}, variables);
	return failed < 0 ? trouble_set(failed, "execve", "%s", name) : 0;
}

void run_program(const struct json *process, bool with_init)
{
	static const char *arguments[ARGUMENTS + 1], *environment[ARGUMENTS];
	char **list = list_of(json_get(process, "args"), arguments + 1), **variables = list_of(json_get(process, "env"), environment);
	long failed = -ENOENT;
	if (!list[0])
		trouble_set(-EINVAL, "execve", "no program is named");
	else {
		step_done(step_start(), "execve", with_init ? "our own first process, which starts the program" : "the program begins; what was before it is gone",
			  0, "%s", list[0]);
		tell_begin();
		if (with_init) {
			arguments[0] = "pykvm-init";
			failed = SYS(execveat, own_program, "", arguments, variables, AT_EMPTY_PATH);
		} else {
			failed = at_each_place(becomes, list, variables);
		}
		trouble_set(failed, "execve", "%s", list[0]);
	}
	give_up();
}

/* ---- the inner init: process 1 of a container that asked for one ------------------------------------------ */

void inner_init(char **arguments, char **environment)
{
	uint64_t all = ~0ull, none = 0;
	int status, number;
	long found;
	SYS(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
	long child = SYS(fork);
	if (!child) {
		SYS(setpgid, 0, 0);
		SYS(ioctl, 0, TIOCSPGRP, &(int){(int)SYS(getpid)});
		SYS(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
		long failed = at_each_place(becomes, arguments + 1, environment);
		const char *line = PATH("%s: %s\n", arguments[1], error_text(-failed));
		write_all(2, line, strlen(line));
		SYS(exit_group, failed == -ENOENT ? 127 : 126);
	}
	for (;;) {
		number = (int)SYS(rt_sigtimedwait, &all, 0, 0, sizeof all);
		if (number > 0 && number != SIGCHLD && number != SIGTTIN && number != SIGTTOU)
			SYS(kill, child, number);
		while ((found = SYS(wait4, -1, &status, WNOHANG, 0)) > 0)
			if (found == child)
				SYS(exit_group, status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
	}
}
